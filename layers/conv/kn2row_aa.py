r"""Convolution tap by tap into the output itself, by rows: kn2row that accumulates (arXiv 1709.03395).

Each tap (i, j) of the kernel is a product with what it meets, added in place by the product's own β = 1,
$$Y[u, V] \mathrel{+}= X[s u + d i - p,\; s V + d j - p]\; W_{ij}^T \qquad \text{for all rows } u \text{ at once},$$
V the columns of the output where the tap meets the image. Channels-last, such a row of X (V × C) is a matrix whose rows
are s·C apart, which a product takes as it is, and one of Y (V × O) too: nothing is made but the filters in the order
of taps, nothing is padded, and taps on padding are left out. Where a tap meets whole rows one product does for all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.card import Card, Flops, Identity, Paper
from layers.convolution import options_among
from layers.gemm_convolution import GemmConvolution, Geometry, as_torch, started, tapwise_gradients
from layers.shared import (
    ALGORITHM_CLAIMS,
    ALGORITHM_FLOPS,
    ALGORITHM_PEER,
    CONVOLUTION,
    CONVOLUTION_RULES,
    CONVOLUTION_TRAFFIC,
    TAPWISE_BACKWARD,
    TAPWISE_SYMBOLS,
)
from layers.strided_windows import made_output
from layers.tapwise import add_rows, in_float32, pixels_of, tap_filters

card = Card(
    title="kn2row-aa convolution",
    paper=Paper(
        authors="Anderson, Vasudevan, Keane, Gregg",
        title="Low-memory GEMM-based convolution algorithms for deep neural networks",
        year=2017,
        arxiv="1709.03395",
    ),
    impl="Kn2rowAaConv2d",
    formula="Y[u, V] += X[s·u + d·i − p, s·V + d·j − p]·W_ijᵀ for all rows u at once, tap by tap",
    summary="Adds the product of each tap to the output where it lies, row by row: the workspace is the reordered "
    "filters, at any stride, padding, dilation and groups.",
    options=CONVOLUTION,
    derived=TAPWISE_SYMBOLS,
    rules=CONVOLUTION_RULES,
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=Flops("2*N*met*O*(C // groups) + N*met*O", TAPWISE_BACKWARD),
    explained="What a tap would meet in padding is left out, forward and backward; each tap adds to what is there. "
    "fvcore does not see into the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else packed if nhwc else max(turned + packed, turned_back)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(
            says="taps on padding are left out: an image of 1×1 meets one",
            proof="one_tap",
            dims={"H": 1, "W": 1},
            options={"padding": 1},
        ),
    ),
    notes=(
        "Three forms are about. By rows, here: any convolution, no workspace beside the filters. With holes: channels-"
        "first, one product per tap over the whole image, with the columns that would wrap around set to 0 in x itself "
        "meanwhile, O(KW) numbers; it writes to its input. Flat: one product per tap over the padded batch, whose "
        "copy and wrapped columns are its workspace. The last two need stride 1 and one group.",
        "The abstract's O(KW) could not be derived from its text: it fits a band of ⌊K/2⌋·(W + 1) positions around the "
        "output for what wraps around, K the side.",
        "Small products pay for their calls: with 3 channels, or 7×7 positions, lowering is several times as fast.",
        "Public descriptions restrict it to stride 1 and padding that keeps the size: by rows that falls away.",
    ),
    peer=ALGORITHM_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular"},
        {"kernel_size": 1, "groups": 2},
    ),
)


class Kn2rowAaConv2d(GemmConvolution):
    """torch.nn.Conv2d by kn2row-aa, by rows: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d. Half precision is added up in float32, which copies input, filters and output.
    Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of torch.nn.Conv2d load; no state.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    gradients = staticmethod(tapwise_gradients)

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    @in_float32
    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), channels-last: per image and tap, what it meets times W_ij, added where it lies."""
        size = x.shape[2:]
        pixels = pixels_of(x)
        y = made_output(x, weight, geometry, last=True)
        if not started(y, bias):
            y.zero_()
        filters = tap_filters(weight, geometry.groups)
        for image, out in zip(pixels, y.permute(0, 2, 3, 1), strict=True):
            for i, j, (rows, columns), (high, across) in geometry.taps(*size):
                add_rows(out[high, across], image[rows, columns], filters[:, i, j])
        return y


def one_tap(layer: Kn2rowAaConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for images of 1×1 padded by 1 beside a linear layer by the tap in the middle of 3×3."""
    middle = layer.weight[:, :, 1, 1]
    return layer(x).flatten(1), torch.nn.functional.linear(x.flatten(1), middle, layer.bias)


__all__ = ["Kn2rowAaConv2d", "as_torch", "card", "one_tap"]
