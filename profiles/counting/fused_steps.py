"""Operations of torch's kernels that make the whole step of an optimizer, by the convention of `flops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Args = Sequence[Any]

# Per number: m (3), v (4), its root, the correction of its bias and ε (3), the step along the quotient (3).
ADAM = 13


def _adam(decay: int) -> Callable[[Args, Mapping[str, Any], Any], int]:
    """Adam's step, with ``decay`` operations for a weight decay, one for maximize."""

    def formula(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
        per_number: int = ADAM + (decay if kwargs["weight_decay"] else 0) + bool(kwargs["maximize"])
        return per_number * sum(int(parameter.numel()) for parameter in args[0])

    return formula


def _sgd(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """SGD with momentum: v (3) and the step along it (2), and 2 for a weight decay; of Nesterov's step 2 more."""
    per_number = 5 + (2 if kwargs["weight_decay"] else 0) + (2 if kwargs["nesterov"] else 0) + bool(kwargs["maximize"])
    return per_number * sum(int(parameter.numel()) for parameter in args[0])


FUSED_STEPS = {"_fused_adam_": _adam(2), "_fused_adamw_": _adam(1), "_fused_sgd_": _sgd}
