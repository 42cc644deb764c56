"""Values of options as people write them: ``3``, ``0.5``, ``true``, ``none``, ``3x5`` for one number per axis."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from layers.card import Option, OptionError, OptionValue
from layers.catalog import suggest

MOST_DIGITS = 18


def read(option: Option, text: str) -> OptionValue:
    """Return ``text`` as a checked value of ``option``; raises OptionError."""
    if option.optional and text.lower() == "none":
        return None
    return option.check(_axes(text) if option.axes else _as(option.type, text))


def read_all(name: str, options: Iterable[Option], text: str) -> dict[str, OptionValue]:
    """Return ``option=value,option=value`` as checked values of the ``options`` of what is called ``name``.

    Raises OptionError for an option that there is not, one that is given twice, or a refused value.
    """
    known = {option.name: option for option in options}
    values: dict[str, OptionValue] = {}
    for pair in text.split(",") if text else ():
        key, _, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if key not in known:
            near = suggest(key, known)
            raise OptionError(f"{name} has no option {key!r}" + (f"; did you mean {near}?" if near else ""))
        if key in values:
            raise OptionError(f"{name}: {key} is given twice", key)
        values[key] = read(known[key], value.strip())
    return values


def _axes(text: str) -> OptionValue:
    """Read ``3``, ``3x5``, ``3,5`` or ``3×5``; what is none of them stays text, which `Option.check` refuses."""
    numbers = [whole(part) for part in re.split(r"[xX×,]", text)]
    found = tuple(number for number in numbers if number is not None)
    if len(found) < len(numbers):
        return text
    return found[0] if len(found) == 1 else found


def _as(kind: type, text: str) -> OptionValue:
    """Return ``text`` as ``kind``, or unchanged where it is none, for `Option.check` to refuse with its own words."""
    if kind is int:
        number = whole(text)
        return text if number is None else number
    if kind is float:
        real = decimal(text)
        return text if real is None else real
    return {"true": True, "false": False}.get(text.lower(), text) if kind is bool else text


def whole(text: str) -> int | None:
    """Return the integer that ``text`` is, of at most `MOST_DIGITS` digits, else None."""
    matched = re.fullmatch(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}", text.strip(), re.ASCII)
    return int(text) if matched else None


def decimal(text: str) -> float | None:
    """Return the number that ``text`` is, else None."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def value_text(value: Any) -> str:
    """Return any value of a record as the command line spells it: 8x32, true, none, 128."""
    if isinstance(value, (list, tuple)) and all(isinstance(entry, int) for entry in value):
        return "x".join(map(str, value)) or "scalar"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
