"""Stones with one planted bug or lie, and the sentence that a test must catch them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from harness import Case
from torch.autograd.gradcheck import GradcheckError

from layers import catalog
from layers.card import Card
from layers.catalog import Stone

CAUGHT = (
    AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError, GradcheckError, ExceptionGroup,
    pytest.fail.Exception,  # of pytest.raises
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Planted(Stone):
    """A stone with another card or class than its file has."""

    stated: Card
    made: Callable[..., Any]

    @property
    def card(self) -> Card:
        return self.stated

    def load(self) -> Callable[..., Any]:
        return self.made


def planted(name, changes=None, *, made=None, **members):
    """The stone ``name`` with ``changes`` to its card and other ``members`` of its class, or ``made`` for it."""
    stone = catalog.stone(name)
    base = stone.load()
    if members:
        made = type(base.__name__, (base,), members)
    return Planted(stone.name, stone.kind, stone.path, replace(stone.card, **(changes or {})), made or base)


def first(name, train=True, number=0):
    stone = catalog.stone(name)
    return Case(stone, stone.card.examples[number], train)


def caught(test, *arguments, by=CAUGHT):
    with pytest.raises(by):
        test(*arguments)
