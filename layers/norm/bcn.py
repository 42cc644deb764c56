r"""Batch-Channel Normalization: batch normalization, then group normalization, in one layer (Qiao, Wang, Liu, Shen &
Yuille 2019, arXiv 1911.09738).

$$u = \gamma_c\,(x - \mu_c) / \sqrt{\sigma^2_c + \varepsilon} + \beta_c,\qquad
y = w\,(u - \mu_{ng}) / \sqrt{\sigma^2_{ng} + \varepsilon} + b$$
with μ_ng and the biased σ²_ng of u over the K channels of group g and all positions of sample n; w and b per group (the
code) or per channel. The batch form takes μ_c and σ²_c from the batch, in evaluation from running statistics. The
estimate form, for micro-batches, takes running estimates always; in training it first moves them, with speed s, by
σ²_c ← (1−s) σ²_c + s·mean (x − μ_c)² around the old μ_c, then μ_c ← (1−s) μ_c + s·mean x, without gradient.

On large maps u is not formed: where a plane of x has m and v, its has a (m − μ_c) + β and a² v, a = γ/√(σ²_c + ε).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.base import scale_and_shift
from layers.batch_kernels import channel_moments
from layers.blocks import pool_blocks, spread_blocks
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.composed_norms import composed, per_channel, suits_composed
from layers.group_norm import group_norm
from layers.moments import Planes, pool, snapshot, wide_dtype
from layers.norm.bn import BatchNorm
from layers.observe import observe
from layers.running import RunningNorm
from layers.shared import BN_ROW, EPS, FOLDED_UNLESS_SMALL, GROUPS, GROUPS_DIVIDE

card = Card(
    title="Batch-Channel Normalization",
    paper=Paper(
        authors="Qiao, Wang, Liu, Shen, Yuille",
        title="Rethinking Normalization and Elimination Singularity in Neural Networks",
        year=2019,
        arxiv="1911.09738",
    ),
    impl="BatchChannelNorm",
    formula="u = γ_c (x − μ_c) / √(σ²_c + ε) + β_c;  y = w (u − μ_ng) / √(σ²_ng + ε) + b",
    summary="Each channel is normalized over the batch (or by estimates), then each group of each sample by itself.",
    options=(
        GROUPS,
        EPS,
        Option(
            name="momentum",
            type=float,
            default=0.1,
            ge=0,
            le=1,
            optional=True,
            help="batch form: weight of the new value in the running statistics; none averages all batches",
            source="torch.nn, which the authors' code uses",
        ),
        Option(name="estimate", type=bool, default=False, help="normalize channels by estimates, in training too"),
        Option(
            name="moving_speed",
            type=float,
            default=0.01,
            ge=0,
            le=1,
            help="estimate form: weight of the new value in the estimates",
            source="ours; the authors' is a buffer that starts at 0 and that the trainer must set",
        ),
        Option(
            name="group_affine",
            type=str,
            default="group",
            choices=("group", "channel"),
            help="learn w and b per group or per channel",
            source="group: the authors' code; channel: the paper",
        ),
    ),
    derived={"G": "groups", "W_B": "C if group_affine == 'channel' else groups", "small": "S == 1 or E <= 262144"},
    rules=(
        GROUPS_DIVIDE,
        Rule(
            "N == 0 or C*S != G",
            "a group of one value cannot be normalized; use fewer groups or more positions",
            "groups",
        ),
        Rule(
            "not train or estimate or N*S != 1",
            "one value per channel cannot be normalized; give a larger batch or more positions, or set estimate",
            "estimate",
        ),
    ),
    statistics=(
        Stat("mean", ("C",), "C×1", given="train", help="of x"),
        Stat("var", ("C",), "C×1", given="train", help="of x; in the estimate form around the old estimate"),
        Stat("group_mean", ("N", "G"), "N×C/K", help="of u"),
        Stat("group_var", ("N", "G"), "N×C/K", help="of u"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1"),
        Stat("running_var", ("C",), "C×1"),
        Stat("num_batches_tracked", (), help="stays 0 in the estimate form"),
    ),
    params="2*C + 2*W_B",
    flops=Flops(
        "((15 if estimate else 14)*E + 2*C if train else 9*E + 5*C) + 2*N*G",
        "(15 if estimate or not train else 22)*E - 2*C - 2*W_B",
    ),
    executed=Flops(
        "(14*E + (17*C if estimate else 15*C + (momentum is None)) if train else 9*E + 5*C) + 2*N*G if small"
        " else 7*E + 3*N*G + 31*N*C + ((14*C if estimate else 12*C + (momentum is None)) if train else 5*C)",
        "((24*E + 3*C if train and not estimate else 17*E + C) if small"
        " else 7*E + N*G + (58*N*C + 3*C if train and not estimate else 42*N*C))"
        " + (2*C - 2*G if group_affine == 'group' else 0)",
    ),
    explained=FOLDED_UNLESS_SMALL,
    saved="B*E + (8*N*G + 8*C if small"
    " else 44*N*C + 12*C + (0 if G == C else 4*N*G + (4*C if group_affine == 'group' else 0)))",
    traffic=Flops("3*E*B", "5*E*B"),
    claims=(
        Claim(
            row="batch form",
            options={"groups": 3},
            holds=BN_ROW,
            why="What BN removes never reaches the groups; what it lets through, the groups remove only where all "
            "channels of a group share it, and after BN's own scales they do not.",
        ),
        Claim(
            row="estimate form, frozen statistics",
            options={"groups": 3, "estimate": True, "moving_speed": 0.0},
            holds=(),
            why="The estimates are a fixed affine map, and β before the groups spoils their invariances.",
        ),
        Claim(
            row="estimate form, statistics follow",
            options={"groups": 3, "estimate": True, "moving_speed": 1.0},
            history="follow",
            holds=BN_ROW,
            why="Once the estimates have seen the change, it is the row of the batch form.",
        ),
    ),
    identities=(
        Identity(says="BCN = GN of BN", options={"groups": 3}, proof="composition"),
        Identity(
            says="BCN with w and b per channel = GN of BN",
            options={"groups": 3, "group_affine": "channel"},
            proof="composition",
        ),
        Identity(
            says="BCN in evaluation = GN of BN in evaluation", options={"groups": 3}, proof="composition", mode="eval"
        ),
        Identity(
            says="of one sample, with a channel per group, γ = 1 and β = 0, BCN = IN as ε vanishes",
            options={"groups": "C", "eps": 1e-30},
            dims={"N": 1},
            proof="instance_normalization",
        ),
        Identity(
            says="estimates that never move: BCN = GN of a fixed affine map",
            options={"groups": 3, "estimate": True, "moving_speed": 0.0},
            proof="composition",
        ),
    ),
    notes=(
        "The authors' estimates never move: their speed is a buffer that starts at 0; BCN is then GN of an affine map.",
        "The authors' estimate of the variance is taken around the old mean, not around the mean it goes with.",
        "The authors' code learns w and b per group, where the paper has them per channel; the option has both.",
        "In the authors' code the ε of the estimate form is fixed at 1e-5; here eps is that of both steps.",
        "The authors' code views the batch as (1, N·G, −1), which channels_last memory refuses.",
    ),
    examples=(
        {"groups": 3},
        {"groups": 4, "group_affine": "channel", "momentum": None, "eps": 1e-3},
        {"groups": 3, "estimate": True, "moving_speed": 0.3},
    ),
    couples="train",
    eval_differs="True",
    exact_gradient="not estimate",
    remembers="estimate",
)


class BatchChannelNorm(RunningNorm):
    """Batch-Channel Normalization of (N, C, *positions); shape, dtype and memory format are kept.

    Args: ``channels`` C, divisible by ``groups``; ``eps`` > 0, for both steps; ``momentum`` in [0, 1] or None, for the
    batch form; ``estimate`` for the estimate form and ``moving_speed`` in [0, 1] for its estimates, an attribute that a
    trainer may change; ``group_affine``, ``group`` or ``channel``.
    State: parameters ``weight``, ``bias`` (C,) of the batch step, ``group_weight``, ``group_bias`` (groups,) or (C,);
    buffers ``running_mean``, ``running_var`` (C,), ``num_batches_tracked`` ().
    Raises OptionError for refused options, ValueError when a group, or in training a channel of the batch form, holds a
    single value.
    """

    groups: int
    estimate: bool
    moving_speed: float
    group_affine: str

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        estimate: bool = False,
        moving_speed: float = 0.01,
        group_affine: str = "group",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {
            "groups": groups,
            "eps": eps,
            "momentum": momentum,
            "estimate": estimate,
            "moving_speed": moving_speed,
            "group_affine": group_affine,
        }
        super().__init__(card, channels, options, device=device, dtype=dtype)
        size = channels if group_affine == "channel" else groups
        self.group_weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.group_bias = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.add_running_statistics(True, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ and w to one, β and b to zero."""
        super().reset_parameters()
        if "group_bias" in self._parameters:  # not yet when the base class is being constructed
            nn.init.ones_(self.group_weight)
            nn.init.zeros_(self.group_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions), channels first, then groups."""
        self.check_input(x)
        self.refuse_single_values(x.numel() // (x.shape[0] or 1) // self.groups, "group")
        batch, channels = x.shape[:2]
        if suits_composed(x, self.groups):
            through = self.training and not self.estimate
            moments = self._channel_statistics(x, [t[0] for t in channel_moments(x)] if self.training else [])
            affine = (self.weight, self.bias), (self.group_weight, self.group_bias)
            return composed(x, *affine, moments, self.eps, self.groups, through=through)
        planes = Planes(x)
        mean, var = self._channel_statistics(x, [t.squeeze(0) for t in pool(planes.mean, planes.var, 0)])
        scale, shift = scale_and_shift(var, self.eps, self.weight, self.bias)
        assert shift is not None
        of_u = scale * (planes.mean - mean) + shift, scale.square() * planes.var
        group_mean, group_var = pool_blocks(*of_u, 1, self.groups)
        observe(group_mean=group_mean, group_var=group_var)
        w, b = (per_channel(t, channels).to(shift.dtype) for t in (self.group_weight, self.group_bias))
        rstd, group_mean = (spread_blocks(t, batch, channels) for t in ((group_var + self.eps).rsqrt(), group_mean))
        return planes.affine(w * rstd * scale, mean, w * rstd * (shift - group_mean) + b)

    def _channel_statistics(self, x: Tensor, moments: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return μ_c and σ²_c (C,) as the form and mode want them; in training, by ``moments``, move the buffers."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            mean, var = (t.to(wide_dtype(x.dtype), copy=True) for t in (self.running_mean, self.running_var))
            return mean, var  # copies: training may move the buffers before this backward
        mean, var = moments
        if self.estimate:
            return self._estimate(mean.detach(), var.detach(), x.numel())
        self.refuse_single_values(x.numel() // self.channels, "channel")
        observe(mean=mean, var=var)
        self.update_running(mean, var, x.numel() // self.channels)
        return mean, var

    @torch.no_grad()
    def _estimate(self, mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor]:
        """Move the estimates by a batch of so many ``values`` and return them."""
        assert self.running_mean is not None
        assert self.running_var is not None
        old_mean, old_var = (snapshot(t).to(mean.dtype) for t in (self.running_mean, self.running_var))
        around = var + (mean - old_mean).square()
        observe(mean=mean, var=around)
        if values == 0:
            return old_mean, old_var
        new = torch.lerp(old_mean, mean, self.moving_speed), torch.lerp(old_var, around, self.moving_speed)
        self.running_mean.copy_(new[0])
        self.running_var.copy_(new[1])
        return new


def composition(layer: BatchChannelNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's output and that of a bn followed by group normalization and w, b."""
    bn = BatchNorm(layer.channels, layer.eps, device=x.device, dtype=x.dtype).train(
        layer.training and not layer.estimate
    )
    bn.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if "group" not in name})
    w, b = (per_channel(t, layer.channels) for t in (layer.group_weight, layer.group_bias))
    return layer(x), group_norm(bn(x), layer.groups, w, b, layer.eps)


def instance_normalization(layer: BatchChannelNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output with γ = 1 and β = 0, and that of instance normalization with w and b."""
    for parameter, value in ((layer.weight, 1.0), (layer.bias, 0.0)):
        if parameter is not None:
            nn.init.constant_(parameter, value)
    return layer(x), group_norm(x, layer.channels, layer.group_weight, layer.group_bias, layer.eps)
