"""What other tools count of the same layer: a table of their numbers, and a sentence on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stones_cli.report.tables import Cell, Prose, Table, table

_COLUMNS = ("", "forward", "unit", "as FLOPs", "backward")


def peers(record: Mapping[str, Any]) -> Iterator[Table | Prose]:
    """Yield the table of those that are installed beside what is executed here, and why each differs."""
    there = [peer for peer in record["peers"] if peer["installed"]]
    yield table("What others count", _COLUMNS, [_ours(record["flops"]), *map(_row, there)])
    missing = [peer["name"] for peer in record["peers"] if not peer["installed"]]
    lines = [f"{peer['name']} ({peer['version']}): {peer['why']}." for peer in there]
    yield Prose("", (*lines, *([f"not installed: {', '.join(missing)}."] if missing else [])))


def _ours(flops: Mapping[str, Any]) -> tuple[Cell, ...]:
    forward, backward = flops["forward"]["executed"], flops["backward"]["executed"]
    return "executed here", forward, "FLOP", forward, backward


def _row(peer: Mapping[str, Any]) -> tuple[Cell, ...]:
    forward, backward = peer["forward"] or {}, peer["backward"] or {}
    found = forward.get("value"), forward.get("unit"), forward.get("as_flops")
    return peer["name"], *found, backward.get("as_flops")
