r"""Convolution through a buffer of indirections in place of a matrix of patches (Dukhan, arXiv 1907.02129).

For each tap k = i·KW + j and output position t = u·WO + v, the buffer says which pixel is met,
$$q_{kt} = \begin{cases} y\,W + x & 0 \le y = s u + d i - p < H,\ 0 \le x = s v + d j - p < W\\
H\,W & \text{otherwise: a pixel of zeros}\end{cases}\qquad Y_t = b + \sum_k W_k\, X_{q_{kt}}$$
with X (H·W + 1 × C) the pixels, channels-last. The paper's micro-kernel multiplies what pointers point to. A product of
matrices in torch cannot: here the pixels that a tap meets at ``tile`` output positions at a time are gathered into a
panel (tile × C), which is multiplied. That saves the memory of lowering, not its copies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.card import Card, Flops, Identity, Option, Paper, Stat
from layers.convolution import options_among
from layers.gemm_convolution import GemmConvolution, Geometry, as_torch, started, tapwise_gradients
from layers.observe import observe, observing
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
from layers.tapwise import add_product, in_float32, tap_filters

card = Card(
    title="Indirect convolution",
    paper=Paper(authors="Dukhan", title="The Indirect Convolution Algorithm", year=2019, arxiv="1907.02129"),
    impl="IndirectConv2d",
    formula="Y_t = b + Σ_k W_k·X[q_kt], q (KH·KW) × (HO·WO) the pixel that each tap meets, H·W a pixel of zeros",
    summary="Looks pixels up in a buffer of indices that does not grow with the channels, in place of a matrix of "
    "patches. Its time here is not the algorithm's: torch cannot multiply through pointers, so pixels are gathered.",
    options=(
        *CONVOLUTION,
        Option(
            name="tile",
            type=int,
            default=256,
            ge=1,
            help="output positions whose pixels are gathered at once",
            source="256×64 floats fit a level-2 cache",
        ),
    ),
    derived={
        **TAPWISE_SYMBOLS,
        "indices": "4*KH*KW*HO*WO",
        "panel": "min(tile, HO*WO)*C*B",
        "pixels": "(HG*WG + 1)*C*B if zeros or turned > 0 and not nhwc else 0",
        "MR": "6",
        "pointers": "8*KH*KW*((HO*WO + MR - 1) // MR)*MR",
    },
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "indirection",
            ("KH*KW", "HO*WO"),
            "K×P",
            given="pointwise == 0",
            help="int32: the pixel that tap K meets at output position P, H·W where it meets padding",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=Flops("2*Q*O*I + Q*O*KH*KW", TAPWISE_BACKWARD),
    caution="torch cannot multiply what pointers point to: pixels are gathered into panels first, so the time measured "
    "is not that of the published algorithm",
    explained="Each tap's product is added to the output; the backward, of which the paper has none, goes tap by tap "
    "and skips what meets padding. pointers is the size of the paper's own buffer, of 8-byte pointers for a "
    "micro-kernel of MR rows, 6 for instance; this one's, indices, has 4 bytes each. fvcore does not see into the "
    "custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else max(pixels, 0 if nhwc else turned_back) if pointwise "
    "else max(indices + max(4*HG*WG, packed + panel + pixels), 0 if nhwc else turned_back)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(
            says="[x; 0] gathered by the indirections is the matrix of im2row",
            options={"padding": 1},
            proof="gathered_is_im2row",
        ),
        Identity(says="it is torch.nn.Conv2d by tiles of 1", options={"tile": 1}, proof="as_torch"),
    ),
    notes=(
        "The paper's buffer: sizeof(void*)·KH·KW·⌈HO·WO/MR⌉·MR bytes, for one image: the others are an offset away, "
        "all groups share it, and it is made again only for another input. Its last tile repeats the last pixel.",
        "Beside im2row's matrix that is 8/(C·B): 1/32 at 64 channels of float32, but 2/3 at 3, and 2.7 times as large "
        "at 3 channels of int8.",
        "Claimed: up to 62 % faster than lowering and multiplying, and a little slower for 1×1 at stride 1, where "
        "there is nothing to lower; here a 1×1 convolution at stride 1 has no indirections and is a plain product.",
        "Limits: channels-last, forward only, poor for depthwise convolutions, where no product amortizes a pointer.",
        "A pixel of zeros cannot be pointed to outside of x: where there is padding each image is copied beside one.",
        "Older QNNPACK kept a buffer for every image of a batch.",
    ),
    picture=(
        "x, C×H×W = 2×3×4     indirection, KH·KW × HO·WO = 4×6: where a pixel's row lies",
        "c = 0  a b c d       ij uv  00 01 02 10 11 12",
        "       e f g h       00     aA bB cC eE fF gG",
        "       i j k l       01     bB cC dD fF gG hH",
        "c = 1  A B C D       10     eE fF gG iI jJ kK",
        "       E F G H       11     fF gG hH jJ kK lL",
        "       I J K L",
        "",
        "Each entry is one index, whatever C: the channels there are read, not copied.",
        "A column times the filters, tap by tap, is one output; padding points to zeros.",
    ),
    peer=ALGORITHM_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "tile": 5},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False, "tile": 4},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular"},
        {"kernel_size": 1, "groups": 2},
    ),
)


class IndirectConv2d(GemmConvolution):
    """torch.nn.Conv2d through a buffer of indices: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d; ``tile`` output positions are gathered at once. Half precision is added up in
    float32. The buffer is made at each call, KH·KW copies of rows of indices.
    Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of torch.nn.Conv2d load; no state.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    tile: int
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
        tile: int = 256,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    @in_float32
    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), channels-last: per image, tile and tap, the pixels gathered times W_k."""
        size = x.shape[2:]
        y = made_output(x, weight, geometry, last=True)
        if not started(y, bias):
            y.zero_()
        table = None if geometry.is_pointwise else indirection(geometry, size, x.device)
        taps = tap_filters(weight, geometry.groups).flatten(1, 2).unbind(1)  # KH·KW of (G, O/G, C/G)
        room = beside_zeros(x, geometry)
        panel = None if table is None else x.new_empty(min(self.tile, table.shape[1]), x.shape[1])
        for image, out in zip(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
            pixels = image.flatten(0, 1) if room is None else room
            if room is not None:
                room[:-1].view_as(image).copy_(image)
            if table is None or panel is None:
                add_product(out, pixels[: len(out)], taps[0])
                continue
            for some, which in zip(torch.split(out, self.tile), torch.split(table, self.tile, 1), strict=True):
                seen = panel[: len(some)]
                for index, matrix in zip(which.unbind(), taps, strict=True):
                    torch.index_select(pixels, 0, index, out=seen)
                    add_product(some, seen, matrix)
        if table is not None:
            observe(indirection=table)
        return y


def indirection(geometry: Geometry, size: torch.Size, device: torch.device) -> Tensor:
    """Return q (KH·KW, HO·WO), int32: the pixel, row by row, that each tap meets in an image of ``size`` H×W.

    Where it meets padding that is H·W, the pixel of zeros after the last.
    """
    pixels = torch.arange(size.numel(), dtype=torch.int32, device=device).view(size)
    table = pixels.new_full((*geometry.kernel, *geometry.output(*size)), size.numel())
    for i, j, seen, found in geometry.taps(*size):
        table[i, j][found] = pixels[seen]
    return table.flatten(2).flatten(0, 1)


def beside_zeros(x: Tensor, geometry: Geometry) -> Tensor | None:
    """Return room (H·W + 1, C) for the pixels of one image of ``x`` (N, C, H, W) and one of zeros, where it is needed.

    That is where there is padding, or pixels do not lie in memory with their channels next to each other.
    """
    if not any(geometry.padding) and x.permute(0, 2, 3, 1).is_contiguous():
        return None
    room = x.new_empty(x.shape[2:].numel() + 1, x.shape[1])
    room[-1].zero_()
    return room


def gathered_is_im2row(layer: IndirectConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and one of zeros, gathered by the indirections of the layer, beside the patches of torch's unfold."""
    with observing() as seen:
        layer(x)
    rows = F.pad(x.detach().flatten(2).transpose(1, 2), (0, 0, 0, 1))  # (N, H·W + 1, C)
    padding = (int(layer.padding[0]), int(layer.padding[1]))
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # (N, C·K, P)
    return rows[:, seen["indirection"]].permute(0, 3, 1, 2).flatten(1, 2), patches


__all__ = ["IndirectConv2d", "as_torch", "card", "gathered_is_im2row", "indirection"]
