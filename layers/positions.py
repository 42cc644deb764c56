r"""The engine under the norms of the channels at each position: ln over channels, adanorm, pono, pixel-norm.

$$z = (x - \mu_{ns})\,r_{ns},\quad r = 1/\sqrt{\sigma^2 + \varepsilon}\ \text{or}\ 1/(\sigma + \varepsilon),\quad
y = \gamma_c z + \beta_c,$$
μ and σ over the C channels at position s of sample n. `standardize` is the whole of it. Forward and backward go slice
by slice of whole samples, which stays in cache between the few operations on it unless one sample is too large; the
data then cross memory twice forward and three times backward. Saved for backward: x and two numbers per position.

Accuracy: the data are first shifted by their own first channel. That channel lies within √(C − 1) deviations of the
mean, so the shift loses nothing and takes a large common mean away: the error of z does not grow with mean/std.
bf16 and fp16 are computed in float32 and rounded once. `_define` is the definition in plain operations. It serves
double backward, torch.compile, tracing and functorch; the fast pair of passes is tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layers.card import sizes
from layers.definition import through_definition
from layers.moments import CHUNK, needs_plain_operations, wide_dtype

Outputs = tuple[Tensor, Tensor, Tensor]


class Recipe(NamedTuple):
    """How moments become a center and a scale.

    ``eps_mode`` var puts ``eps`` inside the root, std adds it to σ. ``unbiased`` divides the variance by m − 1.
    ``detach`` (none, mean, std, both) names what backward treats as a constant. Without ``center`` μ is 0 and σ² the
    mean square.
    """

    eps: float
    eps_mode: str = "var"
    unbiased: bool = False
    detach: str = "none"
    center: bool = True

    @property
    def mean_lives(self) -> bool:
        """Whether gradients flow through the mean."""
        return self.center and self.detach in ("none", "std")

    @property
    def std_lives(self) -> bool:
        """Whether gradients flow through the standard deviation."""
        return self.detach in ("none", "mean")

    def count(self, values: int) -> int:
        """Return the divisor of the sum of squared deviations of ``values`` numbers."""
        return values - int(self.unbiased)

    def rstd(self, var: Tensor) -> Tensor:
        """Return the scale for a variance; σ = 0 has a finite gradient (0) in both modes."""
        if self.eps_mode == "var":
            return (var + self.eps).rsqrt()
        return (var.clamp_min(torch.finfo(var.dtype).tiny).sqrt() + self.eps).reciprocal()


def standardize(x: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe) -> Outputs:
    """Return y, and μ and r of every position, for ``x`` (N, C, *positions), any floating dtype, any strides.

    ``weight`` γ and ``bias`` β are (C,) or both None. y has the dtype and memory format of ``x``; μ and r are
    (N, 1, *positions) in float32 or wider. All three are differentiable, twice (μ only with ``center``).
    """
    if needs_plain_operations():
        return _define(x, weight, bias, recipe)
    dense = x if channels_innermost(x) else x.contiguous()
    outputs: Outputs = _Standardize.apply(dense, weight, bias, recipe)  # type: ignore[no-untyped-call]
    return outputs


def channels_innermost(x: Tensor) -> bool:
    """Tell whether the channels of one position lie side by side in memory: (N, C), channels_last, (N, L, C) views."""
    return x.movedim(1, -1).is_contiguous()


def grid(x: Tensor) -> tuple[int, int, int]:
    """Return N, H and W of ``x`` as cards count them, for the shape of a statistic per position."""
    known = sizes(x.shape)
    return known["N"], known["H"], known["W"]


def _define(x: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe) -> Outputs:
    """The definition, in operations that autograd differentiates as often as wanted."""
    wide = x.to(wide_dtype(x.dtype))
    pilot = wide[:, :1].detach() if recipe.center else torch.zeros_like(wide[:, :1])
    shifted = wide - pilot
    mean = shifted.mean(1, keepdim=True) if recipe.center else pilot
    centered = shifted - mean
    rstd = recipe.rstd(centered.square().sum(1, keepdim=True) / recipe.count(x.shape[1]))
    y = (centered if recipe.mean_lives else shifted - mean.detach()) * (rstd if recipe.std_lives else rstd.detach())
    if weight is not None and bias is not None:
        y = y * _per_channel(weight, y) + _per_channel(bias, y)
    return y.to(x.dtype), mean + pilot, rstd


class _Standardize(torch.autograd.Function):
    """`_define`, slice by slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe) -> Outputs:
        y = torch.empty_like(x)
        maps = (x.shape[0], 1, *x.shape[2:])
        mean, offset, rstd = (torch.zeros(maps, dtype=wide_dtype(x.dtype), device=x.device) for _ in range(3))
        for part, out, m, o, r in _slices(x, y, mean, offset, rstd):
            z = out if out.dtype == r.dtype else torch.empty_like(part, dtype=r.dtype)
            centered = part.to(r.dtype)
            if recipe.center:
                torch.sub(centered, centered[:, :1], out=z)
                torch.mean(z, 1, keepdim=True, out=o)
                torch.add(o, part[:, :1], out=m)
                centered = z.sub_(o)
            r.copy_(recipe.rstd((centered * centered).sum(1, keepdim=True).div_(recipe.count(x.shape[1]))))
            torch.mul(centered, r, out=z)
            if weight is not None and bias is not None:
                z.mul_(_per_channel(weight, z)).add_(_per_channel(bias, z))
            if z is not out:
                out.copy_(z)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(() if recipe.center else (mean,)))
        ctx.recipe = recipe
        ctx.save_for_backward(x, weight, bias, offset, rstd)
        return y, mean, rstd

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_mean, grad_rstd = grads
        if grad_y is None or torch.is_grad_enabled():
            inputs, again = ctx.saved_tensors[:3], torch.is_grad_enabled()
            define = partial(_define, recipe=ctx.recipe)
            return (*through_definition(define, inputs, ctx.needs_input_grad[:3], grads, again=again), None)
        x, weight, _, offset, rstd = ctx.saved_tensors
        recipe = ctx.recipe
        grad_x = torch.empty_like(x)
        grad_y = grad_y if grad_y.stride() == x.stride() else torch.empty_like(x).copy_(grad_y)
        sums = None if weight is None else torch.zeros(2, x.shape[1], dtype=rstd.dtype, device=x.device)
        for part, g, out, o, r, g_mean, g_rstd in _slices(x, grad_y, grad_x, offset, rstd, grad_mean, grad_rstd):
            z = (part.to(r.dtype) - part[:, :1]).sub_(o).mul_(r) if recipe.center else part.to(r.dtype) * r
            g = g.to(r.dtype)
            if sums is not None:
                sums[0] += (g * z).sum((0, 2))
                sums[1] += g.sum((0, 2))
                g = g * _per_channel(weight, g)
            slope, shift = _coefficients(recipe, z, g, r, g_mean, g_rstd)
            out.copy_(z.mul_(slope).add_(shift).addcmul_(g, r))
        grad_weight, grad_bias = (None, None) if sums is None else sums.to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None


def _coefficients(
    recipe: Recipe, z: Tensor, g: Tensor, r: Tensor, g_mean: Tensor | None, g_rstd: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return P and Q of ∂L/∂x = r g + P z + Q for g = ∂L/∂z and the gradients that arrive through μ and r."""
    through_r = (g * z).sum(1, keepdim=True) if recipe.std_lives else torch.zeros_like(r)
    through_mean = (g.sum(1, keepdim=True) * r).neg_() if recipe.mean_lives else torch.zeros_like(r)
    if g_rstd is not None:
        through_r += g_rstd * r
    if g_mean is not None:
        through_mean += g_mean
    channels = z.shape[1]
    # ∂r/∂σ² = −r³/2, or −r²/(2σ) with eps beside σ = 1/r − eps; z r⁻¹ is x − μ.
    scale = r if recipe.eps_mode == "var" else _reciprocal_or_zero(r.reciprocal() - recipe.eps)
    return through_r.mul_(scale).div_(-recipe.count(channels)), through_mean.div_(channels)


def _reciprocal_or_zero(sigma: Tensor) -> Tensor:
    return torch.where(sigma > 0, sigma, torch.inf).reciprocal()


def _slices(x: Tensor, *tensors: Tensor | None) -> Iterator[list[Any]]:
    """Cut x and the others (N, C or 1, *positions) into views (n, C or 1, S) of which a few stay in cache together."""
    samples, size = x.shape[0], max(1, x[:1].numel())
    step = max(1, CHUNK * torch.get_num_threads() // size) if x.device.type == "cpu" else max(1, samples)
    positions = math.prod(x.shape[2:])
    views = [t if t is None else t.reshape(samples, t.shape[1], positions) for t in (x, *tensors)]
    for start in range(0, samples, step):
        yield [t if t is None else t[start : start + step] for t in views]


def _per_channel(numbers: Tensor, z: Tensor) -> Tensor:
    """View (C,) numbers, in the dtype of ``z``, so that they broadcast over its positions."""
    return numbers.to(z.dtype).reshape(-1, *(1,) * (z.dim() - 2))
