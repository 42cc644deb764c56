"""Batch normalization in few kernels: which inputs torch's own suits, and one for large contiguous maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.base import widened_affine
from layers.channels_last import suits_torch_kernels, well_conditioned
from layers.dimensions import is_small
from layers.moments import (
    channel_sums,
    combine_planes,
    is_channels_last,
    needs_plain_operations,
    plane_moments,
    planes_of,
    wide_dtype,
)

CHAIN = 1 << 17  # values per channel


def suits_torch(x: Tensor) -> bool:
    """Whether `normalize_by_torch` may take ``x``, and is the faster way: torch's kernel of training, on a processor.

    On contiguous maps that sums float32 in float64, which takes long on large ones. On channels_last it sums one value
    after the other in float32, which of too many leaves too little.
    """
    if x.device.type != "cpu" or x.numel() == 0 or needs_plain_operations():
        return False
    if x.is_contiguous():
        return x.dtype.itemsize < 4 or is_small(x.numel(), x.shape[2:].numel())
    return is_channels_last(x) and x.numel() // x.shape[1] <= CHAIN and suits_torch_kernels(x)


def normalize_by_torch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, μ and 1/√(σ² + ε) (C,) of ``x`` (N, C, *positions); moves the running statistics, if there are any.

    A sum of float32 one after the other has few digits left for the spread of data with a large mean. Where the result
    tells such on channels_last, it is made again of data shifted by the mean that it found.
    """
    weight, bias = widened_affine(x, weight, bias)
    wide = wide_dtype(x.dtype)
    # As .data: the graph holds them, though backward does not read them, and another forward may move them before it.
    mean, var = (t if t is None else t.data if t.dtype == wide else t.to(wide) for t in (running_mean, running_var))
    doubtful = x.dtype == torch.float32 and not x.is_contiguous()
    before = [t.clone() if doubtful and t is not None else t for t in (mean, var)]
    y, center, rstd = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
    again = doubtful and not well_conditioned(center, rstd)
    if again:
        (mean, var), shift = before, center
        y, center, rstd = torch.native_batch_norm(x - planes_of(shift, x), weight, bias, mean, var, True, momentum, eps)
        center = center + shift
        mean = None if mean is None else mean.add(shift, alpha=momentum)
    for kept, moved in ((running_mean, mean), (running_var, var)):
        if kept is not None and moved is not None and (again or kept.dtype != wide):
            kept.copy_(moved)
    return y, center, rstd


def suits_kernels(x: Tensor) -> bool:
    """Whether `normalize` may take ``x``: contiguous planes of several positions, and nobody is looking inside."""
    return x.is_contiguous() and x.shape[2:].numel() > 1 and x.numel() > 0 and not needs_plain_operations()


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, μ, σ² and 1/√(σ² + ε) (C,) of ``x`` (N, C, *positions) that `suits_kernels`; y alone has a gradient."""
    made: tuple[Tensor, Tensor, Tensor, Tensor] = _Normalize.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, eps
    )
    return made


class _Normalize(torch.autograd.Function):
    """Contiguous data: torch's kernel of evaluation, by the moments of this batch.

    What `Planes` records operation by operation on N×C numbers is done here once on C, which on small maps is most of
    the time. torch's own training takes twice as long for the statistics of large maps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own, spread = plane_moments(x)
        mean = own.mean(0)
        own -= mean
        var = spread.addcmul_(own, own).mean(0)  # as `pool` does it
        weight, bias = (None if t is None else t.to(var.dtype) for t in (weight, bias))
        y = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        ctx.set_materialize_grads(False)
        rstd = (var + eps).rsqrt_()
        ctx.mark_non_differentiable(mean, var, rstd)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, rstd)
        return y, mean, var, rstd

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, *_ = grads
        if grad is None:
            return None, None, None, None
        x, weight, mean, rstd = ctx.saved_tensors
        grad, needed = grad.contiguous(), list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # double backward: that of training is slower, but differentiable in turn
            found = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, None, None, mean, rstd, True, ctx.eps, needed
            )
            return *(each if wanted else None for each, wanted in zip(found, needed, strict=True)), None
        total, product = channel_sums(grad, x, mean, rstd)
        scale = rstd if weight is None else rstd * weight
        share = scale / (-x.numel() // x.shape[1])
        slope = share * rstd * product
        offset = torch.addcmul(share * total, slope, mean, value=-1)
        grad_x = combine_planes(grad, scale, x, slope, offset)
        return grad_x, product if needed[1] else None, total if needed[2] else None, None
