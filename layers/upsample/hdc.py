r"""Hybrid Dilated Convolution: stacked convolutions whose dilation rates leave no holes in what they see together (Wang
et al. 2018, WACV, arXiv 1702.08502, section 3.2).

n convolutions of K×K with rates r_1 … r_n see, along an axis, the offsets Σ_i r_i k_i, 0 ≤ k_i < K: out of a receptive
field of 1 + (K − 1) Σ r. The paper wants the largest distance of two seen neighbours small,
$$M_n = r_n,\quad M_i = \max(M_{i+1} - 2 r_i,\; M_{i+1} - 2 (M_{i+1} - r_i),\; r_i),\qquad M_2 \le K,$$
and rates without a common factor. This is checked here instead, which is exact for every K: with the rates sorted,
$$r_{(j)} \le 1 + (K - 1) \sum_{i < j} r_{(i)}\ \text{for all } j \iff \text{every offset is seen}.$$
`coverage` says both, and how much is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Layer
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule
from layers.convolution import options_among
from layers.dilation import Coverage, coverage, is_covered, rates_of
from layers.moments import as_laid_out
from layers.shared import POSITIONS_NEEDED

card = Card(
    title="Hybrid Dilated Convolution",
    paper=Paper(
        authors="Wang, Chen, Yuan, Liu, Huang, Hou, Cottrell",
        title="Understanding Convolution for Semantic Segmentation",
        year=2018,
        venue="WACV 2018",
        arxiv="1702.08502",
    ),
    impl="HybridDilatedConv2d",
    formula="x_i = W_i *_{r_i} ReLU(x_{i−1}) + b_i,  r_(j) ≤ 1 + (K − 1) Σ_{i<j} r_(i) of the sorted rates",
    summary="Stacked convolutions of the same size, with dilation rates that are checked to leave no holes.",
    options=(
        Option(
            name="rates",
            type=str,
            default="1,2,5",
            pattern=r"[1-9]\d{0,8}(,[1-9]\d{0,8})*",
            like="integers ≥ 1 separated by commas, such as 1,2,5, of at most 9 digits",
            help="dilation rate of every convolution, the first one first",
            source="Wang et al. 2018, section 3.2",
        ),
        Option(name="kernel_size", type=int, default=3, ge=3, help="K, height and width of every kernel, odd"),
        Option(name="relu", type=bool, default=True, help="a ReLU between the convolutions"),
        Option(name="bias", type=bool, default=True, help="learn a bias per channel of every convolution"),
        Option(name="strict", type=bool, default=True, help="refuse rates that leave holes"),
    ),
    derived={
        "L": "entries(rates)",
        "O": "C",
        "I": "C*kernel_size**2",
        "HO": "H",
        "WO": "W",
        "Q": "N*H*W",
    },
    rules=(
        POSITIONS_NEEDED,
        Rule(
            "kernel_size % 2 == 1", "kernel_size={kernel_size} is even: the size is kept by an odd one", "kernel_size"
        ),
        Rule(
            "not strict or is_covered(rates, kernel_size)",
            "rates={rates} leave holes with kernel_size={kernel_size}: no rate may be larger than 1 + (kernel_size - 1)"
            " times the sum of the smaller ones, so the smallest is 1; or set strict=False",
            "rates",
        ),
    ),
    params="L*(C*I + (C if bias else 0))",
    flops=Flops(
        "L*(2*E*I + (E if bias else 0)) + ((L - 1)*E if relu else 0)",
        "L*(4*E*I + (E - C if bias else 0)) + ((L - 1)*E if relu else 0)",
    ),
    explained="Convolutions, zeros of the padding counted, and one operation per element of a ReLU. fvcore counts a "
    "multiply-add as one and no bias.",
    saved="4*E*L",
    traffic=Flops("B*L*(2*E + C*I)", "B*L*(3*E + 2*C*I)"),
    ranks=(4,),
    claims=(
        Claim(
            holds=(),
            carriers=("conv", "conv-padded"),
            why="Convolutions with a bias: every scale and shift goes through.",
        ),
    ),
    identities=(
        Identity(
            says="rates 1,2,5: every offset of the receptive field is seen",
            dims={"N": 1, "C": 2, "H": 17, "W": 17},
            proof="what_is_seen",
        ),
        Identity(
            says="rates 2,2,2: 7 of 13 offsets",
            options={"rates": "2,2,2", "strict": False},
            dims={"N": 1, "C": 2, "H": 13, "W": 13},
            proof="what_is_seen",
        ),
        Identity(
            says="rates 2,3,5, which the paper's rule admits: 19 of 21 offsets",
            options={"rates": "2,3,5", "strict": False},
            dims={"N": 1, "C": 2, "H": 21, "W": 21},
            proof="what_is_seen",
        ),
        Identity(
            says="a kernel of 5, rates 1,4: every offset",
            options={"rates": "1,4", "kernel_size": 5},
            dims={"N": 1, "C": 2, "H": 21, "W": 21},
            proof="what_is_seen",
        ),
        Identity(
            says="it is the convolutions one after the other", options={"rates": "1,3"}, proof="one_after_the_other"
        ),
    ),
    notes=(
        "The paper's rule M_2 ≤ K takes r_1 = 1 for granted: without it 2,3,5 (19 of 21 offsets) passes, and 2,2,2 "
        "(7 of 13) fails by its common factor alone. With r_1 = 1 it is sufficient, not necessary: 1,3,1 sees all and "
        "is refused.",
        "A common factor of the rates always leaves holes; none is far from enough: 1,2,9 and 6,10,15 have holes.",
        "What is seen does not depend on the order of the layers, M does.",
        "M_1 is no distance in what is seen: the paper's condition is on M_2.",
        "The authors' last stage has the rates 5,9,17, which alone see 27 of 63 offsets; with the stage before it "
        "(2,2,5,9,1,2,5,9,…) all 251. Check a whole run of dilated layers with `coverage`, and build a part of it with "
        "strict=False.",
        "That all offsets are seen says nothing of how much each counts: inner ones are reached in many more ways.",
    ),
    examples=(
        {"rates": "1,2", "relu": False},
        {"rates": "2,1"},
        {"rates": "1,1,2", "relu": False, "bias": False},
        {"rates": "1", "kernel_size": 5, "relu": False},
        {"rates": "2,2", "relu": False, "strict": False},
    ),
    draws="reach",
)


class HybridDilatedConv2d(Layer):
    """Stacked dilated convolutions of (N, C, H, W) that keep its shape, and leave no holes in what they see.

    Args: ``channels`` C, of every layer; ``rates``, their dilations, as text; ``kernel_size`` K, odd; ``relu``, one
    between two of them; ``bias``; ``strict``, refuse rates with holes (`coverage`). (K − 1)/2 times the rate zeros are
    padded on each side.
    ``layers`` holds the torch.nn.Conv2d, each ``weight`` (C, C, K, K) and ``bias`` (C,); no buffers.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    rates: str
    kernel_size: int
    relu: bool

    def __init__(
        self,
        channels: int,
        rates: str = "1,2,5",
        kernel_size: int = 3,
        relu: bool = True,
        bias: bool = True,
        strict: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))
        around = kernel_size // 2
        self.layers = nn.ModuleList(
            nn.Conv2d(
                channels,
                channels,
                kernel_size,
                padding=rate * around,
                dilation=rate,
                bias=bias,
                device=device,
                dtype=dtype,
            )
            for rate in rates_of(rates)
        )

    def coverage(self) -> Coverage:
        """Return what the stack sees along either axis."""
        return coverage(self.rates, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer, (N, C, H, W), for ``x`` (N, C, H, W)."""
        self.check_input(x)
        self.refuse_no_positions(x)
        y = x
        for index, layer in enumerate(self.layers):
            y = layer(y.relu() if self.relu and index else y)
        return as_laid_out(y, x)


def what_is_seen(layer: HybridDilatedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where the centre of the output has a gradient, for positive weights, beside Σ r_i k_i on both axes."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.abs_().add_(1)
    x = x.detach().abs().requires_grad_()
    (found,) = torch.autograd.grad(layer(x)[0, 0, x.shape[2] // 2, x.shape[3] // 2], x)
    offsets = torch.zeros(1)
    for rate in rates_of(layer.rates):
        offsets = (offsets.view(-1, 1) + rate * torch.arange(layer.kernel_size)).flatten()
    line = torch.zeros(x.shape[2], dtype=x.dtype)
    line[offsets.long()] = 1
    return found[0].gt(0).to(x.dtype), torch.outer(line, line).expand(x.shape[1], -1, -1)


def one_after_the_other(layer: HybridDilatedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output beside torch's functions, one after the other."""
    y = x
    for rate, conv in zip(rates_of(layer.rates), layer.layers, strict=True):
        weight, bias = conv.parameters()
        y = F.conv2d(y if y is x else F.relu(y), weight, bias, padding="same", dilation=rate)
    return layer(x), y


__all__ = ["Coverage", "HybridDilatedConv2d", "card", "coverage", "is_covered", "one_after_the_other", "what_is_seen"]
