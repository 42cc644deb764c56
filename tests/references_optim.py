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
