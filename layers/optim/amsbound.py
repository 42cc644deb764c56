r"""AMSBound: AMSGrad whose step sizes end as those of gradient descent (Luo, Xiong, Liu & Sun 2019,
arXiv 1902.09843, algorithm 3).

AdaBound with the greatest v so far in place of v, so that step sizes do not grow before the bounds are close:
$$m \leftarrow \beta_1 m + (1-\beta_1)g,\quad v \leftarrow \beta_2 v + (1-\beta_2)g^2,\quad
\hat v \leftarrow \max(\hat v, v),\quad
s = \eta\,\frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t},$$
$$\hat\eta = \mathrm{clip}\Big(\frac{s}{\sqrt{\hat v}+\varepsilon},\;
\eta_\infty\Big(1 - \frac1{\gamma t+1}\Big),\; \eta_\infty\Big(1 + \frac1{\gamma t}\Big)\Big),\qquad
p \leftarrow p - \hat\eta\,m.$$
All else is AdaBound's: the bounds, the schedule, ``form="paper"``.

    optimizer = AMSBound(model.parameters(), lr=1e-3, final_lr=0.1)
"""

from __future__ import annotations

from layers.adabound_optimizer import AdaBoundOptimizer
from layers.adabound_proofs import (
    adam,
    decay,
    greatest,
    hand_over,
    momentum,
    paper_form,
    schedule,
    within_bounds,
)
from layers.card import Card, Flops, Identity, Paper, Peer, Race, Stat
from layers.elementwise_optimizer import excludes
from layers.shared import ADABOUND, ADABOUND_IDENTITIES, ADABOUND_NOTES, ADABOUND_RULES

card = Card(
    title="AMSBound, AMSGrad with bounds on its step sizes",
    paper=Paper(
        authors="Luo, Xiong, Liu, Sun",
        title="Adaptive gradient methods with dynamic bound of learning rate",
        year=2019,
        venue="ICLR 2019",
        arxiv="1902.09843",
    ),
    impl="AMSBound",
    role="optimizer",
    formula="m ← β₁m + (1 − β₁)g,  v̂ ← max(v̂, v),  p ← p − clip(s/(√v̂ + ε), η∞ − η∞/(γt + 1), η∞ + η∞/(γt)) m",
    summary="AdaBound that divides by the greatest second moment so far, as AMSGrad does.",
    options=ADABOUND,
    rules=ADABOUND_RULES,
    state=(
        Stat("step", (), help="t, float32 on the CPU"),
        Stat("exp_avg", ("*",), help="m"),
        Stat("exp_avg_sq", ("*",), help="v"),
        Stat("max_exp_avg_sq", ("*",), help="v̂, the greatest v so far"),
    ),
    flops=Flops("(15 + ((1 if decoupled else 2) if weight_decay else 0))*E", "0"),
    executed=Flops("(20 + (eps > 0) + ((1 if decoupled else 2) if weight_decay else 0) + maximize)*E + 1", "0"),
    explained="The denominator is clamped in place of the quotient. The moments are made by Adam's kernel in one sweep "
    "of memory, with 6 operations for a step of 0.",
    traffic=Flops("9*E*B", "0"),
    identities=(
        *ADABOUND_IDENTITIES,
        Identity(says="v̂ is the greatest v of all steps", proof="greatest"),
    ),
    races=(
        Race(
            says="it finds the better end, −1, as AMSGrad does, where Adam with the same β₂ = 1/17 ends at the other",
            problem="reddi",
            measure="x0",
            expected=-1.0,
            steps=100,
            options={"beta2": 0.0588235294117647},
        ),
    ),
    notes=ADABOUND_NOTES,
    peer=Peer("torch.optim:Adam", {"foreach": "True"}, same=False),
    examples=(
        {},
        {"weight_decay": 0.1, "gamma": 0.5, "maximize": True},
        {"decoupled": True, "weight_decay": 0.01, "beta1": 0.5, "eps": 0.0},
        {"form": "paper", "lr": 0.05, "beta2": 0.9},
        {"base_lr": 0.01, "final_lr": 0.5, "beta1": 0.0, "foreach": False},
    ),
)


class AMSBound(AdaBoundOptimizer):
    """AMSBound: the step sizes of AMSGrad, clipped to bounds that tend to ``final_lr``.

    The state is ``step``, ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq``, shaped like the parameter, float32
    for half precision. Each group keeps ``base_lr``, the lr that it was added with unless given. ``lr`` may be a tensor
    of one element. Raises OptionError for refused options, as `CheckedOptimizer`.
    """

    card = card


__all__ = [
    "AMSBound", "adam", "decay", "excludes", "greatest", "hand_over", "momentum", "paper_form", "schedule",
    "within_bounds",
]  # fmt: skip
