"""A window into a running layer: stones name their statistics as they compute them, and whoever watches sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_watcher: ContextVar[dict[str, Tensor] | None] = ContextVar("watcher", default=None)


def observe(**statistics: Tensor | Callable[[], Tensor]) -> None:
    """Show ``statistics`` to the watcher, if there is one; costs one look-up otherwise and nothing when compiled.

    What the layer does not need itself is a function, which is called for the watcher alone: nothing counts it.
    """
    if torch.compiler.is_compiling():
        return
    seen = _watcher.get()
    if seen is not None:
        for name, statistic in statistics.items():
            if isinstance(statistic, Tensor):
                seen[name] = statistic.detach()
            else:
                with torch.no_grad(), _disable_current_modes():
                    seen[name] = statistic()


def is_watched() -> bool:
    """Tell whether somebody watches: where a statistic is worked out for `observe` alone, it need not be otherwise."""
    return not torch.compiler.is_compiling() and _watcher.get() is not None


@contextmanager
def observing() -> Iterator[dict[str, Tensor]]:
    """Collect the statistics that stones compute inside the block, by name (the last call wins)."""
    seen: dict[str, Tensor] = {}
    token = _watcher.set(seen)
    try:
        yield seen
    finally:
        _watcher.reset(token)
