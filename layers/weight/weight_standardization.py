r"""Weight Standardization: every filter is centred and scaled to variance one before it is used (Qiao, Wang, Liu, Shen
& Yuille 2019, arXiv 1903.10520, equations 5–7).

With W as O×I, a row per output channel, I = C/groups × kernel positions,
$$\hat W_{oi} = (W_{oi} - \mu_o) / \sigma_o,\qquad y = \hat W * x + b,$$
where μ_o and σ_o are over the I weights of output channel o: they are O numbers each, and nothing is learnt but W.
Training and evaluation are the same, and `fold` gives the plain convolution by Ŵ.

Five conventions are published, and differ by √((I − 1)/I) and by where ε stands (`convention`):
qiao, the authors' PyTorch code (the default): unbiased σ, Ŵ = (W − μ)/(σ + 1e-5); qiao-tf, their TensorFlow snippet:
biased, outside too; bcn, their code of Batch-Channel Normalization: unbiased, 1e-5 inside the root; paper, version 2 of
the text: biased, inside; timm's StdConv2d: biased, 1e-6 inside.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import Convolution, options_among
from layers.observe import observe
from layers.reparametrization import Reparametrization, own_weights, single_weights
from layers.rows import Rows
from layers.shared import (
    CONVOLUTION,
    CONVOLUTION_PEER,
    CONVOLUTION_RULES,
    CONVOLUTION_SYMBOLS,
    CONVOLUTION_TRAFFIC,
    FILTERS,
)
from layers.weight_geometry import balanced, gradient, growth, inverse_scale, orthogonal
from layers.weights import Weight

card = Card(
    title="Weight Standardization",
    paper=Paper(
        authors="Qiao, Wang, Liu, Shen, Yuille",
        title="Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        year=2019,
        arxiv="1903.10520",
    ),
    impl="WSConv2d",
    formula="Ŵ_oi = (W_oi − μ_o) / (σ_o + ε),  y = Ŵ * x + b",
    summary="Each filter is standardized over its I = C/groups × KH × KW weights before the convolution.",
    options=(
        *CONVOLUTION,
        Option(
            name="convention",
            type=str,
            default="qiao",
            choices=("qiao", "qiao-tf", "bcn", "paper", "timm"),
            help="σ unbiased (qiao, bcn) or biased; ε outside the root (qiao, qiao-tf) or inside",
            source="the authors' PyTorch code",
        ),
        Option(
            name="eps",
            type=float,
            default=None,
            optional=True,
            ge=0,
            help="ε; none is that of the convention: 1e-5, timm 1e-6; with 0 inside the root equal weights give NaN",
        ),
    ),
    derived={
        **CONVOLUTION_SYMBOLS,
        "outside": "1 if convention == 'qiao' or convention == 'qiao-tf' else 0",
        "unbiased": "1 if convention == 'qiao' or convention == 'bcn' else 0",
    },
    rules=(
        *CONVOLUTION_RULES,
        Rule("I > 1", "a filter of 1 weight cannot be standardized: use a larger kernel or fewer groups", "groups"),
    ),
    statistics=(Stat("mean", ("O",), "O×1"), Stat("std", ("O",), "O×1", help="σ + ε, or √(σ² + ε)")),
    params="O*I + (O if bias else 0)",
    flops=Flops("2*Q*O*I + (Q*O if bias else 0) + 5*O*I + 2*O", "4*Q*O*I + (Q*O - O if bias else 0) + 7*O*I"),
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + 6*O*I + (8 + outside + unbiased)*O",
        "4*Q*O*I + (Q*O - O if bias else 0) + 7*O*I + (14 + outside + unbiased)*O + unpad",
    ),
    explained=FILTERS,
    saved="4*O*I + (12 + 4*outside)*O + 4*kept",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=(
        Claim(
            holds=(
                "w-scale",
                "w-vec-scale",
                "w-recenter-scalar",
                "w-vec-recenter",
                "w-scale-group",
                "x-recenter-scalar@linear,conv",
            ),
            why="A filter that sums to 0 does not see a shift common to all of its inputs; zero padding spoils that at "
            "the border. Re-centering by a vector that is not constant, and any re-scaling of the data, go through.",
        ),
    ),
    identities=(
        Identity(says="Σ Ŵ = 0, Σ Ŵ² = I − 1 (unbiased)", options={"eps": 0}, proof="sums"),
        Identity(says="Σ Ŵ² = I (biased)", options={"convention": "paper", "eps": 0}, proof="sums"),
        Identity(says="Σ ∂L/∂W = 0 for every filter and ε", options={"eps": 0.1}, proof="balanced"),
        Identity(says="Σ ∂L/∂W = 0, ε inside", options={"convention": "bcn", "eps": 0.1}, proof="balanced"),
        Identity(says="⟨W, ∂L/∂W⟩ = ε/(σ + ε) ⟨Ŵ, ∂L/∂Ŵ⟩, ε outside", options={"eps": 0.1}, proof="radial"),
        Identity(
            says="⟨W, ∂L/∂W⟩ = ε/(σ² + ε) ⟨Ŵ, ∂L/∂Ŵ⟩, ε inside",
            options={"convention": "bcn", "eps": 0.1},
            proof="radial",
        ),
        Identity(says="⟨w, ∂L/∂w⟩ = 0 without ε", options={"eps": 0}, proof="orthogonal"),
        Identity(says="∂L/∂W at a W is 1/a times that at W", options={"eps": 0}, proof="inverse_scale"),
        Identity(says="‖w − η ∂L/∂w‖² = ‖w‖² + η² ‖∂L/∂w‖²", options={"eps": 0}, proof="growth"),
        Identity(
            says="∂L/∂W = (1 − 11ᵀ/I − ŵŵᵀ/I) ∂L/∂Ŵ / σ",
            options={"convention": "paper", "eps": 0},
            proof="projected",
        ),
        Identity(
            says="‖∂L/∂W‖² = (‖ĝ‖² − ⟨1, ĝ⟩²/I − ⟨ŵ, ĝ⟩²/I) / σ²",
            options={"convention": "paper", "eps": 0},
            proof="flatter",
        ),
    ),
    notes=(
        "The notes give mean and variance the size [KKC]: that is what is reduced. They have size O, one number per "
        "column of the [KKC, O] weight matrix; the im2col matrix is not touched.",
        "Five conventions are published; unbiased or biased is 0.09 % at I = 576 and 6 % at I = 9 (depthwise 3×3).",
        "ε breaks the invariance to scale: for a tenth of He's initial weights Ŵ moves by 0.15 % (qiao), 1.3 % (timm) "
        "and 11 % (bcn).",
        "timm refuses filters of one weight, the authors' codes return NaN; this refuses.",
        "The paper warns against a gain and shift on Ŵ: a normalization behind the convolution has them.",
    ),
    peer=CONVOLUTION_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "convention": "timm"},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "convention": "bcn", "bias": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "convention": "qiao-tf"},
        {"kernel_size": 1, "groups": 2, "padding": 1, "padding_mode": "reflect", "convention": "paper", "eps": 1e-3},
    ),
)

# correction of the variance, is ε outside the root, ε
CONVENTIONS = {
    "qiao": (1, True, 1e-5),
    "qiao-tf": (0, True, 1e-5),
    "bcn": (1, False, 1e-5),
    "paper": (0, False, 1e-5),
    "timm": (0, False, 1e-6),
}


def standardize(rows: Tensor, convention: str = "qiao", eps: float | None = None, gain: Tensor | None = None) -> Tensor:
    """Return the rows of ``rows`` (O, I), each standardized by itself and times its ``gain``, in the same dtype.

    A row of equal weights becomes 0, or NaN with ε = 0 inside the root. Half precision has float32 statistics.
    """
    correction, outside, usual = CONVENTIONS[convention]
    eps = usual if eps is None else eps
    count = rows.shape[1]
    moments = Rows(rows)
    var = moments.var * (count / (count - correction)) if correction else moments.var
    if outside:
        tiny = torch.finfo(var.dtype).tiny  # the root has no derivative at 0; this one's is 0
        std = var.clamp_min(tiny).sqrt() + eps
    else:
        std = (var + eps).sqrt()
    observe(mean=moments.mean, std=std)
    return moments.scaled(std.reciprocal() if gain is None else gain.flatten().to(std.dtype) / std)


class WSConv2d(Convolution):
    """torch.nn.Conv2d with standardized filters: (N, C, H, W) → (N, O, HO, WO).

    ``weight`` (O, C/groups, KH, KW) is what is learnt, so checkpoints of torch.nn.Conv2d load.
    Raises OptionError for refused options and for filters of one weight, ValueError for inputs that do not fit.
    """

    convention: str
    eps: float | None

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
        convention: str = "qiao",
        eps: float | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    def effective_weight(self) -> Tensor:
        """Return Ŵ (O, C/groups, KH, KW)."""
        return standardize(self.weight.flatten(1), self.convention, self.eps).view(self.weight.shape)


class WeightStandardization(Reparametrization):
    """The parametrization W → Ŵ of any linear layer or convolution, transposed ones too; no state.

    Raises OptionError for a layer whose output channels have one weight each, and for refused options.
    """

    convention: str
    eps: float | None

    def __init__(self, layer: nn.Module, convention: str = "qiao", eps: float | None = None) -> None:
        super().__init__(layer, card, convention=convention, eps=eps)
        self.refuse_single_weights()

    def forward(self, weight: Tensor) -> Tensor:
        """Return Ŵ for W, of the same shape and dtype."""
        return self.unrows(standardize(self.rows(weight), self.convention, self.eps), weight)


parametrization = WeightStandardization


def excludes(weight: Weight) -> str:
    """Return why ``weight`` is not standardized by default: only kernels of convolutions are, with I > 1."""
    return own_weights(weight) or single_weights(weight)


def sums(layer: WSConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Σ Ŵ and Σ Ŵ² of every filter beside 0 and I − 1, or I where the variance is biased; all plus 1."""
    rows = layer.effective_weight().flatten(1)
    found = torch.stack([rows.sum(1), rows.square().sum(1)])
    count = rows.shape[1] - CONVENTIONS[layer.convention][0]
    return 1 + found, 1 + torch.stack([torch.zeros_like(found[0]), torch.full_like(found[1], count)])


def _gradients(layer: WSConv2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W and Ŵ, each with its gradient, as rows."""
    used = layer.effective_weight().detach().requires_grad_()
    (upstream,) = torch.autograd.grad(layer._conv_forward(x.detach(), used, layer.bias).cos().sum(), used)
    return layer.weight.flatten(1), gradient(layer, x), used.flatten(1), upstream.flatten(1)


def radial(layer: WSConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """⟨W, ∂L/∂W⟩ of every filter beside r ⟨Ŵ, ∂L/∂Ŵ⟩, r the share of ε in what is divided by."""
    rows, found, used, upstream = _gradients(layer, x)
    correction, outside, eps = CONVENTIONS[layer.convention]
    eps = eps if layer.eps is None else layer.eps
    var = rows.var(1, correction=correction)
    share = eps / (var.sqrt() + eps) if outside else eps / (var + eps)
    return (rows * found).sum(1), share * (used * upstream).sum(1)


def projected(layer: WSConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂W beside ∂L/∂Ŵ without its parts along 1 and Ŵ, divided by σ (biased, ε = 0)."""
    rows, found, used, upstream = _gradients(layer, x)
    along = upstream.mean(1, keepdim=True) + used * (used * upstream).mean(1, keepdim=True)
    return found, (upstream - along) / rows.std(1, correction=0, keepdim=True)


def flatter(layer: WSConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """‖∂L/∂W‖² of every filter beside ‖∂L/∂Ŵ‖² less its parts along 1 and Ŵ, divided by σ² (biased, ε = 0)."""
    rows, found, used, upstream = _gradients(layer, x)
    along = (upstream.sum(1) ** 2 + (used * upstream).sum(1) ** 2) / rows.shape[1]
    return found.square().sum(1), (upstream.square().sum(1) - along) / rows.var(1, correction=0)


__all__ = [
    "CONVENTIONS",
    "WSConv2d",
    "WeightStandardization",
    "balanced",
    "card",
    "growth",
    "inverse_scale",
    "orthogonal",
    "parametrization",
    "standardize",
]
