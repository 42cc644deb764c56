"""Bench profiles: a YAML file checked and turned into a `Bench`, without importing torch.

    schema: stones.profile/1
    defaults: {input: 8x64x32x32, dtype: float32, device: cpu, memory-format: contiguous, mode: train, seed: 0,
               threads: 1, compile: false}
    seconds: 3                  # per case; rounds: at most so many; precision: half width at which to stop
    directions: [forward, forward+backward]
    stones:
      - gn
      - {stone: gn, name: gn-8, options: {groups: 8}, directions: [forward], input: 8x64x56x56, threads: 2}
      - {stone: adax, input: 50000x1, tensors: 200}  # an optimizer of several parameters
    gates:
      - {of: gn, vs: peer, direction: forward, max-ratio: 1.1}
      - {of: gn, vs: copy, direction: forward, max-ratio: 6, advisory: true}

``-`` and ``_`` are alike in keys. ``vs`` is copy, peer, the name of another entry, a stone, or a class of torch.nn; no
other class, because a file must not make code run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from layers import catalog
from profiles.allocator import ALLOCATORS, KEPT
from profiles.document import Place, ProfileError, Value, built_in, opened
from profiles.errors import Refusal
from profiles.fields import CLASS_OF_TORCH, SETUP, Fields, check_schema, setup_of, stone_of, subject_of, text_of
from profiles.speed.bench import Bench
from profiles.speed.cases import COPY, DIRECTIONS, PEER, Case, Gate, case
from profiles.speed.clocks import CLOCKS, WALL
from profiles.speed.timing import Plan
from profiles.subject import Setup, Subject
from profiles.threads import MOST_THREADS

SCHEMA, OF_RUNS = "stones.profile/1", "stones.run/1"
_PLAN = {"seconds": float, "rounds": int, "block": float, "precision": float}
_RUN = ("schema", "defaults", "clock", "allocator", "roofline", "directions", "stones", "gates", *_PLAN)
_RUNNING = ("threads", "compile")  # of an entry, beside its setup


def load(name: str) -> Bench:
    """Return the bench of the profile ``name``: one that is built in, or the path of a YAML file.

    Raises `ProfileError`, a `Refusal` that begins with file:line:column.
    """
    if name in built_in(OF_RUNS):
        raise Refusal(f"the profile {name} is not a bench: stones run {name}")
    return parse(*opened(name, built_in(SCHEMA)))


def parse(document: Value, name: str = "") -> Bench:
    """Turn a document into a bench; see the module for its form."""
    check_schema(document, SCHEMA)
    top = Fields(document, _RUN)
    plan = {key: top.number(key, kind) for key, kind in _PLAN.items() if key in top}
    defaults = Fields(top.child("defaults"), (*SETUP, *_RUNNING))
    setup = setup_of(defaults, Setup())
    entries = _entries(top, setup, _running(defaults, 1, False))
    try:
        return Bench(
            cases=_cases(top, entries),
            plan=Plan(**plan, seed=setup.seed),
            clock=top.text("clock", WALL, among=CLOCKS),
            allocator=top.text("allocator", KEPT, among=ALLOCATORS),
            name=name,
            roofline=top.flag("roofline", True),
        )
    except ProfileError:
        raise
    except Refusal as error:  # begins with name=value
        wrong: Value = {**top.node.value, **defaults.node.value}.get(str(error).partition("=")[0], document)
        wrong.refuse(str(error))


@dataclass(frozen=True)
class _Entry:
    """One of the stones of a profile, in the directions to measure."""

    subject: Subject
    directions: tuple[str, ...]
    threads: int
    compile: bool
    place: Value


def _entries(top: Fields, setup: Setup, running: tuple[int, bool]) -> dict[str, _Entry]:
    """Return the stones by name."""
    usual = _directions(top, ("forward",))
    entries: dict[str, _Entry] = {}
    for node in top.items("stones"):
        if isinstance(node.value, str):
            node = Value({"stone": node}, node.place, node.path)
        fields = Fields(node, ("stone", "name", "options", "directions", "tensors", *SETUP, *_RUNNING))
        stone = fields.text("stone", required=True)
        name = fields.text("name", stone)
        if name in entries or name in (COPY, PEER):
            node.refuse(f"the name {name!r} is taken: give this one another, by the key name")
        here = replace(setup_of(fields, setup), tensors=fields.number("tensors", int, 1))
        made = subject_of(fields, stone_of(fields.child("stone")), here)
        entries[name] = _Entry(made, _directions(fields, usual), *_running(fields, *running), node)
    if not entries:
        top.refuse("stones", "there is nothing to bench: list stones")
    return entries


def _running(fields: Fields, usual: int, compile: bool) -> tuple[int, bool]:
    """Return the number of threads, and whether to compile."""
    threads = fields.number("threads", int, usual)
    if not 1 <= threads <= MOST_THREADS:
        fields.refuse("threads", f"{threads} is out of range: it must be ≥ 1 and ≤ {MOST_THREADS}")
    return threads, fields.flag("compile", compile)


def _directions(fields: Fields, usual: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text_of(node, DIRECTIONS) for node in fields.items("directions"))) or usual


def _cases(top: Fields, entries: Mapping[str, _Entry]) -> tuple[Case, ...]:
    """Return a case for each stone and direction, with the gates that name it."""
    gates: dict[tuple[str, str], list[Gate]] = {}
    for node in top.items("gates"):
        of, direction, gate = _gate(node, entries)
        gates.setdefault((of, direction), []).append(gate)
    found = []
    subjects = {name: entry.subject for name, entry in entries.items()}
    for name, entry in entries.items():
        for direction in entry.directions:
            bars = gates.get((name, direction), [])
            try:
                made = case(entry.subject, direction, gates=bars, label=name, others=subjects)
                found.append(replace(made, threads=entry.threads, compile=entry.compile))
            except Refusal as error:
                entry.place.refuse(str(error))
    return tuple(found)


def _gate(node: Value, entries: Mapping[str, _Entry]) -> tuple[str, str, Gate]:
    """Return the entry and direction that a gate is about, and the gate."""
    fields = Fields(node, ("of", "vs", "direction", "max_ratio", "advisory"))
    of = fields.text("of", required=True)
    direction = fields.text("direction", DIRECTIONS[0], among=DIRECTIONS)
    vs = fields.text("vs", required=True)
    if of not in entries:
        near = catalog.suggest(of, entries)
        fields.refuse("of", f"no stone of this profile is called {of!r}" + (f"; did you mean {near}?" if near else ""))
    if direction not in entries[of].directions:
        fields.refuse("direction", f"{of} is not measured {direction}: add it to its directions")
    if vs not in (COPY, PEER, *entries, *catalog.stones()) and not CLASS_OF_TORCH.fullmatch(vs):
        fields.refuse("vs", f"{vs!r} is none of copy, peer, a name of this profile, a stone, a class torch.nn:Name")
    ratio = fields.number("max_ratio", float)
    if not 0 < ratio <= 1e6:
        fields.refuse("max_ratio", f"{ratio:g} is out of range: it must be > 0 and ≤ 1e6")
    return of, direction, Gate(vs, float(ratio), fields.flag("advisory"))


__all__ = ["Place", "ProfileError", "built_in", "load", "parse"]
