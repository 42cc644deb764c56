"""The naive references of optimizers that treat every number by itself, as `references_weights` has those on rows."""

from __future__ import annotations

import torch


def adax_steps(w, steps, p, decoupled):
    m = v = torch.zeros_like(w)
    for t, g in enumerate(steps, 1):
        g = -g if p.maximize else g
        if decoupled:
            w = w - p.lr * p.weight_decay * w
        else:
            g = g + p.weight_decay * w
        m = p.beta1 * m + (1 - p.beta1) * g
        v = (1 + p.beta2) * v + p.beta2 * g**2
        w = w - p.lr * ((1 + p.beta2) ** t - 1) ** 0.5 * m / (v**0.5 + p.eps)
    return w


def adax(params, grads, p):
    return [adax_steps(w, steps, p, decoupled=False) for w, *steps in zip(params, *grads, strict=True)]


def adaxw(params, grads, p):
    return [adax_steps(w, steps, p, decoupled=True) for w, *steps in zip(params, *grads, strict=True)]


def adabound_steps(w, steps, p, greatest_of_all):
    m = v = most = torch.zeros_like(w)
    base = p.base_lr or p.lr
    for t, g in enumerate(steps, 1):
        g = -g if p.maximize else g
        shrunk = p.weight_decay * p.lr / base * w if p.decoupled else 0
        if not p.decoupled:
            g = g + p.weight_decay * w
        m = p.beta1 * m + (1 - p.beta1) * g
        v = p.beta2 * v + (1 - p.beta2) * g**2
        most = torch.maximum(most, v)
        s = p.lr if p.form == "paper" else p.lr * (1 - p.beta2**t) ** 0.5 / (1 - p.beta1**t)
        final = p.final_lr * p.lr / base
        size = s / ((most if greatest_of_all else v) ** 0.5 + p.eps)
        size = size.clamp(final * (1 - 1 / (p.gamma * t + 1)), final * (1 + 1 / (p.gamma * t)))
        w = w - (size / t**0.5 if p.form == "paper" else size) * m - shrunk
    return w


def adabound(params, grads, p):
    return [adabound_steps(w, steps, p, greatest_of_all=False) for w, *steps in zip(params, *grads, strict=True)]


def amsbound(params, grads, p):
    return [adabound_steps(w, steps, p, greatest_of_all=True) for w, *steps in zip(params, *grads, strict=True)]


def lars_steps(w, steps, p):
    vector = w.dim() <= 1
    decay = 0 if p.exclude == "ndim<=1" and vector else p.weight_decay
    scaled = p.exclude == "none" or (p.exclude == "ndim<=1" and not vector) or (p.exclude == "no_decay" and decay > 0)
    v = torch.zeros_like(w)
    for t, g in enumerate(steps):
        g = -g if p.maximize else g
        ratio = 1.0
        if scaled and w.norm() > 0 and g.norm() > 0:
            ratio = p.trust_coefficient * w.norm() / (g.norm() + decay * w.norm() + p.eps)
            ratio = min(ratio / p.lr, 1) if p.clip else ratio
        d = ratio * (g + decay * w) * (p.lr if p.momentum_order == "paper" else 1)
        v = p.momentum * v + (d if t == 0 else (1 - p.dampening) * d)
        moved = d + p.momentum * v if p.nesterov else v
        w = w - (moved if p.momentum_order == "paper" else p.lr * moved)
    return w


def lars(params, grads, p):
    return [lars_steps(w, steps, p) for w, *steps in zip(params, *grads, strict=True)]
