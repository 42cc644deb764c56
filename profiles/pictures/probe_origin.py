"""Where the numbers of a matrix or of an output come from, found by running a layer on an input of the numbers 1, 2, ….

And how far a stack of convolutions reaches, from the gradient of one output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layers import formula
from layers.card import Stat
from profiles.errors import Refusal
from profiles.pictures.probe_sharing import Step, dependence, statistics
from profiles.subject import Subject


@dataclass(frozen=True)
class Origin:
    """``cells``: which element of ``source``, counted from 1 row by row, stands in each cell of ``target``; 0 for none.

    A matrix stands on paper as prod(shape[:split]) × prod(shape[split:]) cells, whose symbols are ``sides``.
    ``reduced`` says along what the product with the weights sums it, rows or columns, ``whole`` whether all of one.
    """

    target: str
    shape: tuple[int, ...]
    source: str
    source_shape: tuple[int, ...]
    cells: tuple[int, ...]
    sides: tuple[str, str] = ("", "")
    split: int = 0
    reduced: str = ""
    whole: bool = True

    def record(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        return {
            "kind": "origin",
            "target": self.target,
            "shape": list(self.shape),
            "source": self.source,
            "source_shape": list(self.source_shape),
            "cells": list(self.cells),
            "sides": list(self.sides),
            "split": self.split,
            "reduced": self.reduced,
            "whole": self.whole,
        }


@dataclass(frozen=True)
class Reach:
    """``counts``: in how many ways the middle of the output of ``target`` is reached from each position (H, W)."""

    target: str
    shape: tuple[int, ...]
    counts: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        return {"kind": "reach", "target": self.target, "shape": list(self.shape), "counts": list(self.counts)}


def matrix(subject: Subject, step: Step = lambda done: None) -> Origin:
    """Return what stands in the cells of the statistic ``matrix``, and which side of it the product reduces.

    An output is a sum over some elements of the input, which is found out by changing them; the side is reduced on
    which a line holds all of them.
    """
    x = _numbered(subject.setup.shape)
    module = subject.build()
    with torch.no_grad(), statistics(subject, module, x) as seen:
        subject.run(module, x)
    if "matrix" not in seen:
        raise Refusal(f"{subject.name} made no matrix of its input under these options")
    found = seen["matrix"]
    cells = _whole(subject, found, x.numel())
    sums = [{index + 1 for index in members} for members in dependence(subject, step)]
    split, reduced, whole = _reduced(cells, tuple(found.shape), [each for each in sums if each <= set(cells)])
    stated = next(stat for stat in subject.card.statistics if stat.name == "matrix") if subject.card else None
    sides = ("", "") if stated is None else _sides(stated, subject.symbols, split)
    return Origin("matrix", tuple(found.shape), "input", subject.setup.shape, cells, sides, split, reduced, whole)


def _sides(stated: Stat, symbols: Mapping[str, Any], split: int) -> tuple[str, str]:
    """Return the symbols of rows and columns: those of the card's label where it has two sides, else of its shape."""
    label = [part.strip() for part in stated.label.split("×")]
    if len(label) == 2:
        return label[0], label[1]
    names = ["" if formula.evaluate(size, symbols) == 1 else _chosen(size, symbols) for size in stated.shape]
    down, across = (" · ".join(filter(None, part)) for part in (names[:split], names[split:]))
    return down, across


def _chosen(size: str, symbols: Mapping[str, Any]) -> str:
    """Return ``size`` as people write it, of “a if b else c” the one that holds."""
    first, given, rest = size.partition(" if ")
    condition, _, other = rest.partition(" else ")
    if given and not first.startswith("("):
        size = first if formula.evaluate(condition, symbols) else other
    return formula.pretty(size)


def _reduced(cells: Sequence[int], shape: Sequence[int], sums: Sequence[set[int]]) -> tuple[int, str, bool]:
    """Return at which axis to lay the matrix out, and the side on which the shortest lines hold the sums.

    And whether the lines hold nothing else.
    """
    found: list[tuple[int, int, str, bool]] = []
    for split in range(1, len(shape)):
        wide = math.prod(shape[split:])
        rows = [set(cells[start : start + wide]) - {0} for start in range(0, len(cells), wide)]
        columns = [set(cells[start::wide]) - {0} for start in range(wide)]
        for lines, length, side in ((rows, wide, "rows"), (columns, len(rows), "columns")):
            if len(lines) > 1 and all(any(each <= line for line in lines) for each in sums):
                found.append((length, split, side, all(line in sums for line in lines)))
    _, split, side, whole = min(found, default=(0, len(shape) - 1, "", True))
    return split, side, whole


def taps(subject: Subject) -> list[Origin]:
    """Return for each tap of the kernel which pixel of the first channel it brings to each position of the output.

    The weight of this tap from the first input to the first output channel is 1, all others are 0.
    """
    module, x = subject.build(), _numbered(subject.setup.shape)
    weight = module.get_parameter("weight")
    made = []
    for row, column in itertools.product(*map(range, weight.shape[2:])):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            weight[0, 0, row, column] = 1.0
            y = subject.run(module, x)[:1, :1]
        cells = _whole(subject, y, math.prod(x.shape[2:]))
        made.append(Origin(f"tap {row}, {column}", tuple(y.shape), "input", subject.setup.shape, cells))
    return made


def rearrangement(subject: Subject) -> Origin:
    """Return where each number of the output comes from: from the input, or from what a convolution inside made of it.

    Convolutions are replaced by the numbers 1, 2, … while the module runs; further ones that are added by zeros.
    Raises `Refusal` where the module does more than to move numbers.
    """
    module, x = subject.build(), _numbered(subject.setup.shape)
    with torch.no_grad(), _numbering(module) as numbered:
        y = subject.run(module, x)
    source = "z" if numbered else "input"
    shape = tuple(numbered[0].shape) if numbered else subject.setup.shape
    cells = _whole(subject, y, math.prod(shape))
    return Origin("output", tuple(y.shape), source, shape, cells)


@contextmanager
def _numbering(module: nn.Module) -> Iterator[list[Tensor]]:
    """Let the first convolution inside give the numbers 1, 2, …, the others zeros; yields what was given."""
    given: list[Tensor] = []

    def replace(conv: nn.Module, arguments: Any, y: Tensor) -> Tensor:
        given.append(torch.zeros_like(y) if given else _numbered(y.shape))
        return given[-1]

    handles = [part.register_forward_hook(replace) for part in module.modules() if isinstance(part, nn.Conv2d)]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def reach(subject: Subject) -> list[Reach]:
    """Return in how many ways the middle of the output is reached, after each of the convolutions in ``layers``.

    Every weight from a channel to the same channel is 1, the others 0: the gradient of an output then counts the ways.
    """
    module = subject.build()
    stack = [*module.get_submodule("layers").children()]
    with torch.no_grad():
        for conv in stack:
            weight, bias = conv.get_parameter("weight"), dict(conv.named_parameters()).get("bias")
            weight.zero_()[range(len(weight)), range(len(weight))] = 1.0
            if bias is not None:
                bias.zero_()
    x = torch.ones(subject.setup.shape, dtype=torch.float64, requires_grad=True)
    after: list[Tensor] = []
    handles = [conv.register_forward_hook(lambda conv, arguments, y: after.append(y)) for conv in stack]
    subject.run(module, x)
    for handle in handles:
        handle.remove()
    high, wide = x.shape[2:]
    made = []
    for number, y in enumerate(after, 1):
        (ways,) = torch.autograd.grad(y[0, 0, high // 2, wide // 2], x, retain_graph=True)
        counts = tuple(round(count) for count in ways[0, 0].flatten().tolist())
        made.append(Reach(f"convolution {number} of {len(after)}", (high, wide), counts))
    return made


def _numbered(shape: Sequence[int]) -> Tensor:
    return torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).view(*shape)


def _whole(subject: Subject, found: Tensor, most: int) -> tuple[int, ...]:
    """Return the numbers in ``found``; raises `Refusal` where they are not those that were given, or 0."""
    values = found.flatten().tolist()
    if any(value != round(value) or not 0 <= value <= most for value in values):
        raise Refusal(
            f"{subject.name} computes under these options: it does more than to move the numbers of its input"
        )
    return tuple(map(round, values))
