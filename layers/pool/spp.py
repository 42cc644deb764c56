r"""Spatial Pyramid Pooling: a vector of fixed length from a map of any size (He et al. 2014, arXiv 1406.4729,
section 2.2).

For each level n of the pyramid an n×n grid of bins covers the map, bin i from ⌊iH/n⌋ to ⌈(i + 1)H/n⌉; each channel
gives its maximum (or mean) in every bin:
$$y = [\,\max_{p \in \text{bin}} x_{ncp}\,]_{\text{levels},\,c,\,\text{bins}},\qquad \text{length } C \sum_l n_l^2.$$
Levels are concatenated, within one channels come first and rows of bins after. Bins overlap unless n divides the size.

Where the finest level divides height and width, a level that divides it is pooled from its map: one pass over x.
On a processor all levels are pooled from a slice of x that stays in cache, channels last: only there torch's kernel
works on vectors. Backward needs the places of the maxima alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.cached import joined, rows_in_cache
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule
from layers.convolution import options_among
from layers.moments import needs_plain_operations, widened
from layers.pooling import Pooling, is_last, max_bins, mean_bins, means, pyramid
from layers.shared import POOLED_POSITIONS, PYRAMID_SYMBOLS

card = Card(
    title="Spatial Pyramid Pooling",
    paper=Paper(
        authors="He, Zhang, Ren, Sun",
        title="Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
        year=2014,
        venue="ECCV 2014",
        arxiv="1406.4729",
    ),
    impl="SpatialPyramidPooling",
    formula="y = [max over bin of x], n×n bins per level, bin i = ⌊iH/n⌋ … ⌈(i + 1)H/n⌉",
    summary="Maxima over the bins of a pyramid of grids: a vector of length C·Σn² from a map of any size.",
    options=(
        Option(
            name="levels",
            type=int,
            default=(6, 3, 2, 1),
            axes=4,
            ge=0,
            help="bins along each side, per level of the pyramid; 0 is no level",
            source="He et al. 2014, section 3.1",
        ),
        Option(name="mode", type=str, default="max", choices=("max", "avg"), help="the maximum or the mean of a bin"),
    ),
    derived={**PYRAMID_SYMBOLS, "bins": "a*a + b*b + c*c + d*d"},
    rules=(
        Rule("bins > 0", "levels={levels} is no pyramid; give at least one level ≥ 1", "levels"),
        POOLED_POSITIONS,
    ),
    flops=Flops(
        "windows - (N*C*made if mode == 'max' else 0)",
        "N*C*bins if mode == 'max' else joined + windows + N*C*(made - lone)",
    ),
    explained="A window of m values takes m − 1 comparisons, or m − 1 additions and a division; backward the "
    "gradient of a maximum is added where it was. fvcore counts no "
    "maxima, and a mean by the elements of its input, whatever the overlap of bins.",
    saved="8*N*C*(bins - again*M*M) if mode == 'max' else 0",
    traffic=Flops("B*(E + N*C*bins)", "B*(E + N*C*bins)"),
    ranks=(4,),
    output=("N", "C*bins"),
    claims=(
        Claim(
            holds=(),
            carriers=("conv", "conv-padded"),
            why="Maxima move with the data: what is added to or multiplied by a channel comes out again.",
        ),
    ),
    identities=(
        Identity(says="level 1 is the global maximum", options={"levels": (1, 0, 0, 0)}, proof="whole"),
        Identity(says="level 1 is the global mean", options={"levels": (1, 0, 0, 0), "mode": "avg"}, proof="whole"),
        Identity(says="a constant map has that constant in every bin", options={"mode": "avg"}, proof="constant"),
        Identity(
            says="levels that divide the finest are poolings of it where that divides the map",
            dims={"H": 12, "W": 6},
            proof="nested",
        ),
        Identity(
            says="levels that divide the finest are poolings of it where that divides the map: means",
            options={"mode": "avg"},
            dims={"H": 12, "W": 6},
            proof="nested",
        ),
        Identity(says="the length is that of any other map", proof="length"),
    ),
    notes=(
        "The notes' paragraph under this name is what the Strip Pooling paper says of PSPNet's pyramid pooling module "
        "(ppm): averages, convolutions, a map of the same size. This pyramid gives a vector.",
        "The paper's recipe for training, windows of ⌈a/n⌉ at a stride of ⌊a/n⌋ over a map of a×a, gives n bins only "
        "for some a: 9 instead of 6 at a = 10, 6 instead of 4 at a = 7. Borders of bins rounded down and up, as its "
        "appendix A has them where the network is applied, never fail and equal it where it works.",
        "Unless n divides the size, bins overlap: 13 positions in 6 bins are pooled 1.38 times each.",
        "More bins than positions repeat them.",
    ),
    examples=(
        {},
        {"levels": (4, 2, 1, 0), "mode": "avg"},
        {"levels": (0, 3, 0, 1)},
        {"levels": (2, 0, 0, 0), "mode": "avg"},
    ),
    draws="levels",
)


class SpatialPyramidPooling(Pooling):
    """Pool (N, C, H, W) over a pyramid of grids: (N, C·Σn²), the dtype of the input; no parameters, no state.

    Args: ``channels`` C; ``levels``, four grid sizes, 0 for none; ``mode``, max or avg.
    Raises OptionError for refused options and ValueError for inputs that do not fit.
    """

    levels: tuple[int, ...]
    mode: str

    def __init__(
        self,
        channels: int,
        levels: int | tuple[int, ...] = (6, 3, 2, 1),
        mode: str = "max",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector (N, C·Σn²) of ``x`` (N, C, H, W)."""
        self.check_input(x)
        grids = [level for level in self.levels if level]
        if self.mode == "max" and x.device.type == "cpu" and x.numel() and not needs_plain_operations():
            y: Tensor = _Maxima.apply(x, grids)  # type: ignore[no-untyped-call]
            return y
        maps = pyramid(x, grids, max_bins) if self.mode == "max" else means(x, grids)
        return torch.cat([pooled.flatten(1) for pooled in maps], 1).to(x.dtype)


class _Maxima(torch.autograd.Function):
    """The vectors of maxima; their gradients are added up where the maxima were, not in a map for each level."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Sequence[int]) -> Tensor:
        ctx.levels, ctx.shape, ctx.last, ctx.rows = levels, x.shape, is_last(x), rows_in_cache(x)
        found = [_maxima(x[rows].contiguous(memory_format=torch.channels_last), levels) for rows in ctx.rows]
        ctx.save_for_backward(*(places for part in found for _, places in part))
        return joined([torch.cat([values.flatten(1) for values, _ in part], 1) for part in found])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        batch, channels, height, width = ctx.shape
        sizes, found = [channels * level * level for level in ctx.levels], iter(ctx.saved_tensors)
        wide = widened(grads[0])
        total = wide.new_zeros((batch, height * width, channels) if ctx.last else (batch, channels, height * width))
        for rows in ctx.rows:
            for part in wide[rows].split_with_sizes(sizes, 1):
                places, grad = next(found).flatten(2), part.reshape(len(part), channels, -1)
                if ctx.last:
                    total[rows].scatter_add_(1, places.mT, grad.mT)
                else:
                    total[rows].scatter_add_(2, places, grad)
        total = total.to(grads[0].dtype)
        return (total.mT if ctx.last else total).view(ctx.shape), None


def _maxima(x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return of every level the maxima and at which position of its plane each is (N, C, n, n), as `pyramid`."""

    def pool(x: Tensor, level: int) -> tuple[Tensor, Tensor]:
        values, places = F.adaptive_max_pool2d(x, level, return_indices=True)
        return values, places

    finest = max(levels)
    if x.shape[2] % finest or x.shape[3] % finest:
        return [pool(x, level) for level in levels]
    values, places = base = pool(x, finest)
    found = []
    for level in levels:
        if level < finest and finest % level == 0:
            coarser, within = pool(values, level)
            found.append((coarser, places.flatten(2).gather(2, within.flatten(2)).view_as(within)))
        else:
            found.append(base if level == finest else pool(x, level))
    return found


def whole(layer: SpatialPyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output beside the maximum or mean of every channel."""
    return layer(x), x.amax((2, 3)) if layer.mode == "max" else x.mean((2, 3))


def constant(layer: SpatialPyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for a map of ones beside ones."""
    y = layer(torch.ones_like(x))
    return y, torch.ones_like(y)


def nested(layer: SpatialPyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output beside every level pooled from x itself."""
    pool = max_bins if layer.mode == "max" else mean_bins
    return layer(x), torch.cat([pool(x, level).flatten(1) for level in layer.levels if level], 1)


def length(layer: SpatialPyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The length of the vector beside that of a smaller map."""
    lengths = [layer(each).shape[1] for each in (x, x[:, :, :2, 1:])]
    return torch.tensor(lengths[:1], dtype=x.dtype), torch.tensor(lengths[1:], dtype=x.dtype)
