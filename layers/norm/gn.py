r"""Group Normalization: normalize each group of channels of each sample (Wu & He 2018, arXiv 1803.08494, section 3).

$$y = \gamma_c\,(x - \mu_{ng}) / \sqrt{\sigma^2_{ng} + \varepsilon} + \beta_c$$
with μ and the biased σ² over the K = C/groups channels of group g and all positions of sample n; γ and β per channel.
Training and evaluation are the same. One group has the statistics of Layer Normalization over (C, H, W), C groups are
Instance Normalization.

torch's CPU kernel for channels_last is a one-pass float32 sum of squares, useless at mean ≫ std: it is not used there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Paper, Peer, Rule, Stat
from layers.group_norm import group_norm
from layers.shared import (
    AFFINE,
    CHANNELS_PER_GROUP,
    EPS,
    GROUPS,
    GROUPS_DIVIDE,
    GROUPS_OF,
    K_ALONE,
    K_DIVIDES,
    LOOKED_AT,
)

card = Card(
    title="Group Normalization",
    paper=Paper(authors="Wu, He", title="Group Normalization", year=2018, venue="ECCV 2018", arxiv="1803.08494"),
    impl="GroupNorm",
    formula="y = γ_c (x − μ_ng) / √(σ²_ng + ε) + β_c",
    summary="Each group of K = C/groups channels of each sample has one mean and biased variance over K×H×W values.",
    options=(GROUPS, CHANNELS_PER_GROUP, EPS, AFFINE),
    derived={"G": GROUPS_OF, "look": "3*N*G - 1 if S >= 2048 and E > 0 else 0"},
    rules=(
        K_DIVIDES,
        K_ALONE,
        GROUPS_DIVIDE,
        Rule(
            "N == 0 or C*S != G",
            "a group of 1 value cannot be normalized; use fewer groups or more positions",
            "groups",
        ),
    ),
    statistics=(Stat("mean", ("N", "G"), "N×C/K"), Stat("rstd", ("N", "G"), "N×C/K")),
    params="2*C if affine else 0",
    flops=Flops("(7 if affine else 5)*E + 2*N*G", "11*E - 2*C if affine else 7*E"),
    executed=Flops(
        "(7 if affine else 5)*E + 2*N*G + look",
        "11*E - 2*C if affine else 7*E",
    ),
    explained=LOOKED_AT,
    saved="B*E + 8*N*G",
    claims=(
        Claim(
            holds=(
                "w-scale",
                "w-recenter@linear",
                "x-scale",
                "case-scale",
                "w-recenter-scalar@linear",
                "w-recenter-group@linear",
                "w-scale-group",
                "cases-scale",
                "ghost-scale",
                "pre-bias-common",
            ),
            options={"groups": 3},
            why="A shift common to all neurons of a sample is common to each group; on a convolution it is a map over "
            "positions, of which the group removes only the mean.",
        ),
        Claim(
            weight="weight-standardization",
            options={"groups": 3},
            holds=(
                "w-scale",
                "w-vec-scale",
                "x-scale",
                "case-scale",
                "w-recenter-scalar",
                "w-vec-recenter",
                "w-scale-group",
                "x-recenter-scalar@linear,conv",
                "cases-scale",
                "ghost-scale",
                "pre-bias-common",
            ),
            why="A standardized filter forgets its own scale and mean, and does not see a constant added to all of its "
            "inputs; a vector added to every neuron changes their scales, and no longer cancels.",
        ),
    ),
    identities=(
        Identity(says="GN(1) = LN over (C, H, W)", options={"groups": 1}, equals="ln"),
        Identity(says="GN(C) = IN", options={"groups": "C"}, equals="in", other={"affine": True}),
    ),
    notes=(
        "The notes write N×C/K and leave K undefined: K is the number of channels per group, C/groups.",
        "GN(1) has the statistics of LN over (C, H, W), not its parameters: γ and β per channel, not per element.",
        "torch.nn.GroupNorm gives β, whatever x is, where a group is one value and N ≥ 2; this refuses.",
        "torch's CPU kernel for channels_last sums squares in float32: at a mean of 1000 deviations nothing is right.",
    ),
    examples=({"groups": 3}, {"channels_per_group": 1, "affine": False}, {"groups": 1, "eps": 1e-3}),
    peer=Peer("torch.nn:GroupNorm", {"num_groups": "G", "num_channels": "C", "eps": "eps", "affine": "affine"}),
)


class GroupNorm(Norm):
    """Group Normalization of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C, divisible by ``groups`` (or by ``channels_per_group``, given instead);
    ``eps`` > 0; ``affine`` for γ and β of shape (C,).
    State: parameters ``weight`` and ``bias``; no buffers. Raises OptionError for refused options and ValueError when
    a group holds a single value.
    """

    groups: int
    eps: float

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        channels_per_group: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"groups": groups, "channels_per_group": channels_per_group, "eps": eps, "affine": affine}
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.groups = groups if channels_per_group is None else channels // channels_per_group

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions)."""
        self.check_input(x)
        self.refuse_single_values(x.numel() // (x.shape[0] or 1) // self.groups, "group")
        return group_norm(x, self.groups, self.weight, self.bias, self.eps)
