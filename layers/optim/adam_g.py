r"""Adam-G: Adam on the Grassmannian, with one second moment per filter (Cho & Lee 2017, arXiv 1709.09603, algorithm 3).

As in SGD-G each filter is the point y = p/‖p‖ of G(1, n), and ĥ its gradient, clipped, without the part along y. The
first moment τ is a tangent at y, the second one a number v per filter, since entries of tangents at different points
cannot be compared. At step t, per row
$$m = \beta_1\tau + (1-\beta_1)\hat h,\quad v \leftarrow \beta_2 v + (1-\beta_2)\|\hat h\|^2,\quad
d = -\eta\,\frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}\,\frac{m}{\sqrt{v+\varepsilon}},$$
$$y' = \exp_y(d),\qquad \tau' = \mathrm{pt}_y(m; d).$$
ε stands inside the root and is added before the bias is corrected. m is parallel to d, so that its transport is that of
d scaled back. What is trained this way and how the rest is: see SGD-G.

    model = unit_rows_(model)
    optimizer = AdamG(grassmann_groups(model), lr=0.05)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layers.card import Card, Flops, Identity, Option, Paper, Stat
from layers.checked_optimizer import Group, Params
from layers.grassmann import clipping, excludes, grassmann_groups, lengths, unit_rows_
from layers.grassmann_optimizer import GrassmannOptimizer
from layers.grassmann_proofs import (
    Make,
    distance,
    momentum_is_tangent,
    odd,
    penalty,
    plain_groups,
    radial_part,
    rotation,
    transport_keeps_products,
    transport_of_the_direction,
    turned,
    unit_length,
    walk,
    wave,
)  # fmt: skip
from layers.shared import GRASSMANN, GRASSMANN_IDENTITIES, GRASSMANN_NOTES, GRASSMANN_RULES

card = Card(
    title="Adam-G, Adam on the Grassmannian",
    paper=Paper(
        authors="Cho, Lee",
        title="Riemannian approach to batch normalization",
        year=2017,
        venue="NIPS 2017",
        arxiv="1709.09603",
    ),
    impl="AdamG",
    role="optimizer",
    formula="m = β₁τ + (1 − β₁)ĥ,  v ← β₂v + (1 − β₂)‖ĥ‖²,  d = −η √(1 − β₂ᵗ)/(1 − β₁ᵗ) m/√(v + ε),  y' = exp_y(d)",
    summary="Each filter is a point of unit length that moves along geodesics, by Adam with one v per filter.",
    options=(
        Option(
            name="lr",
            type=float,
            default=0.05,
            ge=0,
            help="η; the first step turns a filter by η radians",
            source="the authors' code for CIFAR; 0.005 for SVHN",
        ),
        Option(name="beta1", type=float, default=0.9, ge=0, lt=1, help="β₁, of the first moment"),
        Option(
            name="beta2",
            type=float,
            default=0.99,
            ge=0,
            lt=1,
            help="β₂, of the second moment",
            source="the authors' code",
        ),
        Option(name="eps", type=float, default=1e-8, gt=0, help="ε, inside the root, before the bias is corrected"),
        Option(
            name="momentum",
            type=float,
            default=0.9,
            ge=0,
            lt=1,
            help="of Nesterov SGD, where manifold is false",
            source="the authors' code",
        ),
        *GRASSMANN,
    ),
    rules=GRASSMANN_RULES,
    state=(
        Stat("step", (), given="manifold", help="t, float32 on the CPU"),
        Stat("m_buffer", ("*",), given="manifold", help="τ, tangent at the row"),
        Stat("v_buffer", ("O",), given="manifold", help="one second moment per filter"),
        Stat("momentum_buffer", ("*",), given="not manifold"),
    ),
    flops=Flops(
        "(21 + (1 if grad_clip else 0) + (3 + 4*O/groups if omega else 0))*E + (11 + (2 if grad_clip else 0))*O"
        " if manifold else (6 + (2 if weight_decay else 0))*E",
        "0",
    ),
    executed=Flops(
        "(22 + (1 + 4*O/groups if omega and O > groups else 0) + (1 if beta1 else 0) + maximize)*E"
        " + (13 + (3 if grad_clip else 0))*O + 1"
        " if manifold else (2 + ((5 if foreach is None else 4) if momentum else 0) + (2 if weight_decay else 0)"
        " + maximize)*E",
        "0",
    ),
    explained="Of the penalty only what is not along a row is added, by the matrix product itself; clipping and 1 − β₁ "
    "are one factor per row; d is never formed, the row turns by a number along m. Torch's kernel of SGD, which "
    "takes groups with manifold=False, multiplies gradients by 1.",
    stated="manifold or not foreach",
    traffic=Flops("5*E*B + 2*O*B if manifold else 5*E*B", "0"),
    identities=(
        *GRASSMANN_IDENTITIES,
        Identity(says="at ε → 0 the first step turns every filter by η", proof="first_step", options={"eps": 1e-30}),
        Identity(says="v is one number per filter, whatever the order of the weights", proof="second_moment"),
    ),
    notes=GRASSMANN_NOTES,
    examples=(
        {},
        {"omega": 0.0, "grad_clip": None, "beta1": 0.5},
        {"groups": 2, "omega": 0.5, "beta2": 0.9, "eps": 1e-3, "maximize": True},
        {"beta1": 0.0, "beta2": 0.0, "foreach": True},
        {"manifold": False, "lr": 0.01, "momentum": 0.5, "weight_decay": 5e-4},
    ),
)


class AdamG(GrassmannOptimizer):
    """Adam-G: the rows of every parameter with manifold=True have norm 1 after a step.

    The state is ``step``, ``m_buffer``, shaped like the parameter, and ``v_buffer`` (O,). Half precision is computed in
    float32 on the manifold. ``lr`` may be a tensor of one element. Raises OptionError as `GrassmannOptimizer` says.
    """

    card = card
    buffers = ("m_buffer", "v_buffer")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.05,
        beta1: float = 0.9,
        beta2: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.9,
        grad_clip: float | None = 0.1,
        omega: float = 0.1,
        groups: int = 1,
        manifold: bool = True,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "momentum": momentum,
            "grad_clip": grad_clip,
            "omega": omega,
            "groups": groups,
            "manifold": manifold,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, options)

    def _start(self, parameter: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device="cpu"),
            "m_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "v_buffer": parameter.new_zeros(parameter.shape[0]),
        }

    def _follow(self, group: Group, h: Tensor, state: list[Tensor], age: float) -> tuple[Tensor, Tensor, Tensor]:
        """Move m and v; the row turns by −η √(1 − β₂ᵗ)/(1 − β₁ᵗ) ‖m‖/√(v + ε) along m."""
        m, v = state
        beta1, beta2 = group["beta1"], group["beta2"]
        length = lengths(h)
        share = clipping(length, group["grad_clip"])
        m.mul_(beta1).addcmul_(h, share, value=1 - beta1)
        v.lerp_((share * length).square_(), 1 - beta2)
        rate = float(group["lr"]) * math.sqrt(1 - beta2**age) / (1 - beta1**age)
        length = lengths(m).clamp_min_(torch.finfo(m.dtype).tiny)
        return m, length, length * (v + group["eps"]).rsqrt_() * -rate


def first_step(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By what angle each row turns in the first step, and η."""
    found = turned(make, weight, [wave(weight)])
    return found, torch.full_like(found, make([weight.detach().clone().requires_grad_()]).param_groups[0]["lr"])


def second_moment(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """v after 5 steps with the weights of every row, and of its gradients, in reverse order, and in order."""
    rows = weight.detach().flatten(1)
    gradients = [wave(rows, step) for step in range(5)]
    _, state = walk(make, rows.flip(1), [gradient.flip(1) for gradient in gradients])
    return state["v_buffer"], walk(make, rows, gradients)[1]["v_buffer"]


__all__ = [
    "AdamG", "distance", "excludes", "grassmann_groups", "momentum_is_tangent", "odd", "penalty", "plain_groups",
    "radial_part", "rotation", "transport_keeps_products", "transport_of_the_direction", "unit_length", "unit_rows_",
]  # fmt: skip
