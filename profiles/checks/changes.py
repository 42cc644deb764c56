"""Two saved results of one schema beside each other: what counts strictly, what takes time as a ratio with an interval.

Exact values (counts, bytes, shapes, verdicts) are equal or a change. Prose and what a computation in floating point
comes to are listed and bind nobody. Under what circumstances both were made is named; where these differ, times do not
compare. Standard library only: torch is not needed to read two files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profiles.errors import Refusal
from profiles.results import DIFF
from profiles.speed import times

Record = dict[str, Any]
# The blocks of a result that say how it came about, not what was found.
CIRCUMSTANCES = ("environment", "plan", "ranks", "profile", "interrupted", "budget")
# Left out: the clock's, what follows from it, what rounding alone decides, what repeats other parts.
IGNORED = {
    "samples_ns", "ms", "ms_ci95", "iqr_ms", "min_ms", "copies", "gb_per_s", "of_copy_bandwidth", "images_per_s",
    "gflop_per_s", "calls", "rounds", "repeated_blocks", "seconds", "settled", "warnings", "ratio", "ratio_ci95",
    "noise_floor", "attempts", "earlier", "compile_s", "spread_ms", "slowest_rank", "share", "deviation", "within",
    "counterexample", "reason", "ceilings", "roofline", "of_roofline",
    "checks", "expectations", "points", "differing", "false_alarms", "noise_floor_median", "drift", "place",
    *CIRCUMSTANCES,
}  # fmt: skip
# Listed, but no reason to fail: words, and what a computation came to.
UNBINDING = {
    "notes", "explained", "help", "title", "caution", "message", "advice", "end", "why", "says", "found",
    "smallest_difference", "summary", "reasons",
}  # fmt: skip
STRICT = {"options", "settings", "by_op", "free", "uncounted"}  # whose names are anybody's: none is left out in them
# What tells an entry of a list from the others.
_KEYS = (
    "section", "name", "stone", "technique", "entrant", "what", "row", "weight", "mode", "history", "property",
    "carrier", "direction", "of", "vs", "expression",
)  # fmt: skip


def results(old: Record, new: Record, names: tuple[str, str] = ("old", "new"), *, anyway: bool = False) -> Record:
    """Return one record, schema stones.diff/1, about two results as `results.read` returns them.

    ``names`` are where they come from. With ``anyway`` times are compared although the circumstances differ. Raises
    `Refusal` for two schemas.
    """
    if old["schema"] != new["schema"]:
        raise Refusal(f"{names[0]} is a {old['schema']}, {names[1]} a {new['schema']}: only results alike are compared")
    circumstances = _circumstances(old, new)
    changes = [*_changes(_counted(old), _counted(new), "", binding=True)]
    return {
        "schema": DIFF,
        "of": "results",
        "results": old["schema"],
        "old": names[0],
        "new": names[1],
        "circumstances": circumstances,
        "changes": changes,
        "times": times.compared(old, new, circumstances, anyway=anyway),
        "binding": sum(change["binding"] for change in changes),
    }


def _counted(record: Record) -> Record:
    """Return what of a result is compared strictly: without the circumstances and, where a bench is part of it, without
    the verdicts, which are those of its clock.
    """
    kept = _without(record, "schema", *CIRCUMSTANCES)
    if not times.cases(record):
        return kept
    kept = _without(kept, "verdict", "counts", "ok", "bench")
    for name, below in (("cases", None), ("rows", "record")):
        if isinstance(kept.get(name), list):
            kept[name] = [_untimed(entry, below) for entry in kept[name]]
    return kept


def _untimed(entry: Any, below: str | None) -> Any:
    """Return a case, or a row of a run with its case ``below``, without verdicts on times."""
    if not isinstance(entry, Mapping):
        return entry
    if below is None:
        return {**entry, "ratios": [_without(ratio, "verdict") for ratio in times.entries(entry, "ratios")]}
    if not times.cases({"rows": [entry]}):
        return entry
    return {**_without(entry, "verdict", "reasons"), below: _untimed(entry[below], None)}


def _without(record: Mapping[str, Any], *names: str) -> Record:
    return {name: value for name, value in record.items() if name not in names}


def _circumstances(old: Record, new: Record) -> list[Record]:
    """Return what differs in the circumstances, entry by entry; the load of the last minute is no circumstance."""
    found: dict[str, Record] = {}
    for block in CIRCUMSTANCES:
        left, right = (_entries(_block(record, block), block) for record in (old, new))
        for name in dict.fromkeys((*left, *right)):
            each = {"name": name, "old": left.get(name), "new": right.get(name)}
            if each["old"] != each["new"] and name != "load":
                found.setdefault(name, each)
    return list(found.values())


def _block(record: Record, name: str) -> Any:
    """Return a block of a result; of a run, whose benches share their circumstances, that of its bench."""
    bench = record.get("bench")
    return record.get(name, bench.get(name) if isinstance(bench, Mapping) else None)


def _entries(value: Any, name: str) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {name: value}


def _changes(old: Any, new: Any, path: str, *, binding: bool, strict: bool = False) -> Iterator[Record]:
    """Yield each leaf that differs; of an object or list that only one side has, the whole.

    Below ``strict`` no name is left out.
    """
    if not _are_trees(old, new):
        if not _equal(old, new):
            yield _change(path, "changed", old, new, binding)
        return
    listed = isinstance(old, list)
    left, right = (_indexed(old), _indexed(new)) if listed else (old, new)
    for name in dict.fromkeys((*left, *right)):
        if not listed and not strict and name in IGNORED:
            continue
        below = f"{path}[{name}]" if listed else f"{path}.{name}" if path else name
        binds = binding and (strict or listed or name not in UNBINDING)
        if name not in left or name not in right:
            kind = "added" if name not in left else "removed"
            yield _change(below, kind, left.get(name), right.get(name), binds)
        else:
            anybodys = strict or (not listed and name in STRICT)
            yield from _changes(left[name], right[name], below, binding=binds, strict=anybodys)


def _are_trees(old: Any, new: Any) -> bool:
    """Whether both are objects, or both lists with something in them to walk into."""
    return (isinstance(old, Mapping) and isinstance(new, Mapping)) or (_is_tree(old) and _is_tree(new))


def _is_tree(value: Any) -> bool:
    """Whether ``value`` is a list with objects or lists in it: one of plain values, such as a shape, is a leaf."""
    return isinstance(value, list) and (not value or any(isinstance(entry, (Mapping, list)) for entry in value))


def _indexed(entries: Sequence[Any]) -> dict[str, Any]:
    """Return the entries of a list under what tells them apart: their names, or their numbers where they have none."""
    found: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        words = [str(entry[key]) for key in _KEYS if _names(entry, key)] if isinstance(entry, Mapping) else []
        name = " ".join(dict.fromkeys(words)) or str(number)
        found[name if name not in found else f"{name} #{number}"] = entry
    return found


def _names(entry: Mapping[str, Any], key: str) -> bool:
    return isinstance(entry.get(key), str) and bool(entry[key])


def _equal(old: Any, new: Any) -> bool:
    """Whether two leaves are the same; a truth value is no number."""
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return bool(old == new)


def _change(path: str, kind: str, old: Any, new: Any, binding: bool) -> Record:
    return {"path": path, "change": kind, "old": old, "new": new, "binding": binding}
