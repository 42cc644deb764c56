"""Proofs that several stones share: what the gradient looks like when the scale or mean of a filter does not matter.

Each takes a convolution of the library and an input, and returns the two sides of an equation.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from layers.convolution import Convolution


def gradient(layer: Convolution, x: Tensor) -> Tensor:
    """Return ∂L/∂W of L = Σ cos(y), one row per output channel, for the layer's own ``weight``."""
    (found,) = torch.autograd.grad(layer(x.detach()).cos().sum(), layer.weight)
    return found.flatten(1)


def orthogonal(layer: Convolution, x: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine between every filter and its gradient, beside 0; both plus 1."""
    cosine = torch.cosine_similarity(layer.weight.flatten(1), gradient(layer, x), dim=1)
    return 1 + cosine, torch.ones_like(cosine)


def balanced(layer: Convolution, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of every filter's gradient as a share of its size, beside 0; both plus 1."""
    rows = gradient(layer, x)
    share = rows.sum(1) / rows.abs().sum(1)
    return 1 + share, torch.ones_like(share)


def inverse_scale(layer: Convolution, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂W at a W beside that at W divided by a, for a = 3."""
    scaled = copy.deepcopy(layer)
    with torch.no_grad():
        scaled.weight.mul_(3)
    return gradient(scaled, x), gradient(layer, x) / 3


def growth(layer: Convolution, x: Tensor) -> tuple[Tensor, Tensor]:
    """What ‖w‖² of every filter gains in a step of SGD at rate η, beside η² ‖∂L/∂w‖²."""
    rows, step = layer.weight.detach().flatten(1), 0.1 * gradient(layer, x)
    gained = (rows - step).square().sum(1) - rows.square().sum(1)
    return gained, step.square().sum(1)
