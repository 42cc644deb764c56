"""The table by module of `stones inspect --modules`: rows that add up to the last one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stones_cli.report.tables import Cell, Prose, Table, table, text_of

Record = Mapping[str, Any]
_WHAT = ("module", "type", "calls", "output")
_NUMBERS = {
    "parameters": "params",
    "FLOPs forward": "flops_forward",
    "MACs forward": "macs_forward",
    "FLOPs backward": "flops_backward",
    "saved": "saved",
}
_TITLE = "By module"


def modules(record: Record) -> Iterator[Table | Prose]:
    """Yield the table by module, for narrow terminals in three, and what was not counted where."""
    rows = [_row(row) for row in record["rows"]]
    rows.append(("total", "", None, None, *(record["total"][key] for key in _NUMBERS.values())))
    first = len(_WHAT)
    parts = [tuple(_NUMBERS)[:3], tuple(_NUMBERS)[3:]]
    narrow = [table(_TITLE, _WHAT, (row[:first] for row in rows[:-1]))]
    for names in parts:
        narrow.append(table("", ("module", *names), ((row[0], *row[first : first + len(names)]) for row in rows)))
        first += len(names)
    yield replace(table(_TITLE, (*_WHAT, *_NUMBERS), rows), folds=False, narrow=tuple(narrow))
    missing = [
        (_name(row["name"]), name, ", ".join(operations))
        for row in record["rows"]
        for name, operations in row["uncounted"].items()
        if operations
    ]
    if missing:
        yield table("Not counted by module", ("module", "pass", "operations"), missing)
    yield Prose("", tuple(_remarks(record)))


def _row(row: Record) -> tuple[Cell, ...]:
    outputs = ", ".join(text_of(shape) for shape in row["outputs"])
    name = _name(row["name"]) + (" …" if row["folded"] else "")
    return name, row["type"], row["calls"], outputs, *(row[key] for key in _NUMBERS.values())


def _name(name: str) -> str:
    return name or "(model)"


def _remarks(record: Record) -> Iterator[str]:
    yield "A row is what runs in a module outside those that it calls; the rows add up to the total. saved: bytes."
    if any(row["folded"] for row in record["rows"]):
        yield "…: with all modules in it."
    for row in record["rows"]:
        if row["also"]:
            yield f"{_name(row['name'])} is also {', '.join(row['also'])}."
