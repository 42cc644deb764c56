"""Leaving out what is refused and saying so, where many are to be measured and not all can be."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field

from layers.card import OptionError
from profiles.errors import Refusal, Unavailable


@dataclass(frozen=True)
class Skipped:
    """What was to be measured and was not, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class Skips:
    """What was left out so far, each name and reason once. Unless ``wanted``, refusals are raised as ever."""

    wanted: bool
    found: list[Skipped] = field(default_factory=list)
    _last: Exception | None = None

    @contextmanager
    def leaving_out(self, name: str) -> Iterator[None]:
        """Record a refusal of ``name`` in the block, by its options, its input, or the machine."""
        try:
            yield
        except (Refusal, OptionError, Unavailable) as error:
            if not self.wanted:
                raise
            self._last = error
            skipped = Skipped(name, str(error).removeprefix(f"{name} ").removeprefix(f"{name}: "))
            if skipped not in self.found:
                self.found.append(skipped)

    def check(self, left: Sized, to_be: str = "timed") -> None:
        """Raise when nothing is ``left`` ``to_be`` done: `Refusal` or `Unavailable`, as last, with all reasons."""
        if not left and self._last is not None:
            kind = Unavailable if isinstance(self._last, Unavailable) else Refusal
            raise kind("\n".join([f"nothing can be {to_be}", *map(str, self.found)])) from self._last
