r"""AdaX-W: AdaX with decoupled weight decay (Li, Zhang, Wang & Luo 2020, arXiv 2004.09740, algorithm 3).

AdaX divides the decay of a number by √v, as all of its gradient. AdaX-W takes it out of the gradient, as AdamW does:
$$p \leftarrow (1 - \eta\lambda)\,p,\quad m \leftarrow \beta_1 m + (1-\beta_1)g,\quad
v \leftarrow (1+\beta_2)v + \beta_2 g^2,\quad p \leftarrow p - \eta\,\sqrt{(1+\beta_2)^t - 1}\;
\frac{m}{\sqrt v + \varepsilon}.$$
What is kept of v, and how it is called: see AdaX.

    optimizer = AdaXW(model.parameters(), lr=5e-3)
"""

from __future__ import annotations

from torch import Tensor

from layers.adax_optimizer import AdaXOptimizer
from layers.adax_proofs import (
    adam,
    decay,
    first_step,
    impulse,
    kernel,
    late_step,
    long_memory,
    mean_square,
    published,
    same_without_decay,
    scale,
)
from layers.card import Card, Flops, Identity, Option, Paper, Peer, Stat
from layers.elementwise_optimizer import Params, excludes
from layers.shared import ADAX, ADAX_FORMS, ADAX_IDENTITIES, ADAX_NOTES, ADAX_RACES

card = Card(
    title="AdaX-W, AdaX with decoupled weight decay",
    paper=Paper(
        authors="Li, Zhang, Wang, Luo",
        title="AdaX: Adaptive gradient descent with exponential long term memory",
        year=2020,
        arxiv="2004.09740",
    ),
    impl="AdaXW",
    role="optimizer",
    formula="p ← (1 − ηλ)p,  m ← β₁m + (1 − β₁)g,  v ← (1 + β₂)v + β₂g²,  p ← p − η √((1 + β₂)ᵗ − 1) m/(√v + ε)",
    summary="AdaX with a weight decay that shrinks the parameter itself, whatever its gradients have been.",
    options=(
        Option(name="lr", type=float, default=5e-3, ge=0, help="η", source="the authors' code"),
        *ADAX,
        Option(
            name="weight_decay",
            type=float,
            default=5e-2,
            ge=0,
            help="λ; each step multiplies p by 1 − ηλ",
            source="the authors' code",
        ),
        *ADAX_FORMS,
    ),
    state=(
        Stat("step", (), help="t, float32 on the CPU"),
        Stat("exp_avg", ("*",), help="m"),
        Stat("exp_avg_sq", ("*",), given="normalized", help="v̂"),
        Stat("raw_exp_avg_sq", ("*",), given="not normalized", help="v"),
    ),
    flops=Flops("(12 + (1 if weight_decay else 0))*E", "0"),
    executed=Flops(
        "(12 + (fused and normalized) + ((1 if normalized else 2) if weight_decay else 0) + maximize)*E + 1",
        "0",
    ),
    explained="Adam's kernel divides √v̂ by a correction of bias, which is 1 here.",
    traffic=Flops("7*E*B", "0"),
    identities=(
        *ADAX_IDENTITIES,
        Identity(says="without decay it is AdaX", proof="same_without_decay"),
        Identity(says="gradients of zero leave p₀(1 − ηλ)ᵗ", proof="decay"),
    ),
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


class AdaXW(AdaXOptimizer):
    """AdaX-W: weight decay shrinks parameters, and no gradient knows it.

    The state is ``step``, ``exp_avg`` and ``exp_avg_sq`` (v̂; ``raw_exp_avg_sq`` with normalized=False), shaped like the
    parameter, float32 for half precision. ``lr`` may be a tensor of one element. Raises OptionError as `AdaXOptimizer`.
    """

    card = card
    coupled = False

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 5e-3,
        beta1: float = 0.9,
        beta2: float = 1e-4,
        eps: float = 1e-12,
        weight_decay: float = 5e-2,
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
    "AdaXW", "adam", "decay", "excludes", "first_step", "impulse", "kernel", "late_step", "long_memory", "mean_square",
    "published", "same_without_decay", "scale",
]  # fmt: skip
