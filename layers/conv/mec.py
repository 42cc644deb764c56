r"""Memory-efficient convolution, MEC (Cho & Brand, ICML 2017, arXiv 1706.06873): lowered along the width only.

$$L[n, v, h, j, c] = x[n, h,\; s v + d j, c],\qquad
Y[u] = L[:, :, s u : s u + KH]\;W^T + b,\quad W\ (O \times KH\,KW\,C)$$
over the padded, channels-last input, N × WO × HP × (KW·C) numbers in place of im2row's N·HO·WO × (KH·KW·C). Row
(n, v) of the operand of Y[u] is a run of KH·KW·C numbers of L, rows HP·KW·C apart; those of u and u + 1 overlap in all
but s·KW·C numbers. BLAS reads such a panel where it lies: it minds overlap within an operand, not between products.
L has HP/(HO·KH) of im2row's numbers, near s/KH: nothing is saved where s ≥ KH.

The rows of a kernel dilated along the height are no run: Y[u] is then the sum of KH products, one for each of them.
This is the paper's solution A, whose Y has its axes in the order HO, N, WO, O and is turned afterwards.
The paper knows no groups: here L has them as an axis, N × WO × G × HP × (KW·C/G), and there is a product for each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import unfold

from layers.card import Card, Flops, Identity, Paper, Stat
from layers.convolution import options_among
from layers.gemm_convolution import GemmConvolution, Geometry, as_torch, started, tapwise_gradients
from layers.observe import observe, observing
from layers.pooling import is_last
from layers.shared import (
    ALGORITHM_CLAIMS,
    ALGORITHM_FLOPS,
    ALGORITHM_PEER,
    ALGORITHM_SYMBOLS,
    CONVOLUTION,
    CONVOLUTION_RULES,
    CONVOLUTION_TRAFFIC,
)
from layers.strided_windows import made_output, packed, zero_padded

card = Card(
    title="Memory-efficient convolution (MEC)",
    paper=Paper(
        authors="Cho, Brand",
        title="MEC: Memory-efficient Convolution for Deep Neural Network",
        year=2017,
        venue="ICML",
        arxiv="1706.06873",
    ),
    impl="MecConv2d",
    formula="Y[u] = L[:, :, su : su + KH]·Wᵀ + b, L[n, v, h, j, c] = x[n, h, sv + dj, c]",
    summary="Lowers along the width only and multiplies overlapping panels in place: about s/KH of im2row's matrix.",
    options=CONVOLUTION,
    derived={
        **ALGORITHM_SYMBOLS,
        "deep": "axis(dilation, 0) > 1 and KH > 1",
        "lowered": "N*WO*HP*KW*C*B",
        "padded": "N*C*HP*WP*B if zeros else 0 if nhwc else turned",
        "last": "1 if nhwc and turned else 0",
        "reordered": "Q*O*B if HO > 1 and N > 1 or not last and O > 1 and HO*WO > 1 else 0",
    },
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "matrix",
            ("N", "WO", "groups", "HP", "KW*(C // groups)"),
            "N×WO×HP×KW·C",
            help="L: for each column of the output, strips of the input as wide as the kernel and of full height",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + (Q*O*(KH - 1) if deep else 0)",
        "4*N*met*O*(C // groups) + N*C*met + (Q*O - O if bias else 0) + unpad",
    ),
    explained="Dilated along the height, forward adds KH products up. Backward works element by element of the kernel "
    "and leaves the padding out; each adds C numbers per output to the input's gradient. fvcore does not see into "
    "the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else max(lowered + max(padded - Q*O*B, packed), reordered)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(
            says="it is im2row",
            equals="im2row",
            options={"padding": 1, "dilation": 2},
            other={"padding": 1, "dilation": 2},
        ),
        Identity(says="each row of im2row's matrix is a run of L, where it lies", proof="panels_are_rows"),
    ),
    notes=(
        "L has HP/(HO·KH) of the numbers of im2row's matrix, about s/KH: a third for 3×3 with stride 1, as many "
        "where s ≥ KH.",
        "L counts the padded height HP, not HO: the products read the padding rows from it.",
        "This is solution A of the paper: one product per row of the output for the whole batch, its result in the "
        "order HO, N, WO, O. The paper turns it through L, which it may overwrite; here through new memory, so that "
        "the larger of the two is the workspace. Solution B multiplies sample by sample and needs no turn, but repacks "
        "the filters in BLAS for each.",
        "The paper knows no dilation and no groups. Dilation along the width only changes what is copied; along the "
        "height the runs break up, and KH products are added.",
    ),
    picture=(
        "x, C×H×W = 2×3×4     L, WO × HP·KW·C = 3×12: a strip of the image per row",
        "c = 0  a b c d       v hjc  000 001 010 011 100 101 110 111 200 201 210 211",
        "       e f g h       0        a   A   b   B   e   E   f   F   i   I   j   J",
        "       i j k l       1        b   B   c   C   f   F   g   G   j   J   k   K",
        "c = 1  A B C D       2        c   C   d   D   g   G   h   H   k   K   l   L",
        "       E F G H",
        "       I J K L",
        "",
        "Output row u = 0 takes the columns 000 … 111 times Wᵀ, u = 1 those from 100 on:",
        "the panels overlap, so that the rows of a window are stored once, not KH times.",
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


class MecConv2d(GemmConvolution):
    """torch.nn.Conv2d by MEC: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d. Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of
    torch.nn.Conv2d load; no state. Raises OptionError for refused options, ValueError for inputs that do not fit.
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

    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), in memory HO, N, WO, O: per row of the output a panel of L times Wᵀ, per group."""
        groups, (high, wide) = geometry.groups, geometry.output(*x.shape[2:])
        lowered = lower(x, geometry)  # (N, WO, G, HP, KW·C/G)
        observe(matrix=lowered)
        filters = packed(weight, groups)  # (G, O/G, KH·KW·C/G)
        y = _output(x, weight, geometry)
        beta = started(y, bias)
        products = y.permute(2, 0, 3, 1).view(high, len(x) * wide, *filters.shape[:2])
        for first, length, factor in _parts(lowered.shape[4], filters, geometry):
            for group in range(groups):
                shown = panels(lowered, group, first, length, high, geometry.stride[0])
                for product, panel in zip(products[:, :, group], shown, strict=True):  # at once they would be copied
                    product.addmm_(panel, factor[group].T, beta=beta)
            beta = 1
        return y


def _output(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return room for y (N, O, HO, WO), in memory in the order HO, N, WO, O, unless that is the layout of x anyway."""
    images, outputs, (high, wide), last = len(x), len(weight), geometry.output(*x.shape[2:]), is_last(x)
    if (images > 1 and high > 1) or (not last and outputs > 1 and high * wide > 1):
        strides = (wide * outputs, 1, images * wide * outputs, outputs)
        return x.new_empty_strided((images, outputs, high, wide), strides)
    return made_output(x, weight, geometry, last)


def lower(x: Tensor, geometry: Geometry) -> Tensor:
    """Return L (N, WO, G, HP, KW·C/G) of ``x`` (N, C, H, W): its columns as the kernel meets them, all rows of each."""
    padded = zero_padded(x, geometry.padding, last=True)
    (images, channels, high, _), groups, across = padded.shape, geometry.groups, geometry.kernel[1]
    wide = geometry.output(*x.shape[2:])[1]
    image, channel, row, column = padded.stride()
    inputs = channels // groups
    strides = (image, geometry.stride[1] * column, inputs * channel, row, geometry.dilation[1] * column, channel)
    view = padded.as_strided((images, wide, groups, high, across, inputs), strides)
    return view.clone(memory_format=torch.contiguous_format).flatten(4)


def panels(lowered: Tensor, group: int, first: int, length: int, high: int, stride: int) -> Tensor:
    """Return the overlapping panels (HO, N·WO, ``length``) of L that a group's products read, from row ``first`` on."""
    images, wide, groups, rows, width = lowered.shape
    strides = (stride * width, groups * rows * width, 1)
    start = lowered.storage_offset() + (group * rows + first) * width
    return lowered.as_strided((high, images * wide, length), strides, start)


def _parts(width: int, filters: Tensor, geometry: Geometry) -> list[tuple[int, int, Tensor]]:
    """First row of L, length and filters of the products: one if the rows of the kernel adjoin, else one for each."""
    deep = geometry.dilation[0]
    if deep == 1:
        return [(0, filters.shape[2], filters)]
    return [(i * deep, width, part) for i, part in enumerate(torch.split(filters, width, dim=2))]


def panels_are_rows(layer: MecConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The panels of L, (HO, N·WO, KH·KW·C), beside torch.nn.functional.unfold's patches in that order."""
    with torch.no_grad(), observing() as seen:
        y = layer(x)
    columns = unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    patches = columns.view(len(x), x.shape[1], -1, *y.shape[2:])  # (N, C, KH·KW, HO, WO)
    found = panels(seen["matrix"], 0, 0, patches[0, :, :, 0, 0].numel(), y.shape[2], layer.stride[0])
    return found, patches.permute(3, 0, 4, 2, 1).reshape(found.shape)


__all__ = ["MecConv2d", "as_torch", "card", "lower", "panels", "panels_are_rows"]
