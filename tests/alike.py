"""Comparing a layer that knows no groups with its reference, output, gradients and buffers."""

from __future__ import annotations

from types import SimpleNamespace

import torch

C = 3
SHAPES = [(6, C), (6, C, 4), (4, C, 3, 2), (3, C, 2, 2, 2)]


def data(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape or (4, C, 3, 2), generator=generator, dtype=torch.float64) + 3


def namespace(layer):
    """What a reference gets: options, mode, parameters and copies of the buffers as they are now."""
    state = {**layer._parameters, **{name: buffer.clone() for name, buffer in layer.named_buffers()}}
    return SimpleNamespace(**layer.options, **state, training=layer.training)


def derivatives(y, x, layer):
    upstream = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).sin()
    return torch.autograd.grad(y, (x, *layer.parameters()), upstream)


def assert_like_reference(layer, reference, x):
    x = x.clone().requires_grad_()
    p = namespace(layer)
    expected = reference(x, p)
    expected, buffers = expected if isinstance(expected, tuple) else (expected, {})
    expected_gradients = derivatives(expected, x, layer)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(derivatives(y, x, layer), expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    for name, wanted in buffers.items():
        torch.testing.assert_close(getattr(layer, name), torch.as_tensor(wanted), rtol=1e-9, atol=1e-9)
