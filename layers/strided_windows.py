r"""All windows of an input as a view, by strides, and products with them a window per row: im2row, as_strided, MEC.

$$\mathrm{view}[n, c, i, j, u, v] = x[n, c,\; s u + d i,\; s v + d j]$$
has the strides of x, those of the kernel's axes times d, those of the positions times s: no element is copied. A
product of matrices needs a copy, as neighbouring windows overlap; here stands what such a copy and product share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.gemm_convolution import Geometry, Pair

LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


def zero_padded(x: Tensor, padding: Pair, last: bool) -> Tensor:
    """Return ``x`` (N, C, H, W) with ``padding`` zeros on each side, channels innermost in memory where ``last``.

    One pass does both; ``x`` itself where neither is to be done.
    """
    (high, wide), (images, channels, rows, columns) = padding, x.shape
    if not (high or wide):
        return x.contiguous(memory_format=LAYOUTS[last])
    size = (images, channels, rows + 2 * high, columns + 2 * wide)
    padded = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=LAYOUTS[last])
    for border in (padded[:, :, :high], padded[:, :, high + rows :]):
        border.zero_()
    between = padded[:, :, high : high + rows]
    for border in (between[..., :wide], between[..., wide + columns :]):
        border.zero_()
    between[..., wide : wide + columns].copy_(x)
    return padded


def windows(x: Tensor, geometry: Geometry) -> Tensor:
    """Return the windows (N, C, KH, KW, HO, WO) of ``x`` (N, C, HP, WP), padded, in any layout: a view."""
    (deep, across), (down, right) = geometry.dilation, geometry.stride
    positions = geometry._replace(padding=(0, 0)).output(*x.shape[2:])
    image, channel, row, column = x.stride()
    strides = (image, channel, deep * row, across * column, down * row, right * column)
    return x.as_strided((*x.shape[:2], *geometry.kernel, *positions), strides)


def as_rows(view: Tensor, groups: int) -> Tensor:
    """Return ``view`` (N, C, KH, KW, HO, WO) as (N, HO, WO, G, KH, KW, C/G): a row per position, channels innermost."""
    grouped = view.view(len(view), groups, view.shape[1] // groups, *view.shape[2:])
    return grouped.permute(0, 5, 6, 1, 3, 4, 2)


def packed(weight: Tensor, groups: int) -> Tensor:
    """Return the filters (G, O/G, KH·KW·C/G) of ``weight`` (O, C/G, KH, KW), elements in the order of a row."""
    return weight.permute(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)


def made_output(x: Tensor, weight: Tensor, geometry: Geometry, last: bool) -> Tensor:
    """Return room for the output (N, O, HO, WO) of ``x`` (N, C, H, W), channels innermost in memory where ``last``."""
    size = (len(x), len(weight), *geometry.output(*x.shape[2:]))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=LAYOUTS[last])


def multiply(y: Tensor, filters: Tensor, rows: Tensor, beta: int, last: bool) -> None:
    """Add the products of ``rows`` (N, R, WO, G, KH, KW, C/G) and ``filters`` (G, O/G, I) to β times ``y``.

    ``y`` is R rows of the output, (N, O, R, WO), of one image or all rows of a batch. Channels-last, where ``last``, it
    is a product per group for the whole batch; else each image's is transposed.
    """
    groups, outputs, _ = filters.shape
    matrices = rows.flatten(4)  # (N, R, WO, G, I)
    if last:
        matrices = matrices.flatten(0, 2)
        targets = y.permute(0, 2, 3, 1).view(len(matrices), groups, outputs)
        for group, matrix in enumerate(filters):  # as a batch, bfloat16 has no fast kernel
            targets[:, group].addmm_(matrices[:, group], matrix.T, beta=beta)
        return
    matrices = matrices.flatten(1, 2).permute(0, 2, 3, 1)
    for target, matrix in zip(y.view(len(y), groups, outputs, matrices.shape[3]), matrices, strict=True):
        target.baddbmm_(filters, matrix, beta=beta)  # (G, O/G, R·WO)
