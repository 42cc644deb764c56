"""Equations of covariance pooling: each function returns two sides for a layer and an input in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.matrix_power import newton_schulz, power
from layers.second_order import covariance


def _matrices(layer: Any, x: Tensor) -> Tensor:
    """The outputs of vec full as Q (N, C, C)."""
    y: Tensor = layer(x)
    return y.view(len(x), layer.channels, layer.channels)


def unordered(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for positions in another order beside those for x."""
    return layer(x.flip(2).transpose(2, 3)), layer(x)


def no_shift(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for x plus a constant per sample and channel beside those for x."""
    return layer(x + x[:, :, :1, :1].flip(1)), layer(x)


def homogeneous(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for −3 x beside those for x times 3^2α."""
    return layer(-3 * x), layer(x) * 9**layer.alpha


def rotated(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Q of the channels in another basis beside Q in that basis."""
    basis = torch.linalg.qr(x[0].flatten(1) @ x[1].flatten(1).mT).Q
    q = _matrices(layer, x)
    return _matrices(layer, torch.einsum("rc,nc...->nr...", basis, x)), basis @ q @ basis.mT


def spectral(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Q by steps on matrices beside the same steps on the eigenvalues."""
    values, vectors = torch.linalg.eigh(covariance(x.flatten(2))[0])
    trace = values.sum(1, keepdim=True)
    y, z = values / trace, torch.ones_like(values)
    for _ in range(layer.iters):
        t = (3 - z * y) / 2
        y, z = y * t, t * z
    return _matrices(layer, x), vectors @ torch.diag_embed(y * trace.sqrt()) @ vectors.mT


def root(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Q Q beside Σ."""
    q = _matrices(layer, x)
    return q @ q, covariance(x.flatten(2))[0]


def lyapunov(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """√Σ Z + Z √Σ for Z = ∂L/∂Σ beside ∂L/∂√Σ, symmetric."""
    sigma = covariance(x.flatten(2))[0].detach().requires_grad_()
    q, _ = power(sigma, 0.5)
    upstream = (3 * sigma.detach()).cos()
    (found,) = torch.autograd.grad(q, sigma, upstream)
    q = q.detach()
    return q @ found + found @ q, upstream


def repeated(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂Σ of the root by eigenvectors beside that by 16 steps, at Σ = 2 and at Σ with two equal eigenvalues."""
    c = layer.channels
    basis = torch.linalg.qr(x[0].flatten(1) @ x[1].flatten(1).mT).Q
    equal = torch.cat([torch.full((c // 2,), 3.0), torch.linspace(1, 2, c - c // 2)]).to(x.dtype)
    sigma = torch.stack([2 * torch.eye(c, dtype=x.dtype), basis @ equal.diag() @ basis.mT]).requires_grad_()
    upstream = covariance(x[:2].flatten(2))[0].detach()
    found = [
        torch.autograd.grad(made, sigma, upstream)[0] for made in (power(sigma, 0.5)[0], newton_schulz(sigma, 16)[0])
    ]
    return found[0], found[1]
