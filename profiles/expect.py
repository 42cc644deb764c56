"""Expectations about a JSON record: ``params=128``, ``stats.mean.shape=8x32``, ``flops.forward<=2.7M``.

A key is a path of names with dots between. A list of things that have a ``name`` is indexed by name, any list by
number; a record with a ``total`` is compared by its total. Sizes may be written 8x32; k, M and G multiply by powers
of 1000.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layers import catalog
from profiles.errors import Refusal
from profiles.spelling import value_text

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_POWERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)([kMG]?)", re.ASCII)
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}
MOST_DIGITS = 400


@dataclass(frozen=True)
class Expectation:
    """One comparison of the value at ``key`` with ``wanted``; ``text`` is how the user wrote it."""

    text: str
    key: str
    comparison: str
    wanted: Any


@dataclass(frozen=True)
class Outcome:
    """What became of an expectation: the value found, and whether it is as expected."""

    expectation: Expectation
    found: Any
    ok: bool

    def __str__(self) -> str:
        return f"expected {self.expectation.text}, found {self.expectation.key}={_short(value_text(self.found))}"


def parse(text: str) -> Expectation:
    """Read ``key=value`` with any of the operators; raises `Refusal`."""
    if isinstance(text, Expectation):
        return text
    matched = re.fullmatch(r"\s*([^\s=!<>]+)\s*(<=|>=|!=|==|=|<|>)\s*(.+?)\s*", text, re.DOTALL)
    if matched is None:
        hint = "; a name with spaces in it is written as its number, cases.0" if re.match(r"\s*\S+ +\S", text) else ""
        raise Refusal(f"{text!r} is not of the form key=value (or key<=value, …), such as params=128{hint}")
    key, comparison, wanted = matched.groups()
    value = _value(wanted)
    if comparison in ("<", "<=", ">", ">=") and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise Refusal(f"{text!r} compares by size: {wanted!r} is no number")
    return Expectation(text.strip(), key, comparison, value)


def judge(expectations: Iterable[Expectation], record: Mapping[str, Any]) -> list[Outcome]:
    """Compare ``record`` with every expectation; raises `Refusal` for a key it does not have, and
    where a number would be compared with text.
    """
    return [_judge(expectation, record) for expectation in expectations]


def _judge(expectation: Expectation, record: Mapping[str, Any]) -> Outcome:
    found = find(record, expectation.key)
    if isinstance(found, (int, float)) and not isinstance(found, bool) and isinstance(expectation.wanted, str):
        raise Refusal(f"--expect {expectation.text}: {expectation.key} is a number, {expectation.wanted!r} is none")
    compare = _COMPARISONS[expectation.comparison]
    ordered = expectation.comparison in ("<", "<=", ">", ">=")
    if ordered and (isinstance(found, bool) or not isinstance(found, (int, float))):
        return Outcome(expectation, found, False)
    left, right = _comparable(found), _comparable(expectation.wanted)
    if isinstance(left, bool) != isinstance(right, bool):  # Python holds that True == 1
        return Outcome(expectation, found, expectation.comparison == "!=")
    return Outcome(expectation, found, bool(compare(left, right)))


def foresee(expectations: Iterable[Expectation], documents: Sequence[Mapping[str, Any]]) -> None:
    """Raise `Refusal` for a key that no record of these JSON Schemas can have; what is in a list is seen later."""
    for expectation in expectations:
        here = list(documents)
        for depth, name in enumerate(expectation.key.split(".")):
            known: dict[str, Any] = {}
            below = [each for one in here for each in _below(one, name, known)]
            if not below:
                raise Refusal(_unknown(expectation.key, depth, name, known))
            here = below


def _below(schema: Mapping[str, Any], name: str, known: dict[str, Any]) -> list[Mapping[str, Any]]:
    """Return what stands under ``name`` in things of ``schema``; properties are added to ``known``."""
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    known |= properties
    if not schema.keys() & {"type", "anyOf", "enum", "const"}:  # anything may stand here
        return [schema]
    found = [each for one in schema.get("anyOf", ()) for each in _below(one, name, known)]
    found += [properties[name]] if name in properties else [others] if isinstance(others, Mapping) else []
    return found + ([schema["items"]] if "items" in schema else [])


def find(record: Mapping[str, Any], key: str) -> Any:
    """Return the value at ``key``; a record with a total gives its total. Raises `Refusal` naming near keys."""
    here: Any = record
    for depth, name in enumerate(key.split(".")):
        entries = _entries(here)
        if name not in entries:
            raise Refusal(_unknown(key, depth, name, entries))
        here = entries[name]
    return here["total"] if isinstance(here, Mapping) and "total" in here else here


def _entries(value: Any) -> dict[str, Any]:
    """Return what may be looked up in ``value``, by name."""
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        by_name = {str(e["name"]): e for e in reversed(value) if isinstance(e, Mapping) and "name" in e}
        return by_name | {str(number): entry for number, entry in enumerate(value)}
    return {}


def _unknown(key: str, depth: int, name: str, entries: Mapping[str, Any]) -> str:
    where = ".".join(key.split(".")[:depth])
    place = f"{where} has no {name!r}" if where else f"the result has no {name!r}"
    near = catalog.suggest(name, entries)
    names = _spelt(entries)
    if near in names:
        hint = f"did you mean {'.'.join([*([where] if where else []), near])}?"
    else:
        hint = f"there are {', '.join(names)}" if names else "nothing is below it"
    return f"--expect {key}: {place}; {hint}"


def _spelt(entries: Mapping[str, Any]) -> list[str]:
    """Return the names among ``entries``; of a name that no key can have, its number with the name beside it."""
    numbers = {id(entry): name for name, entry in entries.items() if name.isdigit()}
    names = [(name, numbers.get(id(entry))) for name, entry in entries.items() if not name.isdigit()]
    names.sort(key=lambda pair: int(pair[1] or 0))  # stable: of a mapping as it stands
    return [f"{number} ({name})" if number and re.search(r"[\s=!<>.]", name) else name for name, number in names]


def _value(text: str) -> Any:
    """Read a number, a shape, a word or text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if (matched := _NUMBER.fullmatch(text)) and len(text) <= MOST_DIGITS:
        return _number(*matched.groups())
    parts = re.split(r"[x×,]", text.strip("[]()"))
    if len(parts) > 1 and all(re.fullmatch(r"\s*[0-9]{1,18}\s*", part, re.ASCII) for part in parts):
        return [int(part) for part in parts]
    return text


def _number(digits: str, suffix: str) -> int | float:
    """Return an exact integer where the text is one, also ``2.7M``."""
    from fractions import Fraction

    exact = Fraction(digits) * _POWERS[suffix]
    return exact.numerator if exact.denominator == 1 else float(exact)


def _comparable(value: Any) -> Any:
    """Return a list of one size as that size, so that [8] compares with 8."""
    if isinstance(value, (list, tuple)):
        return value[0] if len(value) == 1 and isinstance(value[0], int) else list(value)
    return value


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
