"""What profiles of every kind are read with: mappings of known keys, setups, stones and options, each with its place.

Whatever is wrong is a `ProfileError` that begins with file:line:column. Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from layers import catalog
from layers.card import OptionError
from layers.catalog import Stone
from profiles.document import Value, per_axis
from profiles.errors import Refusal
from profiles.subject import DTYPES, MEMORY_FORMATS, Setup, Subject, subject
from profiles.target import Target

DEVICES = ("cpu", "cuda")
MODES = ("train", "eval")
SETUP = ("input", "dtype", "device", "memory_format", "mode", "seed")
CLASS_OF_TORCH = re.compile(r"torch\.nn:[A-Za-z_]\w*", re.ASCII)  # no path: a file with such a name would run


@dataclass(frozen=True)
class Fields:
    """A mapping whose keys are known and whose values are fetched with their type and range."""

    node: Value
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.node.value, dict):
            self.node.refuse(f"a mapping with the keys {', '.join(self.known)} is due here")
        for key, value in self.node.value.items():
            if key not in self.known:
                near = catalog.suggest(key, self.known)
                value.refuse("unknown key; " + (f"did you mean {near}?" if near else f"known: {', '.join(self.known)}"))

    def __contains__(self, key: str) -> bool:
        return key in self.node.value

    def refuse(self, key: str, message: str) -> NoReturn:
        """Raise ProfileError about the value of ``key``, or the mapping where it is missing."""
        found: Value = self.node.value.get(key, self.node)
        found.refuse(message)

    def child(self, key: str) -> Value:
        """Return the value of ``key`` as it is, an empty mapping when it is missing."""
        path = f"{self.node.path}.{key}" if self.node.path else key
        found: Value = self.node.value.get(key, Value({}, self.node.place, path))
        return found

    def items(self, key: str) -> list[Value]:
        """Return the list under ``key``, empty when it is missing."""
        if key not in self:
            return []
        found = self.child(key)
        if not isinstance(found.value, list):
            found.refuse("a list is due here")
        return list(found.value)

    def text(self, key: str, default: str = "", *, among: tuple[str, ...] = (), required: bool = False) -> str:
        """Return the text under ``key``, one of ``among`` if any are given."""
        if key not in self:
            if required:
                self._miss(key, f"; write {key}: {default}" if default else "")
            return default
        return text_of(self.child(key), among)

    def number(self, key: str, kind: type, default: float | None = None) -> Any:
        """Return the number under ``key``, an integer where ``kind`` is int; without a default it is required."""
        if key not in self:
            if default is None:
                self._miss(key)
            return default
        value = self.child(key).value
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            hint = " (YAML reads 1e5 as text: write 1.0e+5)" if isinstance(value, str) else ""
            self.refuse(key, f"{shown(value)} is not {'an integer' if kind is int else 'a number'}{hint}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return the truth value under ``key``, ``default`` when it is missing."""
        value = self.child(key).value if key in self else default
        if not isinstance(value, bool):
            self.refuse(key, f"{shown(value)} is not true or false")
        return bool(value)

    def _miss(self, key: str, remedy: str = "") -> NoReturn:
        self.node.refuse(f"the key {key} is missing{remedy}")


def check_schema(document: Value, *known: str) -> str:
    """Return the schema that a document says it has; refuse one that says none of ``known``.

    What is no mapping is left to `Fields`, which names the keys that are due.
    """
    if not isinstance(document.value, dict):
        return known[0]
    top = Fields(document, tuple(document.value))
    found = top.text("schema", known[0], required=True)
    if found not in known:
        top.refuse("schema", f"{found[:60]!r} is not read here; this version reads {' and '.join(known)}")
    return found


def setup_of(fields: Fields, base: Setup) -> Setup:
    """Return ``base`` with what ``fields`` say."""
    seed = fields.number("seed", int, base.seed)
    if not 0 <= seed < 2**32:
        fields.refuse("seed", f"{seed} is out of range: it must be ≥ 0 and < 2^32")
    return Setup(
        shape=shape_of(fields.child("input")) if "input" in fields else base.shape,
        dtype=fields.text("dtype", base.dtype, among=tuple(DTYPES)),
        device=fields.text("device", base.device, among=DEVICES),
        memory_format=fields.text("memory_format", base.memory_format, among=MEMORY_FORMATS),
        train=fields.text("mode", MODES[not base.train], among=MODES) == "train",
        seed=seed,
    )


def shape_of(node: Value) -> tuple[int, ...]:
    """Return the sizes that the text ``node`` spells."""
    sizes = str(node.value).split("x")
    if not isinstance(node.value, str) or not all(s.isascii() and s.isdigit() and len(s) < 20 for s in sizes):
        node.refuse(f"{shown(node.value)} is no shape; write N x C x positions, such as 8x64x32x32")
    return tuple(map(int, sizes))


def subject_of(fields: Fields, target: Target, setup: Setup) -> Subject:
    """Return ``target`` with the ``options`` of ``fields`` under ``setup``; what it refuses is refused there."""
    options = fields.child("options")
    if not isinstance(options.value, dict):
        options.refuse("a mapping of the stone's options is due here")
    for value in options.value.values():
        if isinstance(value.value, (dict, list)) and per_axis(value) is None:
            value.refuse(f"{shown(value.value)} is no value of an option")
    values = {name: per_axis(value) or value.value for name, value in options.value.items()}
    try:
        return subject(target, values, setup)
    except OptionError as error:
        wrong: Value = options.value.get(error.option, options)
        wrong.refuse(str(error))
    except Refusal as error:  # which names the option of the command line; here it is a key
        said = re.fullmatch(r"--([a-z]+(?:-[a-z]+)*) (.+)", str(error), re.DOTALL)
        if said is None:
            fields.node.refuse(str(error))
        key, message = said[1].replace("-", "_"), re.sub(r"--(?=[a-z])", "", said[2])
        fields.refuse(key, message if key in fields else f"{said[1]} {message}")


def stone_of(node: Value) -> Stone:
    """Return the stone that the text ``node`` names."""
    try:
        return catalog.stone(text_of(node))
    except catalog.UnknownStone as error:
        node.refuse(str(error))


def text_of(node: Value, among: tuple[str, ...] = ()) -> str:
    """Return the text that ``node`` is, one of ``among`` if any are given."""
    value = node.value
    if not isinstance(value, str) or (among and value not in among):
        near = catalog.suggest(value, among) if isinstance(value, str) and among else ""
        hint = f"; did you mean {near}?" if near else ""
        node.refuse(f"{shown(value)} is not {'one of ' + ', '.join(among) if among else 'text'}{hint}")
    return value


def shown(value: Any) -> str:
    """Return a scalar as it may stand in a message; collections by what they are."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value if not isinstance(value, str) else value[:60])
