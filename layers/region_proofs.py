"""Both sides of the equations that the card of dynamic region-aware convolution states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from layers.conv.drconv import DRConv2d


def _outputs(layer: DRConv2d, x: Tensor) -> Tensor:
    """The outputs (m, N, O, HO, WO) by every filter of every sample, one convolution each."""
    kernels = layer.kernels(layer.filters(x))
    geometry = (None, layer.stride, layer.padding, layer.dilation)
    pairs = [
        [F.conv2d(image[None], kernel, *geometry)[0] for kernel in own] for image, own in zip(x, kernels, strict=True)
    ]
    return torch.stack([torch.stack(each) for each in pairs], 1)


def _altered(layer: DRConv2d, change: Callable[[DRConv2d], object]) -> DRConv2d:
    """A copy of ``layer``, changed."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        change(other)
    return other


def selected(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside those of the region with the largest guide, among all."""
    regions = layer.guide(x).argmax(1)
    index = regions[None, :, None].expand(1, -1, layer.out_channels, -1, -1)
    return layer(x), _outputs(layer, x).gather(0, index)[0]


def alone(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of one region beside the convolution by its filters."""
    return layer(x), _outputs(layer, x)[0]


def unguided(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The guide's gradient beside 0, both plus 1."""
    found = torch.autograd.grad(layer(x).cos().sum(), list(layer.guide.parameters()))
    zeros = torch.cat([1 + each.flatten() for each in found])
    return zeros, torch.ones_like(zeros)


def alike(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs where every region has the first one's network, by two guides."""

    def equal(other: DRConv2d) -> None:
        for conv in (other.squeeze, other.expand):
            for parameter in conv.parameters():
                parts = parameter.chunk(layer.regions)
                parameter.copy_(torch.cat([parts[0]] * layer.regions))

    same = _altered(layer, equal)
    return same(x), _altered(same, lambda other: other.guide.weight.neg_())(x)


def renamed(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs before and after guide, squeeze and expand are reversed by regions."""

    def reverse(other: DRConv2d) -> None:
        for parameter in other.parameters():
            parameter.copy_(torch.cat(parameter.chunk(layer.regions)[::-1]))

    return layer(x), _altered(layer, reverse)(x)


def rescaled(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs before and after the guide is halved and a common filter is added to it."""

    def change(other: DRConv2d) -> None:
        for parameter in other.guide.parameters():
            parameter.mul_(0.5).add_(3 * parameter[:1].clone())

    return layer(x), _altered(layer, change)(x)


def _guide_gradients(layer: DRConv2d, y: Tensor, upstream: Tensor) -> Tensor:
    found = torch.autograd.grad(y, list(layer.guide.parameters()), upstream)
    return torch.cat([each.flatten(1) if each.dim() > 1 else each[:, None] for each in found], 1)


def mixed(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The guide's gradient beside that of the outputs of all regions, weighed by the softmax of the guide."""
    y = layer(x)
    upstream = y.detach().cos()
    shares = layer.guide(x).softmax(1).transpose(0, 1).unsqueeze(2)
    mixture = (shares * _outputs(layer, x).detach()).sum(0)
    return _guide_gradients(layer, y, upstream), _guide_gradients(layer, mixture, upstream)


def balanced(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over regions of the guide's gradient beside 0, relative to its size; both plus 1."""
    found = _guide_gradients(layer, layer(x), torch.ones_like(layer(x)))
    sums = 1 + found.sum(0) / found.norm()
    return sums, torch.ones_like(sums)


def linear(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by −3 G, weight and bias of its last convolution, beside −3 times those by G."""

    def change(other: DRConv2d) -> None:
        for parameter in other.expand.parameters():
            parameter.mul_(-3)

    return _altered(layer, change)(x), -3 * layer(x)


def lowest(layer: DRConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs where all guides are equal beside those where the first is larger."""

    def change(other: DRConv2d) -> None:
        for parameter in other.guide.parameters():
            parameter.zero_()

    tied = _altered(layer, change)
    return tied(x), _altered(tied, lambda other: cast("Tensor", other.guide.bias)[0].fill_(1))(x)
