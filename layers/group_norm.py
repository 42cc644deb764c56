"""Statistics per sample and group of channels: what gn, ln and in share, on torch's kernel where it is accurate."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import scale_and_shift, widened_affine
from layers.moments import Planes, as_laid_out, is_channels_last, pool
from layers.observe import observe

SMALL_BYTES = 1 << 19  # with the copy they fit a level-2 cache


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize (N, C, *positions) by mean and biased variance over each group of C/groups channels of each sample.

    ``weight`` and ``bias`` are (C,) or None. Contiguous data take torch's native kernel, forward and backward. Its
    channels_last CPU kernel loses all digits at mean ≫ std, so there one group takes that of layer normalization, small
    maps are copied, and all else takes the engine of `layers.moments`.
    """
    if x.is_contiguous() and x.numel():
        return _by_kernel(x, groups, weight, bias, eps)
    if x.device.type == "cpu" and x.numel() and is_channels_last(x):
        if groups == 1:
            return _by_layer_norm(x, weight, bias, eps)
        if x.nbytes <= SMALL_BYTES:
            return as_laid_out(_by_kernel(x.contiguous(), groups, weight, bias, eps), x)
    planes = Planes(x)
    shape = (x.shape[0], groups, x.shape[1] // groups)
    by_group = planes.mean.reshape(shape), planes.var.reshape(shape)
    mean, var = pool(*by_group, 2)
    spread = [t.expand_as(by_group[0]).flatten(1) for t in (mean, var)]
    scale, shift = scale_and_shift(spread[1], eps, weight, bias)
    observe(mean=mean.squeeze(2), rstd=(var + eps).rsqrt().squeeze(2))
    return planes.affine(scale, spread[0], shift)


def _by_kernel(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    batch, channels = x.shape[:2]
    if x.dtype.itemsize < 4 and x.device.type == "cpu":
        weight, bias = widened_affine(x, weight, bias)
    size = x.numel() // (batch * channels)
    y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, size, groups, eps)
    observe(mean=mean, rstd=rstd)
    return y


def _by_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """One group of channels_last ``x``: rows of S·C values, each with its γ and β."""
    rows = x.movedim(1, -1)
    weight, bias = (
        None if t is None else t.expand(rows.shape[1:]).contiguous() for t in widened_affine(x, weight, bias)
    )
    y, mean, rstd = torch.native_layer_norm(rows, rows.shape[1:], weight, bias, eps)
    observe(mean=mean.flatten(1), rstd=rstd.flatten(1))
    return y.movedim(-1, 1)
