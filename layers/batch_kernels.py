"""Batch normalization in few kernels: torch's own where it is the fastest, else moments and then one affine map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from layers.base import widened_affine
from layers.channels_last import suits_torch_kernels, well_conditioned, well_found
from layers.dimensions import is_small, is_tiny
from layers.moments import (
    channel_sums,
    combine_planes,
    is_channels_last,
    laid_out_as,
    needs_plain_operations,
    plane_moments,
    planes_of,
    scale_rows,
    wide_dtype,
)
from layers.observe import is_followed

CHAIN = 1 << 17  # values per channel
SHIFTS = 3  # a mean of a chain may be off by a thousandth, so that each shift takes as many digits away


def suits_torch(x: Tensor) -> bool:
    """Whether `normalize_by_torch` may take ``x``, and is the faster way: torch's kernel of training, on a processor.

    On contiguous maps that sums float32 in float64, which takes long on large ones. On channels_last it sums one value
    after the other in float32, which of too many leaves too little.
    """
    if x.device.type != "cpu" or not suits_kernels(x):
        return False
    return sums_fast(x) or is_small(x.numel(), x.shape[2:].numel())


def sums_fast(x: Tensor) -> bool:
    """Whether torch's kernel on a processor takes few passes' time for the moments of ``x``."""
    return x.device.type == "cpu" and (x.dtype.itemsize < 4 or not x.is_contiguous())


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
    tells such on channels_last, it is made again of data shifted by the mean that it found, while that tells so.
    """
    weight, bias = widened_affine(x, weight, bias)
    wide = wide_dtype(x.dtype)
    # As .data: the graph holds them, though backward does not read them, and another forward may move them before it.
    mean, var = (t if t is None else t.data if t.dtype == wide else t.to(wide) for t in (running_mean, running_var))
    doubtful = x.dtype == torch.float32 and not x.is_contiguous()
    before = [t.clone() if doubtful and momentum < 1 and t is not None else t for t in (mean, var)]
    y, center, rstd = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
    again, shift, left = False, center, center
    for _ in range(SHIFTS if doubtful else 0):
        if well_conditioned(left, rstd):
            break
        again, shift = True, center
        mean, var = (None if t is None else t.clone() for t in before)
        y, left, rstd = torch.native_batch_norm(x - planes_of(shift, x), weight, bias, mean, var, True, momentum, eps)
        center = left + shift
    if again and mean is not None:
        mean = mean.add(shift, alpha=momentum)
    for kept, moved in ((running_mean, mean), (running_var, var)):
        if kept is None or moved is None:
            continue
        if again or kept.dtype != wide:
            kept.copy_(moved)
        else:  # an evaluation may have kept them for its backward, which must see that they moved
            increment_version(kept)
    return y, center, rstd


def suits_kernels(x: Tensor) -> bool:
    """Whether `channel_moments`, `standardize` and `normalize` may take ``x``, and nobody is looking inside."""
    if x.numel() == 0 or needs_plain_operations():
        return False
    if x.is_contiguous():
        return x.device.type == "cpu" or x.shape[2:].numel() > 1
    few = x.numel() // x.shape[1] <= CHAIN
    return few and x.device.type == "cpu" and is_channels_last(x) and suits_torch_kernels(x)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, lent: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, μ, σ² and 1/√(σ² + ε) (C,) of ``x`` (N, C, *positions) that `suits_kernels`; y alone has a gradient.

    Given the running mean and variance, ``lent``, the kernel of `normalize_by_torch` is taken where it is the faster:
    what it writes into those, if all of it is new, are the moments, and what was in them is put back. Its graph keeps
    them, so that others would be memory of their own.
    """
    count = x.numel() // x.shape[1]
    if lent is not None and count > 1 and (sums_fast(x) or is_tiny(x.numel())) and not is_followed():
        wide = wide_dtype(x.dtype)
        mean, var = (t.data if t.dtype == wide else torch.zeros_like(t, dtype=wide) for t in lent)
        before = mean.clone(), var.clone()
        try:
            mean.zero_()  # of an infinity nothing would be left but NaN
            var.zero_()
            y, center, rstd = normalize_by_torch(x, weight, bias, mean, var, 1.0, eps)
            return y, center, var * ((count - 1) / count), rstd
        finally:
            mean.copy_(before[0])
            var.copy_(before[1])
    mean, var = (t[0] for t in channel_moments(x))
    rstd = (var + eps).rsqrt_()
    return standardize(x, weight, bias, mean, var, rstd, eps), mean, var, rstd


def channel_moments(x: Tensor, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (parts, C), in float32 or wider, of ``x`` that `suits_kernels`; no gradient.

    The batch is cut into ``parts`` of consecutive samples, which divide it.
    """
    x = x.detach()
    if sums_fast(x) and parts == 1:
        mean, var = _moments_by_torch(x)
        return mean[None], var[None]
    if sums_fast(x):
        means, variances = zip(*map(_moments_by_torch, x.chunk(parts)), strict=True)
        return torch.stack(means), torch.stack(variances)
    channels, positions = x.shape[1], x.shape[2:].numel()
    if x.device.type == "cpu" and is_small(x.numel(), positions):  # each channel as one row of group normalization
        size = x.numel() // (parts * channels)
        rows = x.view(parts, -1, channels, positions).transpose(1, 2).reshape(parts, channels, size).contiguous()
        _, mean, rstd = torch.native_group_norm(rows, None, None, parts, channels, size, channels, 0.0)
        return mean, rstd.pow_(-2)
    own, spread = (t.view(parts, -1, channels) for t in plane_moments(x))
    mean = own.mean(1, keepdim=True)
    own -= mean
    return mean.squeeze(1), spread.addcmul_(own, own).mean(1)  # as `pool` does it


def standardize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, rstd: Tensor, eps: float
) -> Tensor:
    """Return γ (x − μ)/√(σ² + ε) + β by the moments (C,) of ``x`` itself, whose gradient goes through them too.

    ``weight`` and ``bias`` (C,) may depend on the moments, as constants: that is Batch Renormalization.
    """
    weight, bias = widened_affine(x, weight, bias)
    y: Tensor = _Standardize.apply(x, weight, bias, mean, var, rstd, eps)  # type: ignore[no-untyped-call]
    return y


class _Standardize(torch.autograd.Function):
    """torch's kernel of evaluation, by the moments of this batch; its backward of training, but on large maps.

    What `Planes` records operation by operation on N×C numbers is done here once on C, which on small maps is most of
    the time. torch's own training takes twice as long for the statistics of large maps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        rstd: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, rstd)
        return by_moments(x, weight, bias, mean, var, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return (None,) * 7
        x, weight, mean, rstd = ctx.saved_tensors
        grad, needed = laid_out_as(grad, x), list(ctx.needs_input_grad[:3])
        slow = x.is_contiguous() and x.dtype.itemsize >= 4 and not is_small(x.numel(), x.shape[2:].numel())
        if not slow or torch.is_grad_enabled():  # double backward: that of training is differentiable in turn
            found = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, None, None, mean, rstd, True, ctx.eps, needed
            )
            return *(each if wanted else None for each, wanted in zip(found, needed, strict=True)), *[None] * 4
        total, product = channel_sums(grad, x, mean, rstd)
        scale = rstd if weight is None else rstd * weight
        share = scale / (-x.numel() // x.shape[1])
        slope = share * rstd * product
        offset = torch.addcmul(share * total, slope, mean, value=-1)
        grad_x = combine_planes(grad, scale, x, slope, offset)
        return grad_x, product if needed[1] else None, total if needed[2] else None, *[None] * 4


def by_moments(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """γ (x − μ)/√(σ² + ε) + β by given numbers (C,): torch's kernel of evaluation, which is slow on channels_last."""
    if weight is None or bias is None or x.is_contiguous() or x.dtype != weight.dtype:
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
    scale = (var + eps).rsqrt_().mul_(weight)
    return scale_rows(x, scale, torch.addcmul(bias, scale, mean, value=-1))


def _moments_by_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    """`channel_moments` by the kernel of `normalize_by_torch`, made again as there."""
    wide = wide_dtype(x.dtype)
    unused = None if x.dtype == wide else x.new_zeros(x.shape[1], dtype=wide)  # for the sake of its dtype
    moments = torch.ops.aten.batch_norm_update_stats
    mean, var = moments(x, unused, unused, 0.0)
    left = mean
    for _ in range(SHIFTS if x.dtype == torch.float32 and not x.is_contiguous() else 0):
        if well_found(left, mean, var):
            break
        left, var = moments(x - planes_of(mean, x), unused, unused, 0.0)
        mean = mean + left
    return mean, var
