"""From what stands on the command line to values: shapes, devices, words of a list, numbers, expectations.

Every function takes the text and returns the value or raises `Refusal`, without the option's name: `commands.py` adds
it. A value that is no text (a default) passes unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layers import catalog
from layers.card import Option, OptionError, OptionValue
from profiles import spelling
from profiles.errors import Refusal
from profiles.speed.sweep import Sweep
from profiles.speed.sweep import parse as read_sweep


@dataclass(frozen=True)
class Shape:
    """The sizes of an input, N × C × positions."""

    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


class NoneValue:
    """None as given on the command line, where Python's None means that the option was not given."""


NONE = NoneValue()


def shape(text: str | Shape) -> Shape:
    """Read ``8x64x32x32``, ``8,64,32,32`` or ``8×64×32×32``."""
    if isinstance(text, Shape):
        return text
    parts = re.split(r"[xX×,]", text.strip())
    if not all(
        re.fullmatch(r"\s*[0-9]+\s*", part, re.ASCII) and len(part.strip()) <= spelling.MOST_DIGITS for part in parts
    ):
        raise Refusal(f"{text!r} is not a shape such as 8x64x32x32 (N x C x positions, sizes ≥ 0)")
    return Shape(tuple(int(part) for part in parts))


def device(text: str) -> str:
    """Read ``cpu``, ``cuda`` or ``cuda:N``; whether the device is there is another question."""
    if text == "cpu" or re.fullmatch(r"cuda(:(0|[1-9][0-9]{0,3}))?", text):
        return text
    raise Refusal(f"{text!r} is not a device: cpu, cuda or cuda:N")


def one_of(*words: str) -> Callable[[str], str]:
    """Return a function that reads one of ``words``."""

    def read(text: str) -> str:
        if text not in words:
            raise Refusal(f"{text!r} is not one of {', '.join(words)}" + suggestion(text, words))
        return text

    return read


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str | int], int]:
    """Return a function that reads an integer of ``least`` to ``most``."""

    def read(text: str | int) -> int:
        number = spelling.whole(text) if isinstance(text, str) else text
        if number is None or not least <= number <= most:
            bounds = f"≥ {least}" if most == 2**63 - 1 else f"from {least} to {most}"
            raise Refusal(f"{text!r} is not an integer {bounds}")
        return number

    return read


class Several(tuple[Any, ...]):
    """Values of one option, in a class of its own: to Typer a tuple is an option with as many arguments."""

    def __str__(self) -> str:
        return ",".join(map(str, self))


def several(read: Callable[[str], Any]) -> Callable[[str | Several], Several]:
    """Return a function that reads values with commas between, each by ``read``, none of them twice."""

    def read_all(text: str | Several) -> Several:
        if isinstance(text, Several):
            return text
        found = Several(read(part.strip()) for part in text.split(","))
        if len(set(found)) < len(found):
            raise Refusal(f"{text!r} has a value twice")
        return found

    return read_all


def sweep(text: str | Sweep) -> Sweep:
    """Read ``N=1,8,64``."""
    return read_sweep(text) if isinstance(text, str) else text


def positive(text: str | float) -> float:
    """Read a finite number > 0."""
    number = spelling.decimal(text) if isinstance(text, str) else text
    if number is None or not (math.isfinite(number) and number > 0):
        raise Refusal(f"{text!r} is not a number > 0")
    return float(number)


def output_file(text: str | Path) -> Path:
    """Read the path of an output file."""
    if text == "-":
        raise Refusal("the result goes to standard output in any case")
    if not str(text).strip():
        raise Refusal("an empty name is no file")
    if str(text).endswith("/"):
        raise Refusal(f"{str(text)!r} names a directory; name a file in it")
    return Path(text)


def option_value(option: Option) -> Callable[[Any], OptionValue | NoneValue]:
    """Return a function that reads ``option`` of a stone and checks its range; None is spelt ``none``."""

    def read(text: Any) -> OptionValue | NoneValue:
        if not isinstance(text, str):
            return NONE if text is None else text
        try:
            value = spelling.read(option, text)
            return NONE if value is None else value
        except OptionError as error:
            message = str(error).removeprefix(f"{option.name}=")
            if option.axes and message.startswith("("):  # a tuple, which was written otherwise
                message = repr(text) + message.partition(")")[2]
            raise Refusal(message) from error

    return read


def suggestion(text: str, words: Any) -> str:
    """Return ``; did you mean …?`` for the nearest of ``words``, or nothing."""
    near = catalog.suggest(text, words)
    return f"; did you mean {near}?" if near else ""
