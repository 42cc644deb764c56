"""Bench profiles: a YAML file checked and turned into a `Bench`, without importing torch.

    schema: stones.profile/1
    defaults: {input: 8x64x32x32, dtype: float32, device: cpu, memory-format: contiguous, mode: train, seed: 0,
               threads: 1}
    seconds: 3                  # per case; rounds: at most so many; precision: half width at which to stop
    directions: [forward, forward+backward]
    stones:
      - gn
      - {stone: gn, name: gn-8, options: {groups: 8}, directions: [forward], input: 8x64x56x56}
    gates:
      - {of: gn, vs: peer, direction: forward, max-ratio: 1.1}
      - {of: gn, vs: copy, direction: forward, max-ratio: 6, advisory: true}

``-`` and ``_`` are alike in keys. ``vs`` is copy, peer, the name of another entry, a stone, or a class of torch.nn; no
other class, because a file must not make code run.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from layers import catalog
from layers.card import OptionError
from profiles.allocator import ALLOCATORS, KEPT
from profiles.bench import Bench
from profiles.cases import COPY, DIRECTIONS, PEER, Case, Gate, case
from profiles.clocks import CLOCKS, WALL
from profiles.document import Place, ProfileError, Value, per_axis, read
from profiles.errors import Refusal
from profiles.subject import DTYPES, MEMORY_FORMATS, Setup, Subject, subject
from profiles.timing import Plan

SCHEMA = "stones.profile/1"
DEVICES = ("cpu", "cuda")
MODES = ("train", "eval")
_CLASS_OF_TORCH = re.compile(r"torch\.nn:[A-Za-z_]\w*", re.ASCII)  # no path: a file with such a name would run
_PLAN = {"seconds": float, "rounds": int, "block": float, "precision": float}
_SETUP = ("input", "dtype", "device", "memory_format", "mode", "seed")
_RUN = ("schema", "defaults", "clock", "allocator", "compile", "directions", "stones", "gates", *_PLAN)


def built_in() -> list[str]:
    """Return the names of the profiles that come with the package."""
    files = importlib.resources.files("profiles").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(name: str) -> Bench:
    """Return the bench of the profile ``name``: one that is built in, or the path of a YAML file.

    Raises `ProfileError`, a `Refusal` that begins with file:line:column.
    """
    if name in built_in():
        with importlib.resources.as_file(importlib.resources.files("profiles") / f"{name}.yaml") as path:
            return parse(read(path, path.name), name)
    path = Path(name)
    if not _exists(path):
        near = catalog.suggest(name, built_in())
        known = f"did you mean {near}?" if near else f"built in are {', '.join(built_in())}"
        raise Refusal(f"there is no profile {name!r}, nor a file of that name; {known}")
    return parse(read(path, name), path.stem)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def parse(document: Value, name: str = "") -> Bench:
    """Turn a document into a bench; see the module for its form."""
    top = _Fields(document, _RUN)
    if top.text("schema", SCHEMA, required=True) != SCHEMA:
        top.refuse("schema", f"this version reads {SCHEMA}")
    plan = {key: top.number(key, kind) for key, kind in _PLAN.items() if key in top}
    defaults = _Fields(top.child("defaults"), (*_SETUP, "threads"))
    setup = _setup(defaults, Setup())
    entries = _entries(top, setup)
    try:
        return Bench(
            cases=_cases(top, entries),
            plan=Plan(**plan, seed=setup.seed),
            threads=defaults.number("threads", int, 1),
            clock=top.text("clock", WALL, among=CLOCKS),
            allocator=top.text("allocator", KEPT, among=ALLOCATORS),
            name=name,
        )
    except ProfileError:
        raise
    except Refusal as error:  # begins with name=value
        wrong: Value = {**top.node.value, **defaults.node.value}.get(str(error).partition("=")[0], document)
        wrong.refuse(str(error))


@dataclass(frozen=True)
class _Fields:
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
        found: Value = self.node.value.get(key, Value({}, self.node.place, key))
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
        return _text(self.child(key), among)

    def number(self, key: str, kind: type, default: float | None = None) -> Any:
        """Return the number under ``key``, an integer where ``kind`` is int; without a default it is required."""
        if key not in self:
            if default is None:
                self._miss(key)
            return default
        value = self.child(key).value
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            hint = " (YAML reads 1e5 as text: write 1.0e+5)" if isinstance(value, str) else ""
            self.refuse(key, f"{_shown(value)} is not {'an integer' if kind is int else 'a number'}{hint}")
        return value

    def flag(self, key: str) -> bool:
        """Return the truth value under ``key``, False when it is missing."""
        value = self.child(key).value if key in self else False
        if not isinstance(value, bool):
            self.refuse(key, f"{_shown(value)} is not true or false")
        return bool(value)

    def _miss(self, key: str, remedy: str = "") -> NoReturn:
        self.node.refuse(f"the key {key} is missing{remedy}")


@dataclass(frozen=True)
class _Entry:
    """One of the stones of a profile, in the directions to measure."""

    subject: Subject
    directions: tuple[str, ...]
    place: Value


def _setup(fields: _Fields, base: Setup) -> Setup:
    """Return ``base`` with what ``fields`` say."""
    seed = fields.number("seed", int, base.seed)
    if not 0 <= seed < 2**32:
        fields.refuse("seed", f"{seed} is out of range: it must be ≥ 0 and < 2^32")
    return Setup(
        shape=_shape(fields.child("input")) if "input" in fields else base.shape,
        dtype=fields.text("dtype", base.dtype, among=tuple(DTYPES)),
        device=fields.text("device", base.device, among=DEVICES),
        memory_format=fields.text("memory_format", base.memory_format, among=MEMORY_FORMATS),
        train=fields.text("mode", MODES[not base.train], among=MODES) == "train",
        seed=seed,
    )


def _shape(node: Value) -> tuple[int, ...]:
    sizes = str(node.value).split("x")
    if not isinstance(node.value, str) or not all(s.isascii() and s.isdigit() and len(s) < 20 for s in sizes):
        node.refuse(f"{_shown(node.value)} is no shape; write N x C x positions, such as 8x64x32x32")
    return tuple(map(int, sizes))


def _entries(top: _Fields, setup: Setup) -> dict[str, _Entry]:
    """Return the stones by name."""
    usual = _directions(top, ("forward",))
    entries: dict[str, _Entry] = {}
    for node in top.items("stones"):
        if isinstance(node.value, str):
            node = Value({"stone": node}, node.place, node.path)
        fields = _Fields(node, ("stone", "name", "options", "directions", *_SETUP))
        stone = fields.text("stone", required=True)
        name = fields.text("name", stone)
        if name in entries or name in (COPY, PEER):
            node.refuse(f"the name {name!r} is taken: give this one another, by the key name")
        made = _subject(fields, stone, _setup(fields, setup))
        entries[name] = _Entry(made, _directions(fields, usual), node)
    if not entries:
        top.refuse("stones", "there is nothing to bench: list stones")
    return entries


def _subject(fields: _Fields, stone: str, setup: Setup) -> Subject:
    options = fields.child("options")
    if not isinstance(options.value, dict):
        options.refuse("a mapping of the stone's options is due here")
    for value in options.value.values():
        if isinstance(value.value, (dict, list)) and per_axis(value) is None:
            value.refuse(f"{_shown(value.value)} is no value of an option")
    values = {name: per_axis(value) or value.value for name, value in options.value.items()}
    try:
        return subject(catalog.stone(stone), values, setup)
    except catalog.UnknownStone as error:
        fields.refuse("stone", str(error))
    except OptionError as error:
        wrong: Value = options.value.get(error.option, options)
        wrong.refuse(str(error))
    except Refusal as error:
        fields.node.refuse(str(error))


def _directions(fields: _Fields, usual: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_text(node, DIRECTIONS) for node in fields.items("directions"))) or usual


def _cases(top: _Fields, entries: Mapping[str, _Entry]) -> tuple[Case, ...]:
    """Return a case for each stone and direction, with the gates that name it."""
    gates: dict[tuple[str, str], list[Gate]] = {}
    for node in top.items("gates"):
        of, direction, gate = _gate(node, entries)
        gates.setdefault((of, direction), []).append(gate)
    compiled, found = top.flag("compile"), []
    subjects = {name: entry.subject for name, entry in entries.items()}
    for name, entry in entries.items():
        for direction in entry.directions:
            bars = gates.get((name, direction), [])
            try:
                found.append(case(entry.subject, direction, gates=bars, label=name, others=subjects, compile=compiled))
            except Refusal as error:
                entry.place.refuse(str(error))
    return tuple(found)


def _gate(node: Value, entries: Mapping[str, _Entry]) -> tuple[str, str, Gate]:
    """Return the entry and direction that a gate is about, and the gate."""
    fields = _Fields(node, ("of", "vs", "direction", "max_ratio", "advisory"))
    of = fields.text("of", required=True)
    direction = fields.text("direction", DIRECTIONS[0], among=DIRECTIONS)
    vs = fields.text("vs", required=True)
    if of not in entries:
        near = catalog.suggest(of, entries)
        fields.refuse("of", f"no stone of this profile is called {of!r}" + (f"; did you mean {near}?" if near else ""))
    if direction not in entries[of].directions:
        fields.refuse("direction", f"{of} is not measured {direction}: add it to its directions")
    if vs not in (COPY, PEER, *entries, *catalog.stones()) and not _CLASS_OF_TORCH.fullmatch(vs):
        fields.refuse("vs", f"{vs!r} is none of copy, peer, a name of this profile, a stone, a class torch.nn:Name")
    ratio = fields.number("max_ratio", float)
    if not 0 < ratio <= 1e6:
        fields.refuse("max_ratio", f"{ratio:g} is out of range: it must be > 0 and ≤ 1e6")
    return of, direction, Gate(vs, float(ratio), fields.flag("advisory"))


def _text(node: Value, among: tuple[str, ...] = ()) -> str:
    value = node.value
    if not isinstance(value, str) or (among and value not in among):
        near = catalog.suggest(value, among) if isinstance(value, str) and among else ""
        hint = f"; did you mean {near}?" if near else ""
        node.refuse(f"{_shown(value)} is not {'one of ' + ', '.join(among) if among else 'text'}{hint}")
    return value


def _shown(value: Any) -> str:
    """Return a scalar as it may stand in a message; collections by what they are."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value if not isinstance(value, str) else value[:60])


__all__ = ["Place", "ProfileError", "built_in", "load", "parse"]
