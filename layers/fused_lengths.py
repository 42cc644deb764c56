"""Rows scaled to a length, g v/‖v‖, by torch's kernel of weight normalization: one pass forward, one back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.definition import through_definition
from layers.moments import needs_plain_operations
from layers.rows import LONG


def suits_kernel(rows: Tensor, gain: Tensor) -> bool:
    """Whether torch's kernel may do it: it adds the squares of a row in float32, of longer ones too inexactly."""
    same = rows.dtype == gain.dtype and rows.dtype in (torch.float32, torch.float64, torch.bfloat16)
    return same and rows.device.type == "cpu" and 0 < rows.shape[1] <= LONG and not needs_plain_operations()


def scaled_to(rows: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return g v/‖v‖ of the ``rows`` v (O, I), with a ``gain`` g (O, 1), and ‖v‖ (O, 1), which has no gradient."""
    made: tuple[Tensor, Tensor] = _Fused.apply(rows, gain)  # type: ignore[no-untyped-call]
    return made


class _Fused(torch.autograd.Function):
    """torch's kernel, forward and backward; not its second derivative, which is wrong."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        made, length = torch._weight_norm_interface(rows, gain, 0)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(length)
        ctx.save_for_backward(rows, gain, length)
        return made, length

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (rows, gain, length), grad = ctx.saved_tensors, grads[0]
        if grad is None:
            return None, None
        if torch.is_grad_enabled():
            return through_definition(_define, (rows, gain), ctx.needs_input_grad, (grad,))
        found: tuple[Tensor, Tensor] = torch.ops.aten._weight_norm_interface_backward(
            grad.contiguous(), rows.contiguous(), gain, length, 0
        )
        return found


def _define(rows: Tensor, gain: Tensor) -> tuple[Tensor]:
    return (gain * rows / rows.square().sum(1, keepdim=True).sqrt(),)
