r"""Inference Example Weighing: Batch Normalization whose evaluation counts the example's own statistics too (Summers &
Dinneen 2020, arXiv 1906.03548, the first of their things).

Training is Batch Normalization. Evaluation normalizes by the mixture of the running statistics and, to a share α, those
of the example, e₁ = mean x and e₂ = mean x² over all positions of a channel (`layers.weighing` has the stable form):
$$\mu = (1 - \alpha)\,m_1 + \alpha\,e_1,\quad \sigma^2 = (1 - \alpha)\,m_2 + \alpha\,e_2 - \mu^2,\quad
y = \gamma_c\,(x - \mu) / \sqrt{\sigma^2 + \varepsilon} + \beta_c.$$
In training each example is part of its own statistics, 1/N of them; with α = 0, evaluation as everybody does it, it is
not. α is chosen on validation data after training. A trained bn can be loaded: the buffers have the same names.

With ``groups`` the statistics are those of groups of channels, over the whole batch in training, as in the authors' one
function for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.shared import AFFINE, ALPHA, BN_ROW, EPS, FOLDED_UNLESS_SMALL, GROUPS_DIVIDE, IN_ROW, SLOW_MOMENTUM
from layers.weighing import BlockNorm

card = Card(
    title="Inference Example Weighing",
    paper=Paper(
        authors="Summers, Dinneen",
        title="Four Things Everyone Should Know to Improve Batch Normalization",
        year=2020,
        venue="ICLR 2020",
        arxiv="1906.03548",
    ),
    impl="InferenceExampleWeighing",
    formula="μ = (1−α) m₁ + α e₁;  σ² = (1−α) m₂ + α e₂ − μ²;  y = γ_c (x − μ) / √(σ² + ε) + β_c  (evaluation)",
    summary="BN in training; in evaluation each channel's running moments are mixed with those of the example.",
    options=(
        ALPHA,
        Option(
            name="groups",
            type=int,
            default=None,
            optional=True,
            ge=1,
            help="groups of channels that share statistics, in training too; none: each channel has its own",
        ),
        EPS,
        SLOW_MOMENTUM,
        AFFINE,
    ),
    derived={
        "G": "C if groups is None else groups",
        "own": "train or alpha > 0",
        "small": "S == 1 or E <= 262144",
        "tiny": "E <= 32768",
    },
    rules=(
        GROUPS_DIVIDE,
        Rule(
            "N == 0 or (N*C*S != G if train else alpha < 1 or C*S != G)",
            "a statistic of one value cannot normalize; give more positions (in training: or a larger batch)",
        ),
    ),
    statistics=(
        Stat("mean", ("1", "G"), given="train"),
        Stat("var", ("1", "G"), given="train"),
        Stat("example_mean", ("N", "G"), given="not train and alpha > 0"),
        Stat("example_var", ("N", "G"), given="not train and alpha > 0"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1"),
        Stat("running_var", ("C",), "C×1", help="of the averages of E[x] and E[x²]: biased, with the batches' spread"),
        Stat("num_batches_tracked", ()),
    ),
    params="2*C if affine else 0",
    flops=Flops(
        "(7 if affine else 5)*E + (2*G if train else 10*N*G) if own else 2*E + (5 if affine else 4)*C",
        "(11*E - 2*C if affine else 7*E) if own else (4*E - 2*C if affine else E)",
    ),
    executed=Flops(
        "((((7 if affine else 5)*E + 21*C if tiny else 7*E + (17 if affine else 16)*C + (3*C if small else 8*N*C))"
        " if G == C"
        " else (12 if affine else 10)*E + 13*C + G*(5 if S >= 2048 else 2) - (S >= 2048) if small"
        " else 7*E + (24 if affine else 22)*N*C + 11*C + G) + 2*(momentum is None)) if train"
        " else 7*E + (19 if affine else 17)*N*C + 11*N*G + 5*C + G if alpha > 0"
        " else 2*E + (10 if affine else 9)*C + G",
        "((11*E - 2*C if affine else 7*E) if small"
        " else 7*E + (11 if affine else 10)*C if G == C"
        " else 7*E + (29*N*C - 2*C if affine else 25*N*C) - 2*G) if train"
        " else 7*E + (29*N*C - 2*C if affine else 25*N*C) + 5*N*G if alpha > 0"
        " else (4*E - 2*C if affine else E)",
    ),
    explained=FOLDED_UNLESS_SMALL,
    saved="B*E + (8*C if train and G == C else 8*G + (4*N*C if affine and N > 1 else 0) if train and small"
    " else (20 if affine else 16)*N*C)",
    traffic=Flops("(3 if own else 2)*E*B", "(5 if own else 3)*E*B"),
    claims=(
        Claim(
            row="α = 0.3, eval, frozen statistics",
            mode="eval",
            options={"alpha": 0.3},
            holds=(),
            why="The stored share of the statistics stays where it was.",
        ),
        Claim(
            row="α = 0.3, eval, statistics follow",
            mode="eval",
            history="follow",
            options={"alpha": 0.3, "momentum": 1.0},
            holds=BN_ROW,
            why="Once the stored statistics have seen the change, the mixture has BN's row.",
        ),
        Claim(
            row="α = 1, eval",
            mode="eval",
            options={"alpha": 1.0},
            carriers=("conv", "conv-padded"),
            holds=IN_ROW,
            why="Nothing stored is left: it is IN's row. On a linear layer an example has one value per channel.",
        ),
    ),
    identities=(
        Identity(says="in training IEW = BN", options={"alpha": 0.3}, equals="bn"),
        Identity(says="IEW(α = 0) = BN in evaluation", equals="bn", mode="eval"),
        Identity(says="IEW(α = 1) = IN", options={"alpha": 1.0}, equals="in", other={"affine": True}, mode="eval"),
        Identity(
            says="IEW(α = 1) over groups = GN",
            options={"alpha": 1.0, "groups": 3},
            equals="gn",
            other={"groups": 3},
            mode="eval",
        ),
    ),
    notes=(
        "The authors' code keeps E[x²] and subtracts E[x]², which in float32 loses all digits at mean ≫ std.",
        "With one value per channel |x̂| ≤ √((1 − α)/α) in evaluation, ≤ √(B − 1) in training by batches of B: α = 1/B "
        "makes the two ranges equal.",
        "Its variance averages are biased; a variance taken from torch's bn is m/(m − 1) larger.",
    ),
    examples=(
        {"alpha": 0.3},
        {"alpha": 1.0, "affine": False, "momentum": None},
        {"alpha": 0.1, "groups": 3, "eps": 1e-3},
        {},
    ),
    couples="train",
    eval_differs="True",
)


class InferenceExampleWeighing(BlockNorm):
    """Batch Normalization with inference example weighing, of (N, C, *positions); shape, dtype and format are kept.

    Args: ``channels`` C; ``alpha`` in [0, 1], an attribute that may be changed after training; ``groups`` of channels
    that share statistics, or None; ``eps`` > 0; ``momentum`` in [0, 1] or None; ``affine`` for γ and β (C,).
    State: parameters ``weight``, ``bias``; buffers ``running_mean``, ``running_var`` (C,) and ``num_batches_tracked``.
    Raises OptionError for refused options, ValueError when a statistic in training (in evaluation with alpha=1: of an
    example) holds a single value.
    """

    def __init__(
        self,
        channels: int,
        alpha: float = 0.0,
        groups: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"alpha": alpha, "groups": groups, "eps": eps, "momentum": momentum, "affine": affine}
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.add_running_statistics(True, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by its batch in training, by weighed statistics in evaluation."""
        self.check_input(x)
        if not self.training:
            return self.normalize_by_weighing(x)
        self.refuse_single_values(x.numel() // (self.groups or self.channels), "statistic")
        return self.normalize_by_blocks(x, 0)
