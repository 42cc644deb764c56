r"""Positional Normalization: normalize the channels at each position (Li et al. 2019, arXiv 1907.04312).

$$y = (x - \mu_{nhw}) / \sigma_{nhw},\quad \sigma = \sqrt{\mathrm{var} + \varepsilon}$$
with μ and the biased variance over the C channels at each (n, h, w); no affine. Training and evaluation are the same.

The moments are structure, and worth more than their removal: with ``return_stats`` the layer returns (y, μ, σ), and
`moment_shortcut` gives them back to a later layer of the same resolution:
$$\mathrm{MS}(x, \mu, \sigma) = \sigma x + \mu.$$
Gradients flow through both moments. In the dynamic moment shortcut a small convolutional network maps (μ, σ) to the
pair that is injected; `moment_shortcut` takes that pair as well, whatever made it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.observe import is_watched, observe
from layers.positions import Recipe, grid, standardize
from layers.shared import EPS, POSITION_PASSES, POSITION_ROW, POSITION_SYMBOLS

card = Card(
    title="Positional Normalization",
    paper=Paper(
        authors="Li, Wu, Weinberger, Belongie",
        title="Positional Normalization",
        year=2019,
        venue="NeurIPS 2019",
        arxiv="1907.04312",
    ),
    impl="PositionalNorm",
    formula="y = (x − μ_nhw) / √(σ²_nhw + ε)",
    summary="Each position of each sample has one mean and biased variance over its C channels; no parameters.",
    options=(
        EPS,
        Option(
            name="unbiased",
            type=bool,
            default=False,
            help="divide the variance by C − 1, not C",
            source="the paper's formula; the authors' TensorFlow code is biased too, their torch code is not",
        ),
        Option(name="return_stats", type=bool, default=False, help="return (y, μ, σ) for the moment shortcut"),
    ),
    rules=(
        Rule(
            "C > 1",
            "Positional Normalization needs more than 1 channel: of one value nothing is left (and its unbiased "
            "variance is not defined)",
            "channels",
        ),
    ),
    derived=POSITION_SYMBOLS,
    statistics=(Stat("mean", ("N", "1", "H", "W"), "N×1×H×W"), Stat("std", ("N", "1", "H", "W"), "N×1×H×W")),
    flops=Flops("5*E + 2*N*S", "7*E"),
    executed=Flops(
        "6*E + (4 + 2*rows)*N*S",
        "9*E + 4*N*S if not rows else 10*E + 5*N*S if unbiased else 9*E",
    ),
    explained=POSITION_PASSES,
    saved="B*E + 8*N*S",
    claims=(
        Claim(
            holds=POSITION_ROW,
            why="One kernel added to all filters adds a map common to all channels, and the mean is taken at each of "
            "its positions: w-recenter holds on every convolution, whatever its padding (see ln).",
        ),
    ),
    identities=(
        Identity(says="PONO = LN over C, without g and b", equals="ln", other={"axes": "channel", "affine": "none"}),
        Identity(says="on a 1×1 map PONO = LN-simple", dims={"H": 1, "W": 1}, equals="ln", other={"affine": "none"}),
        Identity(says="MS(PONO(x)) with its own moments = x", proof="restored"),
        Identity(
            says="unbiased = biased · √((C − 1)/C) as ε vanishes",
            options={"eps": 1e-30, "unbiased": True},
            proof="estimators",
        ),
    ),
    notes=(
        "The notes' remark that PN is normalized convolution with a 1×1 kernel holds for the biased variance only.",
        "The authors' torch code divides by C − 1, their TensorFlow code by C: outputs 4 % apart on 12 channels.",
    ),
    examples=({}, {"unbiased": True, "eps": 1e-3}),
)


class PositionalNorm(Norm):
    """Positional Normalization of (N, C, *positions), C > 1.

    Args: ``channels`` C; ``eps`` > 0; ``unbiased``; ``return_stats`` to return (y, μ, σ).
    y has the shape, dtype and memory format of the input; μ and σ are (N, 1, *positions) in float32 or wider, and
    differentiable. No parameters, no buffers. Raises OptionError for refused options.
    """

    eps: float
    unbiased: bool
    return_stats: bool

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        unbiased: bool = False,
        return_stats: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"eps": eps, "unbiased": unbiased, "return_stats": return_stats}
        super().__init__(card, channels, options, affine=False, device=device, dtype=dtype)
        self.recipe = Recipe(self.eps, unbiased=unbiased)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Normalize ``x`` (N, C, *positions)."""
        self.check_input(x)
        y, mean, rstd = standardize(x, None, None, self.recipe)
        if is_watched():
            n, h, w = grid(x)
            observe(mean=mean.reshape(n, 1, h, w), std=rstd.detach().reciprocal().reshape(n, 1, h, w))
        return (y, mean, rstd.reciprocal()) if self.return_stats else y


def moment_shortcut(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``std * x + mean`` for ``x`` (N, C, *positions), in its dtype, and moments (N, 1, *positions).

    The moments come from `PositionalNorm` with ``return_stats`` or from a network that maps them (dynamic moment
    shortcut). Raises ValueError unless their shape is that of ``x`` with one channel.
    """
    expected = (x.shape[0], 1, *x.shape[2:])
    for name, moment in (("mean", mean), ("std", std)):
        if tuple(moment.shape) != expected:
            raise ValueError(
                f"moment_shortcut: {name} has shape {tuple(moment.shape)}, x of {tuple(x.shape)} needs {expected}"
            )
    wide = torch.promote_types(x.dtype, mean.dtype)
    return (x.to(wide) * std + mean).to(x.dtype)


def restored(layer: PositionalNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the shortcut makes of y with its own moments, and x."""
    y, mean, std = PositionalNorm(layer.channels, layer.eps, layer.unbiased, return_stats=True)(x)
    return moment_shortcut(y, mean, std), x


def estimators(layer: PositionalNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return y with the unbiased variance, and √((C − 1)/C) times y with the biased one."""
    unbiased, biased = (PositionalNorm(layer.channels, layer.eps, choice)(x) for choice in (True, False))
    return unbiased, biased * ((layer.channels - 1) / layer.channels) ** 0.5
