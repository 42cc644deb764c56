"""The two passes of region-wise convolution (layers/regions.py), region by region, and the definition of what they do.

Shapes: x (N, C, H, W), filters (m, N, K, C, O) with K = KH·KW, guide (N, m, HO, WO), regions (N, HO, WO).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.moments import widened


class Windows(NamedTuple):
    """How windows are taken of a map: kernel, stride, zeros on each side, dilation; a number per axis each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def define(x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, windows: Windows) -> Tensor:
    """The definition in operations that autograd differentiates as often as wanted, softmax for argmax each time."""
    m, n, taps, channels, outputs = filters.shape
    columns = F.unfold(x, windows.kernel, windows.dilation, windows.padding, windows.stride)
    rows = filters.to(x.dtype).permute(1, 0, 4, 3, 2).reshape(n, m * outputs, channels * taps)
    products = (rows @ columns).view(n, m, outputs, columns.shape[2])
    soft = guide.softmax(1)
    hard = torch.zeros_like(soft).scatter(1, regions.unsqueeze(1), 1.0)
    mask = (hard + (soft - soft.detach())).flatten(2).unsqueeze(2)
    y = (widened(products) * mask).sum(1).to(x.dtype)
    return y.view(n, outputs, *guide.shape[2:])


class _Sorted(NamedTuple):
    """The positions of every sample sorted by region: their ``order`` (N, P), and where each region ends in it."""

    order: Tensor
    ends: list[list[int]]

    def regions(self, sample: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the regions of a sample that have positions, and these."""
        start = 0
        for region, end in enumerate(self.ends[sample]):
            if end > start:
                yield region, self.order[sample, start:end]
            start = end


def _sort(regions: Tensor, m: int) -> _Sorted:
    """Sort positions by their ``regions`` (N, HO, WO), of m; one transfer from the device for all samples."""
    n, rows = len(regions), regions.flatten(1)
    offsets = torch.arange(0, n * m, m, device=rows.device).unsqueeze(1)
    counts = torch.bincount((rows + offsets).flatten(), minlength=n * m).view(n, m)
    return _Sorted(rows.argsort(dim=1, stable=True), counts.cumsum(1).tolist())


class Padded:
    """Rows of the padded map (N, HP, WP, C), channels innermost, and which of them each position sees."""

    def __init__(self, x: Tensor, windows: Windows) -> None:
        self.windows = windows
        self.shape = tuple(size + 2 * pad for size, pad in zip(x.shape[2:], windows.padding, strict=True))
        self.channels = x.shape[1]
        self._x = x

    @cached_property
    def rows(self) -> Tensor:
        """The values (N, HP·WP, C)."""
        last = self._x.permute(0, 2, 3, 1)
        if self.shape != self._x.shape[2:]:
            padded = last.new_zeros(last.shape[0], *self.shape, self.channels)
            self._inside(padded).copy_(last)
            last = padded
        return last.contiguous().flatten(1, 2)

    @cached_property
    def seen(self) -> Tensor:
        """The rows (P, K) that the window of each position has."""
        kernel, stride, _, dilation = self.windows
        device, width = self._x.device, self.shape[1]
        starts = [torch.arange(0, room, step, device=device) for room, step in zip(self._rooms(), stride, strict=True)]
        taps = [torch.arange(0, k * d, d, device=device) for k, d in zip(kernel, dilation, strict=True)]
        first, offset = ((down.unsqueeze(1) * width + across).flatten() for down, across in (starts, taps))
        return first.unsqueeze(1) + offset

    def unfolded(self, sample: int, positions: Tensor) -> Tensor:
        """U (len(positions), K·C), the windows of ``positions`` of a sample."""
        index = self.seen.index_select(0, positions)
        return self.rows[sample].index_select(0, index.flatten()).view(len(positions), -1)

    def fold(self, grads: Tensor, unfolded: Tensor) -> None:
        """Add to samples ``grads``, as `rows` are, the gradients of their windows (…, K·C), each tap where it lay."""
        kernel, stride, _, dilation = self.windows
        whole = grads.view(-1, *self.shape, self.channels)
        spans = [range(0, room, step) for room, step in zip(self._rooms(), stride, strict=True)]
        taps = unfolded.view(len(whole), len(spans[0]), len(spans[1]), -1, self.channels)
        for tap in range(kernel[0] * kernel[1]):
            top, left = tap // kernel[1] * dilation[0], tap % kernel[1] * dilation[1]
            down, across = (slice(t, t + s.stop, s.step) for t, s in zip((top, left), spans, strict=True))
            whole[:, down, across].add_(taps[:, :, :, tap])

    def inside(self, grads: Tensor) -> Tensor:
        """View what is no padding of ``grads``, as `rows` are, as (N, C, H, W)."""
        return self._inside(grads.view(len(grads), *self.shape, self.channels)).permute(0, 3, 1, 2)

    def _rooms(self) -> list[int]:
        """How many places the first element of a window has along each axis, at stride 1."""
        kernel, _, _, dilation = self.windows
        return [size - d * (k - 1) for size, k, d in zip(self.shape, kernel, dilation, strict=True)]

    def _inside(self, padded: Tensor) -> Tensor:
        high, wide = self.windows.padding
        return padded[:, high : padded.shape[1] - high, wide : padded.shape[2] - wide]


def forward(x: Tensor, filters: Tensor, regions: Tensor, windows: Windows) -> Tensor:
    """Return y by one product per sample and region that has positions."""
    padded, matrices = Padded(x, windows), _matrices(filters, x)
    positions, shape = _sort(regions, len(filters)), (len(x), filters.shape[4], *regions.shape[1:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for sample, rows in enumerate(y.permute(0, 2, 3, 1).flatten(1, 2)):
        for region, at in positions.regions(sample):
            rows.index_copy_(0, at, padded.unfolded(sample, at) @ matrices[region, sample])
    return y


def _matrices(filters: Tensor, x: Tensor) -> Tensor:
    """The filters (m, N, K·C, O) in the dtype of ``x``."""
    return filters.to(x.dtype).flatten(2, 3)


def backward(
    grad: Tensor, x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, windows: Windows, wants: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, filters and guide, those that ``wants`` has first, from that of y."""
    m, n, taps, channels, _ = filters.shape
    positions, padded = _sort(regions, m), Padded(x, windows)
    matrices, upstream = _matrices(filters, x), grad.permute(0, 2, 3, 1).flatten(1, 2)
    grad_rows = torch.zeros_like(padded.rows) if wants[0] else None
    grad_matrices = torch.zeros_like(filters.flatten(2, 3)) if wants[1] else None
    slopes = guide.new_empty(n, upstream.shape[1], m) if wants[2] and m > 1 else None
    unfolded_grads = x.new_empty(upstream.shape[1], taps * channels)
    for sample in range(n):
        for region, at in positions.regions(sample):
            unfolded, g = padded.unfolded(sample, at), upstream[sample].index_select(0, at)
            if slopes is not None:
                slopes[sample].index_copy_(0, at, _slopes(unfolded, matrices[:, sample], g, slopes.dtype))
            if grad_matrices is not None:
                wide = grad_matrices[region, sample]
                torch.mm(unfolded.t().to(wide.dtype), g.to(wide.dtype), out=wide)
            if grad_rows is not None:
                unfolded_grads.index_copy_(0, at, torch.mm(g, matrices[region, sample].t(), out=unfolded))
        if grad_rows is not None:
            padded.fold(grad_rows[sample], unfolded_grads)
    return (
        None if grad_rows is None else padded.inside(grad_rows),
        None if grad_matrices is None else grad_matrices.view_as(filters),
        through_softmax(guide, slopes) if wants[2] else None,
    )


def _slopes(unfolded: Tensor, matrices: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """s (P, m): what ∂L/∂y has in common with the output by each of the filters (m, K·C, O)."""
    products = unfolded.new_empty(len(unfolded), matrices.shape[2])
    upstream = g.to(dtype)
    return torch.stack(
        [torch.mm(unfolded, matrix, out=products).to(dtype).mul(upstream).sum(1) for matrix in matrices], 1
    )


def through_softmax(guide: Tensor, slopes: Tensor | None) -> Tensor:
    """∂L/∂F from the slopes (N, P, m) of a softmax in the place of the choice; 0 where there is nothing to choose."""
    if slopes is None:
        return torch.zeros_like(guide)
    slope = slopes.transpose(1, 2).view_as(guide)
    soft = guide.softmax(1)
    return soft * (slope - (soft * slope).sum(1, keepdim=True))
