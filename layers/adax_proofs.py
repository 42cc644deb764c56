"""What holds for AdaX and AdaX-W, as the two sides of equations.

Each function gets ``make(params)``, an optimizer with the options of the identity, and a weight in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from layers.adax_optimizer import newest, relative
from layers.grassmann_proofs import Make, wave

STEPS = 9


def walk(make: Make, start: Tensor, gradients: list[Tensor], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the parameter that began at ``start`` and saw ``gradients``, and its state; in a group of ``options``."""
    parameter = start.detach().clone().requires_grad_()
    optimizer = make([{"params": [parameter], **options}])
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def options_of(make: Make) -> dict[str, Any]:
    """Return the options that ``make`` gives to its groups."""
    return make([torch.zeros(1, requires_grad=True)]).param_groups[0]


def waves(weight: Tensor) -> list[Tensor]:
    """Return a gradient for each of a few steps."""
    return [wave(weight, step) for step in range(STEPS)]


def published(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter by v̂, and by v as the authors' code computes it."""
    return walk(make, weight, waves(weight))[0], walk(make, weight, waves(weight), normalized=False)[0]


def kernel(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter by the fused kernel, and by plain operations."""
    return walk(make, weight, waves(weight))[0], walk(make, weight, waves(weight), fused=False)[0]


def adam(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter, and that of torch's Adam (AdamW where decay is decoupled) of β₂ = 1 − wₜ at t = ∞."""
    group, parameter = options_of(make), weight.detach().clone().requires_grad_()
    coupled = getattr(make([torch.zeros(1, requires_grad=True)]), "coupled", True)
    plain = (torch.optim.Adam if coupled else torch.optim.AdamW)(
        [parameter], lr=group["lr"], weight_decay=group["weight_decay"], foreach=False
    )
    for t, gradient in enumerate(waves(weight), 1):
        parameter.grad = gradient
        plain.state[parameter] = plain.state.get(parameter) or {
            "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)
        }  # fmt: skip
        plain.state[parameter]["step"] = torch.tensor(math.inf)
        plain.param_groups[0]["betas"] = (group["beta1"], max(0.0, 1 - newest(group["beta2"], t)))
        plain.param_groups[0]["eps"] = relative(group["eps"], group["beta2"], t, weight.dtype)
        plain.step()
    return walk(make, weight, waves(weight))[0], parameter.detach()


def first_step(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the first step moves the parameter, and −η(1 − β₁) sign g."""
    group, gradient = options_of(make), wave(weight)
    moved = walk(make, weight, [gradient])[0] - weight.detach()
    return moved, -group["lr"] * (1 - group["beta1"]) * gradient.sign()


def long_memory(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """v̂ after a few steps, and the sum of which each g² is a part."""
    growth, gradients = 1 + options_of(make)["beta2"], waves(weight)
    parts = [growth ** (STEPS - i) * gradient.square() for i, gradient in enumerate(gradients, 1)]
    found = walk(make, weight, gradients)[1]["exp_avg_sq"]
    return found, (growth - 1) * torch.stack(parts).sum(0) / (growth**STEPS - 1)


def mean_square(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """v̂ after a few steps, and the mean of g²."""
    gradients = waves(weight)
    return walk(make, weight, gradients)[1]["exp_avg_sq"], torch.stack(gradients).square().mean(0)


def scale(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter after steps by c·g, for c from 10⁻³ to 10³, and by g."""
    factors = torch.logspace(-3, 3, weight.numel(), dtype=weight.dtype).view_as(weight)
    return walk(make, weight, [factors * g for g in waves(weight)])[0], walk(make, weight, waves(weight))[0]


def impulse_gain(beta1: float, beta2: float, steps: int) -> float:
    """Return G = (1 − β₁) Σₜ β₁ᵗ⁻¹ √(((1 + β₂)ᵗ − 1)/(β₂(1 + β₂)ᵗ⁻¹)): what one unit gradient moves, by η."""
    ratios = ((1 - (1 + beta2) ** -t) * (1 + beta2) / beta2 for t in range(1, steps + 1))
    return (1 - beta1) * sum(beta1**i * math.sqrt(ratio) for i, ratio in enumerate(ratios))


def impulse(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By how much one gradient and 400 of zero move the parameter, and −ηG sign g."""
    group, gradient = options_of(make), wave(weight)
    moved = walk(make, weight, [gradient] + 400 * [torch.zeros_like(weight)])[0] - weight.detach()
    return moved, -group["lr"] * impulse_gain(group["beta1"], group["beta2"], 401) * gradient.sign()


def late_step(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By how much step 10⁷ moves the parameter, and −ηm/√v̂."""
    parameter, lr = torch.zeros_like(weight).requires_grad_(), options_of(make)["lr"]
    optimizer = make([parameter])
    parameter.grad = wave(weight)
    optimizer.step()
    state = optimizer.state[parameter]
    state["step"].fill_(10**7 - 1)
    before = parameter.detach().clone()
    optimizer.step()
    return parameter.detach() - before, -lr * state["exp_avg"] / state["exp_avg_sq"].sqrt()


def same_without_decay(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """AdaX-W with weight_decay=0, and AdaX so."""
    from layers.optim.adax import AdaX

    lr, gradients = options_of(make)["lr"], waves(weight)
    options = {"lr": lr, "weight_decay": 0.0}
    return walk(make, weight, gradients, **options)[0], walk(AdaX, weight, gradients, **options)[0]


def decay(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter after steps by gradients of zero, and p₀(1 − ηλ)ᵗ."""
    group, gradients = options_of(make), STEPS * [torch.zeros_like(weight)]
    shrunk = (1 - group["lr"] * group["weight_decay"]) ** STEPS
    return walk(make, weight, gradients)[0], shrunk * weight.detach()
