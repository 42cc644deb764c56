"""Operations of torch's kernels that make the whole step of an optimizer, by the convention of `flops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Args = Sequence[Any]

# Per number: m (3), v (4), its root, the correction of its bias and ε (3), the step along the quotient (3).
ADAM = 13


def _adam(decay: int) -> Callable[[Args, Mapping[str, Any], Any], int]:
    """Adam's step, with ``decay`` operations for a weight decay, one for maximize and one for the greatest v."""

    def formula(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
        more: int = (decay if kwargs["weight_decay"] else 0) + bool(kwargs["maximize"]) + bool(kwargs["amsgrad"])
        return (ADAM + more) * sum(int(parameter.numel()) for parameter in args[0])

    return formula


def _sgd(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """SGD: the step (2), v (3) where there is momentum, 2 more of Nesterov's step, and 2 for a weight decay."""
    momentum = (5 if kwargs["nesterov"] else 3) if kwargs["momentum"] else 0
    per_number = 2 + momentum + (2 if kwargs["weight_decay"] else 0) + bool(kwargs["maximize"])
    return per_number * sum(int(parameter.numel()) for parameter in args[0])


FUSED_STEPS = {"_fused_adam_": _adam(2), "_fused_adamw_": _adam(1), "_fused_sgd_": _sgd}
