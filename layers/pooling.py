"""What the pooling modules share: checked options, the check of an input, and the parts that they are built of.

Pooled maps are small beside the input and come from many values, so they are kept, convolved and normalized in float32
or wider whatever the dtype of the input: at a mean far above the spread half precision would leave nothing of them.
Outputs have the dtype and the memory format of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Layer, scale_and_shift
from layers.cached import joined, rows_in_cache
from layers.moments import is_channels_last, needs_plain_operations, wide_dtype, widened
from layers.norm.bn import BatchNorm


class Pooling(Layer):
    """A module on (N, C, H, W) with at least one position."""

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is (N, C, H, W), with a position, floating, with this module's channels."""
        super().check_input(x)
        self.refuse_no_positions(x)

    def refuse_single_values(self, count: int, what: str) -> None:
        """Raise ValueError when a batch norm in training would see one value per channel, in ``what``."""
        if self.training and count == 1:
            raise ValueError(
                f"{type(self).__name__} in training needs more than 1 value per channel in {what}: give a larger batch"
            )


class ConvNorm(nn.Module):
    """A convolution of stride 1 without bias, padded with zeros to the size of its input, and batch normalization.

    Parameters ``conv.weight``, ``norm.weight``, ``norm.bias``; the buffers of `layers.norm.bn.BatchNorm` in ``norm``.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=padding, bias=False, device=device, dtype=dtype)
        self.norm = BatchNorm(out_channels, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized convolution of ``x`` (N, C, H, W), in its dtype (that of autocast under autocast)."""
        y: Tensor
        if self.norm.uses_batch_statistics:
            y = self.norm(convolve(self.conv, x))
            return y
        weight, bias = self.folded(x.dtype)
        y = self.conv._conv_forward(x, weight, bias)
        return y

    def folded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution that this is in evaluation, γ and the statistics folded in."""
        norm = self.norm
        mean, var = cast("Tensor", norm.running_mean).to(dtype), cast("Tensor", norm.running_var).to(dtype)
        scale, shift = scale_and_shift(var, norm.eps, norm.weight, norm.bias)
        return self.conv.weight.to(dtype) * scale.view(-1, 1, 1, 1), cast("Tensor", shift) - mean * scale


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return ``conv(x)`` with its parameters cast to the dtype of ``x``, which decides."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    y: Tensor = conv._conv_forward(x, conv.weight.to(x.dtype), bias)
    return y


def like(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` (N, ·, ·, ·) in the dtype and memory format of ``x``."""
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last if is_last(x) else torch.contiguous_format)


def is_last(x: Tensor) -> bool:
    """Return whether ``x`` has its channels innermost in memory, and not because there is one or one position."""
    return not x.is_contiguous() and is_channels_last(x)


def positive(x: Tensor) -> Tensor:
    """Return max(x, 0) for the end of a module: unlike relu's, its backward does not need the output.

    So what follows may work in place. The derivative at 0 is relu's, 0, where that of clamp_min is 1.
    """
    return F.threshold(x, 0.0, 0.0)


def strips(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the rows (N, C, H, 1) and the columns (N, C, 1, W) of ``x``, in float32 or wider.

    Channels last they are summed as what they are in memory, (N, H, W, C), or torch would go number by number. Sums
    are divided, since the backward of a mean fills a whole map.
    """
    last, wide = is_last(x), wide_dtype(x.dtype)
    y = x.permute(0, 2, 3, 1) if last else x
    found = (y.sum(axis - last, keepdim=True, dtype=wide) / x.shape[axis] for axis in (3, 2))
    rows, columns = (strip.permute(0, 3, 1, 2) if last else strip for strip in found)
    return rows, columns


def crossed(rows: Tensor, columns: Tensor, relu: bool = True) -> Tensor:
    """Return the map (N, C, H, W) of sums of ``rows`` (N, C, H, 1) and ``columns`` (N, C, 1, W), laid out as they.

    With ``relu`` of positive sums, and 0 elsewhere. Its backward sums channels last as `strips` does.
    """
    last = is_last(rows)
    if last:
        rows, columns = rows.permute(0, 2, 3, 1), columns.permute(0, 2, 3, 1)
    u = rows + columns
    u = u.relu_() if relu else u  # before it is turned: in place on a view costs a copy
    return u.permute(0, 3, 1, 2) if last else u


def enlarged(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return ``x`` interpolated bilinearly to ``size``; a single pixel is expanded, which is the same, uncopied."""
    if x.shape[2:] == (1, 1):
        return x.expand(*x.shape[:2], *size)
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def pyramid(x: Tensor, levels: Sequence[int], pool: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """Return ``pool(x, n)``, n×n bins, for every level n.

    Bin i of n spans ⌊iH/n⌋ … ⌈(i + 1)H/n⌉. Where the finest level divides both sizes of ``x`` its bins are disjoint and
    of one size, so a level that divides it is the same pooling of the finest map: one pass over ``x``, not several. Of
    pixels that are the maximum of a bin together another may then get the gradient.
    """
    finest = max(levels)
    if x.shape[2] % finest or x.shape[3] % finest:
        return [pool(x, level) for level in levels]
    base = pool(x, finest)
    return [base if n == finest else pool(x if finest % n else base, n) for n in levels]


def means(x: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
    """Return `pyramid` of means, in float32 or wider; on a processor channels last, where torch works on vectors."""
    if x.device.type == "cpu" and x.numel() and not needs_plain_operations():
        found: tuple[Tensor, ...] = _Means.apply(x, levels)  # type: ignore[no-untyped-call]
        return found
    return tuple(pyramid(widened(x), levels, mean_bins))


class _Means(torch.autograd.Function):
    """The grids of means from slices that stay in cache, however many they are; backward is the same in reverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.levels, ctx.shape, ctx.dtype, ctx.last, ctx.rows = levels, x.shape, x.dtype, is_last(x), rows_in_cache(x)
        wide = wide_dtype(x.dtype)
        parts = (x[rows].to(wide, memory_format=torch.channels_last) for rows in ctx.rows)
        return tuple(map(torch.cat, zip(*(pyramid(part, levels, mean_bins) for part in parts), strict=True)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if any(map(torch._C._functorch.is_legacy_batchedtensor, grads)):  # which takes no layouts
            with torch.enable_grad():
                x = torch.zeros(ctx.shape, dtype=ctx.dtype, requires_grad=True)
                return torch.autograd.grad(pyramid(widened(x), ctx.levels, mean_bins), x, grads)[0], None
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        parts = (_spread([grad[rows] for grad in grads], ctx.levels, ctx.shape[2:]) for rows in ctx.rows)
        found = [part.to(ctx.dtype, memory_format=layout) for part in parts]
        return joined(found), None


def _spread(grads: Sequence[Tensor], levels: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the gradient of a map of ``size``, channels last, from those of its `pyramid` of means."""
    finest = max(levels)
    nested = size[0] % finest == size[1] % finest == 0
    of_map, of_finest = [], []
    for level, grad in zip(levels, grads, strict=True):
        if not nested or finest % level:
            of_map.append(_spread_bins(grad, size))
        else:
            of_finest.append(grad if level == finest else _spread_bins(grad, (finest, finest)))
    if of_finest:
        of_map.append(_spread_bins(sum(of_finest[1:], of_finest[0]), size))
    return sum(of_map[1:], of_map[0]).expand(-1, -1, *size)


def _spread_bins(grad: Tensor, size: Sequence[int]) -> Tensor:
    """Return the gradient of a map of ``size`` from that of its means over bins; of one bin a single position."""
    if grad.shape[2:] == (1, 1):
        return grad / (size[0] * size[1])
    like = torch.empty(*grad.shape[:2], *size, dtype=grad.dtype, memory_format=torch.channels_last)
    spread: Tensor = torch.ops.aten._adaptive_avg_pool2d_backward(
        grad.contiguous(memory_format=torch.channels_last), like
    )
    return spread


def mean_bins(x: Tensor, bins: int) -> Tensor:
    """Return the means over bins×bins adaptive windows, (N, C, bins, bins)."""
    return x.mean((2, 3), keepdim=True) if bins == 1 else F.adaptive_avg_pool2d(x, bins)


def max_bins(x: Tensor, bins: int) -> Tensor:
    """Return the maxima over bins×bins adaptive windows, (N, C, bins, bins)."""
    found: Tensor = F.adaptive_max_pool2d(x, bins)
    return found
