r"""The engine under normalized convolutions: windows standardized without unfolding them.

$$z = (W - \bar W) * x,\qquad y = r\,z + b,\qquad r = (\sigma^2 + \varepsilon)^{-1/2},\qquad
\sigma^2 = \mathrm{box}(x^2) - \mathrm{box}(x)^2,$$
box the mean over the channels of a group and a window, so that r is one number per window. Backward, with g = ∂L/∂y
and boxᵀ the adjoint of the sum over a window of I numbers:
$$g_z = r\,g,\quad g_v = -\tfrac12 r^3 \textstyle\sum_o g_o z_o,\quad
\partial L/\partial x = W^T * g_z + \tfrac2I\,(x\,\mathrm{box}^T g_v - \mathrm{box}^T(\mu\,g_v)).$$
Saved for backward: x, z and two numbers per window. Beside the convolutions the data cross memory about twice forward
and three times backward, whole samples at a time, so that a slice stays in cache between the operations on it.

Accuracy: x, with its padding, is first shifted by the mean of its own sample and group. No centred window and no
variance sees that shift, so it is a constant to backward, and a large mean costs no digits. Half precision has float32
statistics, and rounds the shifted input, the filters, z and y once each; z overflows where a plain convolution would.
`_define` is the same in plain operations: for double backward, torch.compile, tracing and functorch; the fast pair of
passes is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.definition import through_definition
from layers.moments import CHUNK, is_channels_last, needs_plain_operations, wide_dtype


class Recipe(NamedTuple):
    """How windows are taken and standardized. The input is padded by ``padding`` zeros on each side."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    center: bool
    eps: float

    def grouped(self, t: Tensor) -> Tensor:
        """View (N, C, H, W) as (N, G, C/G, H, W)."""
        return t.view(t.shape[0], self.groups, t.shape[1] // self.groups, *t.shape[2:])


def normalized_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (N, O, HO, WO), and mean and variance (N, G, HO, WO) of every window, for ``x`` (N, C, H, W).

    Any floating dtype, any strides; y is differentiable twice, the statistics, float32 or wider, are not.
    """
    if needs_plain_operations():
        return _define(x, weight, bias, recipe)
    dense = x if is_channels_last(x) else x.contiguous()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        made: tuple[Tensor, Tensor, Tensor] = _Normalized.apply(  # type: ignore[no-untyped-call]
            dense, weight, bias, recipe
        )
        return made
    _, y, shift, mean, var, _ = _forward(dense, weight, bias, recipe, keep=False)
    return y, mean + _each(shift, 4), var


def _define(x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in operations that autograd differentiates as often as wanted, without im2col too."""
    shift = _shift(x, recipe)
    high, wide = recipe.padding
    padded = F.pad(x, [wide, wide, high, high]) if high or wide else x
    # What backward reads and what is returned is no view of groups: inductor fails on these where sizes are symbols.
    windows = (padded.to(shift.dtype) - _each(_over(shift, x.shape[1]), 4)).to(x.dtype)
    z = _convolve(windows, weight, shift, recipe)
    each = recipe.grouped(windows).to(shift.dtype)
    mean, var = _moments(torch.stack([each.sum(2), each.square().sum(2)]), recipe, weight[0].numel())
    y = z.to(shift.dtype) * _over((var + recipe.eps).rsqrt(), z.shape[1])
    y = y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)
    return y.to(x.dtype), (mean + _each(shift, 4)).detach(), var.detach()


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return z, y, the shift, and mean, variance and r of shifted windows; y overwrites z unless told to keep it."""
    shift = _shift(x, recipe)
    padded = _shifted(x, shift, recipe)
    z = _convolve(padded, weight, shift, recipe)
    sums = torch.empty(2, *shift.shape, *padded.shape[2:], dtype=shift.dtype, device=x.device)
    for rows in _slices(padded):
        part = recipe.grouped(padded[rows]).to(shift.dtype)
        torch.sum(part, 2, out=sums[0, rows])
        torch.sum(part * part, 2, out=sums[1, rows])
    del padded  # y takes its memory: fresh pages cost more than what is computed on them
    mean, var = _moments(sums, recipe, weight[0].numel())
    y = torch.empty_like(z) if keep else z
    rstd = (var + recipe.eps).rsqrt_()
    wide, scale = recipe.grouped(z).to(rstd.dtype), rstd.unsqueeze(2)
    if bias is None:
        _into(recipe.grouped(y), torch.mul, wide, scale)
    else:
        _into(recipe.grouped(y), torch.addcmul, bias.to(rstd.dtype).view(recipe.groups, -1, 1, 1), wide, scale)
    return z, y, shift, mean, var, rstd


class _Normalized(torch.autograd.Function):
    """`_define`, slice by slice."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, y, shift, mean, var, rstd = _forward(x, weight, bias, recipe, keep=True)
        ctx.recipe = recipe
        ctx.save_for_backward(x, weight, bias, z, shift, mean, rstd)
        seen = mean + _each(shift, 4)
        ctx.mark_non_differentiable(seen, var)
        ctx.set_materialize_grads(False)
        return y, seen, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if grad is None:
            return None, None, None, None
        if torch.is_grad_enabled() or needs_plain_operations() or torch._C._functorch.is_legacy_batchedtensor(grad):
            inputs, arrived = ctx.saved_tensors[:3], (grad, None, None)  # the statistics have no gradient
            define = partial(_define, recipe=ctx.recipe)
            return (*through_definition(define, inputs, ctx.needs_input_grad[:3], arrived), None)
        x, weight, _, z, shift, mean, rstd = ctx.saved_tensors
        recipe, wants = ctx.recipe, ctx.needs_input_grad
        grad_bias = grad.sum((0, 2, 3), dtype=rstd.dtype) if wants[2] else None
        if not (wants[0] or wants[1]):
            return None, None, grad_bias, None
        grad_z, grad_var = torch.empty_like(z), torch.empty_like(rstd)
        for rows in _slices(z):
            part = recipe.grouped(grad[rows]).to(rstd.dtype)
            _into(recipe.grouped(grad_z[rows]), torch.mul, part, rstd[rows].unsqueeze(2))
            torch.sum(part * recipe.grouped(z[rows]), 2, out=grad_var[rows])
        padded = _shifted(x, shift, recipe)
        grad_x, grad_weight = None, None
        if wants[1]:
            seen = _convolution_backward(recipe, grad_z, padded, weight, (0, 0), [False, True, False])[1]
            grad_weight = _through_center(seen, grad_z, shift, recipe)
        if wants[0]:
            grad_var.mul_(rstd * rstd * rstd).mul_(-1 / weight[0].numel())
            maps = _spread(torch.stack([grad_var, grad_var * mean]), padded.shape[2:], recipe)
            used, only_x = _used(weight, recipe), [True, False, False]  # of x the shape, so that padding gets nothing
            grad_x = _convolution_backward(recipe, grad_z, x, used, recipe.padding, only_x)[0]
            _add_variance(recipe, grad_x, *(_inside(t, recipe) for t in (padded, *maps)))
        return grad_x, grad_weight, grad_bias, None


def centred(weight: Tensor) -> Tensor:
    """Return the filters (O, C/G, KH, KW), each without its mean, which half precision takes in float32."""
    wide = weight.to(wide_dtype(weight.dtype))
    # The backward of a sum is a view, that of a mean is not.
    return (wide + wide.sum((1, 2, 3), keepdim=True) * (-1 / weight[0].numel())).to(weight.dtype)


def _shift(x: Tensor, recipe: Recipe) -> Tensor:
    """The mean of each sample and group (N, G), a constant."""
    return recipe.grouped(x.detach()).mean((2, 3, 4), dtype=wide_dtype(x.dtype))


def _each(numbers: Tensor, axes: int) -> Tensor:
    """View (N, G) with as many axes of size 1 behind as make ``axes`` in all."""
    return numbers.reshape(*numbers.shape, *(1,) * (axes - 2))


def _over(numbers: Tensor, channels: int) -> Tensor:
    """Give each channel what its group has: (N, G, …) becomes (N, C, …)."""
    batch, groups, *positions = numbers.shape
    return numbers.unsqueeze(2).expand(batch, groups, channels // groups, *positions).flatten(1, 2)


def _used(weight: Tensor, recipe: Recipe) -> Tensor:
    return centred(weight) if recipe.center else weight


def _convolve(padded: Tensor, weight: Tensor, shift: Tensor, recipe: Recipe) -> Tensor:
    """z for the shifted input. Filters that are not centred see the shift, which is given back to them."""
    used = _used(weight, recipe)
    z = F.conv2d(padded, used, None, recipe.stride, 0, recipe.dilation, recipe.groups)
    if recipe.center:
        return z
    seen = used.to(shift.dtype).sum((1, 2, 3)) * _over(shift, z.shape[1])
    return (z + _each(seen, 4)).to(z.dtype)


def _moments(sums: Tensor, recipe: Recipe, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of every window from the sums of x and x² over channels (2, N, G, *padded positions)."""
    for axis in range(2):
        sums = reduce(torch.add, _taps(sums, axis, recipe))
    mean, square = sums[0] / count, sums[1] / count
    return mean, (square - mean.square()).clamp_min(0)


def _taps(maps: Tensor, axis: int, recipe: Recipe) -> list[Tensor]:
    """What each element of the window sees along one of the last two axes of ``maps``: a view for each."""
    kernel, stride, step = recipe.kernel[axis], recipe.stride[axis], recipe.dilation[axis]
    reach = (maps.shape[axis - 2] - step * (kernel - 1) - 1) // stride * stride + 1
    lines = maps if axis else maps.transpose(-2, -1)
    views = [lines[..., start : start + reach : stride] for start in range(0, kernel * step, step)]
    return views if axis else [view.transpose(-2, -1) for view in views]


def _spread(maps: Tensor, positions: torch.Size, recipe: Recipe) -> Tensor:
    """The adjoint of the sum over windows: what every padded position gets from the windows that see it."""
    for axis in (1, 0):
        shape = list(maps.shape)
        shape[axis - 2] = positions[axis]
        whole = maps.new_zeros(shape)
        for tap in _taps(whole, axis, recipe):
            tap.add_(maps)
        maps = whole
    return maps


def _inside(padded: Tensor, recipe: Recipe) -> Tensor:
    """View the part of ``padded`` that is no padding."""
    high, wide = recipe.padding
    return padded[..., high : padded.shape[-2] - high, wide : padded.shape[-1] - wide]


def _shifted(x: Tensor, shift: Tensor, recipe: Recipe) -> Tensor:
    """Return x with zeros around it, all less ``shift``, in the dtype and memory format of ``x``."""
    high, wide = recipe.padding
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shape = (*x.shape[:2], x.shape[2] + 2 * high, x.shape[3] + 2 * wide)
    padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    whole, inside = recipe.grouped(padded), recipe.grouped(_inside(padded, recipe))
    shift = _each(shift, 5)
    if high or wide:
        whole.copy_(-shift)  # all of it: strips at the sides take longer
    _into(inside, torch.sub, recipe.grouped(x).to(shift.dtype), shift)
    return padded


def _convolution_backward(
    recipe: Recipe, grad_z: Tensor, x: Tensor, filters: Tensor, padding: tuple[int, ...], wants: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, filters and a bias, of which ``wants`` tells whether they are computed."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_z, x, filters, None, recipe.stride, padding, recipe.dilation, False, (0, 0), recipe.groups, wants
    )
    return found


def _through_center(grad: Tensor, grad_z: Tensor, shift: Tensor, recipe: Recipe) -> Tensor:
    """∂L/∂W from the gradient of the filters that met the shifted input, which may be overwritten."""
    wide = grad.to(shift.dtype)
    if recipe.center:
        wide -= wide.mean((1, 2, 3), keepdim=True)
    else:
        seen = recipe.grouped(grad_z).sum((3, 4), dtype=shift.dtype) * _each(shift, 3)
        wide += seen.sum(0).view(-1, 1, 1, 1)
    return wide.to(grad.dtype)


def _add_variance(recipe: Recipe, grad: Tensor, padded: Tensor, slope: Tensor, offset: Tensor) -> None:
    """Add slope · x − offset to ∂L/∂x, the maps (N, G, H, W)."""
    for rows in _slices(grad):
        part, data = recipe.grouped(grad[rows]), recipe.grouped(padded[rows])
        wide = part.to(slope.dtype)
        wide.addcmul_(data.to(slope.dtype), slope[rows].unsqueeze(2)).sub_(offset[rows].unsqueeze(2))
        if wide is not part:
            part.copy_(wide)


def _into(out: Tensor, function: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Write ``function`` of ``tensors`` into ``out``, which may be narrower than they are."""
    if out.dtype == tensors[0].dtype:
        function(*tensors, out=out)
    else:
        out.copy_(function(*tensors))


def _slices(x: Tensor) -> Iterator[slice]:
    """Cut the samples so that a few slices stay in cache together; on other devices than CPUs not at all."""
    size = max(1, x[:1].numel())
    step = max(1, CHUNK * torch.get_num_threads() // size) if x.device.type == "cpu" else max(1, x.shape[0])
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)
