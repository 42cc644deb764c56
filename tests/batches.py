"""Small layers and drifting batches for the tests of the batch family."""

from __future__ import annotations

import torch

C, N = 4, 6


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def double(make, *arguments, **options):
    return make(C, *arguments, dtype=torch.float64, **options)


def data(seed=0, shape=(N, C, 3, 2)):
    """Batches whose channels drift, so that running statistics have something to follow."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.linspace(-2, 2, shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    return (1 + 0.2 * seed) * torch.randn(shape, generator=generator, dtype=torch.float64) + shift + 0.3 * seed


def train_step(layer, seed):
    """One forward and backward; returns output and gradient of the input."""
    x = data(seed).requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad(y, x, data(seed + 50))[0]


def near(found, wanted, within=1e-9):
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)
