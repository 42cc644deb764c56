r"""AdaNorm: Layer Normalization with a gain computed from the input (Xu et al. 2019, arXiv 1911.07013).

$$y = \phi(z)\,z,\quad \phi(z) = C\,(1 - k\,\mathrm{sg}(z)),\quad z = (x - \mu) / (s + \varepsilon)$$
with μ and s over the channels at each position; sg stops the gradient, so backward treats φ as a constant. The mean of
φ is C, and no parameter is learnt.

As in the authors' code, s is the unbiased standard deviation and ε is added to it. ``unbiased=False, eps_mode="var"``
is the z of Layer Normalization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Option, OptionValue, Paper, Rule, Stat
from layers.observe import is_watched, observe
from layers.positions import PLAIN, Recipe, grid, standardize
from layers.shared import POSITION_PASSES, POSITION_ROW, POSITION_SYMBOLS

card = Card(
    title="AdaNorm",
    paper=Paper(
        authors="Xu, Sun, Zhang, Zhao, Lin",
        title="Understanding and Improving Layer Normalization",
        year=2019,
        venue="NeurIPS 2019",
        arxiv="1911.07013",
    ),
    impl="AdaNorm",
    formula="y = C (1 − k sg(z)) z,  z = (x − μ)/(s + ε)",
    summary="Layer Normalization over the channels at each position, its gain a decreasing function of its output.",
    options=(
        Option(
            name="k",
            type=float,
            default=0.1,
            ge=0,
            help="slope of the gain",
            source="Xu et al. 2019: fixed at 1/10",
        ),
        Option(
            name="scale",
            type=float,
            default=2.0,
            gt=0,
            help="C, the mean of the gain: 1 or 2 in the paper",
            source="adanorm_scale in the authors' code",
        ),
        Option(name="eps", type=float, default=1e-5, gt=0, help="added to σ, or inside the root (see eps_mode)"),
        Option(
            name="unbiased",
            type=bool,
            default=True,
            help="divide the variance by C − 1, not C",
            source="the authors' code",
        ),
        Option(
            name="eps_mode",
            type=str,
            default="std",
            choices=("std", "var"),
            help="where eps is added: to σ, or to σ² inside the root",
            source="the authors' code",
        ),
    ),
    derived={
        **POSITION_SYMBOLS,
        "gain": "1 if k > 0 else 0",
        "outside": "1 if eps_mode == 'std' else 0",
        "turned": "1 if unbiased or eps_mode == 'std' or scale != 1 else 0",
    },
    rules=(Rule("C > 1", "AdaNorm needs more than 1 channel: of one value nothing is left", "channels"),),
    statistics=(Stat("mean", ("N", "H", "W"), "N×H×W"), Stat("rstd", ("N", "H", "W"), "N×H×W")),
    flops=Flops("8*E + 2*N*S", "8*E"),
    executed=Flops(
        "(6 + 3*gain)*E + (3 + 2*outside + (scale != 1) + 2*rows)*N*S",
        "(9 + 3*gain)*E + (4 + 4*outside + gain + (scale != 1))*N*S if not rows"
        " else (9 + 3*gain + turned)*E + (gain + 4*outside + (3 if unbiased or outside else 0) + 2*turned)*N*S",
    ),
    explained=POSITION_PASSES,
    saved="B*E + 8*N*S",
    claims=(
        Claim(
            holds=POSITION_ROW,
            why="A function of the z of Layer Normalization over the channels at a position has its invariances.",
        ),
    ),
    identities=(
        Identity(
            says="with k = 0 and C = 1 AdaNorm = LN-simple over C",
            options={"k": 0.0, "scale": 1.0},
            equals="ln",
            other={"axes": "channel", "affine": "none", "unbiased": True, "eps_mode": "std"},
        ),
        Identity(
            says="the mean of y is −C k (C' − 1)/C' over C' channels",
            options={"eps": 1e-30},
            proof="output_mean",
        ),
        Identity(says="∂L/∂x is LN-simple's for the upstream φ(z) ∂L/∂y", proof="gradient_through_gain"),
    ),
    notes=(
        "The mean of y is not 0: it is −C k (C' − 1)/C' over C' channels, with the unbiased s.",
        "|z| < √(C' − 1) over C' channels, so φ > 0 is certain up to C' = 1 + 1/k², 101 at k = 1/10, and not beyond.",
        "The authors' code keeps a weight and a bias in this mode that are never used and get no gradient.",
    ),
    examples=({}, {"k": 0.0, "scale": 1.0}, {"scale": 1.0, "unbiased": False, "eps_mode": "var", "eps": 1e-3}),
    exact_gradient="False",
)


class AdaNorm(Norm):
    """AdaNorm of (N, C, *positions), C > 1; the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``k`` ≥ 0; ``scale`` > 0; ``eps`` > 0; ``unbiased``; ``eps_mode`` std or var.
    No parameters, no buffers; training and evaluation are the same. Raises OptionError for refused options.
    """

    k: float
    scale: float
    eps: float
    unbiased: bool
    eps_mode: str

    def __init__(
        self,
        channels: int,
        k: float = 0.1,
        scale: float = 2.0,
        eps: float = 1e-5,
        unbiased: bool = True,
        eps_mode: str = "std",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, OptionValue] = {
            "k": k,
            "scale": scale,
            "eps": eps,
            "unbiased": unbiased,
            "eps_mode": eps_mode,
        }
        super().__init__(card, channels, options, affine=False, device=device, dtype=dtype)
        self.recipe = Recipe(self.eps, eps_mode, unbiased, gain=(self.scale, self.k))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions)."""
        self.check_input(x)
        y, mean, rstd = standardize(x, None, None, self.recipe)
        if is_watched():
            observe(mean=mean.reshape(grid(x)), rstd=rstd.reshape(grid(x)))
        return y

    def gain(self, z: Tensor) -> Tensor:
        """Return φ(z), a constant in backward."""
        return torch.rsub(z.detach(), self.scale, alpha=self.k * self.scale)


def output_mean(layer: AdaNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the channels of y, and −C k mean(z²) with its value for the layer's estimator of s."""
    mean = layer(x).mean(1)
    squares = layer.recipe.count(x.shape[1]) / x.shape[1]
    return mean, torch.full_like(mean, -layer.scale * layer.k * squares)


def gradient_through_gain(layer: AdaNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∂L/∂x of y, and of z for an upstream gradient that φ(z) has multiplied."""
    x = x.detach().requires_grad_()
    upstream = (3 * x.detach()).cos() + 0.5
    z, _, _ = standardize(x, None, None, layer.recipe._replace(gain=PLAIN))
    (expected,) = torch.autograd.grad(z, x, upstream * layer.gain(z))
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    return found, expected
