"""Backward with a given upstream gradient, without torch's import of sympy.

``y.backward(gradient)`` imports torch.fx.experimental.symbolic_shapes and with it sympy, a third of a second, only to
compare two shapes; a scalar at the end of the graph that hands the gradient down does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from profiles.counting.flops import Count, Counting


class _Handing(torch.autograd.Function):
    """A zero whose gradient with respect to ``y`` is ``gradient``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def loss(y: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar whose ``backward()`` starts from ∂L/∂y = ``gradient``, which must have the shape of ``y``."""
    if y.shape != gradient.shape:
        raise ValueError(f"the gradient has shape {tuple(gradient.shape)}, the output {tuple(y.shape)}")
    scalar: Tensor = _Handing.apply(y, gradient)  # type: ignore[no-untyped-call]
    return scalar


def gradients(y: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return ∂L/∂inputs for ∂L/∂y = ``gradient``, None where y does not depend; the graph stays, nothing is added up.

    As torch.autograd.grad does, by torch's engine itself, and with no allocation beside the gradients'.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    keep_graph, create_graph, allow_unused, accumulate = True, False, True, False
    found: tuple[Tensor | None, ...] = engine.run_backward(
        (y,), (gradient,), keep_graph, create_graph, tuple(inputs), allow_unused, accumulate
    )
    return found


def counted(y: Tensor, counting: Counting | None = None) -> Count:
    """Count the backward of ``y`` for a fixed upstream gradient, by ``counting`` where it is given."""
    scalar = loss(y, torch.ones_like(y))
    counting = counting or Counting()
    with counting:
        scalar.backward()  # type: ignore[no-untyped-call]
    counting.count.kernels -= 1  # the gradient of the scalar, which is ours
    return counting.count
