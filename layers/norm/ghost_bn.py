r"""Ghost Batch Normalization: normalize each channel over a ghost, a few consecutive samples of the batch (Hoffer,
Hubara & Soudry 2017, arXiv 1705.08741, algorithm 1).

$$y = \gamma_c\,(x - \mu_{kc}) / \sqrt{\sigma^2_{kc} + \varepsilon} + \beta_c,\qquad k = \lfloor n / g \rfloor$$
with μ and the biased σ² over the g samples of ghost k and all positions; γ and β are shared by the ghosts. The noise of
the small statistics regularizes. Evaluation is that of Batch Normalization; the running variance is unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import scale_and_shift, widened_affine
from layers.batch_kernels import channel_moments, normalize, standardize, suits_torch, sums_fast
from layers.blocks import pool_blocks, refuse_batch, spread_blocks
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.moments import Planes, as_laid_out, pool
from layers.observe import observe
from layers.running import RunningNorm
from layers.shared import AFFINE, EPS, FOLDED_UNLESS_SMALL, MOMENTUM

PARTS = 8  # ghosts that are worth a call each

card = Card(
    title="Ghost Batch Normalization",
    paper=Paper(
        authors="Hoffer, Hubara, Soudry",
        title="Train longer, generalize better: closing the generalization gap in large batch training of neural "
        "networks",
        year=2017,
        venue="NIPS 2017",
        arxiv="1705.08741",
    ),
    impl="GhostBatchNorm",
    formula="y = γ_c (x − μ_kc) / √(σ²_kc + ε) + β_c,  k = ⌊n/g⌋",
    summary="Each channel of each ghost of g samples has one mean and one biased variance over its g×H×W values.",
    options=(
        Option(
            name="ghost_size",
            type=int,
            default=4,
            ge=1,
            help="samples per ghost; it divides the batch",
            source="ours, to divide small batches; Hoffer et al. take 128, the example of Summers & Dinneen 16",
        ),
        EPS,
        MOMENTUM,
        AFFINE,
        Option(
            name="running",
            type=str,
            default="batch",
            choices=("batch", "sequential"),
            help="running statistics follow the whole batch, or its ghosts one after the other",
            source="batch: the code of Summers & Dinneen; sequential: after Hoffer et al., with variances",
        ),
    ),
    derived={"M": "N // ghost_size", "few": "M <= 8 and (S == 1 or E <= 262144)"},
    rules=(
        Rule(
            "not train or N % ghost_size == 0",
            "ghost_size={ghost_size} does not divide the batch of {N}: it divides into ghosts of {divisors_of_N}",
            "ghost_size",
        ),
        Rule(
            "not train or N == 0 or ghost_size*S != 1",
            "a ghost of one value per channel cannot be normalized; give larger ghosts or more positions",
            "ghost_size",
        ),
    ),
    statistics=(
        Stat("mean", ("N // ghost_size", "C"), "N/g×C", given="train"),
        Stat("var", ("N // ghost_size", "C"), "N/g×C", given="train"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1"),
        Stat("running_var", ("C",), "C×1"),
        Stat("num_batches_tracked", ()),
    ),
    params="2*C if affine else 0",
    flops=Flops(
        "(7 if affine else 5)*E + 2*(N // ghost_size)*C if train else 2*E + (5 if affine else 4)*C",
        "(11*E - 2*C if affine else 7*E) if train else (4*E - 2*C if affine else E)",
    ),
    executed=Flops(
        "7*E + ((15 if affine else 14)*M*C if few"
        " else (19 if affine else 17)*N*C + 6*M*C)"
        " + (8*C + (momentum is None) if running == 'batch' else 2*C + (3 - (momentum is None))*M)"
        " if train else 2*E + (5 if affine else 4)*C",
        "((11*E - 2*C if affine else 7*E) if few"
        " else 7*E + (29 if affine else 25)*N*C - 2*M*C - (2*C if affine else 0))"
        " if train else (4*E - 2*C if affine else E)",
    ),
    explained=FOLDED_UNLESS_SMALL,
    saved="B*E + (8*M*C if train and few else (20 if affine else 16)*N*C)",
    traffic=Flops("(3 if train else 2)*E*B", "(5 if train else 3)*E*B"),
    claims=(
        Claim(
            options={"ghost_size": 2},
            holds=(
                "w-scale",
                "w-vec-scale",
                "x-scale",
                "x-recenter@linear,conv",
                "w-scale-group",
                "x-recenter-scalar@linear,conv",
                "x-recenter-image@linear",
                "ghost-scale",
                "pre-bias",
                "pre-bias-common",
            ),
            why="A scale of its own for each ghost vanishes, a scale for each sample does not.",
        ),
    ),
    identities=(
        Identity(says="ghost BN(N) = BN", options={"ghost_size": "N"}, equals="bn"),
        Identity(says="ghost BN(1) = IN", options={"ghost_size": 1}, equals="in", other={"affine": True}),
        Identity(
            says="ghosts of g samples = BN+GN of g samples and one channel",
            options={"ghost_size": 2},
            equals="bn-gn",
            other={"channels_per_group": 1, "examples_per_group": 2},
        ),
        Identity(says="in evaluation ghost BN = BN", options={"ghost_size": 2}, equals="bn", mode="eval"),
    ),
    notes=(
        "Codes disagree about the running statistics: whole batch (Summers & Dinneen) or ghost by ghost (Hoffer et "
        "al.); the option running has both.",
        "A batch that g does not divide is refused here; Summers & Dinneen assume none, others shrink the last ghost.",
        "A ghost of 2 samples with 1×1 maps gives ±γ + β whatever x is, up to ε.",
    ),
    examples=(
        {"ghost_size": 2},
        {"ghost_size": 1, "running": "sequential", "momentum": None, "affine": False},
        {"ghost_size": 2, "running": "sequential", "eps": 1e-3},
    ),
    couples="train",
    eval_differs="True",
)


class GhostBatchNorm(RunningNorm):
    """Ghost Batch Normalization of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``ghost_size`` g, which divides N in training; ``eps`` > 0; ``momentum`` in [0, 1] or None;
    ``affine`` for γ and β (C,); ``running``, ``batch`` or ``sequential``: the running statistics move once per batch,
    towards the moments of all N samples, or once per ghost, in order.
    State: parameters ``weight``, ``bias``; buffers ``running_mean``, ``running_var`` (C,) and ``num_batches_tracked``
    (), which counts ghosts when ``running`` is ``sequential``.
    Raises OptionError for refused options and a batch that g does not divide, ValueError when a channel of a ghost
    holds a single value in training.
    """

    ghost_size: int
    running: str

    def __init__(
        self,
        channels: int,
        ghost_size: int = 4,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        running: str = "batch",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"ghost_size": ghost_size, "eps": eps, "momentum": momentum, "affine": affine, "running": running}
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.add_running_statistics(True, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by its ghosts in training, by the running statistics in evaluation."""
        self.check_input(x)
        if not self.training:
            return self.normalize_by_running(x)
        batch, channels = x.shape[:2]
        if batch % self.ghost_size:
            refuse_batch(card, self, x)
        positions = x.shape[2:].numel()
        if batch:
            self.refuse_single_values(self.ghost_size * positions, "channel of a ghost")
        if suits_torch(x) and batch <= PARTS * self.ghost_size:  # in this order: a compiler guards what is compared
            return self._normalize_parts(x, batch // self.ghost_size)
        planes = Planes(x)
        mean, var = pool_blocks(planes.mean, planes.var, self.ghost_size, channels)
        observe(mean=mean, var=var)
        self._follow(mean.detach(), var.detach(), positions)
        scale, shift = scale_and_shift(spread_blocks(var, batch, channels), self.eps, self.weight, self.bias)
        return planes.affine(scale, spread_blocks(mean, batch, channels), shift)

    def _normalize_parts(self, x: Tensor, ghosts: int) -> Tensor:
        """Normalize each of few ``ghosts`` in a call of its own, which is faster than planes while these are small."""
        weight, bias = widened_affine(x, self.weight, self.bias)
        if sums_fast(x):
            assert self.running_mean is not None
            assert self.running_var is not None
            lent = self.running_mean, self.running_var
            found = [normalize(part, weight, bias, self.eps, lent) for part in x.chunk(ghosts)]
            made = [y for y, *_ in found]
            mean, var = torch.stack([m for _, m, _, _ in found]), torch.stack([v for _, _, v, _ in found])
        else:
            mean, var = channel_moments(x, ghosts)
            numbers = zip(x.chunk(ghosts), mean, var, (var + self.eps).rsqrt_(), strict=True)
            made = [standardize(part, weight, bias, m, v, rstd, self.eps) for part, m, v, rstd in numbers]
        observe(mean=mean, var=var)
        self._follow(mean, var, x.shape[2:].numel())
        return as_laid_out(torch.cat(made), x)

    def _follow(self, mean: Tensor, var: Tensor, positions: int) -> None:
        """Move the running statistics towards those of the ghosts (N/g, C)."""
        if self.running == "sequential":
            self._follow_ghosts(mean, var, self.ghost_size * positions)
            return
        whole_mean, whole_var = (t.squeeze(0) for t in pool(mean, var, 0))
        self.update_running(whole_mean, whole_var, mean.shape[0] * self.ghost_size * positions)

    @torch.no_grad()
    def _follow_ghosts(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Do at once what an update by each ghost in turn does: ghost i of M weighs a (1 − a)^(M − 1 − i)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        ghosts = mean.shape[0]
        self.num_batches_tracked.add_(ghosts)
        if self.momentum is None:
            weights = mean.new_ones(ghosts) / self.num_batches_tracked
        else:
            later = torch.arange(ghosts - 1, -1, -1, dtype=mean.dtype, device=mean.device)
            weights = self.momentum * (1 - self.momentum) ** later
        kept = 1 - weights.sum()
        for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / max(1, count - 1)))):
            buffer.copy_(kept * buffer + (weights.unsqueeze(1) * new).sum(0))  # a product, autocast would narrow
