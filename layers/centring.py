"""Taking away the mean of each channel, or filter, and nothing else: one reduction and one shift, forward and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.dimensions import is_small, is_tiny
from layers.moments import is_channels_last, needs_plain_operations, planes_of, wide_dtype


def center(x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x − mean + shift for ``x`` (N, C, *positions), in its dtype, and the mean (C,), float32 or wider.

    ``shift`` (C,), of the dtype of the mean, or None. Both are differentiable as often as wanted; nothing is saved.
    """
    if needs_plain_operations() or is_tiny(x.numel()):
        mean = x.sum((0, *range(2, x.dim())), dtype=wide_dtype(x.dtype)) / max(1, x.numel() // x.shape[1])
        return shifted(x, -mean if shift is None else shift - mean), mean
    centred: tuple[Tensor, Tensor] = _Center.apply(x, shift)  # type: ignore[no-untyped-call]
    return centred


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """Return ``x`` (N, C, *positions) + ``shift`` (C,), rounded once to the dtype of ``x``."""
    return (x + shift.view(-1, *(1,) * (x.dim() - 2))).to(x.dtype)


class _Center(torch.autograd.Function):
    """(x, shift) → (x − mean + shift, mean). Its transpose is itself, so that every derivative is one more call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.like = x.shape, x.dtype, x.device
        return _centered(x, shift)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None]:
        grad, grad_mean = grads
        shape, dtype, device = ctx.like
        grad = torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
        count = max(1, shape.numel() // shape[1])
        shift = None if grad_mean is None else grad_mean / count
        center = _Center.apply if torch.is_grad_enabled() else _centered  # without a graph not worth a node
        found, mean = center(grad, shift)
        return found, mean * count if ctx.needs_input_grad[1] else None


def _centered(x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = wide_dtype(x.dtype)
    x = x if is_channels_last(x) else x.contiguous()
    rows = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    mean = rows.sum(2, dtype=wide).sum(0).div_(max(1, x.numel() // x.shape[1]))
    if x.dtype == wide and is_small(x.numel(), 2):
        return x - planes_of(mean if shift is None else mean - shift, x), mean
    # Evaluation-mode batch normalization with unit variance and ε = 0: the one kernel that shifts any dtype.
    return torch.native_batch_norm(x, None, shift, mean, torch.ones_like(mean), False, 0.0, 0.0)[0], mean
