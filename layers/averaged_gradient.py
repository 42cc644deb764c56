r"""The published backward of `layers.norm.mabn`, averaged over batches: as one map of the data, and as that of χ alone.

Both write this step's Ψ_t into the ring of the last ones, at ``slot``, and read their mean where ``averaged`` says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.base import widened_affine
from layers.moments import channel_sums, combine_planes, laid_out_as
from layers.underivable import underivable

WHY = "MovingAverageBatchNorm has no second derivative: its gradient is averaged over batches"


def scale(
    x: Tensor, weight: Tensor, bias: Tensor, rstd: Tensor, r: Tensor, place: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return γ r s x + β of ``x`` that `layers.batch_kernels.suits_kernels`, with s = ``rstd`` = 1/√(V + ε), all (C,).

    ``place`` is the ring (m, C), the slot (1,) and whether Ψ is averaged ().
    """
    affine = widened_affine(x, weight, bias)
    y: Tensor = _Scaled.apply(x, *affine, rstd, r, *place)  # type: ignore[no-untyped-call]
    return y


def averaged_rstd(
    chi: Tensor, rstd: Tensor, place: tuple[Tensor, Tensor, Tensor], count: int, learned: Tensor
) -> Tensor:
    """Return ``rstd`` as a function of ``chi``, whose backward averages Ψ over ``place`` unless ``count`` is 0."""
    made: Tensor = _AveragedGradient.apply(chi, rstd, *place, count, learned)  # type: ignore[no-untyped-call]
    return made


class _Scaled(torch.autograd.Function):
    """γ r s x + β with s = 1/√(V + ε) in one kernel, and the published backward in two."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        rstd: Tensor,
        r: Tensor,
        ring: Tensor,
        slot: Tensor,
        averaged: Tensor,
    ) -> Tensor:
        ctx.ring = ring
        ctx.save_for_backward(x, weight, rstd, r, slot, averaged)
        scale = weight * r * rstd
        return torch.native_batch_norm(
            x, scale, bias, torch.zeros_like(scale), torch.ones_like(scale), False, 0.0, 0.0
        )[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, r, slot, averaged = ctx.saved_tensors
        with torch.no_grad():
            grad, gain = laid_out_as(grads[0], x), weight * r
            zero = torch.zeros_like(gain)
            total, product = channel_sums(grad, x, zero, rstd)
            psi = _averaged(gain * product * (x.shape[1] / x.numel()), ctx.ring, slot, averaged)
            of_x = combine_planes(grad, gain * rstd, x, -psi * rstd.square(), zero)
            found = of_x, r * product, total
        return *(underivable(each, grads[0], x, weight, why=WHY) for each in found), *[None] * 5


def _averaged(psi: Tensor, ring: Tensor, slot: Tensor, averaged: Tensor) -> Tensor:
    """Keep Ψ_t in the ring and return Ψ."""
    ring.index_copy_(0, slot, psi.to(ring.dtype)[None])
    return torch.where(averaged, ring.to(psi.dtype).mean(0), psi)


class _AveragedGradient(torch.autograd.Function):
    """s = 1/√(V + ε) as a function of χ_t, whose backward says what the averaged Ψ says and keeps Ψ_t in the ring.

    ∂L/∂s is Σ γ r x ∂L/∂y, so that Ψ_t = s ∂L/∂s / count; and the engine turns a gradient h of χ_t into 2 h x / count,
    which is −z Ψ s for h = −½ count Ψ s². ``learned`` is there to be backpropagated to, so that Ψ_t is kept though x
    itself needs no gradient.
    """

    @staticmethod
    def forward(
        chi: Tensor, rstd: Tensor, ring: Tensor, slot: Tensor, averaged: Tensor, count: int, learned: Tensor
    ) -> Tensor:
        return rstd.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        chi, _, ctx.ring, slot, averaged, ctx.count, _ = inputs
        ctx.save_for_backward(chi, output, slot, averaged)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        chi, rstd, slot, averaged = ctx.saved_tensors
        with torch.no_grad():
            psi = grad * rstd / max(1, ctx.count)
            if ctx.count:
                psi = _averaged(psi, ctx.ring, slot, averaged)
            of_chi = -0.5 * ctx.count * psi * rstd.square()
        return underivable(of_chi, grad, chi, why=WHY), *[None] * 6
