"""One option of a stone: its type, range and default, and how a value is refused. Standard library only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

OptionValue = int | float | bool | str | None | tuple[int, ...]


class OptionError(ValueError):
    """An option or a combination of options that a stone refuses; ``option`` names it for the command line."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, kw_only=True)
class Option:
    """One constructor option: name, type, default, range, and where the default comes from.

    ``optional`` admits None (spelt ``none`` on the command line). ``choices`` lists the admitted strings. With ``axes``
    the option is one integer for all of so many axes, or one for each (``3x5`` on the command line); `check` returns
    the tuple. ``alike`` lists pairs of choices that are two names for the same. ``pattern`` is a regular expression for
    the whole of a text, ``like`` says in words what fits it.
    """

    name: str
    type: type
    default: OptionValue
    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()
    alike: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    axes: int = 0
    pattern: str = ""
    like: str = ""
    source: str = ""

    def check(self, value: Any) -> OptionValue:
        """Return ``value`` (an int widened to float where a float is due) or raise OptionError naming the remedy."""
        if value is None and self.optional:
            return None
        if self.axes:
            return self._per_axis(value)
        return self._single(value)

    def _per_axis(self, value: Any) -> tuple[int, ...]:
        each = tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.axes
        right_type = len(each) == self.axes and all(isinstance(v, int) and not isinstance(v, bool) for v in each)
        if not right_type:
            raise OptionError(f"{self.name}={value!r} is not {self.expected()}", self.name)
        if not all(map(self._in_range, each)):
            raise OptionError(f"{self.name}={value!r} is out of range: it must be {self.expected()}", self.name)
        return each

    def _single(self, value: Any) -> OptionValue:
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        right_type = isinstance(value, self.type) and not (self.type is int and isinstance(value, bool))
        if not right_type or (isinstance(value, float) and not math.isfinite(value)):
            raise OptionError(f"{self.name}={value!r} is not {self.expected()}", self.name)
        fits = not self.pattern or re.fullmatch(self.pattern, str(value), re.ASCII)
        if not fits or (self.choices and value not in self.choices):
            raise OptionError(f"{self.name}={value!r} is not {self.expected()}", self.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not self._in_range(value):
            raise OptionError(f"{self.name}={value!r} is out of range: it must be {self.expected()}", self.name)
        checked: OptionValue = value
        return checked

    def _in_range(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def bounds(self) -> str:
        """Return the range in words, such as ``≥ 1`` or ``> 0 and ≤ 1``; empty when there is none."""
        marks = (("≥", self.ge), (">", self.gt), ("≤", self.le), ("<", self.lt))
        return " and ".join(f"{mark} {bound:g}" for mark, bound in marks if bound is not None)

    def expected(self) -> str:
        """Return what the option admits, in words."""
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        else:
            text = self.like or "text"
            words = {int: "an integer", float: "a finite number", bool: "true or false", str: text}[self.type]
            words += f" {self.bounds()}" if self.bounds() else ""
            words += f", or {self.axes} of them" if self.axes else ""
        return words + (" or none" if self.optional else "")
