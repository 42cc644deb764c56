"""Statistics per sample and group of channels: what gn, ln and in share, on torch's kernel where it is accurate."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import scale_and_shift, widened_affine
from layers.moments import Planes, pool
from layers.observe import observe


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize (N, C, *positions) by mean and biased variance over each group of C/groups channels of each sample.

    ``weight`` and ``bias`` are (C,) or None. Contiguous data take torch's native kernel, forward and backward; its
    channels_last CPU kernel loses all digits at mean ≫ std, so other layouts take the engine of `layers.moments`.
    """
    channels = x.shape[1]
    if x.is_contiguous() and x.numel():
        if x.device.type == "cpu":
            weight, bias = widened_affine(x, weight, bias)
        y, mean, rstd = torch.native_group_norm(
            x, weight, bias, x.shape[0], channels, x.numel() // (x.shape[0] * channels), groups, eps
        )
        observe(mean=mean, rstd=rstd)
        return y
    planes = Planes(x)
    shape = (x.shape[0], groups, channels // groups)
    by_group = planes.mean.reshape(shape), planes.var.reshape(shape)
    mean, var = pool(*by_group, 2)
    spread = [t.expand_as(by_group[0]).flatten(1) for t in (mean, var)]
    scale, shift = scale_and_shift(spread[1], eps, weight, bias)
    observe(mean=mean.squeeze(2), rstd=(var + eps).rsqrt().squeeze(2))
    return planes.affine(scale, spread[0], shift)
