r"""Root Mean Square Layer Normalization (Zhang & Sennrich 2019, arXiv 1910.07467, equation 4).

$$y = g_c\,x / \sqrt{\tfrac1C \sum_c x_c^2 + \varepsilon}$$
over the channels at each position of each sample, g per channel: Layer Normalization without the mean and without a
bias. Training and evaluation are the same. bfloat16 and float16 are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.base import Layer
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Stat
from layers.observe import observe
from layers.positions import grid

card = Card(
    title="RMSNorm",
    paper=Paper(
        authors="Zhang, Sennrich",
        title="Root Mean Square Layer Normalization",
        year=2019,
        venue="NeurIPS 2019",
        arxiv="1910.07467",
    ),
    impl="RMSNorm",
    formula="y = g_c x / √(mean_c x² + ε)",
    summary="Each position of each sample has one root mean square over its C channels; nothing is centered.",
    options=(
        Option(
            name="eps",
            type=float,
            default=1e-8,
            gt=0,
            help="added to the mean square, inside the root",
            source="the value of the authors' code; the paper has no ε",
        ),
        Option(name="affine", type=bool, default=True, help="learn the gain g (weight) per channel"),
    ),
    statistics=(Stat("rms", ("N", "1", "H", "W"), "N×1×H×W", help="with ε inside the root"),),
    params="C if affine else 0",
    flops=Flops("(4 if affine else 3)*E + 2*N*S", "8*E - C if affine else 5*E"),
    executed=Flops("(4 if affine else 3)*E + 2*N*S", "14*E + N*S - C if affine else 11*E + N*S"),
    explained="The backward is that of autograd, which goes through square, root and quotient one by one.",
    saved="(8 if affine else 4)*E + 4*N*S",
    claims=(
        Claim(
            holds=("w-scale", "x-scale", "case-scale", "cases-scale", "ghost-scale"),
            row="Zhang & Sennrich 2019, table 1",
            why="Without a mean nothing is re-centered; whatever scales all channels of a position alike is forgotten.",
        ),
    ),
    identities=(
        Identity(says="RMSNorm without its gain = Pixel Norm", options={"affine": False}, equals="pixel-norm"),
        Identity(says="mean_c (y/g)² = 1 as ε vanishes", options={"eps": 1e-30}, proof="unit_mean_square"),
    ),
    notes=(
        "torch.nn.RMSNorm normalizes the last axes: of (N, C, H, W) those are positions, not channels.",
        "The re-scaling that is claimed is exact for ε = 0 only, which the paper has and nobody can run.",
    ),
    examples=({}, {"affine": False}, {"eps": 1e-3}),
)


class RMSNorm(Layer):
    """RMSNorm of (N, C, *positions) over C; the output has the shape and dtype of the input.

    Args: ``channels`` C; ``eps`` > 0; ``affine`` for the gain g, ones of shape (C,).
    State: parameter ``weight`` (None without ``affine``); no buffers. Raises OptionError for refused options.
    """

    eps: float
    affine: bool

    def __init__(
        self,
        channels: int,
        eps: float = 1e-8,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, {"eps": eps, "affine": affine})
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype)) if self.affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions)."""
        self.check_input(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        rms = (wide.square().mean(1, keepdim=True) + self.eps).sqrt()
        n, h, w = grid(x)
        observe(rms=rms.detach().reshape(n, 1, h, w))
        y = wide / rms
        if self.weight is not None:
            y = y * self.weight.to(y.dtype).view(-1, *(1,) * (x.dim() - 2))
        return y.to(x.dtype)


def unit_mean_square(layer: RMSNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of the output without its gain over the channels, and 1."""
    squares = (layer(x) / layer.weight.view(-1, 1, 1)).square().mean(1)
    return squares, torch.ones_like(squares)
