"""A window into a running layer: stones name their statistics as they compute them, and whoever watches sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_watcher: ContextVar[dict[str, Tensor] | None] = ContextVar("watcher", default=None)


def observe(**statistics: Tensor) -> None:
    """Show ``statistics`` to the watcher, if there is one; costs one look-up otherwise and nothing when compiled."""
    if torch.compiler.is_compiling():
        return
    seen = _watcher.get()
    if seen is not None:
        seen.update({name: tensor.detach() for name, tensor in statistics.items()})


@contextmanager
def observing() -> Iterator[dict[str, Tensor]]:
    """Collect the statistics that stones compute inside the block, by name (the last call wins)."""
    seen: dict[str, Tensor] = {}
    token = _watcher.set(seen)
    try:
        yield seen
    finally:
        _watcher.reset(token)
