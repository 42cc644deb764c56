r"""Scaled Weight Standardization of normalizer-free networks: standardized filters that keep the variance of their
input (Brock, De & Smith 2021, arXiv 2101.08692, section 4; 2102.06171, section 2).

With W as O×I, a row per output channel, I = C/groups × kernel positions,
$$\hat W_{oi} = g_o\,\frac{\gamma}{\sqrt I}\,\frac{W_{oi} - \mu_o}{\sqrt{\sigma_o^2 + \varepsilon}},\qquad
y = \hat W * x + b,$$
with the mean μ_o and biased variance σ_o² of the I weights of output channel o and a learnt gain g_o, 1 at the start.
γ makes up for the activation in front: 1/√Var(activation(z)) of a standard normal z, √(2/(1 − 1/π)) for relu, so that
y has variance 1 where the activation saw variance 1. Training and evaluation are the same, and `fold` gives the plain
convolution by Ŵ.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.card import Card, Claim, Flops, Identity, Option, OptionError, Paper, Rule, Stat
from layers.convolution import Convolution, options_among
from layers.reparametrization import Reparametrization, own_weights, single_weights
from layers.shared import (
    CONVOLUTION,
    CONVOLUTION_PEER,
    CONVOLUTION_RULES,
    CONVOLUTION_SYMBOLS,
    CONVOLUTION_TRAFFIC,
    FILTERS,
)
from layers.weight.weight_standardization import standardize
from layers.weight_geometry import balanced, growth, inverse_scale, orthogonal
from layers.weights import Weight

card = Card(
    title="Scaled Weight Standardization",
    paper=Paper(
        authors="Brock, De, Smith",
        title="Characterizing signal propagation to close the performance gap in unnormalized ResNets",
        year=2021,
        venue="ICLR 2021",
        arxiv="2101.08692",
    ),
    impl="ScaledWSConv2d",
    formula="Ŵ_oi = g_o γ (W_oi − μ_o) / √(I (σ²_o + ε)),  y = Ŵ * x + b",
    summary="Each filter is standardized over its I weights, divided by √I and multiplied by γ and a learnt gain.",
    options=(
        *CONVOLUTION,
        Option(
            name="activation",
            type=str,
            default="identity",
            choices=(
                "identity",
                "celu",
                "elu",
                "gelu",
                "leaky_relu",
                "log_sigmoid",
                "relu",
                "relu6",
                "selu",
                "sigmoid",
                "silu",
                "softplus",
                "softsign",
                "tanh",
            ),
            alike=(("identity", "selu"), ("celu", "elu"), ("log_sigmoid", "softplus")),
            help="what x came through, which gives γ",
            source="timm's ScaledStdConv2d, whose γ is 1 unless it is given",
        ),
        Option(
            name="gamma",
            type=float,
            default=None,
            optional=True,
            gt=0,
            help="γ itself; none is that of the activation",
        ),
        Option(
            name="eps",
            type=float,
            default=1e-6,
            ge=0,
            help="added to the variance, inside the root; with 0 a filter of equal weights gives NaN",
            source="timm's ScaledStdConv2d; its NF-nets pass 1e-5",
        ),
    ),
    derived=CONVOLUTION_SYMBOLS,
    rules=(
        *CONVOLUTION_RULES,
        Rule("I > 1", "a filter of 1 weight cannot be standardized: use a larger kernel or fewer groups", "groups"),
        Rule(
            "gamma is None or activation == 'identity'",
            "gamma={gamma} and activation={activation} contradict each other; give one",
            "gamma",
        ),
    ),
    statistics=(Stat("mean", ("O",), "O×1"), Stat("std", ("O",), "O×1", help="√(σ² + ε)")),
    params="O*I + O + (O if bias else 0)",
    flops=Flops("2*Q*O*I + (Q*O if bias else 0) + 5*O*I + 5*O", "4*Q*O*I + (Q*O - O if bias else 0) + 8*O*I"),
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + 6*O*I + 9*O",
        "4*Q*O*I + (Q*O - O if bias else 0) + 7*O*I + 17*O + unpad",
    ),
    explained=FILTERS,
    saved="4*O*I + 16*O + 4*kept",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    peer=CONVOLUTION_PEER,
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
        Identity(says="Σ Ŵ = 0, Σ Ŵ² = (g γ)²", options={"activation": "relu", "eps": 0}, proof="scales"),
        Identity(says="γ² Var(activation(z)) = 1 for z ~ N(0, 1)", proof="gammas", within=1e-12),
        Identity(says="Σ ∂L/∂W = 0 for every filter and ε", options={"eps": 0.1}, proof="balanced"),
        Identity(says="⟨w, ∂L/∂w⟩ = 0", options={"eps": 0}, proof="orthogonal"),
        Identity(says="∂L/∂W at a W is 1/a times that at W", options={"eps": 0}, proof="inverse_scale"),
        Identity(says="‖w − η ∂L/∂w‖² = ‖w‖² + η² ‖∂L/∂w‖²", options={"eps": 0}, proof="growth"),
    ),
    notes=(
        "timm's table of γ is a Monte-Carlo estimate: 1.7139588594436646 for relu, where √(2/(1 − 1/π)) = 1.71285855. "
        "Here γ is exact to 1e-12; give gamma=1.7139588594436646 for timm's network.",
        "ε is 1e-6 in timm's class, 1e-5 in its NF-nets; DeepMind's own code bounds I σ² below by 1e-4 instead.",
        "timm's ScaledStdConv2d has a bias where its StdConv2d has none.",
    ),
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "activation": "relu", "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "gamma": 1.7139588594436646},
        {"kernel_size": 1, "groups": 2, "padding_mode": "reflect", "padding": 1, "activation": "silu", "eps": 1e-3},
    ),
)

# 1/√Var(f(z)) for z ~ N(0, 1), by quadrature; `gammas` computes them again.
GAMMAS = {
    "identity": 1.0,
    "celu": 1.2708434178501964,
    "elu": 1.2708434178501964,
    "gelu": 1.700926243363333,
    "leaky_relu": 1.7048316271773367,
    "log_sigmoid": 1.9191259801076563,
    "relu": 1.7128585504496627,
    "relu6": 1.7128585549723954,
    "selu": 1.0,
    "sigmoid": 4.801313372039963,
    "silu": 1.7871872221004417,
    "softplus": 1.9191259801076563,
    "softsign": 2.3375333631085393,
    "tanh": 1.5925374197228312,
}


def scaled(rows: Tensor, gain: Tensor, activation: str, gamma: float | None, eps: float) -> Tensor:
    """Return g γ/√I times the standardized rows of ``rows`` (O, I), for a ``gain`` of O numbers, in the same dtype."""
    factor = (GAMMAS[activation] if gamma is None else gamma) / math.sqrt(rows.shape[1])
    return standardize(rows, "timm", eps, factor * gain)


class ScaledWSConv2d(Convolution):
    """torch.nn.Conv2d with scaled standardized filters: (N, C, H, W) → (N, O, HO, WO).

    ``weight`` (O, C/groups, KH, KW) and ``gain`` (O, 1, 1, 1), ones at the start, are learnt, under the names of timm's
    class. Raises OptionError for refused options and for filters of one weight, ValueError for inputs that do not fit.
    """

    activation: str
    gamma: float | None
    eps: float

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
        activation: str = "identity",
        gamma: float | None = None,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)
        self.gain = nn.Parameter(torch.empty(self.out_channels, 1, 1, 1, device=device, dtype=dtype))
        self.start()

    def start(self) -> None:
        """Set the gain to one."""
        nn.init.ones_(self.gain)

    def effective_weight(self) -> Tensor:
        """Return Ŵ (O, C/groups, KH, KW)."""
        rows = scaled(self.weight.flatten(1), self.gain, self.activation, self.gamma, self.eps)
        return rows.view(self.weight.shape)


class ScaledWeightStandardization(Reparametrization):
    """The parametrization W → Ŵ of any linear layer or convolution, transposed ones too.

    State: ``gain``, one number per output, of as many axes as the weight.
    Raises OptionError for a layer whose output channels have one weight each, and for refused options.
    """

    activation: str
    gamma: float | None
    eps: float

    def __init__(
        self, layer: nn.Module, activation: str = "identity", gamma: float | None = None, eps: float = 1e-6
    ) -> None:
        super().__init__(layer, card, activation=activation, gamma=gamma, eps=eps)
        self.refuse_single_weights()
        if gamma is not None and activation != "identity":
            raise OptionError(f"gamma={gamma} and activation={activation} contradict each other; give one", "gamma")
        weight = cast(Tensor, layer.weight)
        self.gain = nn.Parameter(weight.new_ones(self.per_output), weight.requires_grad)

    def forward(self, weight: Tensor) -> Tensor:
        """Return Ŵ for W, of the same shape and dtype."""
        rows = scaled(self.rows(weight), self.gain, self.activation, self.gamma, self.eps)
        return self.unrows(rows, weight)


parametrization = ScaledWeightStandardization


def excludes(weight: Weight) -> str:
    """Return why ``weight`` is not standardized by default: only kernels of convolutions are, with I > 1."""
    return own_weights(weight) or single_weights(weight)


def scales(layer: ScaledWSConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Σ Ŵ and √(Σ Ŵ²) of every filter beside 0 and |g| γ; all plus 1."""
    rows = layer.effective_weight().flatten(1)
    found = torch.stack([rows.sum(1), rows.norm(dim=1)])
    size = layer.gain.flatten().abs() * GAMMAS[layer.activation]
    return 1 + found, 1 + torch.stack([torch.zeros_like(size), size])


def gammas(layer: ScaledWSConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """γ² Var(activation(z)) for every activation, by Gauss's quadrature between the kinks, beside 1."""
    points = torch.tensor([-12.0, -8, -4, -2, 0, 2, 4, 6, 9, 12], dtype=x.dtype)
    order = torch.arange(1, 64, dtype=x.dtype)  # Golub & Welsch: nodes are eigenvalues of the Jacobi matrix
    side = order / (4 * order**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    half = points.diff()[:, None] / 2
    z = (points[:-1, None] + half * (1 + nodes)).flatten()
    density = (half * 2 * vectors[0] ** 2).flatten() * (-z * z / 2).exp() / math.sqrt(2 * math.pi)
    found = []
    for name, gamma in GAMMAS.items():
        values = z if name == "identity" else getattr(F, name.replace("_sigmoid", "sigmoid"))(z)
        mean = (density * values).sum()
        found.append(gamma**2 * (density * (values - mean) ** 2).sum())
    return torch.stack(found), torch.ones(len(found), dtype=x.dtype)


__all__ = ["GAMMAS", "ScaledWSConv2d", "balanced", "card", "growth", "inverse_scale", "orthogonal", "parametrization"]
