r"""Batch and Group Normalization combined, for very small batches: normalize blocks of a few samples × a group of
channels (Summers & Dinneen 2020, arXiv 1906.03548, the fourth of their things).

$$y = \gamma_c\,(x - \mu_{kg}) / \sqrt{\sigma^2_{kg} + \varepsilon} + \beta_c$$
with μ and the biased σ² over e consecutive samples, the K = C/groups channels of group g and all positions; γ and β per
channel. Evaluation normalizes each group by running statistics, to a share α by the example's own
(`layers.weighing`). One sample per block is Group Normalization, one channel per group ghost batch normalization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.blocks import refuse_batch
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.shared import (
    AFFINE,
    ALPHA,
    CHANNELS_PER_GROUP,
    EPS,
    FOLDED_UNLESS_SMALL,
    GROUPS,
    GROUPS_DIVIDE,
    GROUPS_OF,
    K_ALONE,
    K_DIVIDES,
    SLOW_MOMENTUM,
)
from layers.weighing import BlockNorm

card = Card(
    title="Batch and Group Normalization combined",
    paper=Paper(
        authors="Summers, Dinneen",
        title="Four Things Everyone Should Know to Improve Batch Normalization",
        year=2020,
        venue="ICLR 2020",
        arxiv="1906.03548",
    ),
    impl="BatchGroupNorm",
    formula="y = γ_c (x − μ_kg) / √(σ²_kg + ε) + β_c,  k = ⌊n/e⌋",
    summary="Each group of K channels of e consecutive samples has one mean and biased variance over e×K×H×W values.",
    options=(
        GROUPS,
        CHANNELS_PER_GROUP,
        Option(
            name="examples_per_group",
            type=int,
            default=2,
            ge=1,
            help="e, samples per block; it divides the batch",
            source="the example of the authors' code",
        ),
        ALPHA,
        EPS,
        SLOW_MOMENTUM,
        AFFINE,
    ),
    derived={
        "G": GROUPS_OF,
        "own": "train or alpha > 0",
        "small": "S == 1 or E <= 262144",
        "blocks": "N // examples_per_group*G",
    },
    rules=(
        K_DIVIDES,
        K_ALONE,
        GROUPS_DIVIDE,
        Rule(
            "not train or N % examples_per_group == 0",
            "examples_per_group={examples_per_group} does not divide the batch of {N}; its divisors are "
            "{divisors_of_N}",
            "examples_per_group",
        ),
        Rule(
            "N == 0 or (examples_per_group*C*S != G if train else alpha < 1 or C*S != G)",
            "a block of one value cannot be normalized; use fewer groups or more positions",
            "groups",
        ),
    ),
    statistics=(
        Stat("mean", ("N // examples_per_group", "G"), "N/e×C/K", given="train"),
        Stat("var", ("N // examples_per_group", "G"), "N/e×C/K", given="train"),
        Stat("example_mean", ("N", "G"), "N×C/K", given="not train and alpha > 0"),
        Stat("example_var", ("N", "G"), "N×C/K", given="not train and alpha > 0"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1"),
        Stat("running_var", ("C",), "C×1", help="of the averages of E[x] and E[x²]: biased, with the batches' spread"),
        Stat("num_batches_tracked", ()),
    ),
    params="2*C if affine else 0",
    flops=Flops(
        "(7 if affine else 5)*E + (2*(N // examples_per_group)*G if train else 10*N*G)"
        " if own else 2*E + (5 if affine else 4)*C",
        "(11*E - 2*C if affine else 7*E) if own else (4*E - 2*C if affine else E)",
    ),
    executed=Flops(
        "((12 if affine else 10)*E + 13*C + blocks*(5 if S >= 2048 else 2) - (S >= 2048) if small"
        " else 7*E + (24 if affine else 22)*N*C + (N // examples_per_group)*G + 11*C) + 2*(momentum is None) if train"
        " else 7*E + (19 if affine else 17)*N*C + 11*N*G + 5*C + G if alpha > 0"
        " else 2*E + (10 if affine else 9)*C + G",
        "((11*E - 2*C if affine else 7*E) if small"
        " else 7*E + (29*N*C - 2*C if affine else 25*N*C) - 2*(N // examples_per_group)*G) if train"
        " else 7*E + (29*N*C - 2*C if affine else 25*N*C) + 5*N*G if alpha > 0"
        " else (4*E - 2*C if affine else E)",
    ),
    explained=FOLDED_UNLESS_SMALL,
    saved="B*E + (8*(N // examples_per_group)*G + (4*examples_per_group*C if affine and examples_per_group > 1 else 0)"
    " if train and small else (20 if affine else 16)*N*C)",
    traffic=Flops("(3 if own else 2)*E*B", "(5 if own else 3)*E*B"),
    claims=(
        Claim(
            options={"groups": 3},
            holds=("w-scale", "x-scale", "w-scale-group", "ghost-scale", "pre-bias-common"),
            why="A block forgets a scale and a shift that all its channels and samples share; a shift of the weights "
            "or the data differs from sample to sample, or from channel to channel.",
        ),
    ),
    identities=(
        Identity(
            says="BN+GN of one sample = GN",
            options={"groups": 4, "examples_per_group": 1},
            equals="gn",
            other={"groups": 4},
        ),
        Identity(
            says="BN+GN with one channel per group = ghost BN",
            options={"channels_per_group": 1, "examples_per_group": 3},
            equals="ghost-bn",
            other={"ghost_size": 3},
        ),
        Identity(
            says="BN+GN of all samples with one channel per group = BN",
            options={"channels_per_group": 1, "examples_per_group": "N"},
            equals="bn",
        ),
        Identity(
            says="BN+GN of all samples = IEW over groups",
            options={"groups": 3, "examples_per_group": "N"},
            equals="iew",
            other={"groups": 3},
        ),
        Identity(
            says="with α = 1 evaluation is GN",
            options={"groups": 3, "alpha": 1.0},
            equals="gn",
            other={"groups": 3},
            mode="eval",
        ),
        Identity(
            says="with α = 0 and one channel per group evaluation is that of BN",
            options={"channels_per_group": 1},
            equals="bn",
            mode="eval",
        ),
    ),
    notes=(
        "The authors' code rounds C/groups down without a word (10 channels in 4 groups become 5 groups of 2); "
        "this refuses.",
        "Its default examples_per_group=0 divides by zero, and a batch smaller than a block becomes one block; here a "
        "block must divide the batch.",
        "It keeps E[x²] and subtracts E[x]², which in float32 loses all digits at mean ≫ std, in training too.",
        "Its weight_decay argument is dead: the regularizers are made without it (see bn-affine-decay).",
    ),
    examples=(
        {"groups": 3},
        {"channels_per_group": 2, "examples_per_group": 4, "alpha": 0.25, "affine": False},
        {"groups": 12, "examples_per_group": 1, "alpha": 0.5, "momentum": None, "eps": 1e-3},
    ),
    couples="train",
    eval_differs="examples_per_group > 1 or alpha < 1",
)


class BatchGroupNorm(BlockNorm):
    """Batch and Group Normalization combined, of (N, C, *positions); shape, dtype and memory format are kept.

    Args: ``channels`` C, divisible by ``groups`` (or by ``channels_per_group``, given instead);
    ``examples_per_group`` e, which divides N in training; ``alpha`` in [0, 1], an attribute that may be changed after
    training; ``eps`` > 0; ``momentum`` in [0, 1] or None; ``affine`` for γ and β (C,).
    State: parameters ``weight``, ``bias``; buffers ``running_mean``, ``running_var`` (C,), the moments of the whole
    batch under the names of bn, and ``num_batches_tracked``.
    Raises OptionError for refused options and a batch that e does not divide, ValueError when a block (in evaluation
    with alpha=1: a group of one example) holds a single value.
    """

    examples_per_group: int

    def __init__(
        self,
        channels: int,
        groups: int = 32,
        channels_per_group: int | None = None,
        examples_per_group: int = 2,
        alpha: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {
            "groups": groups,
            "channels_per_group": channels_per_group,
            "examples_per_group": examples_per_group,
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "affine": affine,
        }
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.groups = groups if channels_per_group is None else channels // channels_per_group
        self.add_running_statistics(True, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by its blocks in training, by weighed statistics in evaluation."""
        self.check_input(x)
        if not self.training:
            return self.normalize_by_weighing(x)
        if x.shape[0] % self.examples_per_group:
            refuse_batch(card, self, x)
        assert self.groups is not None
        self.refuse_single_values(x[: self.examples_per_group].numel() // self.groups, "block")
        return self.normalize_by_blocks(x, self.examples_per_group)
