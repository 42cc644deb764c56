r"""Dynamic Region-Aware Convolution: each position is convolved by one of m filters made from its own sample (Chen,
Wang, Guo, Zhang & Sun 2020, arXiv 2003.12243, section 3).

A guide of m channels says which filter each output position p of sample n gets, a small network G makes the filters,
$$F_n = w * x_n + b,\qquad M_{np} = \operatorname{argmax}_r F_{nrp},\qquad
W_n = G(x_n),\qquad y_{nop} = W_{n M_{np} o} \cdot u_{np},$$
u_np the I = C × KH × KW numbers that p sees, W_n m filters of O×I, no bias. G pools x_n to KH×KW by averages, takes a
1×1 convolution to m² channels and their sigmoid, and one in m groups to m·C·O. Ties go to the lowest region. Training
and evaluation are the same.

Backward: W and x see the regions as they were chosen, the guide as if the filters had been mixed by the softmax of F
(section 3), so the gradient is not the derivative of the output, which jumps where the choice does. Derived again,
the same rule is applied again.

Public code computes all m outputs and selects. Here each position meets its own filter only (layers/regions.py), on
small maps without its being made (layers/region_factors.py); what the guide needs of the others is computed in backward
alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Layer
from layers.card import Card, Flops, Identity, Option, Paper, Stat
from layers.convolution import admitted, options_among, refuse_windows
from layers.moments import widened
from layers.observe import observe
from layers.pooling import convolve, is_last
from layers.region_factors import Maker
from layers.region_passes import Windows
from layers.region_proofs import (
    alike,
    alone,
    balanced,
    linear,
    lowest,
    mixed,
    renamed,
    rescaled,
    selected,
    unguided,
)
from layers.regions import choice, region_convolution
from layers.shared import WINDOWED, WINDOWED_PEER, WINDOWED_RULES, WINDOWED_SYMBOLS
from layers.weight_functions import full_precision

card = Card(
    title="Dynamic Region-Aware Convolution",
    paper=Paper(
        authors="Chen, Wang, Guo, Zhang, Sun",
        title="Dynamic Region-Aware Convolution",
        year=2020,
        venue="CVPR 2021",
        arxiv="2003.12243",
    ),
    impl="DRConv2d",
    formula="y_nop = W_nro · u_np, r = argmax of the guide at p, W_n = G(x_n)",
    summary="Each position is convolved by one of m filters made from its sample; a learnt guide says by which.",
    options=(
        *WINDOWED,
        Option(name="regions", type=int, default=8, ge=1, help="m, filters of each sample", source="the paper"),
    ),
    derived={
        **WINDOWED_SYMBOLS,
        "m": "regions",
        "I": "C*KH*KW",
        "made": "N*m*O*I",
        "hidden": "N*m*m*KH*KW",
        "weights": "C*m*m + m*m + m*m*C*O + m*C*O + m*I + m",
        "pooled": "N*C*(H + KH - gcd(H, KH))*(W + KW - gcd(W, KW))",
        # The guide and the network that makes filters, and what the guide needs backward.
        "side": "Q*(2*m*I + 2*m - 1) + pooled + 2*N*I*m*m + 2*hidden + (2*m + 1)*made",
        "side_backward": "m*(4*Q*I + Q - 1) + N*I*(KH*KW > 1) + pooled + 4*N*I*m*m + 4*hidden - m*m",
        "mixing": "(m > 1)*Q*(2*m*O*I + 2*m*O + 8*m - 3)",
        "by_filters": "4*Q*O*I + (4*m + 1)*made - m*C*O + mixing",
        # On small maps no filters are made: what a position sees is mixed, blocks of samples at a time.
        "is_small": "HO*WO <= 7*m*KH*KW",
        "mixed": "2*Q*(m + 1)*C*KH*KW",
        "product": "2*Q*(m + 1)*C*O + mixed",
        "block": "max(1, m*m*O // max(1, HO*WO*max(KH*KW, m + 1)))",
        "without": "(m + 1)*product + mixed + Q*(m + 1)*KH*KW + (m > 1)*Q*(2*m*(m + 1)*KH*KW + 8*m - 3) "
        "+ (N > block)*((N + block - 1) // block)*(m + 1)*m*C*O",
    },
    rules=WINDOWED_RULES,
    statistics=(
        Stat("guide", ("N", "m", "HO", "WO"), "N×m×HO×WO", help="which filter is wanted how much"),
        Stat("region", ("N", "HO", "WO"), "N×HO×WO", help="the largest of the guide"),
        Stat("filters", ("N", "m", "O", "C", "KH", "KW"), "N×m×O×C×KH×KW"),
    ),
    params="weights",
    flops=Flops("2*Q*O*I + side", "side_backward + by_filters"),
    executed=Flops(
        "side + (product - (2*m + 1)*made if is_small else 2*Q*O*I)",
        "side_backward + Q*I + 2*E + (without if is_small else by_filters + (2*m + 1)*made)",
    ),
    explained="Each position meets one filter, forward, in training too: the products with all m that public "
    "code selects from are not computed. Backward the guide needs them; x gets the sums of its windows and of three "
    "paths, which the definition leaves out. Backward makes the filters again. Of up to 7·m·KH·KW positions they would "
    "be most of the work and are never made: windows are mixed instead, which are then (m + 1)·C deep. fvcore traces "
    "plain operations, m-fold, and counts one per multiply-add.",
    saved="4*E + 4*m*Q + 8*Q + 4*N*I + 4*hidden",
    traffic=Flops("B*(E + weights + Q*O)", "B*(2*E + 2*weights + Q*O)"),
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    exact_gradient="False",
    identities=(
        Identity(says="it is all m convolutions, then a choice", proof="selected"),
        Identity(
            says="one region is a convolution per sample, by filters made from it",
            options={"regions": 1},
            proof="alone",
        ),
        Identity(says="with one region the gradient of the guide is 0", options={"regions": 1}, proof="unguided"),
        Identity(says="equal filters make the choice irrelevant", options={"regions": 3}, proof="alike"),
        Identity(says="renamed regions have the same outputs", options={"regions": 3}, proof="renamed"),
        Identity(says="a F_p + c_p chooses as F_p does, a > 0", options={"regions": 3}, proof="rescaled"),
        Identity(says="the guide's gradient is that of filters mixed by its softmax", proof="mixed"),
        Identity(says="Σ_r ∂L/∂F_r = 0", options={"regions": 3}, proof="balanced"),
        Identity(says="outputs are linear in the last convolution of G", options={"regions": 3}, proof="linear"),
        Identity(
            says="of equal guides the lowest region is taken", options={"regions": 3}, proof="lowest", within=1e-15
        ),
    ),
    notes=(
        "There is no code of the authors. The unofficial PyTorch code computes all m outputs and masks them, in "
        "training and evaluation; its evaluation runs through a function without a backward: NotImplementedError for "
        "any gradient, that of the data too. Here both modes are one.",
        "The cost of a plain convolution, which the abstract promises, is what the choice needs, not what that code "
        "executes: m times as many multiply-adds. In training the guide's gradient needs the other products anyway.",
        "The outputs of its last convolution are ordered region, output, input channel; here region, input, output: "
        "weight.view(m, O, C, m).transpose(1, 2).reshape(expand.weight.shape) takes one to the other.",
        "The filters are N×m×O×I numbers, here 8·8·64·576, 9 MiB in float32 beside 2 MiB of data at 8×64×32×32, and "
        "576 MiB beside 0.8 at 8×512×7×7. There they need not be made: what a position sees of one channel, KH×KW "
        "numbers, is mixed to m + 1 by what mixes the filters.",
        "Neither paper nor code says how to start G: with torch's initial values the filters have a standard deviation "
        "near 0.35 at m = 8, six times He's at I = 576. A normalization has to follow, as in the paper's networks.",
        "Nor is its translation-invariance kept: the guide moves with the image, but the filters come from a KH×KW "
        "grid of means of the whole map.",
        "The choice jumps: in half precision and under autocast guide and filters are float32, so that rounding turns "
        "few of them; of equal guides, such as a constant image has with equal rows, the lowest region wins.",
    ),
    peer=WINDOWED_PEER,
    examples=(
        {"padding": 1, "regions": 2},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "regions": 3},
        {"out_channels": 6, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "regions": 2},
        {"kernel_size": 2, "padding": 2, "dilation": 2, "regions": 2},
        {"kernel_size": 1, "regions": 3},
    ),
)


class DRConv2d(Layer):
    """A convolution whose filter is chosen at every position: (N, C, H, W) → (N, O, HO, WO).

    Args: ``in_channels`` C, ``out_channels`` O (none: C), ``kernel_size``, ``stride``, ``padding``, ``dilation`` as
    those of torch.nn.Conv2d, for the guide alike; ``regions`` m.
    State: three torch.nn.Conv2d, ``guide`` (C → m, of the same windows), ``squeeze`` (C → m², 1×1) and ``expand``
    (m² → m·C·O, 1×1, m groups; its outputs are ordered region, input, output channel). No bias, no buffers.
    Guide and filters are computed in float32 where the input is of half precision: a choice must not hang on rounding.
    Raises OptionError for refused options, ValueError for inputs that do not fit, RuntimeError for an input of another
    dtype than the weights.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    regions: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        regions: int = 8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()))
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.guide = nn.Conv2d(
            in_channels, regions, self.kernel_size, self.stride, self.padding, self.dilation, **factory
        )
        self.squeeze = nn.Conv2d(in_channels, regions**2, 1, **factory)
        made = regions * in_channels * self.out_channels
        self.expand = nn.Conv2d(regions**2, made, 1, groups=regions, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, O, HO, WO) for ``x`` (N, C, H, W), in its dtype (that of autocast under autocast)."""
        self.check_input(x)
        data = admitted(type(self).__name__, x, self.guide.weight)
        with full_precision(x):
            wide = widened(data)
            guide, maker = convolve(self.guide, wide), self.maker(wide)
            windows = Windows(self.kernel_size, self.stride, self.padding, self.dilation)
            regions = choice(guide)
            y = region_convolution(data, maker, guide, regions, windows)
            observe(guide=guide, region=regions, filters=lambda: self.kernels(maker.filters(self.in_channels)))
        return y.contiguous(memory_format=torch.channels_last if is_last(x) else torch.contiguous_format)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is (N, C, H, W), floating, with this layer's channels, and windows fit."""
        super().check_input(x)
        self.refuse_no_positions(x)
        refuse_windows(type(self).__name__, x, self.kernel_size, self.dilation, self.padding)

    def maker(self, x: Tensor) -> Maker:
        """Return what the filters for ``x`` are made from: the network's hidden layer, in the dtype of ``x``."""
        hidden = convolve(self.squeeze, F.adaptive_avg_pool2d(x, self.kernel_size)).sigmoid()
        return Maker(hidden, self.expand.weight, cast("Tensor", self.expand.bias))

    def filters(self, x: Tensor) -> Tensor:
        """Return the filters (m, N, KH·KW, C, O) that are made from ``x``, in its dtype."""
        return self.maker(x).filters(self.in_channels)

    def kernels(self, filters: Tensor) -> Tensor:
        """View ``filters`` as (N, m, O, C, KH, KW)."""
        seen = filters.permute(1, 0, 4, 3, 2)
        return seen.view(*seen.shape[:4], *self.kernel_size)


__all__ = [
    "DRConv2d", "alike", "alone", "balanced", "card", "linear", "lowest", "mixed", "renamed", "rescaled", "selected",
    "unguided",
]  # fmt: skip
