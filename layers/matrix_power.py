r"""Powers of symmetric positive semi-definite matrices (N, C, C): the root by Newton–Schulz steps, any by eigenvectors.

`newton_schulz`: A = Σ/tr Σ has its eigenvalues in [0, 1], inside the range (0, 3) in which the steps converge. They are
not the root but a spectral map, Q = √(tr Σ) U f_k(Λ/tr Σ) Uᵀ with f_k(a) ≈ 1.5^k a for small a.

`power`: the derivative of U Λ^α Uᵀ is, in the basis of U, the elementwise product with the divided differences
$$K_{ij} = (\lambda_i^\alpha - \lambda_j^\alpha)/(\lambda_i - \lambda_j),\quad K_{ii} = \alpha\lambda_i^{\alpha-1},$$
for α = ½ that of Lyapunov's equation, K = 1/(√λ_i + √λ_j): nothing is divided by a difference of eigenvalues. With
b ≥ a and t = log(a/b) they are K = b^(α − 1) expm1(α t)/expm1(t), without cancellation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.second_order import applied
from layers.underivable import underivable
from layers.weight_functions import full_precision


def newton_schulz(sigma: Tensor, iters: int) -> tuple[Tensor, Tensor]:
    """Return √(tr Σ) Y_k (N, C, C) for ``sigma`` (N, C, C) after ``iters`` ≥ 1 steps, and tr Σ (N,), without gradient.

    Where the trace is 0 both the root and its gradient with respect to a factor of Σ are 0. Keeps only Σ: backward
    repeats the steps.
    """
    made: tuple[Tensor, Tensor] = applied(_NewtonSchulz, sigma, iters)
    return made


def power(sigma: Tensor, alpha: float, norm: str = "none") -> tuple[Tensor, Tensor]:
    """Return Σ^α (N, C, C), divided by its largest eigenvalue (``norm`` l2) or its Frobenius norm (fro), and λ (N, C).

    Eigenvalues below C ε λ₁ (ε of the dtype) count as 0. λ is ascending and without gradient. Where λ₁ is 0, so are
    the power, its normalized forms and their gradient with respect to a factor of Σ. Keeps U and λ; with a norm Σ^α.
    """
    q, top, eigenvalues, _ = applied(_Power, sigma, alpha)
    if norm != "none":
        size = top if norm == "l2" else torch.linalg.vector_norm(q, dim=(1, 2))
        q = q / torch.where(size == 0, 1, size).view(-1, 1, 1)
    return q, eigenvalues.detach()


def _trace(sigma: Tensor) -> Tensor:
    """The traces (N,) of matrices (N, C, C)."""
    return sigma.flatten(1)[:, :: sigma.shape[-1] + 1].sum(1)


def _scaled(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """A and tr Σ (N, 1, 1), 1 in its place where it is 0."""
    trace = _trace(sigma).view(-1, 1, 1)
    trace = torch.where(trace == 0, 1, trace)
    return sigma / trace, trace


def _half(left: Tensor, right: Tensor, constant: Tensor) -> Tensor:
    """``constant`` − ½ left right."""
    return torch.baddbmm(constant, left, right, alpha=-0.5)


def _steps(a: Tensor, iters: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Y, Z and T of each step, those before it; the Z of the first, 1, is not used and stands there as 1.5."""
    eye = 1.5 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    t = eye - 0.5 * a
    found = [(a, eye, t)]
    if iters > 1:
        y, z = torch.bmm(a, t), t
        for step in range(1, iters):
            t = _half(z, y, eye)
            found.append((y, z, t))
            if step < iters - 1:
                y, z = torch.bmm(y, t), torch.bmm(t, z)
    return found


class _NewtonSchulz(torch.autograd.Function):
    """Y, Z and T are polynomials of A: symmetric, so that no transpose is needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(sigma: Tensor, iters: int) -> tuple[Tensor, Tensor]:
        with full_precision(sigma):
            a, scale = _scaled(sigma)
            y, _, t = _steps(a, iters)[-1]
            return torch.bmm(y, t) * scale.sqrt(), _trace(sigma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        sigma, ctx.iters = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(sigma)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (sigma,), g = ctx.saved_tensors, grads[0]
        with full_precision(sigma):
            a, scale = _scaled(sigma)
            root = scale.sqrt()
            steps = _steps(a, ctx.iters)
            y, _, t = steps[-1]
            along_q = (g * torch.bmm(y, t)).sum((1, 2), keepdim=True)
            g_a = _through(steps, g * root)
            along_a = (g_a * a).sum((1, 2), keepdim=True)
            eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
            return g_a / scale + eye * (along_q / (2 * root) - along_a / scale), None


def _through(steps: list[tuple[Tensor, Tensor, Tensor]], g_y: Tensor) -> Tensor:
    """∂L/∂A for ∂L/∂Y_k: the steps backwards."""
    g_z: Tensor | None = None
    for y, z, t in reversed(steps[1:]):
        g_t = torch.bmm(y, g_y)
        g_y = torch.bmm(g_y, t)
        if g_z is None:
            g_z = torch.bmm(g_t, y) * -0.5
        else:
            g_t = torch.baddbmm(g_t, g_z, z)
            g_z = _half(g_t, y, torch.bmm(t, g_z))
        g_y = _half(z, g_t, g_y)
    a, _, t = steps[0]
    g_t = torch.bmm(a, g_y) if g_z is None else torch.baddbmm(g_z, a, g_y)
    return torch.bmm(g_y, t) - 0.5 * g_t


class _Power(torch.autograd.Function):
    """Σ → Σ^α, λ₁^α, and the λ and U that are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(sigma: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        finite = sigma.isfinite().all(-1).all(-1)
        known = torch.where(finite.view(-1, 1, 1), sigma, 0)  # LAPACK refuses what is not finite
        values, vectors = torch.linalg.eigh(known)
        floor = values[:, -1:] * (sigma.shape[-1] * torch.finfo(sigma.dtype).eps)
        values = torch.where(values > floor, values, 0)
        values = torch.where(finite.unsqueeze(1), values, torch.nan)
        powers = values.pow(alpha)
        with full_precision(sigma):
            return torch.bmm(vectors * powers.unsqueeze(1), vectors.mT), powers[:, -1].clone(), values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.alpha = inputs[1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        values, vectors = ctx.saved_tensors
        g, g_top = grads[:2]
        inner = torch.zeros_like(vectors)
        with full_precision(vectors):
            if g is not None:
                inner = torch.bmm(torch.bmm(vectors.mT, g), vectors) * divided_differences(values, ctx.alpha)
            if g_top is not None:
                last = values[:, -1]
                slope = ctx.alpha * torch.where(last > 0, last, torch.inf).pow(ctx.alpha - 1)
                before = vectors.shape[-1] - 1  # λ₁ is the last one
                inner = inner + F.pad((g_top * slope).view(-1, 1, 1), (before, 0, before, 0))
            found = torch.bmm(torch.bmm(vectors, inner), vectors.mT)
        others = [each for each in (g, g_top, vectors) if each is not None]
        why = "the second derivative of a matrix power by eigenvectors is not defined here: use method='isqrt'"
        return underivable(found, *others, why=why), None


def divided_differences(values: Tensor, alpha: float) -> Tensor:
    """Return K (N, C, C) for the eigenvalues ``values`` (N, C) ≥ 0, with 0 for a pair of zeros."""
    rows, columns = values.unsqueeze(2), values.unsqueeze(1)
    low, high = torch.minimum(rows, columns), torch.maximum(rows, columns)
    safe = torch.where(high == 0, 1, high)
    t = (low / safe).log()
    ratio = torch.where(low == high, alpha, (alpha * t).expm1() / t.expm1())
    return torch.where(high == 0, 0, safe.pow(alpha - 1) * ratio)
