"""The identities of `layers.weight.weight_norm`: both sides of each, of a layer and an input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from layers.weight.weight_norm import WeightNormConv2d


def lengths(layer: WeightNormConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """‖w‖ beside |g|, for v and for 3 v."""
    before = layer.effective_weight().flatten(1).norm(dim=1)
    with torch.no_grad():
        layer.weight.mul_(3)
    after, gain = layer.effective_weight().flatten(1).norm(dim=1), layer.gain.flatten().abs()
    return torch.stack([before, after]), torch.stack([gain, gain])


def gradients(layer: WeightNormConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂g and ∂L/∂v by autograd beside the closed forms in G = ∂L/∂w."""
    found = torch.autograd.grad(layer(x).square().sum(), (layer.gain, layer.weight))
    w, v, g = layer.effective_weight().detach().requires_grad_(), layer.weight.flatten(1), layer.gain.view(-1, 1)
    (upstream,) = torch.autograd.grad(layer._conv_forward(x, w, layer.bias).square().sum(), w)
    upstream, norm = upstream.flatten(1), v.norm(dim=1, keepdim=True)
    of_gain = (upstream * v).sum(1, keepdim=True) / norm
    of_direction = g / norm * upstream - g * of_gain / norm**2 * v
    return torch.cat([t.flatten() for t in found]), torch.cat([of_gain.flatten(), of_direction.flatten()])


def whitened(layer: WeightNormConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """g v·x/‖v‖ on white data beside g times batch normalization of v·x (biased, ε = 0)."""
    values = x.detach().transpose(0, 1).flatten(1)
    values = values - values.mean(1, keepdim=True)
    levels, axes = torch.linalg.eigh(values @ values.T / values.shape[1])
    white = (axes / levels.sqrt()) @ axes.T @ values
    v, gain = layer.weight.flatten(1), layer.gain.view(-1, 1)
    t = v @ white
    image = white.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
    y = layer(image).transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(t, 1, correction=0, keepdim=True)
    return y, gain * (t - mean) / var.sqrt()
