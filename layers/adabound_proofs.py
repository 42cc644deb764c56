"""What holds for AdaBound and AMSBound, as the two sides of equations.

Each function gets ``make(params)``, an optimizer with the options of the identity, and a weight in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.adabound_optimizer import bounds
from layers.adax_proofs import STEPS, options_of, walk, waves
from layers.grassmann_proofs import Make, wave

LATE = 2**40  # a step so late that 1/(γt) and the corrections of bias are no matter


def late_walk(make: Make, weight: Tensor, scale: float = 1.0) -> Tensor:
    """The parameter after a few steps from step 2⁴⁰ on, by the learning rate times ``scale``."""
    parameter = weight.detach().clone().requires_grad_()
    optimizer = make([parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.state[parameter]["step"].fill_(LATE)
    optimizer.param_groups[0]["lr"] *= scale
    for gradient in waves(weight):
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


def trained(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """The parameter after a few steps of ``optimizer``."""
    for gradient in waves(parameter):
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


def adam(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter where the bounds are far apart, and that of torch's Adam (amsgrad for AMSBound)."""
    group, parameter = options_of(make), weight.detach().clone().requires_grad_()
    amsgrad = "max_exp_avg_sq" in walk(make, weight, [wave(weight)])[1]
    betas = (group["beta1"], group["beta2"])
    plain = torch.optim.Adam([parameter], lr=group["lr"], betas=betas, eps=group["eps"], amsgrad=amsgrad)
    return walk(make, weight, waves(weight))[0], trained(plain, parameter)


def momentum(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter of late steps, and that of SGD with the learning rate η∞(1 − β₁) and the momentum β₁."""
    group, parameter = options_of(make), weight.detach().clone().requires_grad_()
    plain = torch.optim.SGD([parameter], lr=group["final_lr"] * (1 - group["beta1"]), momentum=group["beta1"])
    return late_walk(make, weight), trained(plain, parameter)


def within_bounds(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The step sizes of all steps, by gradients from 10⁻⁸ to 10⁸, and what the bounds leave of them."""
    spread = torch.logspace(-8, 8, weight.numel(), dtype=weight.dtype).view_as(weight)
    parameter = torch.zeros_like(weight).requires_grad_()
    optimizer = make([parameter])
    found, kept = [], []
    final_lr, gamma = options_of(make)["final_lr"], options_of(make)["gamma"]
    for t, gradient in enumerate(waves(weight), 1):
        parameter.grad = spread * gradient
        before = parameter.detach().clone()
        optimizer.step()
        low, high = bounds(gamma, t)
        sizes = (before - parameter.detach()) / optimizer.state[parameter]["exp_avg"]
        found.append(sizes.log())
        kept.append(sizes.clamp(final_lr * low, final_lr * high).log())
    return torch.stack(found), torch.stack(kept)


def schedule(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """By how much steps at 0.3 of the base learning rate move the parameter, and 0.3 of what those at all of it do."""
    lr, start = options_of(make)["lr"], weight.detach()
    slow, fast = (walk(make, start, waves(weight), lr=rate, base_lr=lr)[0] - start for rate in (0.3 * lr, lr))
    return slow, 0.3 * fast


def paper_form(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter of late steps in the paper's form, and in that of the code with the learning rate η/√t."""
    parameter = torch.zeros_like(weight).requires_grad_()
    code = type(make([parameter]))
    return late_walk(make, weight), late_walk(code, weight, LATE**-0.5)


def hand_over(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The size of every step by a constant gradient without momentum, and max(η/|g|, the lower bound)."""
    group, gradient = options_of(make), wave(weight).abs() + 0.05
    parameter, found, wanted = torch.zeros_like(weight).requires_grad_(), [], []
    optimizer = make([parameter])
    parameter.grad = gradient
    for t in range(1, 200):
        before = parameter.detach().clone()
        optimizer.step()
        found.append((before - parameter.detach()) / gradient)
        wanted.append((group["lr"] / gradient).clamp(min=group["final_lr"] * bounds(group["gamma"], t)[0]))
    return torch.stack(found), torch.stack(wanted)


def decay(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter after steps by gradients of zero, and p₀(1 − λ)ᵗ."""
    gradients = STEPS * [torch.zeros_like(weight)]
    return walk(make, weight, gradients)[0], (1 - options_of(make)["weight_decay"]) ** STEPS * weight.detach()


def greatest(make: Make, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The kept maximum of v after a few steps, and the greatest v of all of them."""
    gradients = [gradient / t for t, gradient in enumerate(waves(weight), 1)]
    seen = [walk(make, weight, gradients[:t])[1]["exp_avg_sq"] for t in range(1, STEPS + 1)]
    return walk(make, weight, gradients)[1]["max_exp_avg_sq"], torch.stack(seen).amax(0)
