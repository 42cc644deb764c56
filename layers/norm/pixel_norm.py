r"""Pixel Norm: scale the channels at each position to root mean square 1 (Karras et al. 2018, section 4.2).

$$y = x / \sqrt{\tfrac1C \sum_c x_c^2 + \varepsilon}$$
at each (n, h, w): no centering, no parameters. Training and evaluation are the same.

bf16 and fp16 are computed in float32: in fp16 the square of 256 is infinite, and ε = 1e-8 is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Stat
from layers.observe import is_watched, observe
from layers.positions import Recipe, grid, standardize
from layers.shared import POSITION_SYMBOLS

card = Card(
    title="Pixel Norm",
    paper=Paper(
        authors="Karras, Aila, Laine, Lehtinen",
        title="Progressive Growing of GANs for Improved Quality, Stability, and Variation",
        year=2018,
        venue="ICLR 2018",
        arxiv="1710.10196",
    ),
    impl="PixelNorm",
    formula="y = x / √(mean_c x² + ε)",
    summary="Each position of each sample has one root mean square over its C channels; no centering, no parameters.",
    options=(
        Option(
            name="eps",
            type=float,
            default=1e-8,
            gt=0,
            help="added to the mean square, inside the root",
            source="Karras et al. 2018, section 4.2",
        ),
    ),
    derived={**POSITION_SYMBOLS, "tiny": "E <= 32768"},
    statistics=(Stat("rms", ("N", "1", "H", "W"), "N×1×H×W", help="with ε inside the root"),),
    flops=Flops("3*E + 2*N*S", "5*E"),
    executed=Flops(
        "3*E + (3 + 2*rows*(not tiny))*N*S",
        "8*E + 2*N*S if tiny else 6*E + 4*N*S",
    ),
    explained="Up to 2¹⁵ elements autograd derives the definition; above, one backward computes y again instead of "
    "keeping it, and rows take a kernel that counts a little otherwise.",
    saved="B*E + 4*N*S",
    claims=(
        Claim(
            holds=("w-scale", "x-scale", "case-scale", "cases-scale", "ghost-scale"),
            why="The row of RMSNorm, per position: without a mean nothing is re-centered.",
        ),
    ),
    identities=(
        Identity(says="mean_c y² = 1 as ε vanishes", options={"eps": 1e-30}, proof="unit_mean_square"),
        Identity(says="of channels whose mean is 0 Pixel Norm = PONO", proof="of_centered"),
    ),
    notes=("Written in fp16 it gives 0 for |x| ≥ 256 (x² is infinite) and NaN for x = 0 (ε vanishes).",),
    examples=({}, {"eps": 1e-3}),
)


class PixelNorm(Norm):
    """Pixel Norm of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``eps`` > 0. No parameters, no buffers. Raises OptionError for refused options.
    """

    eps: float

    def __init__(
        self,
        channels: int,
        eps: float = 1e-8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, {"eps": eps}, affine=False, device=device, dtype=dtype)
        self.recipe = Recipe(self.eps, center=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions)."""
        self.check_input(x)
        y, _, rstd = standardize(x, None, None, self.recipe)
        if is_watched():
            n, h, w = grid(x)
            observe(rms=rstd.detach().reciprocal().reshape(n, 1, h, w))
        return y


def unit_mean_square(layer: PixelNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of y over the channels, and 1."""
    squares = layer(x).square().mean(1)
    return squares, torch.ones_like(squares)


def of_centered(layer: PixelNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pixel Norm of x less its mean over the channels, and the same written as Positional Normalization."""
    centered = x - x.mean(1, keepdim=True)
    return layer(centered), centered / (x.var(1, correction=0, keepdim=True) + layer.eps).sqrt()
