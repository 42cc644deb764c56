r"""Centred weights: the mean of every filter is taken away before it is used, and nothing else (Yan et al. 2020,
“Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization”, arXiv 2001.06838, section 4.3;
`CenConv2d` of the authors' code).

With W as O×I, a row per output channel, I = C/groups × kernel positions,
$$\hat W_{oi} = W_{oi} - \mu_o,\qquad y = \hat W * x + b.$$
It is the centring of Weight Standardization without its division, so Ŵ keeps the scale of W; a batch normalization
behind it, or the moving-average one that it was made for, removes that scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers import centring
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import Convolution, options_among
from layers.observe import observe
from layers.reparametrization import Reparametrization, own_weights, single_weights
from layers.shared import CONVOLUTION, CONVOLUTION_PEER, CONVOLUTION_RULES, CONVOLUTION_SYMBOLS, CONVOLUTION_TRAFFIC
from layers.weight_geometry import balanced
from layers.weights import Weight

card = Card(
    title="Centred weights",
    paper=Paper(
        authors="Yan, Wan, Zhang, Zhang, Wei, Sun",
        title="Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization",
        year=2020,
        venue="ICLR 2020",
        arxiv="2001.06838",
    ),
    impl="CenConv2d",
    formula="Ŵ_oi = W_oi − μ_o,  y = Ŵ * x + b",
    summary="The mean of each filter, over its I = C/groups × KH × KW weights, is subtracted before the convolution.",
    options=(
        *CONVOLUTION,
        Option(
            name="init",
            type=str,
            default="keep",
            choices=("keep", "normal"),
            help="W at the start: as torch.nn.Conv2d draws it, or N(0, 1) whatever the fan-in, as the authors do",
        ),
    ),
    derived={
        **CONVOLUTION_SYMBOLS,
        "centring": "2*O*I + (O if O*I <= 32768 else 0) if O*I <= 262144 else 3*O*I + 4*O",
    },
    rules=(
        *CONVOLUTION_RULES,
        Rule(
            "I > 1", "a filter of 1 weight is nothing without its mean: use a larger kernel or fewer groups", "groups"
        ),
    ),
    statistics=(Stat("mean", ("O",), "O×1"),),
    params="O*I + (O if bias else 0)",
    flops=Flops("2*Q*O*I + (Q*O if bias else 0) + 2*O*I", "4*Q*O*I + (Q*O - O if bias else 0) + 2*O*I"),
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + centring",
        "4*Q*O*I + (Q*O - O if bias else 0) + centring + unpad",
    ),
    explained="Above 2¹⁸ weights the kernel that takes the mean away does a multiply-add for each; fvcore counts the "
    "convolution, by one per multiply-add.",
    saved="4*O*I + 4*kept",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=(
        Claim(
            holds=("w-recenter-scalar", "w-vec-recenter", "x-recenter-scalar@linear,conv"),
            why="Only the mean of a filter is taken away: its scale goes through, as that of the data does.",
        ),
    ),
    identities=(
        Identity(says="Σ Ŵ = 0 for every filter", proof="sums"),
        Identity(says="Σ ∂L/∂W = 0 for every filter", proof="balanced"),
    ),
    notes=(
        "The quotation in the notes, “centralizing convolutional kernels according to Qiao et al.”, is of the centring "
        "alone: nothing is divided by a standard deviation.",
        "It is not the Centered Weight Normalization of Huang et al. (ICCV 2017), which also normalizes to length 1.",
        "The authors' class draws W from N(0, 1) whatever the fan-in and has no bias: init=normal, bias=false.",
    ),
    peer=CONVOLUTION_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "init": "normal", "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "padding_mode": "replicate"},
    ),
)


def center(rows: Tensor) -> Tensor:
    """Return the rows of ``rows`` (O, I), each without its mean, which half precision takes in float32."""
    centred, mean = centring.center(rows.unsqueeze(0), None)
    observe(mean=mean)
    return centred.squeeze(0)


class CenConv2d(Convolution):
    """torch.nn.Conv2d with centred filters: (N, C, H, W) → (N, O, HO, WO).

    ``weight`` (O, C/groups, KH, KW) is what is learnt, so checkpoints of torch.nn.Conv2d load.
    Raises OptionError for refused options and for filters of one weight, ValueError for inputs that do not fit.
    """

    init: str

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
        init: str = "keep",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)
        self.start()

    def start(self) -> None:
        """Draw W from N(0, 1) where ``init`` says so."""
        if self.init == "normal":
            nn.init.normal_(self.weight)

    def effective_weight(self) -> Tensor:
        """Return Ŵ (O, C/groups, KH, KW)."""
        return center(self.weight.flatten(1)).view(self.weight.shape)


class CentredWeight(Reparametrization):
    """The parametrization W → Ŵ of any linear layer or convolution, transposed ones too; no state.

    With ``init`` normal the weight of the layer is drawn anew from N(0, 1) when this is registered.
    Raises OptionError for a layer whose output channels have one weight each, and for refused options.
    """

    init: str

    def __init__(self, layer: nn.Module, init: str = "keep") -> None:
        super().__init__(layer, card, init=init)
        self.refuse_single_weights()
        self._draw = init == "normal"
        if self._draw:
            self.refuse_parametrized(layer)

    def forward(self, weight: Tensor) -> Tensor:
        """Return Ŵ for W, of the same shape and dtype."""
        return self.unrows(center(self.rows(weight)), weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what to learn when ``weight`` is assigned: itself, at registration what ``init`` says."""
        self.refuse_other_shapes(weight)
        drawn, self._draw = self._draw, False
        return torch.randn_like(weight) if drawn else weight


parametrization = CentredWeight


def excludes(weight: Weight) -> str:
    """Return why ``weight`` is not centred by default: only kernels of convolutions are, with I > 1."""
    return own_weights(weight) or single_weights(weight)


def sums(layer: CenConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of every filter's weights beside 0; both plus 1."""
    found = layer.effective_weight().flatten(1).sum(1)
    return 1 + found, torch.ones_like(found)


__all__ = ["CenConv2d", "CentredWeight", "balanced", "card", "center", "parametrization"]
