r"""AdaBound and AMSBound: Adam's step sizes between two bounds that close in on those of gradient descent.

With c = √(1 − β₂ᵗ)/(1 − β₁ᵗ) and the learning rate η, which a schedule has moved from its base η₀, the step size is
$$\frac{\eta c}{\sqrt v + \varepsilon}\quad\text{between}\quad
\frac{\eta}{\eta_0}\eta_\infty\frac{\gamma t}{\gamma t + 1}\quad\text{and}\quad
\frac{\eta}{\eta_0}\eta_\infty\frac{\gamma t + 1}{\gamma t}.$$
The denominator is clamped in place of the quotient: ηc is one number, and its bounds are free of η, which may be 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from layers.adam_kernel import adam_
from layers.checked_optimizer import FUSED, number
from layers.elementwise_optimizer import ElementwiseOptimizer, Group, Params, Tensors, add_, multiply_


class AdaBoundOptimizer(ElementwiseOptimizer):
    """Base of AdaBound and AMSBound. Each group keeps ``base_lr``, η₀: unless given, the lr that it was added with.

    The state is ``step``, ``exp_avg`` (m), ``exp_avg_sq`` (v) and, of AMSBound, ``max_exp_avg_sq``, the greatest v.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        base_lr: float | None = None,
        form: str = "code",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "final_lr": final_lr,
            "gamma": gamma,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "base_lr": base_lr,
            "form": form,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, options)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; without ``base_lr`` its own is ``initial_lr``, which schedules leave there, or ``lr``."""
        super().add_param_group(param_group)
        _keep_base(self.param_groups[-1], self.param_groups[-1]["lr"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a loaded state_dict; to an older one without ``base_lr`` that of the constructor."""
        super().__setstate__(state)
        for group in self.param_groups:
            _keep_base(group, self.defaults["lr"])

    def _update(self, group: Group, t: int, p: Tensors, g: Tensors, *state: Tensors) -> None:
        m, v, *greatest = state
        step = float(group["lr"]) * correction(group, t)
        if p[0].device.type in FUSED:  # of the step of 0 only m, v and v̂ are wanted
            adam_(p, g, m, v, *greatest, lr=0.0, beta1=group["beta1"], beta2=group["beta2"], eps=1.0)
        else:
            torch._foreach_lerp_(m, g, 1 - group["beta1"])
            multiply_(v, group["beta2"])
            torch._foreach_addcmul_(v, g, g, 1 - group["beta2"])
            for most in greatest:
                torch._foreach_maximum_(most, v)
        root = torch._foreach_sqrt(greatest[0] if greatest else v)
        if group["eps"]:
            add_(root, group["eps"])
        least, largest = denominators(group, t, v[0].dtype)
        _clamp_(root, least, largest)
        if group["weight_decay"] and group["decoupled"]:
            kept = 1 - group["weight_decay"] * float(group["lr"]) / group["base_lr"]
            multiply_(p, kept)
        torch._foreach_addcdiv_(p, m, root, -step / math.sqrt(t) if group["form"] == "paper" else -step)


def _clamp_(tensors: tuple[Tensor, ...], least: float, largest: float) -> None:
    """Clamp in place. torch has no clamp of a list by two bounds: by one after the other it is a pass more.

    On the CPU that takes longer than a call for each where they are few, and so long.
    """
    if tensors[0].device.type == "cpu" and len(tensors) < 16:
        for tensor in tensors:
            tensor.clamp_(least, largest)
    else:
        torch._foreach_clamp_min_(tensors, least)
        torch._foreach_clamp_max_(tensors, largest)


def _keep_base(group: Group, lr: float | Tensor) -> None:
    given = group["base_lr"]
    group["base_lr"] = float(number(group.get("initial_lr", lr) if given is None else given))


def correction(group: Group, t: int) -> float:
    """Return c = √(1 − β₂ᵗ)/(1 − β₁ᵗ), which undoes that m and v began at 0; 1 in the paper's form."""
    if group["form"] == "paper":
        return 1.0
    beta1, beta2 = float(group["beta1"]), float(group["beta2"])
    return math.sqrt(1 - beta2**t) / (1 - beta1**t)


def bounds(gamma: float, t: int) -> tuple[float, float]:
    """Return 1 − 1/(γt + 1) and 1 + 1/(γt), without the cancellation in the first."""
    return gamma * t / (gamma * t + 1), 1 + 1 / (gamma * t)


def denominators(group: Group, t: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return between which numbers √v + ε is, the least of them no subnormal number of ``dtype``, so never 0."""
    low, high = bounds(group["gamma"], t)
    start, kind = group["base_lr"] * correction(group, t) / group["final_lr"], torch.finfo(dtype)
    return max(start / high, kind.tiny), min(start / low, kind.max)


__all__ = ["AdaBoundOptimizer", "bounds", "correction", "denominators"]
