"""The step of LARS: which tensors are scaled, by how much, and how one of them moves."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.checked_optimizer import FUSED, HALF, Group, State, add_, share_layout


def rates(group: Group, params: list[Tensor], grads: list[Tensor]) -> list[float]:
    """Return λ of each parameter, 1 where its steps are not scaled: see the option ``exclude``."""
    found = [1.0] * len(params)
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, parameter in enumerate(params):
        if _adapts(parameter, group):
            alike.setdefault((parameter.device, parameter.dtype), []).append(i)
    for places in alike.values():
        ratios = _ratios([params[i] for i in places], [grads[i] for i in places], group)
        for i, ratio in zip(places, ratios, strict=True):
            found[i] = ratio
    return found


def _adapts(parameter: Tensor, group: Group) -> bool:
    exclude = group["exclude"]
    return parameter.dim() > 1 if exclude == "ndim<=1" else bool(exclude == "none" or group["weight_decay"] != 0)


def _ratios(params: list[Tensor], grads: list[Tensor], group: Group) -> list[float]:
    """λ of parameters of one dtype and device, all of them read back at once."""
    tensors = [*params, *grads]
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


def move(group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], ratios: list[float]) -> None:
    """Take one step: v ← μv + cλ(g + βw), w ← w − (γ/c)v, where c is γ in the paper's order and 1 in torch's."""
    has_kernel = group["momentum"] and not group["nesterov"]
    inside = float(group["lr"]) if group["momentum_order"] == "paper" else 1.0
    alike: dict[tuple[torch.device, float, float], list[tuple[Tensor, Tensor, Tensor]]] = {}
    undamped = _undamped(group, states)
    for w, g, state, ratio, factor in zip(params, grads, states, ratios, undamped, strict=True):
        decay = 0.0 if group["exclude"] == "ndim<=1" and w.dim() <= 1 else group["weight_decay"]
        share = ratio * inside * factor
        if has_kernel and _suits_kernel(row := (w, g, state["momentum_buffer"]), share):
            alike.setdefault((w.device, share, decay), []).append(row)
        else:
            _move_plainly(group, w, g, state, ratio, share, decay)
    ascent = -1 if group["maximize"] else 1
    for (_, share, decay), rows in alike.items():
        torch._fused_sgd_(
            *map(list, zip(*rows, strict=True)), weight_decay=ascent * decay, momentum=group["momentum"],
            lr=float(group["lr"]) / inside, dampening=1 - ascent * share, nesterov=False, maximize=False,
            is_first_step=False,
        )  # fmt: skip


def _move_plainly(
    group: Group, parameter: Tensor, g: Tensor, state: State, ratio: float, share: float, decay: float
) -> None:
    """The step of one parameter; ``share`` is cλ, damped."""
    w = parameter.float() if parameter.dtype in HALF else parameter
    lr, momentum = float(group["lr"]), group["momentum"]
    ascent = -1 if group["maximize"] else 1
    if momentum:
        v = state["momentum_buffer"]
        v.mul_(momentum).add_(g, alpha=ascent * share)
        if decay:
            v.add_(w, alpha=share * decay)
    if group["nesterov"] or not momentum:
        if decay:
            w.mul_(1 - lr * ratio * decay)
        w.add_(g, alpha=-ascent * lr * ratio)
    if momentum:
        outside = 1.0 if group["momentum_order"] == "paper" else lr
        w.add_(v, alpha=-outside * (momentum if group["nesterov"] else 1))
    if w is not parameter:
        parameter.copy_(w)


def _suits_kernel(row: tuple[Tensor, Tensor, Tensor], share: float) -> bool:
    """Whether torch's kernel of SGD, which scales what it adds to v by 1 − dampening, may take a step of ``share``.

    It crosses memory once. A share of 2⁻²⁸ is 1 − (1 − share) to within a quarter of the last digit of float32.
    """
    w, g, _ = row
    alike = w.dtype == g.dtype == torch.float32 and share_layout(row)
    return alike and w.device.type in FUSED and share >= 2**-28


def _undamped(group: Group, states: list[State]) -> list[float]:
    """What of each gradient is left by dampening, which counts steps: of the first of a parameter all."""
    if not (group["momentum"] and group["dampening"]):
        return [1.0] * len(states)
    steps = [state["step"] for state in states]
    add_(steps, 1.0)
    return [1.0 if step == 1 else 1 - float(group["dampening"]) for step in map(int, steps)]


__all__ = ["move", "rates"]
