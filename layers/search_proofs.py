"""Both sides of the equations that the card of the dynamic sparse graph states."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.base import scale_and_shift
from layers.observe import observing
from layers.search import kept

if TYPE_CHECKING:
    from layers.backward.dsg import DSGConv2d


def _seen(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a copy of ``layer``, and the mask of that."""
    with observing() as seen:
        y = copy.deepcopy(layer)(x)
    return y, seen["mask"]


def plain(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The block beside convolution, ReLU and batch normalization."""
    return copy.deepcopy(layer)(x), copy.deepcopy(layer).norm(layer.conv(x).relu())


def zeros(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the output where the mask is 1 with 0 elsewhere."""
    y, mask = _seen(layer, x)
    return y, torch.where(mask, y, 0)


def doubled(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """What batch normalization makes of the masked positions beside β − γ μ/σ."""
    _, mask = _seen(layer, x)
    z = (mask * layer.conv(x)).relu()
    var, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    norm = copy.deepcopy(layer).norm
    scale, bias = scale_and_shift(var, norm.eps, norm.weight, norm.bias)
    shift = cast("Tensor", bias) - scale * mean
    return norm(z)[~mask], shift.view(-1, 1, 1).expand_as(z)[~mask]


def projected_windows(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """V beside the products of projected windows and projected filters."""
    assert layer.search is not None
    layer.search.refresh(layer.conv.weight)
    windows = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    y = layer.conv(x)
    projected = layer.search.projection.T @ windows * layer.search.projection.shape[1] ** -0.5
    return layer.scores(x, y).flatten(2), layer.search.reduced @ projected


def rescaled_projection(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The masks by R and by 3 R."""
    other = copy.deepcopy(layer)
    assert other.search is not None
    other.search.projection.mul_(3)
    return _masks(layer, other, x)


def rescaled_weight(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The masks by W and by 5 W."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.conv.weight.mul_(5)
    return _masks(layer, other, x)


def _masks(layer: DSGConv2d, other: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The masks of both, after a projection."""
    for each in (layer, other):
        if each.search is not None:
            each.search.refresh(each.conv.weight)
    return _seen(layer, x)[1].to(x.dtype), _seen(other, x)[1].to(x.dtype)


def counted(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """How many outputs of sample 0 the mask keeps beside ⌊(1 − γ) n⌋ − 1."""
    mask = _seen(layer, x)[1][0]
    return mask.sum().to(x.dtype), x.new_tensor(kept(layer.sparsity, mask.numel()) - 1)


def fed_back(layer: DSGConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂W in evaluation beside that of the convolution for the error that the kept positive outputs let through."""
    y, mask = _seen(layer, x)
    upstream = y.detach().cos()
    (found,) = torch.autograd.grad(layer(x), layer.conv.weight, upstream)
    scale, _ = scale_and_shift(cast("Tensor", layer.norm.running_var), layer.norm.eps, layer.norm.weight, None)
    error = upstream * scale.view(-1, 1, 1) * mask * (layer.conv(x) > 0)
    windows = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    wanted = torch.einsum("nop,nip->oi", error.flatten(2), windows)
    return found, wanted.view(found.shape)
