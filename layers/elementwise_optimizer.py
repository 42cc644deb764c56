"""Optimizers that treat every number by itself, stepped in slices that stay in the cache of a core.

An optimizer plugs in by its card and one method. The card names the options, among them ``weight_decay``,
``maximize`` and ``foreach``, and the state: ``step`` of shape (), then tensors of shape ("*",), that of the parameter.

    class Sign(ElementwiseOptimizer):
        card = card

        def __init__(self, params, lr=1e-3, …): super().__init__(params, {"lr": lr, …})

        def _update(self, group, t, p, g, m):  # one list per state tensor of that shape, in the order of the card
            torch._foreach_lerp_(m, g, 1 - group["beta1"])
            torch._foreach_add_(p, torch._foreach_sign(m), alpha=-float(group["lr"]))

``p``, ``g``, ``m`` are lists of slices of one device and of one dtype, float32 where the parameters are half precision;
all their parameters are at step t, an int from 1. ``g`` may be a gradient itself: write into ``p`` and the state alone.
``maximize`` has been applied to g, and ``weight_decay`` too, as in g + λp, unless ``coupled`` is False or the group has
an option ``decoupled`` that is true: then `_update` decays p. Where a kernel does the whole step in one sweep,
`_update_whole` calls it and returns True.

On the CPU a plain operation on a long tensor takes as long as memory needs to move it, and a step has a dozen. A batch
of slices together is as long as nearly stays in the second-level cache of the cores meanwhile; elsewhere it is whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from layers.card import SAME
from layers.checked_optimizer import (
    HALF,
    CheckedOptimizer,
    Group,
    Params,
    State,
    add_,
    excludes,
    multiply_,
    share_layout,
)

# Bytes of parameters for each core. A step also reads gradient and moments and makes a result, 5 MiB in all: on cores
# with 2 MiB of second-level cache and 16 of the third, 2**17 takes 1.5 times as long, 2**19 1.06 times, 2**21 the same.
SLICE = 1 << 20
P, GRADIENT = 0, 1  # where parameter and gradient stand in a row, before the state
Row = list[Tensor]  # a parameter, its gradient and its state, all in one layout
Tensors = list[Tensor]


class ElementwiseOptimizer(CheckedOptimizer):
    """Base of optimizers whose formula is one for each number of a parameter; see the module."""

    coupled: ClassVar[bool] = True  # weight_decay joins the gradient

    def _update(self, group: Group, t: int, p: Tensors, g: Tensors, *state: Tensors) -> None:
        """Move the slices ``p`` by the gradients ``g`` and update the slices of each state tensor, in place."""
        raise NotImplementedError

    def _update_whole(self, group: Group, t: int, p: Tensors, g: Tensors, *state: Tensors) -> bool:
        """Do the same to whole parameters by one kernel, decay and maximize too; False where there is none."""
        return False

    def _step(self, group: Group, params: Tensors, grads: Tensors, states: list[State]) -> None:
        steps = [state["step"] for state in states]
        add_(steps, 1.0)
        names = [name for name, shape in self.given(group).items() if shape == SAME]
        rows = map(list, zip(params, grads, *([state[name] for state in states] for name in names), strict=True))
        alike: dict[tuple[torch.device, torch.dtype, int], list[Row]] = {}
        for row, step in zip(rows, steps, strict=True):
            alike.setdefault((row[P].device, row[P].dtype, int(step)), []).append(row)
        copies: list[tuple[Tensor, Tensor]] = []
        for (_, dtype, t), found in alike.items():
            laid = [_in_one_layout(row, copies) for row in found]
            if dtype in HALF or not self._update_whole(group, t, *_columns(laid)):
                self._update_slices(group, t, laid)
        for tensor, copy in copies:
            tensor.copy_(copy)

    def _update_slices(self, group: Group, t: int, rows: list[Row]) -> None:
        for p, g, *state in _batches(rows, join=group["foreach"] is not False):
            wide_p, wide_g = _wide(p), _wide(g)
            if group["maximize"]:
                wide_g = list(torch._foreach_neg(wide_g))
            if group["weight_decay"] and self.coupled and not group.get("decoupled"):
                wide_g = list(torch._foreach_add(wide_g, wide_p, alpha=group["weight_decay"]))
            self._update(group, t, wide_p, wide_g, *state)
            if wide_p is not p:
                torch._foreach_copy_(p, wide_p)


def _in_one_layout(row: Row, copies: list[tuple[Tensor, Tensor]]) -> Row:
    """The tensors of ``row``, the numbers of each in the order of the parameter's memory, or of its axes.

    What is not in that order is copied; of all but the gradient (tensor, copy) is added to ``copies``, to write back.
    """
    if share_layout(row):
        return row
    strides = row[P].stride()
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    laid = [tensor.permute(order) for tensor in row]
    plain = [tensor.contiguous() for tensor in laid]
    pairs = enumerate(zip(laid, plain, strict=True))
    copies += [pair for i, pair in pairs if i != GRADIENT and not pair[0].is_contiguous()]
    return plain


def _batches(rows: list[Row], join: bool) -> Iterator[list[Tensors]]:
    """Cut ``rows`` into batches as long as stays in the cache, one list per tensor of a row.

    Short parameters come together, unless ``join`` is false.
    """
    most = _longest(rows[0][P])
    batch: list[Row] = []
    size = 0
    for piece in _pieces(rows, most):
        length = piece[P].numel()
        if batch and (not join or size + length > most):
            yield _columns(batch)
            batch, size = [], 0
        batch.append(piece)
        size += length
    yield _columns(batch)


def _pieces(rows: list[Row], most: int) -> Iterator[Row]:
    for row in rows:
        if row[P].numel() <= most:
            yield row
        else:
            yield from map(list, zip(*(torch.split(_flat(tensor), most) for tensor in row), strict=True))


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without gaps, as they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _longest(p: Tensor) -> int:
    """How many numbers a batch may have."""
    if p.device.type != "cpu":
        return sys.maxsize
    return SLICE * torch.get_num_threads() // max(4, p.element_size())


def _columns(rows: list[Row]) -> list[Tensors]:
    return [list(column) for column in zip(*rows, strict=True)]


def _wide(tensors: Tensors) -> Tensors:
    """Half precision as float32."""
    return [tensor.float() for tensor in tensors] if tensors[0].dtype in HALF else tensors


__all__ = ["ElementwiseOptimizer", "Group", "Params", "Tensors", "add_", "excludes", "multiply_"]
