r"""Batch Renormalization: Batch Normalization corrected, within limits, towards the running statistics (Ioffe 2017,
arXiv 1702.03275, algorithm 1).

$$\hat x = \frac{x - \mu_B}{\sigma_B}\,r + d,\quad r = \mathrm{clip}_{[1/r_{max},\,r_{max}]}\frac{\sigma_B}{\sigma},$$
$$d = \mathrm{clip}_{[-d_{max},\,d_{max}]}\frac{\mu_B - \mu}{\sigma},\quad y = \gamma_c\,\hat x + \beta_c$$
with μ_B the mean and σ_B = √(σ²_B + ε) of the batch (biased variance) and μ, σ the running mean and standard deviation
before this step moves them. r and d count as constants in backward, so it is r times that of BN, not the derivative of
the forward. Where nothing is clipped, x̂ = (x − μ)/σ, as in evaluation. A running σ below √ε counts as √ε.

With ``schedule="paper"`` the limits are 1 and 0, which is BN, until step ``start``; then they grow linearly, to r_max
at step ``r_end`` and to d_max at step ``d_end`` (section 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Norm
from layers.batch_kernels import channel_moments, standardize, suits_kernels
from layers.card import Card, Claim, Flops, Identity, Option, OptionValue, Paper, Rule, Stat
from layers.moments import Planes, pool, snapshot
from layers.norm.bn import BatchNorm
from layers.observe import observe, observing
from layers.running import follow
from layers.shared import AFFINE, BN_ROW, FOLDED_UNLESS_SMALL

START, R_END, D_END = 5000, 40_000, 25_000  # steps of the paper's schedule

card = Card(
    title="Batch Renormalization",
    paper=Paper(
        authors="Ioffe",
        title="Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
        year=2017,
        venue="NIPS 2017",
        arxiv="1702.03275",
    ),
    impl="BatchRenorm",
    formula="y = γ_c ((x − μ_B)/σ_B · r + d) + β_c,  r = clip(σ_B/σ),  d = clip((μ_B − μ)/σ)",
    summary="BN whose output is rescaled by r and shifted by d, per channel, towards what evaluation would give.",
    options=(
        Option(name="r_max", type=float, default=3.0, ge=1, help="1/r_max ≤ r ≤ r_max", source="Ioffe 2017, section 4"),
        Option(name="d_max", type=float, default=5.0, ge=0, help="|d| ≤ d_max", source="Ioffe 2017, section 4"),
        Option(
            name="schedule",
            type=str,
            default="paper",
            choices=("none", "paper"),
            help="paper: BN until step start, then limits that grow, r_max until r_end and d_max until d_end",
            source="Ioffe 2017, section 4",
        ),
        Option(name="start", type=int, default=5000, ge=0, help="steps of BN", source="Ioffe 2017, section 4"),
        Option(name="r_end", type=int, default=40_000, ge=1, help="step of full r_max", source="Ioffe 2017, section 4"),
        Option(name="d_end", type=int, default=25_000, ge=1, help="step of full d_max", source="Ioffe 2017, section 4"),
        Option(
            name="momentum",
            type=float,
            default=0.01,
            gt=0,
            le=1,
            help="weight of the new value in the running statistics (α in the paper)",
            source="Ioffe 2017, section 4",
        ),
        Option(name="eps", type=float, default=1e-3, gt=0, help="added to the variance, inside the root"),
        AFFINE,
    ),
    rules=(
        Rule(
            "start < r_end and start < d_end",
            "start={start} must come before r_end={r_end} and d_end={d_end}: from there on the limits grow",
            "start",
        ),
    ),
    statistics=(
        Stat("mean", ("C",), "C×1", given="train"),
        Stat("std", ("C",), "C×1", given="train"),
        Stat("r", ("C",), "C×1", given="train"),
        Stat("d", ("C",), "C×1", given="train"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1"),
        Stat("running_std", ("C",), "C×1", help="of √(σ²_B + ε): biased, with ε inside"),
        Stat("num_batches_tracked", (), help="drives the schedule"),
    ),
    params="2*C if affine else 0",
    flops=Flops(
        "(9 if affine else 7)*E + 5*C if train else 2*E + (4 if affine else 3)*C",
        "(12*E - 2*C if affine else 8*E) if train else (4*E - 2*C if affine else E)",
    ),
    executed=Flops(
        "7*E + (25 if affine else 22)*C + (3*C if S == 1 or E <= 262144 else 8*N*C)"
        " + (11 if schedule == 'paper' else 3) if train"
        " else 2*E + (7 if affine else 6)*C",
        "((11*E + 2*C if affine else 8*E) if S == 1 or E <= 262144 else 7*E + (15 if affine else 11)*C) if train"
        " else (4*E - 2*C if affine else E)",
    ),
    explained=FOLDED_UNLESS_SMALL,
    saved="B*E + (20 if affine else 12)*C",
    traffic=Flops("(3 if train else 2)*E*B", "(5 if train else 3)*E*B"),
    claims=(
        Claim(
            row="r_max = 1, d_max = 0",
            options={"r_max": 1.0, "d_max": 0.0, "schedule": "none"},
            holds=BN_ROW,
            why="This is BN.",
        ),
        Claim(
            row="r_max = 3, d_max = 5, frozen statistics",
            options={"schedule": "none"},
            holds=(),
            why="What is not clipped is an affine map of the input by stored numbers.",
        ),
        Claim(
            row="r_max = 3, d_max = 5, statistics follow",
            options={"schedule": "none", "momentum": 1.0},
            history="follow",
            holds=BN_ROW,
            why="Once the running statistics have seen the change, r and d are the same and BN's row is back.",
        ),
    ),
    identities=(
        Identity(
            says="BRN(r_max = 1, d_max = 0) = BN",
            options={"r_max": 1.0, "d_max": 0.0, "schedule": "none"},
            equals="bn",
            other={"eps": 1e-3},
        ),
        Identity(says="at the start of the paper's schedule BRN = BN", equals="bn", other={"eps": 1e-3}),
        Identity(
            says="without clipping, training = evaluation by the statistics before the step",
            options={"r_max": 1e9, "d_max": 1e9, "schedule": "none"},
            proof="training_and_evaluation",
        ),
        Identity(
            says="∂L/∂x = r ∂L/∂x of BN",
            options={"r_max": 1.5, "d_max": 0.5, "schedule": "none"},
            proof="gradients",
        ),
    ),
    notes=(
        "The Group Normalization paper says that BRN has two extra parameters; r and d are computed in each step, and "
        "r_max and d_max are scheduled by hand. Nothing of them is learned.",
        "A public torch port adds ε to σ, outside the root; Keras and the paper have it inside.",
        "Keras keeps two pairs of running statistics, one for r and d and one for evaluation; chainer averages the "
        "unbiased variance. The paper has one pair, and averages the biased σ.",
    ),
    examples=(
        {"d_max": 1.0, "schedule": "none"},
        {"r_max": 1.2, "d_max": 0.3, "schedule": "none", "momentum": 0.1, "affine": False},
        {"eps": 1e-5, "start": 1, "r_end": 4, "d_end": 3},
    ),
    couples="train",
    eval_differs="True",
    exact_gradient="False",
    remembers="True",
)


class BatchRenorm(Norm):
    """Batch Renormalization of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``r_max`` ≥ 1, ``d_max`` ≥ 0; ``schedule``, ``none`` or ``paper``, with its steps
    ``start`` < ``r_end``, ``d_end``; ``momentum`` in (0, 1]; ``eps`` > 0; ``affine`` for γ and β (C,).
    State: parameters ``weight``, ``bias``; buffers ``running_mean``, ``running_std`` (C,) and ``num_batches_tracked``
    (), the steps taken, by which the schedule goes. Nothing waits for the device.
    Raises OptionError for refused options. One value per channel is admitted: then x̂ = d.
    """

    r_max: float
    d_max: float
    schedule: str
    start: int
    r_end: int
    d_end: int
    momentum: float
    eps: float
    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: str = "paper",
        start: int = START,
        r_end: int = R_END,
        d_end: int = D_END,
        momentum: float = 0.01,
        eps: float = 1e-3,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, OptionValue] = {
            "r_max": r_max,
            "d_max": d_max,
            "schedule": schedule,
            "start": start,
            "r_end": r_end,
            "d_end": d_end,
            "momentum": momentum,
            "eps": eps,
            "affine": affine,
        }
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.register_buffer("running_mean", torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_std", torch.ones(channels, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running standard deviation to 1 and the counter to 0."""
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_std)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by its corrected batch in training, by the running statistics else."""
        self.check_input(x)
        if not self.training:
            var = self.running_std.clamp(min=math.sqrt(self.eps)).square()
            return F.batch_norm(x, self.running_mean, var, self.weight, self.bias, False, 0.0, 0.0)
        kernels = suits_kernels(x)
        if kernels:
            mean, var = (t[0] for t in channel_moments(x))
        else:
            planes = Planes(x)
            mean, var = (t.squeeze(0) for t in pool(planes.mean, planes.var, 0))
        std = (var + self.eps).sqrt()
        r, d = self._correct(mean, std, empty=x.numel() == 0)
        observe(mean=mean, std=std, r=r, d=d)
        weight, bias = r, d
        if self.weight is not None and self.bias is not None:
            gamma, beta = self.weight.to(std.dtype), self.bias.to(std.dtype)
            weight, bias = gamma * r, torch.addcmul(beta, gamma, d)
        if kernels:
            return standardize(x, weight, bias, mean, var, std.reciprocal(), self.eps)
        return planes.affine(weight / std, mean, bias)

    @torch.no_grad()
    def _correct(self, mean: Tensor, std: Tensor, *, empty: bool) -> tuple[Tensor, Tensor]:
        """Return r and d (C,) for this step, then let the buffers follow the batch, unless it is empty."""
        before = self.running_mean, self.running_std, self.num_batches_tracked
        running_mean, running_std, step = map(snapshot, before) if torch.compiler.is_compiling() else before
        r_max, d_max = self.limits(step.to(mean.dtype))
        floor = running_std.to(std.dtype).clamp(min=math.sqrt(self.eps))
        r = (std / floor).clamp_(1 / r_max, r_max)
        d = (mean - running_mean).div_(floor).clamp_(-d_max, d_max)
        self.num_batches_tracked.add_(1)
        if not empty:
            follow(self.running_mean, mean, self.momentum)
            follow(self.running_std, std, self.momentum)
        return r, d

    def limits(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return r_max and d_max () for a floating ``step`` (), counted from 0."""
        if self.schedule == "none":
            return step.new_full((), self.r_max), step.new_full((), self.d_max)
        since = step - self.start
        r_max = since * ((self.r_max - 1) / (self.r_end - self.start)) + 1
        d_max = since * (self.d_max / (self.d_end - self.start))
        return r_max.clamp_(1, self.r_max), d_max.clamp_(0, self.d_max)


def training_and_evaluation(layer: BatchRenorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output in evaluation and, by the same statistics, in training."""
    with torch.no_grad():
        evaluated = layer.eval()(x)
        return evaluated, layer.train()(x)


def gradients(layer: BatchRenorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∂L/∂x of this layer and r ∂L/∂x of BN, for the same γ, β and upstream gradient."""
    bn = BatchNorm(layer.channels, eps=layer.eps, device=x.device, dtype=x.dtype)
    bn.load_state_dict(dict(layer.named_parameters()), strict=False)
    upstream = x.detach().roll(1, 0).sin()
    with observing() as seen:
        y = layer(x)
    (found,) = torch.autograd.grad(y, x, upstream)
    (plain,) = torch.autograd.grad(bn(x), x, upstream)
    return found, seen["r"].view(-1, *[1] * (x.dim() - 2)) * plain
