"""Backward through the definition of a forward: for a custom Function whose gradient is to be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def through_definition(
    define: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
    *,
    again: bool = True,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``tensors``, the inputs that a Function saved; None for those that are not ``needed``.

    ``define(*tensors)`` computes the outputs, in plain operations; ``grads`` are what arrives for each of them. With
    ``again`` the gradients may be derived.
    """
    with torch.enable_grad():
        # One of the inputs may have been made from another. Views of them part what is defined here from that graph,
        # which autograd goes through by itself.
        inputs = [None if t is None else t.view_as(t) for t in tensors]
        outputs = define(*inputs)
    arrived = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if t is not None and need]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in arrived],
            wanted,
            [grad for _, grad in arrived],
            create_graph=again,
            allow_unused=True,
        )
    )
    return tuple(next(found) if t is not None and need else None for t, need in zip(inputs, needed, strict=True))
