r"""SGD-G: stochastic gradient descent with momentum on the Grassmannian, for weights before batch normalization (Cho &
Lee 2017, arXiv 1709.09603, algorithm 2).

Batch normalization does not see how long a filter is. Each filter is then the point y = p/‖p‖ of G(1, n), and moves
along geodesics. With the gradient g, the momentum τ (a tangent at y) and Y the rows y of one kernel, per row
$$h = g + 2\omega(YY^\top Y - Y) - (\cdot)\,y,\quad \hat h = h\,\min(1, \nu/\|h\|),\quad d = \gamma\tau - \eta\hat h,$$
$$y' = y\cos\|d\| + d\,\frac{\sin\|d\|}{\|d\|},\qquad \tau' = d\cos\|d\| - y\,\|d\|\sin\|d\|,$$
where (·)y takes the part along y away. y' has norm 1 and τ' is tangent at y'. ω weighs the penalty ω/2 ‖YYᵀ − 1‖²
on filters of one kernel (of one group of it) that are not orthogonal; clipping by ν comes after it, filter by filter.

    model = unit_rows_(model)
    optimizer = SGDG(grassmann_groups(model), lr=0.2)

puts convolution kernels with fewer filters than weights per filter there (`excludes`) and trains all else by Nesterov
SGD, as the paper does.
"""

from __future__ import annotations

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
    wave,
)  # fmt: skip
from layers.shared import GRASSMANN, GRASSMANN_IDENTITIES, GRASSMANN_NOTES, GRASSMANN_RULES

card = Card(
    title="SGD-G, gradient descent on the Grassmannian",
    paper=Paper(
        authors="Cho, Lee",
        title="Riemannian approach to batch normalization",
        year=2017,
        venue="NIPS 2017",
        arxiv="1709.09603",
    ),
    impl="SGDG",
    role="optimizer",
    formula="d = γτ − ηĥ,  y' = y cos‖d‖ + d sin‖d‖/‖d‖,  τ' = d cos‖d‖ − y ‖d‖ sin‖d‖",
    summary="Each filter is a point of unit length that moves along geodesics; one clipped tangent step per filter.",
    options=(
        Option(
            name="lr",
            type=float,
            default=0.2,
            ge=0,
            help="η; a first clipped step turns a filter by η·ν radians",
            source="the authors' code for CIFAR; 0.02 for SVHN",
        ),
        Option(
            name="momentum", type=float, default=0.9, ge=0, lt=1, help="γ, of the tangents", source="the authors' code"
        ),
        *GRASSMANN,
    ),
    rules=GRASSMANN_RULES,
    state=(Stat("momentum_buffer", ("*",), help="τ, tangent at the row"),),
    flops=Flops(
        "(18 + (3 if grad_clip else 0) + (3 + 4*O/groups if omega else 0))*E + (4 + (2 if grad_clip else 0))*O"
        " if manifold else (6 + (2 if weight_decay else 0))*E",
        "0",
    ),
    executed=Flops(
        "(22 + (1 + 4*O/groups if omega and O > groups else 0) + maximize)*E + (5 + (3 if grad_clip else 0))*O"
        " if manifold else (2 + ((5 if foreach is None else 4) if momentum else 0) + (2 if weight_decay else 0)"
        " + maximize)*E",
        "0",
    ),
    explained="Of the penalty only what is not along a row is added, by the matrix product itself; ‖h‖ is taken "
    "without clipping too; clipping and η are one factor per row. Torch's kernel of SGD, "
    "which takes groups with manifold=False, multiplies gradients by 1.",
    stated="manifold or not foreach",
    traffic=Flops("5*E*B", "0"),
    identities=(
        *GRASSMANN_IDENTITIES,
        Identity(says="a first step that is clipped turns a filter by η·ν", proof="first_step"),
        Identity(
            says="no step is longer than ην/(1 − γ), 0.2 by default, of an injectivity radius of π/2", proof="bounded"
        ),
    ),
    notes=GRASSMANN_NOTES,
    examples=(
        {},
        {"omega": 0.0, "grad_clip": None, "lr": 0.02},
        {"groups": 2, "omega": 0.5, "momentum": 0.5, "maximize": True},
        {"momentum": 0.0, "foreach": True},
        {"manifold": False, "lr": 0.01, "weight_decay": 5e-4},
    ),
)


class SGDG(GrassmannOptimizer):
    """SGD-G: the rows of every parameter with manifold=True have norm 1 after a step.

    The state is ``momentum_buffer``, shaped like the parameter. Half precision is computed in float32 on the manifold.
    ``lr`` may be a tensor of one element. Raises OptionError as `GrassmannOptimizer` says.
    """

    card = card
    buffers = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.2,
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
        return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def _follow(self, group: Group, h: Tensor, state: list[Tensor], age: float) -> tuple[Tensor, Tensor, Tensor]:
        """d = γτ − ηĥ; the row turns by ‖d‖."""
        (momentum,) = state
        share = clipping(lengths(h), group["grad_clip"])
        d = momentum.mul_(group["momentum"]).addcmul_(h, share * -float(group["lr"]))
        length = lengths(d).clamp_min_(torch.finfo(d.dtype).tiny)
        return d, length, length


def first_step(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By what angle each row turns in the first step of a long gradient, and ην."""
    found = turned(make, weight, [100 * wave(weight)])
    group = make([weight.detach().clone().requires_grad_()]).param_groups[0]
    return found, torch.full_like(found, group["lr"] * group["grad_clip"])


def bounded(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The longest of 60 steps by long gradients, or ην/(1 − γ) if that is more, and ην/(1 − γ)."""
    parameter = weight.detach().clone().requires_grad_()
    optimizer = make([parameter])
    group = optimizer.param_groups[0]
    most = parameter.new_tensor(group["lr"] * group["grad_clip"] / (1 - group["momentum"]))
    longest = most
    for step in range(60):
        parameter.grad = 100 * wave(weight, step % 2)
        optimizer.step()
        longest = torch.maximum(longest, lengths(optimizer.state[parameter]["momentum_buffer"].flatten(1)).amax())
    return longest, most


__all__ = [
    "SGDG", "distance", "excludes", "grassmann_groups", "momentum_is_tangent", "odd", "penalty", "plain_groups",
    "radial_part", "rotation", "transport_keeps_products", "transport_of_the_direction", "unit_length", "unit_rows_",
]  # fmt: skip
