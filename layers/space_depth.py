r"""Channels into positions and back: a permutation of the numbers, in the two orders of channels that are published.

With r = (r_h, r_w), an offset m = i·r_w + j within a block (0 ≤ i < r_h, 0 ≤ j < r_w) and O channels of the wide side,
$$y_{n,\,o,\,h r_h + i,\,w r_w + j} = z_{n,\,c(o, m),\,h,\,w}$$
order crd (channel, row, column): c = o·r_h·r_w + m, torch's PixelShuffle; order dcr: c = m·O + o, the default of ONNX's
DepthToSpace, TensorFlow's depth_to_space and the inverse of i-RevNet's ψ. They are the same for one channel only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.moments import is_channels_last
from layers.option import OptionError

Block = int | tuple[int, ...]


def _sides(block: Block, order: str) -> tuple[int, int]:
    """Return the height and width of a block; raises OptionError for a block or an order that there is not."""
    sides = block if isinstance(block, (tuple, list)) else (block, block)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)
    if len(sides) != 2 or not whole:
        raise OptionError(f"block={block!r} is not an integer ≥ 1, or 2 of them", "block")
    _check_order(order)
    return sides[0], sides[1]


def check_scale(scale: int, order: str = "crd") -> None:
    """Raise OptionError for a scale that is no integer ≥ 1, and for an order that there is not."""
    if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
        raise OptionError(f"scale={scale!r} is not an integer ≥ 1", "scale")
    _check_order(order)


def _check_order(order: str) -> None:
    if order not in ("crd", "dcr"):
        raise OptionError(f"order={order!r} is not one of crd, dcr", "order")


def depth_to_space(z: Tensor, block: Block, order: str = "crd") -> Tensor:
    """Return z (N, O·r_h·r_w, H, W) as y (N, O, H·r_h, W·r_w), in its dtype and memory format; one copy.

    Raises OptionError where the block does not divide the channels, ValueError where z has not 4 axes.
    """
    high, wide = _sides(block, order)
    n, channels, h, w = _four(z)
    if channels % (high * wide):
        raise OptionError(f"blocks of {high}×{wide} need a multiple of {high * wide} channels, not {channels}", "block")
    o = channels // (high * wide)
    if not z.is_contiguous() and is_channels_last(z):
        if order == "crd" and high == wide:  # its kernel is twice as fast here, three times slower elsewhere
            return F.pixel_shuffle(z, high).contiguous(memory_format=torch.channels_last)
        last = z.permute(0, 2, 3, 1)
        parts = last.view(n, h, w, o, high, wide) if order == "crd" else last.view(n, h, w, high, wide, o).movedim(5, 3)
        return _copied(parts.permute(0, 1, 4, 2, 5, 3)).view(n, h * high, w * wide, o).permute(0, 3, 1, 2)
    parts = z.view(n, o, high, wide, h, w) if order == "crd" else z.view(n, high, wide, o, h, w).movedim(3, 1)
    return _copied(parts.permute(0, 1, 4, 2, 5, 3)).view(n, o, h * high, w * wide)


def space_to_depth(y: Tensor, block: Block, order: str = "crd") -> Tensor:
    """Return y (N, O, H, W) as z (N, O·r_h·r_w, H/r_h, W/r_w): the inverse of `depth_to_space`, bit for bit.

    Raises OptionError where the block does not divide the positions, ValueError where y has not 4 axes.
    """
    high, wide = _sides(block, order)
    n, o, h, w = _four(y)
    if h % high or w % wide:
        raise OptionError(f"blocks of {high}×{wide} do not divide {h}×{w} positions: pad or crop them", "block")
    if high == wide == 1:
        return F.pixel_unshuffle(y, 1)  # a copy, of its gradient too: that of a clone is the memory of the upstream
    shape = n, o * high * wide, h // high, w // wide
    if not y.is_contiguous() and is_channels_last(y):
        parts = y.permute(0, 2, 3, 1).view(n, shape[2], high, shape[3], wide, o)
        parts = parts.permute(0, 1, 3, 5, 2, 4) if order == "crd" else parts.permute(0, 1, 3, 2, 4, 5)
        return _copied(parts).view(n, *shape[2:], shape[1]).permute(0, 3, 1, 2)
    parts = y.view(n, o, shape[2], high, shape[3], wide)
    return _copied(parts.permute(*((0, 1, 3, 5, 2, 4) if order == "crd" else (0, 3, 5, 1, 2, 4)))).view(shape)


def _copied(parts: Tensor) -> Tensor:
    """A copy, also where a view would do: what comes out is never the memory of what went in."""
    return parts.clone(memory_format=torch.contiguous_format)


def _four(x: Tensor) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise ValueError(f"blocks of positions need (N, C, H, W), not {x.dim()}-d")
    n, c, h, w = x.shape
    return n, c, h, w


def repeat_filters(filters: Tensor, scale: int, order: str = "crd") -> Tensor:
    """Return ``filters`` (O, …) as (O·scale², …), each once for every offset: the expansion of ICNR, of a bias too.

    In order crd copies of a filter follow one another, in dcr all filters do; either in the place of the other mixes
    channels. Raises OptionError for a scale or an order that there is not.
    """
    check_scale(scale, order)
    if order == "crd":
        return filters.repeat_interleave(scale * scale, 0)
    return filters.repeat(scale * scale, *[1] * (filters.dim() - 1))


def by_offset(filters: Tensor, scale: int, order: str = "crd") -> Tensor:
    """Return ``filters`` (O·scale², …) as (O, scale, scale, …), output channel before the offset; a view if it can be.

    Raises OptionError where scale² does not divide their number.
    """
    check_scale(scale, order)
    count, rest = filters.shape[0], filters.shape[1:]
    if count % scale**2:
        raise OptionError(f"scale={scale} needs a multiple of {scale**2} filters, not {count}", "scale")
    if order == "crd":
        return filters.reshape(count // scale**2, scale, scale, *rest)
    return filters.reshape(scale, scale, count // scale**2, *rest).movedim(2, 0)
