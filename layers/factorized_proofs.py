"""Equations of the factorized bilinear layer: each function returns two sides for a layer and an input in float64."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn


def _altered(layer: Any, factors: Tensor) -> Any:
    """A copy of ``layer`` with other factors."""
    other = copy.deepcopy(layer)
    other.factors = nn.Parameter(factors.detach().clone())
    other.num_factors = factors.shape[1]
    return other


def even(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by −F beside those by F."""
    return _altered(layer, -layer.factors)(x), layer(x)


def rotated(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by R F_o beside those by F_o."""
    some = layer.factors[0] @ layer.factors[1].mT
    basis = torch.linalg.qr(some + torch.eye(len(some), dtype=x.dtype)).Q
    return _altered(layer, basis @ layer.factors)(x), layer(x)


def quadratic(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for −3 x beside 9 times those for x."""
    return layer(-3 * x), 9 * layer(x)


def length(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by F = 1 beside the squared lengths of windows, 1×1 here."""
    eye = torch.eye(layer.in_channels, dtype=x.dtype).expand(layer.out_channels, -1, -1)
    y = _altered(layer, eye)(x)
    return y, x.square().sum(1, keepdim=True).expand_as(y)


def form(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sizes of outputs beside uᵀ(FᵀF)u."""
    gram = layer.factors.mT @ layer.factors
    return layer(x).abs(), torch.einsum("nchw,ocd,ndhw->nohw", x, gram, x)


def machine(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside the sum over pairs of different inputs."""
    gram = (layer.factors.mT @ layer.factors).triu(1)
    return layer(x), 2 * torch.einsum("nchw,ocd,ndhw->nohw", x, gram, x)


def expectation(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in evaluation beside the mean of those without drop of every set of factors."""
    k, keep = layer.num_factors, 1 - layer.drop
    total = torch.zeros((), dtype=x.dtype)
    for bits in itertools.product((0.0, 1.0), repeat=k):
        mask = torch.tensor(bits, dtype=x.dtype)
        plain = _altered(layer, layer.factors * mask.view(-1, 1))
        plain.drop = 0.0
        total = total + plain(x) * keep ** sum(bits) * (1 - keep) ** (k - sum(bits))
    return layer(x), total


def slope(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂x beside 2 FᵀF u ∂L/∂y, summed over the outputs."""
    x = x.detach().requires_grad_()
    y = layer(x)
    upstream = (3 * y.detach()).cos()
    (found,) = torch.autograd.grad(y, x, upstream)
    gram = layer.factors.mT @ layer.factors
    return found, 2 * torch.einsum("ocd,ndhw,nohw->nchw", gram, x, upstream)
