r"""AdaBound: Adam whose step sizes end as those of gradient descent (Luo, Xiong, Liu & Sun 2019,
arXiv 1902.09843, algorithm 2).

Adam's step sizes are clipped to two bounds, from 0 and ∞ at first, which tend to one learning rate, η∞. For each number
p with the gradient g at step t, m and v from 0,
$$m \leftarrow \beta_1 m + (1-\beta_1)g,\quad v \leftarrow \beta_2 v + (1-\beta_2)g^2,\quad
s = \eta\,\frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t},$$
$$\hat\eta = \mathrm{clip}\Big(\frac{s}{\sqrt{v}+\varepsilon},\;
\eta_\infty\Big(1 - \frac1{\gamma t+1}\Big),\; \eta_\infty\Big(1 + \frac1{\gamma t}\Big)\Big),\qquad
p \leftarrow p - \hat\eta\,m.$$
A schedule of η scales both bounds by η/η₀. ``form="paper"`` has s = η, and divides the step by √t.

    optimizer = AdaBound(model.parameters(), lr=1e-3, final_lr=0.1)
"""

from __future__ import annotations

from layers.adabound_optimizer import AdaBoundOptimizer
from layers.adabound_proofs import (
    adam,
    decay,
    hand_over,
    momentum,
    paper_form,
    schedule,
    within_bounds,
)
from layers.card import Card, Flops, Paper, Peer, Race, Stat
from layers.elementwise_optimizer import excludes
from layers.shared import ADABOUND, ADABOUND_IDENTITIES, ADABOUND_NOTES, ADABOUND_RULES

card = Card(
    title="AdaBound, Adam with bounds on its step sizes",
    paper=Paper(
        authors="Luo, Xiong, Liu, Sun",
        title="Adaptive gradient methods with dynamic bound of learning rate",
        year=2019,
        venue="ICLR 2019",
        arxiv="1902.09843",
    ),
    impl="AdaBound",
    role="optimizer",
    formula="m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  p ← p − clip(s/(√v + ε), η∞ − η∞/(γt + 1), η∞ + η∞/(γt)) m",
    summary="Adam whose step sizes are clipped to bounds that close in on one rate: the end is gradient descent.",
    options=ADABOUND,
    rules=ADABOUND_RULES,
    state=(
        Stat("step", (), help="t, float32 on the CPU"),
        Stat("exp_avg", ("*",), help="m"),
        Stat("exp_avg_sq", ("*",), help="v"),
    ),
    flops=Flops("(14 + ((1 if decoupled else 2) if weight_decay else 0))*E", "0"),
    executed=Flops("(19 + (eps > 0) + ((1 if decoupled else 2) if weight_decay else 0) + maximize)*E + 1", "0"),
    explained="The denominator is clamped in place of the quotient. The moments are made by Adam's kernel in one sweep "
    "of memory, with 6 operations for a step of 0.",
    traffic=Flops("7*E*B", "0"),
    identities=ADABOUND_IDENTITIES,
    races=(
        Race(
            says="it finds the better end, −1, at last, where Adam with the same β₂ = 1/17 ends at the other",
            problem="reddi",
            measure="x0",
            expected=-1.0,
            steps=2401,
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


class AdaBound(AdaBoundOptimizer):
    """AdaBound: Adam's step sizes, clipped to bounds that tend to ``final_lr``.

    The state is ``step``, ``exp_avg`` and ``exp_avg_sq``, shaped like the parameter, float32
    for half precision. Each group keeps ``base_lr``, the lr that it was added with unless given. ``lr`` may be a tensor
    of one element. Raises OptionError for refused options, as `CheckedOptimizer`.
    """

    card = card


__all__ = [
    "AdaBound", "adam", "decay", "excludes", "hand_over", "momentum", "paper_form", "schedule",
    "within_bounds",
]  # fmt: skip
