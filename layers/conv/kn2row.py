r"""Convolution as 1×1 convolutions whose results are shifted and added (Vasudevan, Anderson & Gregg, arXiv 1704.04428).

With X (C × H·W) an image as it lies in memory and W_ij (O × C) the filters at tap (i, j),
$$T = \begin{pmatrix} W_{00} \\ \vdots \\ W_{KH-1\,KW-1} \end{pmatrix} X,\qquad
y_{o\,uv} = b_o + \sum_{ij} T_{ij\,o,\;s u + d i - p,\;s v + d j - p}$$
where what falls outside the image is left out. Nothing is lowered: x is an operand as it is, and what is made is the
partial results T (KH·KW·O × H·W), or with ``taps=one`` one tap's at a time, T_ij (O × H·W): the accumulating form,
kn2row-as, of Anderson, Vasudevan, Keane & Gregg (arXiv 1709.03395). Backward is tap by tap as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.card import Card, Flops, Identity, Paper, Stat
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
    PARTIAL_SYMBOLS,
    TAPS,
    TAPWISE_BACKWARD,
)
from layers.tapwise import in_float32, pointwise_by_tap, tap_filters, tap_products

card = Card(
    title="kn2row convolution",
    paper=Paper(
        authors="Vasudevan, Anderson, Gregg",
        title="Parallel Multi Channel Convolution using General Matrix Multiplication",
        year=2017,
        venue="ASAP",
        arxiv="1704.04428",
    ),
    impl="Kn2rowConv2d",
    formula="y = b + Σ_ij shift_ij(T_ij), T = [W_00; …]·X, X (C × H·W) as it lies",
    summary="Multiplies the image, as it lies in memory, by the filters of each tap, then shifts and adds the results: "
    "no matrix of patches, but partial results at every pixel, at stride 2 too.",
    options=(*CONVOLUTION, TAPS),
    derived=PARTIAL_SYMBOLS,
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "partial",
            ("groups", "KH*KW if taps == 'all' else 1", "O // groups", "HG", "WG"),
            "K×O×H×W",
            given="N > 0 and pointwise == 0",
            help="results of each tap, or of the last, at every pixel of the last image",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) if pointwise else 2*N*O*(C // groups)*made*HG*WG + N*O*met",
        TAPWISE_BACKWARD,
    ),
    explained="All H·W pixels are multiplied by all KH·KW taps, or one by one by those that meet the image, though a "
    "stride of s uses one in s² of them and padding none; then each tap is added where it meets the image. Backward "
    "skips what meets padding. fvcore does not see into the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else max(turned + packed + partial, turned_back) if nhwc "
    "else packed + partial",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(says="one tap at a time it is torch.nn.Conv2d", options={"taps": "one"}, proof="as_torch"),
        Identity(says="the partial results are the 1×1 convolutions by the taps", proof="partial_is_pointwise"),
    ),
    notes=(
        "Workspace: KH·KW·O·H·W numbers for all taps at once, O·H·W for one at a time, the abstract's O(MHW), M the "
        "outputs; beside them the filters in the order of taps, made at each call.",
        "im2col's is C·KH·KW·HO·WO, so all taps at once need less only where O < C and one at a time "
        "where O < C·KH·KW, both of them s² times as much where the stride is s.",
        "7×7 at stride 2 from 3 to 64 channels on 224×224 makes 600 MiB of partial results, and uses a quarter.",
        "MCMK in the paper, multiple channels and multiple kernels, is the ordinary convolution of many outputs.",
        "The abstract of arXiv 1709.03395 writes K for the side of the kernel: its O(K²CHW) is im2col.",
        "MKL packs operands in memory of its own, which no count of allocations sees.",
    ),
    peer=ALGORITHM_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "taps": "one"},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular"},
        {"kernel_size": 1, "groups": 2},
    ),
)


class Kn2rowConv2d(GemmConvolution):
    """torch.nn.Conv2d by kn2row: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d; ``taps`` "all" multiplies by all taps at once, "one" after the other with a
    KH·KW-th of the workspace. Half precision is added up in float32.
    Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of torch.nn.Conv2d load; no state.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    taps: str
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
        taps: str = "all",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    @in_float32
    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), channels-first: per image and group, all taps (K·O/G × C/G) times X (C/G × H·W)."""
        groups, size = geometry.groups, x.shape[2:]
        y = x.new_empty(len(x), len(weight), *geometry.output(*size))
        beta = started(y, bias)
        images = x.contiguous().view(len(x), groups, x.shape[1] // groups, size.numel())
        outputs = y.view(len(x), groups, len(weight) // groups, *y.shape[2:])
        filters = tap_filters(weight, groups)
        if geometry.is_pointwise:
            for image, out in zip(images, outputs.flatten(3), strict=True):
                out.baddbmm_(filters[:, 0, 0], image, beta=beta)
            return y
        if not beta:
            y.zero_()
        made = filters.shape[1] * filters.shape[2] if self.taps == "all" else 1
        partial = x.new_empty(groups, made, outputs.shape[2], *size)
        for image, out in zip(images, outputs, strict=True):
            for matrix, shifts in tap_products(filters, geometry, size, self.taps):
                torch.bmm(matrix, image, out=partial.flatten(3).flatten(1, 2))
                for tap, (rows, columns), (high, across) in shifts:
                    out[:, :, high, across] += partial[:, tap, :, rows, columns]
            observe(partial=partial)
        return y


def partial_is_pointwise(layer: Kn2rowConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The partial results of the last image beside 1×1 convolutions of it, one per tap."""
    with observing() as seen:
        layer(x)
    return seen["partial"][0], pointwise_by_tap(layer, x[-1])


__all__ = ["Kn2rowConv2d", "as_torch", "card", "partial_is_pointwise"]
