"""Torch's fused kernel of Adam without the corrections of bias: m, v and the step in one sweep through memory."""

from __future__ import annotations

import math
from typing import Any

import torch

from layers.checked_optimizer import Tensors


def adam_(
    p: Tensors,
    g: Tensors,
    m: Tensors,
    v: Tensors,
    greatest: Tensors = (),
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> None:
    """Take a step, in place: m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², p ← p − ηm/(√v + ε).

    With ``greatest`` it is max(v̂, v) that divides m, and becomes v̂. β₁ and β₂ are less than 1. Tensors are of one dtype
    and device, one of `layers.checked_optimizer.FUSED`, and those of one parameter share a layout.
    """
    kernel: Any = torch._fused_adamw_ if decoupled else torch._fused_adam_
    never = [torch.full((), math.inf, dtype=torch.float32, device=p[0].device)] * len(p)  # 1 − βᵗ = 1
    kernel(
        p, g, m, v, greatest, never, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps,
        amsgrad=bool(greatest), maximize=maximize,
    )  # fmt: skip


__all__ = ["adam_"]
