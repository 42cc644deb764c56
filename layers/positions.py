r"""The engine under the norms of the channels at each position: ln over channels, adanorm, pono, pixel-norm.

$$z = (x - \mu_{ns})\,r_{ns},\quad r = 1/\sqrt{\sigma^2 + \varepsilon}\ \text{or}\ 1/(\sigma + \varepsilon),\quad
y = \gamma_c z + \beta_c,$$
μ and σ over the C channels at position s of sample n. `standardize` is the whole of it. Forward and backward go slice
by slice of whole samples, which stays in cache between the few operations on it unless one sample is too large; the
data then cross memory twice forward and three times backward. Saved for backward: x and two numbers per position.
torch has one kernel for rows, layer normalization: its backward is taken, its forward is slower than plain operations.

Accuracy: the data are first shifted by their own first channel. That channel lies within √(C − 1) deviations of the
mean, so the shift loses nothing and takes a large common mean away: the error of z does not grow with mean/std. bf16
and fp16 are computed in float32, where a sum of them takes no digits away, and rounded once. `_define` is the
definition in plain operations, for double backward, torch.compile, tracing, functorch, and the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layers.card import sizes
from layers.definition import through_definition
from layers.dimensions import is_tiny
from layers.moments import needs_plain_operations, wide_dtype
from layers.variance import variance_about

Outputs = tuple[Tensor, Tensor, Tensor]
PLAIN = (1.0, 0.0)
SLICE = 1 << 18  # elements per thread: 1 MiB of float32


class Recipe(NamedTuple):
    """How moments become a center and a scale.

    ``eps_mode`` var puts ``eps`` inside the root, std adds it to σ. ``unbiased`` divides the variance by m − 1.
    ``detach`` (none, mean, std, both) names what backward treats as a constant. Without ``center`` μ is 0 and σ² the
    mean square. With ``gain`` (C, k), which is for no γ and β, y = C (1 − k z) z, the factor a constant in backward.
    """

    eps: float
    eps_mode: str = "var"
    unbiased: bool = False
    detach: str = "none"
    center: bool = True
    gain: tuple[float, float] = PLAIN

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

    def slope(self, rstd: Tensor) -> Tensor:
        """Return s of ∂r/∂σ² = −r² s/2: r, or 1/σ with eps beside σ = 1/r − eps; finite for σ = 0."""
        return rstd if self.eps_mode == "var" else (rstd.reciprocal() - self.eps).clamp_min_(1e-18).reciprocal_()


def standardize(x: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe) -> Outputs:
    """Return y, and μ and r of every position, for ``x`` (N, C, *positions), any floating dtype, any strides.

    ``weight`` γ and ``bias`` β are (C,) or both None. y has the dtype and memory format of ``x``; μ and r are
    (N, 1, *positions) in float32 or wider. All three are differentiable, twice (μ only with ``center``).
    """
    # One that does not centre keeps as little in plain operations.
    if needs_plain_operations() or (is_tiny(x.numel()) and not recipe.center and x.dtype.itemsize >= 4):
        return _define(x, weight, bias, recipe)
    dense = x if channels_innermost(x) else x.contiguous()
    outputs: Outputs = _Standardize.apply(dense, weight, bias, recipe)  # type: ignore[no-untyped-call]
    return outputs


def channels_innermost(x: Tensor) -> bool:
    """Tell whether the channels of one position lie side by side in memory: (N, C), channels_last, (N, L, C) views."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def grid(x: Tensor) -> tuple[int, int, int]:
    """Return N, H and W of ``x`` as cards count them, for the shape of a statistic per position."""
    known = sizes(x.shape)
    return known["N"], known["H"], known["W"]


def _define(x: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe) -> Outputs:
    """The definition, in operations that autograd differentiates as often as wanted."""
    wide = x.to(wide_dtype(x.dtype))
    shifted = wide - wide[:, :1].detach() if recipe.center else wide
    mean = shifted.mean(1, keepdim=True) if recipe.center else None
    var = shifted.square().mean(1, keepdim=True) if mean is None else variance_about(mean, shifted, 1)
    rstd = recipe.rstd(var * (x.shape[1] / recipe.count(x.shape[1])) if recipe.unbiased else var)
    centered = shifted if mean is None else shifted - (mean if recipe.mean_lives else mean.detach())
    y = centered * (rstd if recipe.std_lives else rstd.detach())
    if weight is not None and bias is not None:
        y = y * _per_channel(weight, y) + _per_channel(bias, y)
    if recipe.gain != PLAIN:
        scale, k = recipe.gain
        y = y * torch.rsub(y.detach(), scale, alpha=k * scale)
    mean = torch.zeros_like(rstd) if mean is None else mean + wide[:, :1].detach()
    return y.to(x.dtype), mean, rstd


class _Standardize(torch.autograd.Function):
    """`_define`, slice by slice, in as few operations on the data as there are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe) -> Outputs:
        y = torch.empty_like(x)
        parts = [_forward(part, out, weight, bias, recipe) for part, out in _parts(x, y)]
        offset, rstd = (
            torch.cat(each) if len(each) > 1 and each[0] is not None else each[0] for each in zip(*parts, strict=True)
        )
        ctx.set_materialize_grads(False)
        if offset is None:
            mean = torch.zeros_like(rstd)
            ctx.mark_non_differentiable(mean)
        else:
            mean = offset + x[:, :1] if _is_shifted(x) else offset.clone()
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
        grad_y = grad_y if grad_y.stride() == x.stride() else torch.empty_like(x).copy_(grad_y)
        grad_x = torch.empty_like(x)
        sums = None if weight is None else torch.zeros(2, x.shape[1], dtype=rstd.dtype, device=x.device)
        for parts in _parts(x, grad_y, grad_x, offset, rstd, grad_mean, grad_rstd):
            _backward(*parts, weight=weight, recipe=ctx.recipe, sums=sums)
        grad_weight, grad_bias = (None, None) if sums is None or weight is None else sums.to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None


def _parts(x: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Cut the samples of ``x`` and ``others`` into slices that stay in cache."""
    step = _step(x)
    if step >= x.shape[0]:
        return [(x, *others)]
    return zip(*(repeat(None) if t is None else torch.split(t, step) for t in (x, *others)), strict=False)


def _step(x: Tensor) -> int:
    """The number of samples of ``x`` that are taken at a time, to stay in cache."""
    if x.device.type != "cpu":
        return max(1, x.shape[0])
    return max(1, SLICE * torch.get_num_threads() // max(1, x.shape[1:].numel()))


def _is_shifted(x: Tensor) -> bool:
    """Whether the first channel is taken away: float32 sums of up to 2¹³ numbers of half precision lose no digit."""
    return x.dtype.itemsize > 2


def _shifted(x: Tensor, recipe: Recipe, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return ``x`` in ``dtype``, less its first channel where that is of use; in ``out``, anew, or as it is."""
    if recipe.center and _is_shifted(x):
        return torch.sub(x, x[:, :1], out=out)
    return x.to(dtype)


def _forward(
    x: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None, recipe: Recipe
) -> tuple[Tensor | None, Tensor]:
    """Write y to ``out``; return the mean of what `_shifted` gives, None if it is not taken away, and r."""
    own = out if out.dtype == wide_dtype(x.dtype) else None
    z, mean = _shifted(x, recipe, wide_dtype(x.dtype), own), None
    if recipe.center:
        mean = z.mean(1, keepdim=True)
        z.sub_(mean)
    if channels_innermost(x):
        squares = torch.linalg.vector_norm(z, 2, 1, keepdim=True).square_()
    else:  # in y, which is yet to be written, where z is not there
        squares = torch.mul(z, z, out=None if recipe.center else own).sum(1, keepdim=True)
    r = recipe.rstd(squares.div_(recipe.count(x.shape[1])))
    scale, k = recipe.gain
    y = torch.mul(z, r if scale == 1 else r * scale, out=z if own is None else own)
    if weight is not None and bias is not None:
        torch.addcmul(_per_channel(bias, y), y, _per_channel(weight, y), out=y)
    elif k:
        y.addcmul_(y, y, value=-k / scale)
    if own is None:
        out.copy_(y)
    return mean, r


def _backward(
    x: Tensor,
    g: Tensor,
    out: Tensor,
    offset: Tensor | None,
    r: Tensor,
    g_mean: Tensor | None,
    g_rstd: Tensor | None,
    *,
    weight: Tensor | None,
    recipe: Recipe,
    sums: Tensor | None,
) -> None:
    """Write ∂L/∂x for g = ∂L/∂y to ``out``, and add to ``sums`` what γ and β get."""
    own = out if out.dtype == r.dtype else None
    centered = _shifted(x, recipe, r.dtype, own)
    if offset is not None:
        centered.sub_(offset)
    g, k = g.to(r.dtype), recipe.gain[1]
    if k:  # up to C, which is in the coefficients
        g = torch.addcmul(g, g, centered * (r * -k))
    if weight is None and g_mean is None and g_rstd is None and _suits_kernel(recipe, x):
        return _by_kernel(g, centered, r, recipe, out)
    product = g * centered
    if weight is not None and sums is not None:
        gamma = _per_channel(weight, g)
        sums[0] += (product * r).transpose(0, 1).flatten(1).sum(1)
        sums[1] += g.transpose(0, 1).flatten(1).sum(1)
        product, g = product.mul_(gamma), g * gamma
    slope, shift = _coefficients(recipe, product, g, r, g_mean, g_rstd)
    own = product if own is None else own
    if channels_innermost(x):
        torch.mul(centered, slope, out=own).add_(shift)  # with two numbers per row addcmul is slow
    else:
        torch.addcmul(shift, centered, slope, out=own)
    torch.addcmul(own, g, r if recipe.gain[0] == 1 else r * recipe.gain[0], out=out)
    return None


def _suits_kernel(recipe: Recipe, x: Tensor) -> bool:
    """Whether torch's backward of layer normalization may be taken, which is for rows."""
    return recipe.mean_lives and recipe.std_lives and x.device.type == "cpu" and channels_innermost(x)


def _by_kernel(g: Tensor, centered: Tensor, r: Tensor, recipe: Recipe, out: Tensor) -> None:
    """Write C (r (g − mean g) − r² s x (Σ g x) / n) to ``out``, s and n as in `_coefficients`, x centred.

    The kernel computes t (g − mean g) − t³ x (Σ g x) / m over m channels, which for t² = r s m / n is that by t/r.
    """
    channels = g.shape[1]
    t = r
    if recipe.unbiased or recipe.eps_mode == "std":
        t = (r * recipe.slope(r)).mul_(channels / recipe.count(channels)).sqrt_()
    rows = [each.movedim(1, -1) for each in (g, centered)]
    found, _, _ = torch.ops.aten.native_layer_norm_backward(
        *rows, [channels], torch.zeros_like(t).movedim(1, -1), t.movedim(1, -1), None, None, [True, False, False]
    )
    if t is r and recipe.gain[0] == 1:
        out.copy_(found.movedim(-1, 1))
    else:
        torch.mul(found.movedim(-1, 1), (r / t).mul_(recipe.gain[0]), out=out)


def _coefficients(
    recipe: Recipe, product: Tensor, g: Tensor, r: Tensor, g_mean: Tensor | None, g_rstd: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return P and Q of ∂L/∂x = C r g + P x + Q, x centred, for C g = ∂L/∂z and product = g x.

    Gradients that arrive through μ and r are in it.
    """
    gain, channels = recipe.gain[0], g.shape[1]
    through_r = product.sum(1, keepdim=True) if recipe.std_lives else torch.zeros_like(r)
    through_mean = g.sum(1, keepdim=True).mul_(r) if recipe.mean_lives else torch.zeros_like(r)
    if g_rstd is not None:
        through_r.add_(g_rstd, alpha=1 / gain)
    if g_mean is not None:
        through_mean.sub_(g_mean, alpha=1 / gain)
    slope = (r * r).mul_(recipe.slope(r)).mul_(through_r).mul_(-gain / recipe.count(channels))
    return slope, through_mean.mul_(-gain / channels)


def _per_channel(numbers: Tensor, z: Tensor) -> Tensor:
    """View (C,) numbers, in the dtype of ``z``, so that they broadcast over its positions."""
    return numbers.to(z.dtype).reshape(-1, *(1,) * (z.dim() - 2))
