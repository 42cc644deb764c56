r"""Convolution as one product with the matrix of patches, a patch per row: im2col with channels innermost.

With x_row (N·HO·WO) × (KH·KW·C), row (n·HO + u)·WO + v the patch that output (n, u, v) sees, its elements in the order
in which they lie in a channels-last image, so that a row is KH runs of KW·C numbers,
$$Y = x_{row}\,W^T + b,\qquad W\ (O \times KH\,KW\,C),\quad Y\ (N\,HO\,WO \times O),$$
so that the output is channels-last as the input is, and the batch is part of the product's rows: one for all samples.
Lowered in blocks of R rows of the output the matrix stays in cache, and is R·WO rows long whatever the batch.

Lowering is that of Chellapilla, Puri & Simard 2006; a patch per row is TensorFlow's, ARM's compute library's and
QNNPACK's. The name is that of Anderson, Vasudevan, Keane & Gregg (arXiv 1709.03395). For a channels-first input the
product writes Yᵀ = W·x_rowᵀ, image by image: nothing is turned back.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn.functional import unfold

from layers.card import Card, Identity, Option, Paper, Stat
from layers.convolution import options_among
from layers.gemm_convolution import FEW, GemmConvolution, Geometry, as_torch, lowered_gradients, started
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
    LOWERED_FLOPS,
)
from layers.strided_windows import as_rows, made_output, multiply, packed, windows, zero_padded

card = Card(
    title="im2row convolution",
    paper=Paper(
        authors="Chellapilla, Puri, Simard",
        title="High Performance Convolutional Neural Networks for Document Processing",
        year=2006,
        venue="IWFHR",
    ),
    impl="Im2rowConv2d",
    formula="Y = x_row·Wᵀ + b, x_row (N·HO·WO) × (KH·KW·C): each row is one patch",
    summary="Lowers the batch to a matrix of patches, one per row, and multiplies once: the convolution of TensorFlow.",
    options=(
        *CONVOLUTION,
        Option(
            name="rows",
            type=int,
            default=None,
            optional=True,
            ge=1,
            help="R, rows of the output of an image that are lowered at once; none: the whole batch",
        ),
    ),
    derived={
        **ALGORITHM_SYMBOLS,
        "last_rows": "HO if rows is None else (HO - 1) % rows + 1",
        "buffer": "N*HO if rows is None else min(rows, HO)",
        "lowered": "0 if pointwise else buffer*WO*C*KH*KW*B",
        "padded": "N*C*HP*WP*B if zeros else 0 if nhwc else turned",
        "few": "rows is None and HO*WO < 128",
    },
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "matrix",
            ("(N if rows is None else 1)*last_rows*WO", "C*KH*KW"),
            "N·HO·WO × KH·KW·C",
            given="N > 0",
            help="patches, one per row, of the batch or of the last block of R rows of the output",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=LOWERED_FLOPS,
    explained="Backward the filters' gradient is added up over the images, small ones together, O×I numbers each "
    "time, and every element of a patch that is no padding is added "
    "to the image. fvcore does not see into the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else max(padded + packed + lowered, turned_back if few and not nhwc "
    "else 0)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(
            says="the matrix is that of im2col transposed, the channels of each row innermost", proof="matrix_is_unfold"
        ),
        Identity(
            says="it is im2col, also in blocks of two rows",
            equals="im2col",
            options={"padding": 1, "rows": 2},
            other={"padding": 1},
        ),
    ),
    notes=(
        "The notes swap im2row and im2col: their matrix [N(H − k + 1)(W − k + 1), k·k·c] times [k·k·c, d] is im2row, a "
        "patch per ROW, as in TensorFlow, whose source calls its buffer im2col all the same.",
        "When which: with channels innermost (NHWC) a row is KH runs of KW·C numbers, the product is NHWC and all "
        "samples share it: im2row. Channels-first (NCHW), the product with columns is NCHW, one per sample: im2col.",
        "“[NWH, KKC]” (of weight standardization, of NCNN) is the im2row matrix too, for HO = H and WO = W.",
        "The batch in one product is no gain once its matrix leaves the cache: 8 × 64 × 56 × 56 with a 3×3 kernel is "
        "58 MB. rows=8 computes the same from 1 MB.",
        "The filters are packed to (KH, KW, C) order at each call, O·I numbers; a deployment does that once.",
    ),
    picture=(
        "x, C×H×W = 2×3×4     HO·WO × KH·KW·C = 6×8, ij the kernel's elements",
        "c = 0  a b c d       uv ijc  000 001 010 011 100 101 110 111",
        "       e f g h       00        a   A   b   B   e   E   f   F",
        "       i j k l       01        b   B   c   C   f   F   g   G",
        "c = 1  A B C D       02        c   C   d   D   g   G   h   H",
        "       E F G H       10        e   E   f   F   i   I   j   J",
        "       I J K L       11        f   F   g   G   j   J   k   K",
        "                     12        g   G   h   H   k   K   l   L",
        "",
        "Each ROW is one patch, its channels side by side as they lie in an NHWC image.",
        "Times Wᵀ (8 × O) it sums along the rows →: y is N·HO·WO × O, channels-last.",
    ),
    peer=ALGORITHM_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "rows": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular", "rows": 3},
        {"kernel_size": 1, "groups": 2},
    ),
)


class Im2rowConv2d(GemmConvolution):
    """torch.nn.Conv2d by im2row: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d; ``rows`` lowers and multiplies so many rows of the output of one image at a time.
    Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of torch.nn.Conv2d load; no state.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    rows: int | None
    gradients = staticmethod(lowered_gradients)

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
        rows: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO): block by block, patches (R·WO × I) times Wᵀ (I × O/G), per group.

        It is laid out as x or, where an image has few positions, for the product of the whole batch.
        """
        groups, positions = geometry.groups, prod(geometry.output(*x.shape[2:]))
        last = is_last(x) or (self.rows is None and positions < FEW)
        patches = as_rows(windows(zero_padded(x, geometry.padding, last=True), geometry), groups)
        filters = packed(weight, groups)
        y = made_output(x, weight, geometry, last)
        beta = started(y, bias)
        high = y.shape[2]
        images, most = (max(1, len(x)), high) if self.rows is None else (1, min(self.rows, high))
        matrix = None if geometry.is_pointwise else x.new_empty(min(images, len(x)), most, *patches.shape[2:])
        for n in range(0, len(x), images):
            for top in range(0, high, most):
                block = patches[n : n + images, top : top + most]
                if matrix is not None:
                    block = matrix[:, : block.shape[1]].copy_(block)
                multiply(y[n : n + images, :, top : top + most], filters, block, beta, last)
                observe(matrix=block.reshape(-1, filters.shape[2] * groups))
        return y


def matrix_is_unfold(layer: Im2rowConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix that the layer makes beside torch.nn.functional.unfold's, (N, C·KH·KW, P), with its axes turned."""
    with torch.no_grad(), observing() as seen:
        layer(x)
    columns = unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    turned = columns.view(*x.shape[:2], -1, columns.shape[2]).permute(0, 3, 2, 1)  # (N, P, KH·KW, C)
    return seen["matrix"], turned.reshape(seen["matrix"].shape)


__all__ = ["Im2rowConv2d", "as_torch", "card", "matrix_is_unfold"]
