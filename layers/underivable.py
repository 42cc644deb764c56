"""A published gradient that is no function's derivative, so that second derivatives through it are refused.

torch's ``once_differentiable`` does not do that: it cuts the graph, and a gradient with respect to given inputs
(``torch.autograd.grad(first, x)``) never meets its error; what comes out is silently wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def underivable(value: Tensor, *others: Tensor, why: str) -> Tensor:
    """Return ``value`` as a function of ``others`` whose derivative raises RuntimeError(``why``).

    For the backward of a custom Function; costs nothing unless that is recorded (``create_graph=True``).
    """
    if not torch.is_grad_enabled():
        return value
    made: Tensor = _Underivable.apply(why, value, *others)  # type: ignore[no-untyped-call]
    return made


class _Underivable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(why: str, value: Tensor, *others: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.why = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError(ctx.why)
