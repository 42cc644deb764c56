r"""Convolution as 1×1 convolutions whose results are shifted and added, channels-last (arXiv 1704.04428).

The twin of kn2row for (N, H, W, C), which is torch's channels_last: with X (H·W × C) an image as it lies in memory,
$$T = X\,\begin{pmatrix} W_{00}^T & \cdots & W_{KH-1\,KW-1}^T \end{pmatrix},\qquad
y_{uv\,o} = b_o + \sum_{ij} T_{s u + d i - p,\;s v + d j - p,\;ij\,o}$$
(H·W × KH·KW·O), or one tap's T_ij (H·W × O) at a time with ``taps=one``. An input that is channels-first is copied to
channels-last before, and the output back. Backward is tap by tap.
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
from layers.strided_windows import made_output
from layers.tapwise import add_rows, in_float32, pixels_of, pointwise_by_tap, tap_filters, tap_products

card = Card(
    title="kn2col convolution",
    paper=Paper(
        authors="Vasudevan, Anderson, Gregg",
        title="Parallel Multi Channel Convolution using General Matrix Multiplication",
        year=2017,
        venue="ASAP",
        arxiv="1704.04428",
    ),
    impl="Kn2colConv2d",
    formula="y = b + Σ_ij shift_ij(T_ij), T = X·[W_00ᵀ …], X (H·W × C) as it lies channels-last",
    summary="kn2row for channels-last: multiplies the pixels, as they lie in memory, by the filters of each tap, then "
    "shifts and adds the results.",
    options=(*CONVOLUTION, TAPS),
    derived=PARTIAL_SYMBOLS,
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "partial",
            ("groups", "HG", "WG", "KH*KW if taps == 'all' else 1", "O // groups"),
            "H×W×K×O",
            given="N > 0 and pointwise == 0",
            help="results of each tap, or of the last, at every pixel of the last image",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=Flops(
        "2*Q*O*I + Q*O if pointwise else 2*N*O*(C // groups)*made*HG*WG + N*O*met",
        TAPWISE_BACKWARD,
    ),
    explained="All H·W pixels are multiplied by all KH·KW taps, or one by one by those that meet the image, though a "
    "stride of s uses one in s² of them and padding none; then each tap is added where it meets the image. Backward "
    "skips what meets padding. fvcore does not see into the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else packed + partial if nhwc "
    "else max(turned + packed + partial, turned_back)",
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
        "The name says what T's taps are side by side: columns here, rows in kn2row.",
        "Workspace: H·W·KH·KW·O numbers for all taps at once, H·W·O for one at a time, and the filters in the order of "
        "taps; im2row's is HO·WO·KH·KW·C for each of the N images at once.",
        "Groups are products by themselves, with the pixels of all groups interleaved as they lie: the paper has none.",
        "All pixels are multiplied by all taps at any stride: use kn2row-aa where the stride is 2.",
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


class Kn2colConv2d(GemmConvolution):
    """torch.nn.Conv2d by kn2col: (N, C, H, W) → (N, O, HO, WO).

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
        """Return y (N, O, HO, WO), channels-last: per image and group, X (H·W × C/G) times all taps (C/G × K·O/G)."""
        groups, size = geometry.groups, x.shape[2:]
        pixels = pixels_of(x)
        y = made_output(x, weight, geometry, last=True)
        if not started(y, bias):
            y.zero_()
        filters = tap_filters(weight, groups)
        if geometry.is_pointwise:
            add_rows(y.permute(0, 2, 3, 1).flatten(1, 2), pixels.flatten(1, 2), filters[:, 0, 0])
            return y
        images = pixels.view(len(x), size.numel(), groups, x.shape[1] // groups).transpose(1, 2)  # (N, G, H·W, C/G)
        outputs = y.view(len(x), groups, len(weight) // groups, *y.shape[2:]).permute(0, 1, 3, 4, 2)
        made = filters.shape[1] * filters.shape[2] if self.taps == "all" else 1
        partial = x.new_empty(groups, *size, made, outputs.shape[4])
        for image, out in zip(images, outputs, strict=True):
            for matrix, shifts in tap_products(filters, geometry, size, self.taps):
                torch.bmm(image, matrix.transpose(1, 2), out=partial.flatten(3).flatten(1, 2))
                for tap, (rows, columns), (high, across) in shifts:
                    out[:, high, across] += partial[:, rows, columns, tap]
            observe(partial=partial)
        return y


def partial_is_pointwise(layer: Kn2colConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The partial results of the last image beside 1×1 convolutions of it, one per tap."""
    with observing() as seen:
        layer(x)
    return seen["partial"][0].permute(2, 3, 0, 1), pointwise_by_tap(layer, x[-1])


__all__ = ["Kn2colConv2d", "as_torch", "card", "partial_is_pointwise"]
