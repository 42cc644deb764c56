r"""What the convolutions share that go tap by tap: a tap (i, j) of the kernel is a matrix W_ij (O × C) by itself.

$$y_{n\,uv} = b + \sum_{ij} W_{ij}\; x_{n,\;s u + d i - p,\;s v + d j - p}$$
is a sum of pointwise convolutions of shifted inputs. What is added up is added up in float32, if not wider.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.gemm_convolution import GemmConvolution, Geometry
from layers.moments import wide_dtype

Layer = TypeVar("Layer", bound=GemmConvolution)
Method = Callable[[Layer, Tensor, Tensor, Tensor | None, Geometry], Tensor]


def in_float32(algorithm: Method[Layer]) -> Method[Layer]:
    """Give ``algorithm`` half-precision arguments as float32, so that it rounds its result once and no partial sum.

    Weights stay as they are: `tap_filters`, which copies them anyway, widens them.
    """

    @wraps(algorithm)
    def widened(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        wide = wide_dtype(x.dtype)
        y = algorithm(layer, x.to(wide), weight, None if bias is None else bias.to(wide), geometry)
        return y.to(x.dtype)

    return widened


def tap_filters(weight: Tensor, groups: int) -> Tensor:
    """Return ``weight`` (O, C/G, KH, KW) as (G, KH, KW, O/G, C/G), float32 or wider, each tap a matrix of its own.

    It is one copy, or none where the weight lies so.
    """
    outputs, inputs, kh, kw = weight.shape
    taps = weight.reshape(groups, outputs // groups, inputs, kh, kw).permute(0, 3, 4, 1, 2)
    taps = taps.to(wide_dtype(weight.dtype), memory_format=torch.contiguous_format)
    return taps.flatten().view(groups, kh, kw, outputs // groups, inputs)  # strides of axes of size 1 as well


def pixels_of(x: Tensor) -> Tensor:
    """Return ``x`` (N, C, H, W) as (N, H, W, C), channels next to each other; a copy unless they lie so."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).flatten().view(n, h, w, c)


Shift = tuple[int, tuple[slice, slice], tuple[slice, slice]]


def tap_products(filters: Tensor, geometry: Geometry, size: torch.Size, taps: str) -> list[tuple[Tensor, list[Shift]]]:
    """Return what to multiply an image of ``size`` by: all ``taps`` of `tap_filters` at once, or one after the other.

    Each is a matrix (G, K·O/G, C/G) and, for every tap in it that meets the image: the tap's place in it, the positions
    of the image and those of the output.
    """
    each = filters.flatten(1, 2)
    met = [(i * geometry.kernel[1] + j, seen, found) for i, j, seen, found in geometry.taps(*size)]
    if taps == "all":
        return [(each.flatten(1, 2), met)]
    return [(each[:, k], [(0, seen, found)]) for k, seen, found in met]


def add_product(y: Tensor, x: Tensor, filters: Tensor) -> None:
    """Add to ``y`` (M, O) the product of ``x`` (M, C) with ``filters`` (G, O/G, C/G), transposed, by groups.

    Nothing is copied: only channels need to be next to each other.
    """
    if len(filters) == 1:
        y.addmm_(x, filters[0].t())
        return
    for out, seen, matrix in zip(y.chunk(len(filters), 1), x.chunk(len(filters), 1), filters, strict=True):
        out.addmm_(seen, matrix.t())


def add_rows(y: Tensor, x: Tensor, filters: Tensor) -> None:
    """Add to ``y`` (R, V, O) the product of ``x`` (R, V, C) with ``filters`` as `add_product` does.

    One product for all rows where they follow each other in memory as their pixels do, else one for each.
    """
    if all(t.stride(0) == t.shape[1] * t.stride(1) for t in (y, x)):
        add_product(y.flatten(0, 1), x.flatten(0, 1), filters)
        return
    groups = len(filters)
    for out, seen, matrix in zip(y.chunk(groups, 2), x.chunk(groups, 2), filters, strict=True):
        out.baddbmm_(seen, matrix.t().expand(len(seen), -1, -1))


def pointwise_by_tap(layer: GemmConvolution, image: Tensor) -> Tensor:
    """Return the 1×1 convolutions (KH·KW, O, H, W) of ``image`` (C, H, W) by each tap of a layer without groups."""
    taps = layer.weight.detach().flatten(2).permute(2, 0, 1)  # (KH·KW, O, C)
    return torch.stack([F.conv2d(image, tap[:, :, None, None]) for tap in taps])
