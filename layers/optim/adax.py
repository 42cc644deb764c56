r"""AdaX: Adam with an exponential long-term memory (Li, Zhang, Wang & Luo 2020, arXiv 2004.09740, algorithm 2).

Adam forgets old squares of gradients, so that its steps grow again when gradients vanish. AdaX gives the past ever more
weight. At step t, for each number p with the gradient g ← g + λp, m and v from 0,
$$m \leftarrow \beta_1 m + (1-\beta_1)g,\quad v \leftarrow (1+\beta_2)v + \beta_2 g^2,\quad
p \leftarrow p - \eta\,\sqrt{(1+\beta_2)^t - 1}\;\frac{m}{\sqrt v + \varepsilon}.$$
m is not corrected for its start from 0. v grows without bound; kept here is v̂ = v/((1 + β₂)ᵗ − 1), a mean of g² (see
`layers.adax_optimizer`); ``normalized=False`` keeps v, by the operations of the authors' code, bit for bit.

    optimizer = AdaX(model.parameters(), lr=1.5e-3)
"""

from __future__ import annotations

from torch import Tensor

from layers.adax_optimizer import AdaXOptimizer
from layers.adax_proofs import (
    adam,
    first_step,
    impulse,
    kernel,
    late_step,
    long_memory,
    mean_square,
    published,
    scale,
)
from layers.card import Card, Flops, Option, Paper, Peer, Stat
from layers.elementwise_optimizer import Params, excludes
from layers.shared import ADAX, ADAX_FORMS, ADAX_IDENTITIES, ADAX_NOTES, ADAX_RACES

card = Card(
    title="AdaX, Adam with exponential long-term memory",
    paper=Paper(
        authors="Li, Zhang, Wang, Luo",
        title="AdaX: Adaptive gradient descent with exponential long term memory",
        year=2020,
        arxiv="2004.09740",
    ),
    impl="AdaX",
    role="optimizer",
    formula="m ← β₁m + (1 − β₁)g,  v ← (1 + β₂)v + β₂g²,  p ← p − η √((1 + β₂)ᵗ − 1) m/(√v + ε)",
    summary="Adam whose second moment remembers old gradients best, so that steps do not grow as gradients vanish.",
    options=(
        Option(name="lr", type=float, default=1.5e-3, ge=0, help="η", source="the authors' code"),
        *ADAX,
        Option(
            name="weight_decay", type=float, default=5e-4, ge=0, help="λ, added to g as λp", source="the authors' code"
        ),
        *ADAX_FORMS,
    ),
    state=(
        Stat("step", (), help="t, float32 on the CPU"),
        Stat("exp_avg", ("*",), help="m"),
        Stat("exp_avg_sq", ("*",), given="normalized", help="v̂"),
        Stat("raw_exp_avg_sq", ("*",), given="not normalized", help="v"),
    ),
    flops=Flops("(12 + (2 if weight_decay else 0))*E", "0"),
    executed=Flops(
        "(12 + (fused and normalized) + (2 if weight_decay else 0) + maximize)*E + 1",
        "0",
    ),
    explained="Adam's kernel divides √v̂ by a correction of bias, which is 1 here.",
    traffic=Flops("7*E*B", "0"),
    identities=(*ADAX_IDENTITIES,),
    races=ADAX_RACES,
    notes=ADAX_NOTES,
    peer=Peer("torch.optim:Adam", {"fused": "True"}, same=False),
    examples=(
        {},
        {"weight_decay": 0.0, "beta2": 0.1, "eps": 1e-3},
        {"normalized": False, "beta1": 0.5},
        {"fused": False, "maximize": True, "weight_decay": 0.1},
        {"fused": False, "foreach": False, "beta1": 0.0, "lr": 0.01},
        {"maximize": True, "lr": 0.01},
    ),
)


class AdaX(AdaXOptimizer):
    """AdaX: weight decay joins the gradient.

    The state is ``step``, ``exp_avg`` and ``exp_avg_sq`` (v̂; ``raw_exp_avg_sq`` with normalized=False), shaped like the
    parameter, float32 for half precision. ``lr`` may be a tensor of one element. Raises OptionError as `AdaXOptimizer`.
    """

    card = card

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.5e-3,
        beta1: float = 0.9,
        beta2: float = 1e-4,
        eps: float = 1e-12,
        weight_decay: float = 5e-4,
        normalized: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "normalized": normalized,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, options)


__all__ = [
    "AdaX", "adam", "excludes", "first_step", "impulse", "kernel", "late_step", "long_memory", "mean_square",
    "published", "scale",
]  # fmt: skip
