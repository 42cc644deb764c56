"""What tests that compare two layers share: seeded numbers, layouts in memory, the comparison itself."""

from types import SimpleNamespace

import torch

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomized(layer):
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data += 0.3 * randn(*parameter.shape, seed=10 + seed, dtype=parameter.dtype)
    return layer


def gradients(y, inputs, upstream):
    return torch.autograd.grad(y, [t for t in inputs if t is not None], upstream)


def error(found, expected):
    """The largest deviation relative to the largest value."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def by_name(layer):
    return SimpleNamespace(**layer.options, weight=layer.weight, bias=layer.bias, training=layer.training)


def assert_same(layer, peer, x, call=None):
    """Compare outputs and the gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    upstream = randn(*x.shape, seed=9)
    y, expected = layer(x), (call or peer)(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    found, wanted = (
        gradients(y, [x, *layer.parameters()], upstream),
        gradients(expected, [x, *peer.parameters()], upstream),
    )
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
