"""A network, and the errors that come back in it, for the tests of backward error modulation."""

from __future__ import annotations

import torch
from harness import normal
from torch import nn

from layers.norm.bn import BatchNorm


def network(seed=0, width=8, blocks=3):
    """Convolution, batch normalization and ReLU, three times, and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts, channels = [], 3
        for _ in range(blocks):
            parts += [nn.Conv2d(channels, width, 3, padding=1), BatchNorm(width), nn.ReLU()]
            channels = width
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(36 * width, 5)).double()


def images(seed=1):
    return normal((4, 3, 6, 6), seed=seed)


def loss(model, x=None):
    return model(images() if x is None else x).square().sum()


def parametric(model):
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def rms(tensor):
    return tensor.square().mean().sqrt().item()


def watched(model, x=None, objective=loss):
    """The rms of the error at the output of every parametric layer, below its point, and the weight gradients."""
    found = {}

    def watch(layer, inputs, output):
        output.register_hook(lambda error: found.__setitem__(layer, rms(error)))

    hooks = [layer.register_forward_hook(watch, prepend=True) for layer in parametric(model)]
    model.zero_grad()
    objective(model, x).backward()
    for hook in hooks:
        hook.remove()
    return [found.get(layer) for layer in parametric(model)], [layer.weight.grad for layer in parametric(model)]
