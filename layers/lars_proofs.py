"""What holds for LARS, as the two sides of equations.

Each function gets ``make(params)``, an optimizer with the options of the identity, and a weight in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from layers.adabound_proofs import trained
from layers.adax_proofs import STEPS, options_of, walk, waves
from layers.grassmann_proofs import Make, wave


def lengths(make: Make, weight: Tensor, gradient: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
    """Return how long each of a few steps is, and how long the weight is before each and after the last."""
    parameter = weight.detach().clone().requires_grad_()
    optimizer, steps, sizes = make([parameter]), [], [weight.norm()]
    for t in range(STEPS):
        before = parameter.detach().clone()
        parameter.grad = gradient(before, t)
        optimizer.step()
        steps.append((parameter.detach() - before).norm())
        sizes.append(parameter.detach().norm())
    return torch.stack(steps), torch.stack(sizes)


def step_length(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The length of each step, by gradients of lengths that differ, and γη‖w‖."""
    group = options_of(make)
    steps, sizes = lengths(make, weight, lambda w, t: 10.0 ** (t - 4) * wave(w, t))
    return steps, group["lr"] * group["trust_coefficient"] * sizes[:-1]


def no_longer(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The length of each step, or γη‖w‖ if that is more, and γη‖w‖."""
    steps, most = step_length(make, weight)
    return torch.maximum(steps, most), most


def growth(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """‖wₜ‖ by gradients along −w, and ‖w₀‖(1 + γη)ᵗ."""
    group = options_of(make)
    _, sizes = lengths(make, weight, lambda w, t: -(10.0 ** (t - 4)) * w)
    powers = torch.arange(STEPS + 1, dtype=weight.dtype)
    return sizes, weight.norm() * (1 + group["lr"] * group["trust_coefficient"]) ** powers


def loss_scale(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight after gradients that are scaled by 10⁻⁴ to 10⁴, and after the gradients."""
    scaled = [10.0 ** (t - 4) * gradient for t, gradient in enumerate(waves(weight))]
    return walk(make, weight, scaled)[0], walk(make, weight, waves(weight))[0]


def weight_scale(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight that began at 7w₀, with the loss ⟨a, w/‖w‖⟩ for an a per step, and 7 times that from w₀."""
    ends = []
    for scale in (7.0, 1.0):
        parameter = (scale * weight.detach()).requires_grad_()
        optimizer = make([parameter])
        for direction in waves(weight):
            optimizer.zero_grad()
            (direction * parameter / parameter.norm()).sum().backward()
            optimizer.step()
        ends.append(parameter.detach())
    return ends[0], 7 * ends[1]


def orders(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight by the paper's order of momentum and learning rate, and by torch's."""
    gradients = waves(weight)
    found, wanted = (walk(make, weight, gradients, momentum_order=order)[0] for order in ("paper", "torch"))
    return found, wanted


def excluded(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A vector after a few steps, and by torch's SGD without decay."""
    vector = weight.detach().flatten()
    return walk(make, vector, waves(vector))[0], _by_sgd(make, vector, decayed=False)


def clipped(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight after a few steps, and by torch's SGD with decay."""
    return walk(make, weight, waves(weight))[0], _by_sgd(make, weight, decayed=True)


def from_zero(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that began at 0 after one step, and −γg."""
    gradient = wave(weight)
    return walk(make, torch.zeros_like(weight), [gradient])[0], -options_of(make)["lr"] * gradient


def _by_sgd(make: Make, weight: Tensor, decayed: bool) -> Tensor:
    group, parameter = options_of(make), weight.detach().clone().requires_grad_()
    names = ("lr", "momentum", "dampening", "nesterov", *(("weight_decay",) if decayed else ()))
    return trained(torch.optim.SGD([parameter], **{name: group[name] for name in names}), parameter)
