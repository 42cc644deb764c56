"""The step of LARS: which tensors are scaled, by how much, and how one of them moves."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.checked_optimizer import HALF, Group, State


def adapts(parameter: Tensor, group: Group) -> bool:
    """Return whether the steps of ``parameter`` are scaled: see the option ``exclude``."""
    exclude, decayed = group["exclude"], group["weight_decay"] != 0
    return parameter.dim() > 1 if exclude == "ndim<=1" else bool(exclude == "none" or decayed)


def ratios(params: list[Tensor], group: Group) -> list[float]:
    """Return λ of parameters of one dtype and device, which have gradients; all of them are read back at once."""
    tensors = [*params, *(parameter.grad for parameter in params if parameter.grad is not None)]
    if params[0].is_meta:
        return [1.0] * len(params)
    dtype = torch.float32 if params[0].dtype in HALF else params[0].dtype
    if group["foreach"] is False:
        norms = [torch.linalg.vector_norm(tensor, dtype=dtype) for tensor in tensors]
    else:
        norms = list(torch._foreach_norm(tensors, 2, dtype))
    w, g = torch.stack(norms).double().view(2, -1)
    ratio = group["trust_coefficient"] * w / (g + group["weight_decay"] * w + group["eps"])
    if group["clip"]:
        ratio = (ratio / float(group["lr"])).clamp(max=1)
    found: list[float] = torch.where((w == 0) | (g == 0), 1.0, ratio).tolist()
    return found


def move(group: Group, parameter: Tensor, state: State, ratio: float) -> None:
    """Take one step: v ← μv + cλ(g + βw), w ← w − (γ/c)v, where c is γ in the paper's order and 1 in torch's."""
    assert parameter.grad is not None
    g, w = parameter.grad, parameter.float() if parameter.dtype in HALF else parameter
    lr, momentum = float(group["lr"]), group["momentum"]
    decay = 0.0 if group["exclude"] == "ndim<=1" and w.dim() <= 1 else group["weight_decay"]
    ascent = -1 if group["maximize"] else 1
    if momentum:
        v, inside = state["momentum_buffer"], lr if group["momentum_order"] == "paper" else 1.0
        share = ratio * inside * (1 - _dampening(group, state))
        if not group["nesterov"] and _suits_kernel(w, g, v, share):
            torch._fused_sgd_(
                [w], [g], [v], weight_decay=ascent * decay, momentum=momentum, lr=lr / inside,
                dampening=1 - ascent * share, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip
            return
        v.mul_(momentum).add_(g, alpha=ascent * share)
        if decay:
            v.add_(w, alpha=share * decay)
    if group["nesterov"] or not momentum:
        if decay:
            w.mul_(1 - lr * ratio * decay)
        w.add_(g, alpha=-ascent * lr * ratio)
    if momentum:
        w.add_(v, alpha=-lr / inside * (momentum if group["nesterov"] else 1))
    if w is not parameter:
        parameter.copy_(w)


def _suits_kernel(w: Tensor, g: Tensor, v: Tensor, share: float) -> bool:
    """Whether torch's kernel of SGD, which scales what it adds to v by 1 − dampening, may take a step of ``share``.

    It crosses memory once. A share of 2⁻²⁸ is 1 − (1 − share) to within a quarter of the last digit of float32.
    """
    alike = w.is_contiguous() and g.is_contiguous() and v.is_contiguous() and w.dtype == g.dtype == torch.float32
    return alike and w.device.type in ("cpu", "cuda") and share >= 2**-28


def _dampening(group: Group, state: State) -> float:
    """The dampening of this step, which it counts: the first gradient is not damped."""
    if not group["dampening"]:
        return 0.0
    state["step"] += 1
    return 0.0 if state["step"] == 1 else float(group["dampening"])


__all__ = ["adapts", "move", "ratios"]
