"""Run profiles: a YAML file that says what must hold of many stones, checked without importing torch.

    schema: stones.run/1
    inspect:                    # what is measured is what the card says, and what is expected here
      - all                     # every stone of this library on its usual input
      - {stone: gn, options: {groups: 32}, input: 8x64x32x32, expect: [params=129, stats.mean.shape=8x32]}
      - {stone: "torch.nn:GroupNorm", options: {num_groups: 4}, expect: [params=128]}
    check-invariance: [ln, {stone: bn, properties: [w-scale], carriers: [linear]}]
    check-gradients: all
    check-identities: all
    bench: ci                   # a bench profile that is built in, or one written here, without its schema

Every section may be missing. ``-`` and ``_`` are alike in keys. Only stones and, under inspect, classes of torch.nn are
admitted: a file must not make code run. A bench profile is a run profile too, of one bench. Plug-ins that are installed
may be named as any stone, but ``all`` is all of this library: what a profile checks must not depend on what else is
installed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from layers import catalog
from layers.catalog import Stone, suggest
from profiles import expect, loading
from profiles.checks import identities
from profiles.checks.carriers import CARRIERS
from profiles.checks.cells import cases, claiming
from profiles.checks.gradients import GRADIENT_PROPERTIES
from profiles.checks.transformations import PROPERTIES
from profiles.document import Place, ProfileError, Value, built_in, opened
from profiles.errors import Refusal
from profiles.expect import Expectation
from profiles.fields import CLASS_OF_TORCH, SETUP, Fields, check_schema, setup_of, shown, stone_of, subject_of, text_of
from profiles.inspecting import inspect, usual_shape
from profiles.speed.bench import Bench
from profiles.subject import Setup, Subject
from profiles.target import Target, resolve
from profiles.transforms import takes_batch

SCHEMA = loading.OF_RUNS
ALL = "all"
CHECKS: dict[str, Collection[str]] = {
    "check-invariance": PROPERTIES,
    "check-gradients": GRADIENT_PROPERTIES,
    "check-identities": (),
}
_OF_LAYERS = ("input", "dtype", "device", "memory_format", "mode")
_KEYS = ("schema", "inspect", *(name.replace("-", "_") for name in CHECKS), "bench")


@dataclass(frozen=True)
class Inspection:
    """A stone or class to inspect: nothing may contradict its card, and every expectation, at its place, must hold."""

    subject: Subject
    expectations: tuple[tuple[Expectation, Place], ...]
    place: Place


@dataclass(frozen=True)
class Check:
    """A stone whose claims are checked by ``command``, on the ``properties`` and ``carriers`` given (None: all)."""

    command: str
    stone: Stone
    properties: tuple[str, ...] | None
    carriers: tuple[str, ...] | None
    place: Place


@dataclass(frozen=True)
class Timing:
    """A bench; ``places`` are those of its entries, by name, and of their first gates, by name and direction."""

    bench: Bench
    place: Place
    places: dict[str, Place]

    def place_of(self, name: str, direction: str) -> Place:
        """Return where the case ``name`` in ``direction`` stands."""
        return self.places.get(f"{name} {direction}", self.places.get(name, self.place))


Item = Inspection | Check | Timing


@dataclass(frozen=True)
class Run:
    """What to run, in order, under the name of the profile."""

    items: tuple[Item, ...]
    name: str = ""


def names() -> list[str]:
    """Return the names of the profiles that come with the package, of runs and of benches."""
    return [*built_in(SCHEMA), *built_in(loading.SCHEMA)]


def load(name: str) -> Run:
    """Return the run of the profile ``name``: one that is built in, or the path of a YAML file.

    Raises `ProfileError`, a `Refusal` that begins with file:line:column.
    """
    return parse(*opened(name, built_in(SCHEMA, loading.SCHEMA)))


def parse(document: Value, name: str = "") -> Run:
    """Turn a document into a run; see the module for its form."""
    if check_schema(document, SCHEMA, loading.SCHEMA) == loading.SCHEMA:
        return Run((_timing(document, loading.parse(document, name)),), name)
    top = Fields(document, _KEYS)
    items: list[Item] = [_inspection(node) for node in _entries(top, "inspect", catalog.built_in())]
    items += [_check(node, command) for command in CHECKS for node in _entries(top, command, _checked(command))]
    items += _bench(top, name)
    if not items:
        document.refuse(f"there is nothing to run: give {', '.join(_KEYS[1:])}")
    return Run(tuple(items), name)


def _entries(top: Fields, key: str, everything: Iterable[str]) -> Iterator[Value]:
    """Yield the mappings of a section; a name stands for the stone, ``all`` for each of ``everything``."""
    key = key.replace("-", "_")
    node = top.child(key)
    if key not in top:
        return
    for each in node.value if isinstance(node.value, list) else [node]:
        if isinstance(each.value, dict) and each is not node:
            yield each
        elif not isinstance(each.value, str):
            each.refuse(f"{shown(each.value)} is neither a list of stones nor {ALL}" if each is node else _NO_ENTRY)
        else:
            for name in everything if each.value == ALL else [each.value]:
                yield replace(each, value={"stone": replace(each, value=name)})


_NO_ENTRY = f"the name of a stone, {ALL}, or a mapping with the key stone is due here"


def _inspection(node: Value) -> Inspection:
    fields = Fields(node, ("stone", "options", "expect", *SETUP))
    target = _target(fields)
    made = subject_of(fields, target, setup_of(fields, Setup(shape=usual_shape(target))))
    if made.role == "transform":
        for key in _OF_LAYERS:
            if key in fields and not (takes_batch(made) and key in ("input", "dtype")):
                fields.refuse(key, f"is for layers; {made.name} transforms a model")
    expected = ((_expectation(made, each), each.place) for each in fields.items("expect"))
    return Inspection(made, tuple(expected), node.place)


def _target(fields: Fields) -> Target:
    name = fields.text("stone", required=True)
    node = fields.child("stone")
    if not CLASS_OF_TORCH.fullmatch(name):
        if ":" in name:
            node.refuse(f"{name!r} is neither a stone nor a class torch.nn:Name: a file must not make other code run")
        return stone_of(node)
    try:
        return resolve(name)
    except Refusal as error:
        node.refuse(str(error))


def _expectation(of: Subject, node: Value) -> Expectation:
    """Return the expectation that a text spells, about something that the record of ``of`` has."""
    try:
        found = expect.parse(text_of(node))
        if of.role != "transform":  # whose record, without a card's numbers, is not known before
            first, known = found.key.partition(".")[0], inspect(of, measure=False)
            if first not in known:
                expect.find(known, first)
    except ProfileError:
        raise
    except Refusal as error:
        node.refuse(str(error).removeprefix("--expect "))
    return found


def _checked(command: str) -> list[str]:
    """Return the names of the stones of this library that ``command`` is about where none are named."""
    found = identities.stating() if command == "check-identities" else claiming()
    return [stone.name for stone in found if stone.origin is None]


def _check(node: Value, command: str) -> Check:
    has_cells = command != "check-identities"
    fields = Fields(node, ("stone", "properties", "carriers") if has_cells else ("stone",))
    fields.text("stone", required=True)
    stone = stone_of(fields.child("stone"))
    try:
        if has_cells:
            cases(stone, None)
        else:
            identities.stated(stone)
    except Refusal as error:
        fields.refuse("stone", str(error))
    among = {"properties": tuple(CHECKS[command]), "carriers": tuple(CARRIERS)}
    chosen = {key: tuple(text_of(each, words) for each in fields.items(key)) or None for key, words in among.items()}
    return Check(command, stone, **chosen, place=node.place)


def _bench(top: Fields, name: str) -> Iterator[Timing]:
    """Yield the bench, if there is one: built in, or written in place."""
    if "bench" not in top:
        return
    node = top.child("bench")
    if isinstance(node.value, str):
        known = built_in(loading.SCHEMA)
        if node.value not in known:
            near = suggest(node.value, known)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            node.refuse(f"no bench profile {node.value[:60]!r} comes with stones; {hint}")
        yield Timing(loading.load(node.value), node.place, {})
    elif isinstance(node.value, dict):
        schema = {"schema": replace(node, value=loading.SCHEMA)}
        yield _timing(node, loading.parse(replace(node, value={**schema, **node.value}), name))
    else:
        node.refuse("the name of a bench profile, or a mapping, is due here")


def _timing(node: Value, bench: Bench) -> Timing:
    """Return ``bench`` with the places of what ``node``, from which it was made, lists."""
    places: dict[str, Place] = {}
    for entry in node.value["stones"].value:
        named: dict[str, Value] = entry.value if isinstance(entry.value, dict) else {"stone": entry}
        places[named["name" if "name" in named else "stone"].value] = entry.place
    for gate in node.value["gates"].value if "gates" in node.value else ():
        direction = gate.value["direction"].value if "direction" in gate.value else "forward"
        places.setdefault(f"{gate.value['of'].value} {direction}", gate.place)
    return Timing(bench, node.place, places)


__all__ = ["SCHEMA", "Check", "Inspection", "Item", "Place", "ProfileError", "Run", "Timing", "load", "names", "parse"]
