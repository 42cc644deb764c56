"""A window into a running layer: stones name their statistics as they compute them, and whoever watches sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


class _Watcher(NamedTuple):
    seen: dict[str, Tensor]
    follows: bool


_watcher: ContextVar[_Watcher | None] = ContextVar("watcher", default=None)


def observe(**statistics: Tensor | Callable[[], Tensor]) -> None:
    """Show ``statistics`` to the watcher, if there is one; costs one look-up otherwise and nothing when compiled.

    What the layer does not need itself is a function, which is called for the watcher alone.
    """
    if torch.compiler.is_compiling():
        return
    watcher = _watcher.get()
    if watcher is not None:
        watcher.seen.update({name: _shown(statistic, watcher) for name, statistic in statistics.items()})


def _shown(statistic: Tensor | Callable[[], Tensor], watcher: _Watcher) -> Tensor:
    if isinstance(statistic, Tensor):
        return statistic.detach()
    with torch.no_grad(), nullcontext() if watcher.follows else _disable_current_modes():
        return statistic()


def is_watched() -> bool:
    """Tell whether somebody watches: where a statistic is worked out for `observe` alone, it need not be otherwise."""
    return not torch.compiler.is_compiling() and _watcher.get() is not None


def is_followed() -> bool:
    """Tell whether somebody follows the layer operation by operation."""
    watcher = _watcher.get()
    return watcher is not None and watcher.follows


@contextmanager
def observing(*, follows: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collect the statistics that stones compute inside the block, by name (the last call wins).

    With ``follows`` somebody follows operations: layers then go ways on which statistics are read, and those that are
    computed for the watcher alone are so before the eyes of who follows.
    """
    seen: dict[str, Tensor] = {}
    token = _watcher.set(_Watcher(seen, follows))
    try:
        yield seen
    finally:
        _watcher.reset(token)
