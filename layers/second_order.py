r"""What the second-order poolings share: products of channels summed over positions, triangle, root and sketch of them.

Of x (N, C, *positions), M positions, in matrices X (C, M) per sample:
$$G = s\,X X^\top\quad\text{or, centred,}\quad s\,(X - \mu)(X - \mu)^\top,$$
with the gradient in one product, ∂L/∂X = s (g + gᵀ) X, whose rows sum to 0 again where X is centred. Only the input is
kept for it, in the input's own dtype; half precision is summed in float32 whatever autocast says. All are
differentiable as often as wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layers.base import Layer
from layers.cached import joined, rows_in_cache
from layers.card import Card, OptionError
from layers.moments import widened
from layers.option import OptionValue
from layers.weight_functions import full_precision

SHORTEST = 2.0**-40  # about 1e-12, the length that a shorter row counts as: its square has exactly that root


class SecondOrder(Layer):
    """A pooling of (N, C, *positions), of the ranks on its card and at least ``least`` positions, to (N, D)."""

    def __init__(self, card: Card, channels: int, options: Mapping[str, OptionValue], least: int = 1) -> None:
        super().__init__(card, channels, options)
        self.least = least

    def check_input(self, x: Tensor, channels: int | None = None) -> None:
        """Raise ValueError unless ``x`` is (N, channels, *positions) with enough positions, TypeError unless real."""
        name = type(self).__name__
        channels = self.channels if channels is None else channels
        if x.dim() not in self.ranks:
            raise ValueError(f"{name} takes (N, C, *positions) of {self.ranks[0]} to 5 axes, not {x.dim()}-d")
        if x.shape[1] != channels:
            raise ValueError(f"{name} was built for {channels} channels, the input has {x.shape[1]}")
        if not x.is_floating_point():
            raise TypeError(f"{name} takes floating-point input, not {x.dtype}")
        if x.shape[2:].numel() < self.least:
            raise OptionError(
                f"{name} needs at least {self.least} position{'s' * (self.least > 1)}, the input of shape "
                f"{tuple(x.shape)} has {x.shape[2:].numel()}"
            )


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return ``function.apply(*arguments)``; while torch traces, its forward in operations that a tracer can see."""
    if torch._C._get_tracing_state() is not None:
        return function.forward(*arguments)
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def matrices(x: Tensor) -> Tensor:
    """Return ``x`` (N, C, *positions) as (N, C, M), M = 1 without positions."""
    return x.unsqueeze(2) if x.dim() == 2 else x.flatten(2)


def gram(x: Tensor, mean: bool) -> Tensor:
    """Return X Xᵀ (N, C, C) of ``x`` (N, C, M), divided by M if ``mean``, float32 or wider."""
    made: Tensor = applied(_Gram, x, mean, False)[0]
    return made


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the biased covariance (N, C, C) over the M positions of ``x`` (N, C, M), and the mean (N, C).

    Both are float32 or wider; the mean is for reading, it has no gradient. The data are first shifted by their own
    first position: a channel that is constant has covariances of exactly 0, whatever its value.
    """
    made: tuple[Tensor, Tensor] = applied(_Gram, x, True, True)
    return made


def triangle(matrix: Tensor, off_diagonal: float = 1.0) -> Tensor:
    """Return the upper triangle (N, C(C + 1)/2), rows first, of ``matrix`` (N, C, C), times ``off_diagonal`` off it."""
    made: Tensor = applied(_Triangle, matrix, off_diagonal)
    return made


def weights(matrix: Tensor, off_diagonal: float) -> Tensor:
    """Return the factors (C(C + 1)/2,) that `triangle` multiplies by: 1 on the diagonal, ``off_diagonal`` off it."""
    i, j = _corner(matrix)
    return torch.where(i == j, 1.0, off_diagonal).to(matrix.dtype)


def _corner(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the column of each entry of the triangle."""
    side = matrix.shape[-1]
    i, j = torch.triu_indices(side, side, device=matrix.device).unbind()
    return i, j


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """X − μ and μ − X₁, of which both are exact where a channel is constant."""
    shifted = x - x[..., :1]
    mean = shifted.mean(-1, keepdim=True)
    return shifted - mean, mean


def _parts(x: Tensor, centre: bool) -> list[slice]:
    """The samples of ``x``, in cache where their rows are centred before the product, which takes several passes."""
    return rows_in_cache(x) if centre else [slice(0, x.shape[0])]


class _Gram(torch.autograd.Function):
    """x → s X Xᵀ, s = 1/M with mean and else 1, and μ; keeps x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: bool, centre: bool) -> tuple[Tensor, Tensor]:
        products, centers = [], []
        for part in _parts(x, centre):
            rows = widened(x[part])
            center = rows[..., :0].sum(-1)
            if centre:
                first = rows[..., 0]
                rows, center = _centred(rows)
                center = center.squeeze(-1) + first
            with full_precision(rows):
                products.append(torch.bmm(rows, rows.mT))
            centers.append(center)
        product = joined(products)
        return product.div_(x.shape[2]) if mean else product, joined(centers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.mean, ctx.centre = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        g = grads[0] + grads[0].mT
        g = g.div_(x.shape[2]) if ctx.mean else g
        found = []
        for part in _parts(x, ctx.centre):
            rows = _centred(widened(x[part]))[0] if ctx.centre else widened(x[part])
            with full_precision(rows):
                found.append(torch.bmm(g[part], rows).to(x.dtype))
        return joined(found), None, None


class _Triangle(torch.autograd.Function):
    """The upper triangle; keeps nothing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, off_diagonal: float) -> Tensor:
        i, j = _corner(matrix)
        rows = matrix.flatten(1).index_select(1, i * matrix.shape[-1] + j)
        return rows if off_diagonal == 1 else rows * weights(matrix, off_diagonal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.side, ctx.off_diagonal = inputs[0].shape[-1], inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        whole = g.new_zeros(g.shape[0], ctx.side, ctx.side)
        i, j = _corner(whole)
        if ctx.off_diagonal != 1:
            g = g * weights(whole, ctx.off_diagonal)
        return whole.flatten(1).index_copy(1, i * ctx.side + j, g).view(whole.shape), None


def signed_root(g: Tensor, eps: float | Tensor = 0.0) -> Tensor:
    """Return sign(g) √(|g| + eps), whose derivative is 0 where g is 0; ``eps`` ≥ 0 broadcasts to ``g``.

    Keeps its output for the backward; differentiable as often as wanted.
    """
    made: Tensor = applied(_SignedRoot, g, eps)
    return made


class _SignedRoot(torch.autograd.Function):
    """∂z/∂g = 1/(2√(|g| + ε)) = 1/(2|z|): the output is all that is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, eps: float | Tensor) -> Tensor:
        size = g.abs()  # in place from here on: a new matrix costs more than what is computed into it
        size = size.add_(eps) if isinstance(eps, Tensor) or eps else size
        return g.sign().mul_(size.sqrt_())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        slope = z.abs().mul_(2)
        return grads[0] / slope.masked_fill_(slope == 0, math.inf), None


def of_unit_length(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of ``z`` (N, D), each divided by its length, and the lengths (N, 1), at least `SHORTEST`.

    Keeps ``z`` and the lengths for the backward; differentiable as often as wanted, through the first, at 0 too, where
    that of torch.nn.functional.normalize is NaN the second time.
    """
    made: tuple[Tensor, Tensor] = applied(_UnitLength, z)
    return made


def _length(z: Tensor) -> Tensor:
    return z.square().sum(1, keepdim=True).clamp_min(SHORTEST**2).sqrt()


class _UnitLength(torch.autograd.Function):
    """With y = z/l the gradient is ∂L/∂z = (g − y Σ g y)/l, or g/l where l is constant, at its least."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        length = _length(z)
        return z / length, length

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        g, (z, length) = grads[0], ctx.saved_tensors
        along = (g * z).sum(1, keepdim=True).masked_fill(length <= SHORTEST, 0.0)
        length = _length(z) if torch.is_grad_enabled() else length  # which then is derived again
        return torch.addcmul(g, z, along / -length.square()).div_(length)


def sketched(product: Tensor, hashes: Tensor, signs: Tensor, length: int) -> Tensor:
    """Return the count sketch (N, length) of ``product`` (N, C, C) with h = (h₁ + h₂) mod length and s = s₁ s₂.

    ``hashes`` (2, C) are integers h₁ and h₂ ≥ 0, ``signs`` (2, C) s₁ and s₂. Keeps nothing but these two.
    """
    made: Tensor = applied(_Sketch, product, hashes, signs, length)
    return made


class _Sketch(torch.autograd.Function):
    """Each product is added to its place with its sign; backward reads it there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(product: Tensor, hashes: Tensor, signs: Tensor, length: int) -> Tensor:
        places, factors = _placed(hashes, signs, length, product)
        zeros = product.new_zeros(product.shape[0], length)
        return zeros.index_add(1, places, (product * factors).flatten(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, hashes, signs, ctx.length = inputs
        ctx.save_for_backward(hashes, signs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        hashes, signs = ctx.saved_tensors
        places, factors = _placed(hashes, signs, ctx.length, g)
        return g.index_select(1, places).view(-1, *factors.shape) * factors, None, None, None


def _placed(hashes: Tensor, signs: Tensor, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where each product goes (C²,) and its sign (C, C)."""
    places = (hashes[0].unsqueeze(1) + hashes[1]) % length
    signs = signs.to(like.dtype)
    return places.flatten(), signs[0].unsqueeze(1) * signs[1]
