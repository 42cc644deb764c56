r"""Instance Normalization: normalize each channel of each sample (Ulyanov, Vedaldi & Lempitsky 2016, section 2).

$$y = \gamma_c\,(x - \mu_{nc}) / \sqrt{\sigma^2_{nc} + \varepsilon} + \beta_c$$
with μ and the biased σ² over the positions of one channel of one sample. γ and β are off by default, as in torch.
Without running statistics (the default) training and evaluation are the same. With them the buffers follow the batch
means of μ and of the unbiased variance, and evaluation uses them, as Batch Normalization does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layers.base import scale_and_shift
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Peer, Rule, Stat
from layers.group_norm import group_norm
from layers.moments import Planes
from layers.observe import observe
from layers.running import RunningNorm
from layers.shared import EPS, IN_ROW, MOMENTUM

card = Card(
    title="Instance Normalization",
    paper=Paper(
        authors="Ulyanov, Vedaldi, Lempitsky",
        title="Instance Normalization: The Missing Ingredient for Fast Stylization",
        year=2016,
        arxiv="1607.08022",
    ),
    impl="InstanceNorm",
    formula="y = γ_c (x − μ_nc) / √(σ²_nc + ε) + β_c",
    summary="Each channel of each sample has one mean and one biased variance over its H×W values.",
    options=(
        EPS,
        MOMENTUM,
        Option(
            name="affine",
            type=bool,
            default=False,
            help="learn γ (weight) and β (bias) per channel",
            source="torch.nn",
        ),
        Option(
            name="track_running_stats",
            type=bool,
            default=False,
            help="keep running statistics for evaluation",
            source="torch.nn",
        ),
    ),
    derived={
        "own": "train or not track_running_stats",
        "look": "3*N*C - 1 if S >= 2048 and E > 0 and E <= 262144 else 0",
    },
    rules=(Rule("S != 1 or not own", "a channel of 1 position cannot be normalized; give at least 2 positions"),),
    statistics=(
        Stat("mean", ("N", "C"), "N×C", given="own"),
        Stat("rstd", ("N", "C"), "N×C", given="own"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1", given="track_running_stats"),
        Stat("running_var", ("C",), "C×1", given="track_running_stats"),
        Stat("num_batches_tracked", (), given="track_running_stats"),
    ),
    params="2*C if affine else 0",
    flops=Flops(
        "(7 if affine else 5)*E + 2*N*C if own else 2*E + (5 if affine else 4)*C",
        "(11*E - 2*C if affine else 7*E) if own else (4*E - 2*C if affine else E)",
    ),
    executed=Flops(
        "7*E + (18 if affine else 16)*N*C + 7*C + (momentum is None) if track_running_stats and train"
        " else (7 if affine else 5)*E + 2*N*C + look if own else 2*E + (5 if affine else 4)*C",
        "7*E + (18*N*C - 2*C if affine else 14*N*C) if track_running_stats and train"
        " else (11*E - 2*C if affine else 7*E) if own else (4*E - 2*C if affine else E)",
    ),
    explained="Without running statistics torch's kernel does the definition. look: up to 2¹⁸ elements, on maps of "
    "2048 positions and more, 3 operations per statistic tell whether a mean is far above the spread; then the data "
    "are normalized again less their means. With running statistics γ, β and the statistics are folded into one scale "
    "and one shift per plane: 7 operations per element, forward and backward.",
    saved="B*E + ((20 if affine else 16)*N*C if track_running_stats else 8*N*C)",
    claims=(
        Claim(
            carriers=("conv", "conv-padded"),
            holds=IN_ROW,
            why="Each plane is standardized by itself, so a scale or shift of any plane vanishes; a zero-padded border "
            "does not move with the data. On a linear layer a plane is one value, and nothing is left of it.",
        ),
        Claim(
            row="eval, frozen statistics",
            mode="eval",
            carriers=("conv", "conv-padded"),
            options={"track_running_stats": True},
            holds=(),
            why="With stored statistics evaluation is a fixed affine map per channel.",
        ),
        Claim(
            row="eval, statistics follow",
            mode="eval",
            history="follow",
            carriers=("conv", "conv-padded"),
            options={"track_running_stats": True, "momentum": 1.0},
            holds=(
                "w-scale",
                "w-vec-scale",
                "x-scale",
                "x-recenter@conv",
                "w-scale-group",
                "x-recenter-scalar@conv",
                "pre-bias",
                "pre-bias-common",
            ),
            why="Once the statistics have seen the change, it is BN's row: one sample's scale or shift stays.",
        ),
    ),
    identities=(
        Identity(says="IN = GN(C)", options={"affine": True}, equals="gn", other={"groups": "C"}),
        Identity(says="IN = BN of one sample", options={"affine": True}, dims={"N": 1}, equals="bn"),
    ),
    notes=(
        "torch.nn.InstanceNorm2d runs batch normalization on a (1, N·C, H, W) view: four times the cost of GN(C).",
        "torch.nn.InstanceNorm2d reads momentum=None as 0, so its statistics never move; here it averages all batches.",
        "torch.nn.InstanceNorm2d keeps a num_batches_tracked that it never increments.",
    ),
    examples=({}, {"affine": True, "eps": 1e-3}, {"affine": True, "track_running_stats": True, "momentum": None}),
    eval_differs="track_running_stats",
    peer=Peer(
        "torch.nn:InstanceNorm{d}d",
        {
            "num_features": "C",
            "eps": "eps",
            "momentum": "momentum",
            "affine": "affine",
            "track_running_stats": "track_running_stats",
        },
    ),
)


class InstanceNorm(RunningNorm):
    """Instance Normalization of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``eps`` > 0; ``momentum`` in [0, 1] or None; ``affine`` for γ and β (C,);
    ``track_running_stats`` for the buffers.
    State: parameters ``weight`` and ``bias``; buffers ``running_mean``, ``running_var``, ``num_batches_tracked``.
    Raises OptionError for refused options and ValueError when a plane that is normalized by itself has one position.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"eps": eps, "momentum": momentum, "affine": affine, "track_running_stats": track_running_stats}
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.add_running_statistics(track_running_stats, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by itself; in evaluation by the running statistics, if there are any."""
        self.check_input(x)
        if not self.uses_batch_statistics:
            return self.normalize_by_running(x)
        positions = math.prod(x.shape[2:])
        self.refuse_single_values(positions, "channel of a sample")
        if not (self.training and self.track_running_stats):
            return group_norm(x, self.channels, self.weight, self.bias, self.eps)
        planes = Planes(x)
        scale, shift = scale_and_shift(planes.var, self.eps, self.weight, self.bias)
        observe(mean=planes.mean, rstd=(planes.var + self.eps).rsqrt())
        self.update_running(planes.mean.mean(0), planes.var.mean(0), positions if x.numel() else 0)
        return planes.affine(scale, planes.mean, shift)
