"""The identities of ReSprop (layers/backward/resprop.py): a second step beside what it is by definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.sparse_backward import share

if TYPE_CHECKING:
    from layers.backward.resprop import ReSpropConv2d


class _Step(NamedTuple):
    """What a second step read, G, h and τ, and the gradients that it gave."""

    grad: Tensor
    prev_grad: Tensor
    threshold: Tensor
    of_x: Tensor
    of_weight: Tensor
    of_bias: Tensor


def _upstream(y: Tensor, phase: float) -> Tensor:
    """An upstream gradient for ``y``, another for each ``phase``."""
    return (torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).square() * 50 + phase).sin().view(y.shape)


def _second(layer: ReSpropConv2d, x: Tensor, *, forget: bool = False) -> _Step:
    """Take a step on another batch, then one on ``x``; ``forget`` sets h to 0 between them."""
    first = layer(x.detach().roll(1, 0).cos())
    first.backward(_upstream(first, 1.0))
    assert layer.prev_grad is not None
    if forget:
        layer.prev_grad.zero_()
    prev_grad, threshold = layer.prev_grad.clone(), layer.threshold()
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    grad = _upstream(y, 2.0)
    return _Step(grad, prev_grad, threshold, *torch.autograd.grad(y, (leaf, *layer.parameters()), grad))


def _joined(of_x: Tensor, of_weight: Tensor) -> Tensor:
    return torch.cat([of_x.flatten(), of_weight.flatten()])


def _dense(layer: ReSpropConv2d, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂x and ∂L/∂W of torch's convolution for ``grad``."""
    leaf, weight = x.detach().requires_grad_(), layer.weight.detach().requires_grad_()
    y = F.conv2d(leaf, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    of_x, of_weight = torch.autograd.grad(y, (leaf, weight), grad)
    return of_x, of_weight


def plain_output(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside those of torch's convolution."""
    return layer(x), F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def everything_new(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients beside the dense ones."""
    step = _second(layer, x)
    return _joined(step.of_x, step.of_weight), _joined(*_dense(layer, x, step.grad))


def nothing_new(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients beside that of h, the same for all samples, and that of h and Σ x."""
    step = _second(layer, x)
    of_x, of_weight = _dense(layer, x.sum(0, keepdim=True), step.prev_grad[None])
    return _joined(step.of_x, step.of_weight), _joined(of_x.expand_as(x), of_weight)


def forgotten(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients without a past beside those of G, small elements set to zero."""
    step = _second(layer, x, forget=True)
    large = torch.where(step.grad.abs() > step.threshold, step.grad, 0)
    return _joined(step.of_x, step.of_weight), _joined(*_dense(layer, x, large))


def split(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients beside those of h, made once, plus those of what has changed by more than τ."""
    step = _second(layer, x)
    change = step.grad - step.prev_grad
    h_x, h_weight = _dense(layer, x.sum(0, keepdim=True), step.prev_grad[None])
    of_x, of_weight = _dense(layer, x, torch.where(change.abs() > step.threshold, change, 0))
    return _joined(step.of_x, step.of_weight), _joined(h_x + of_x, h_weight + of_weight)


def any_structure(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients beside the dense ones of Ĝ, made by sorting samples or channels by Σ|G − h|."""
    step = _second(layer, x)
    axis = 0 if layer.structure == "sample" else 1
    sizes = (step.grad - step.prev_grad).abs().transpose(0, axis).flatten(1).sum(1)
    kept = sizes >= sizes.sort(descending=True).values[share(len(sizes), layer.density) - 1]
    mixed = torch.where(kept.view(-1, *[1] * (3 - axis)), step.grad, step.prev_grad)
    return _joined(step.of_x, step.of_weight), _joined(*_dense(layer, x, mixed))


def whole_bias(layer: ReSpropConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂b beside Σ G over samples and positions."""
    step = _second(layer, x)
    return step.of_bias, step.grad.sum((0, 2, 3))
