"""Counting torch's fused kernels: softmax, the normalization of a weight, whole steps of optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from profiles.counting.fused_steps import FUSED_STEPS


def _softmax(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Per row of n: n − 1 to the maximum and to the sum, n to subtract, to the exponential and to divide."""
    return int(5 * out.numel() - 2 * (out.numel() // max(1, out.shape[args[1]])))


def _softmax_backward(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """y (g − Σ g y), per row of n: n products and n − 1 sums, then n differences and n products."""
    return int(4 * out.numel() - out.numel() // max(1, out.shape[args[2]]))


def _weight_norm(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """w = v g/‖v‖: 2 per element to the norms, g/‖v‖ once per row, 1 per element to scale."""
    return int(3 * args[0].numel() + args[1].numel())


def _weight_norm_backward(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """s = Σ ∂w v, ∂g = s/‖v‖ and ∂v = (∂w − v s/‖v‖²) g/‖v‖: 5 per element, and per row −1, 1 and 3."""
    return int(5 * args[1].numel() + 3 * args[2].numel())


FUSED_KERNELS: dict[str, Callable[[Sequence[Any], Mapping[str, Any], Any], int]] = {
    **FUSED_STEPS,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_softmax_backward_data": _softmax_backward,
    "_weight_norm_interface": _weight_norm,
    "_weight_norm_interface_backward": _weight_norm_backward,
}
