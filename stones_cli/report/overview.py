"""The overview of `stones report`: a technique a row, its costs beside the verdict on them."""

from __future__ import annotations

from typing import Any

from profiles.reports.report import Entry
from profiles.target import card_of
from stones_cli.report.tables import Cell, value_text

COLUMNS = (
    "technique", "card = measured", "kind", "title", "paper", "year", "input", "parameters", "FLOPs forward",
    "executed", "FLOPs backward", "executed backward", "bytes saved", "statistics",
)  # fmt: skip


def row(entry: Entry) -> tuple[Cell, ...]:
    """Return the cells of ``entry`` under `COLUMNS`; empty where there is no such number."""
    card, record = card_of(entry.target), entry.record or {}
    paper = (card.paper.authors, str(card.paper.year)) if card else ("", "")
    of = (getattr(entry.target, "kind", "class"), card.title if card else "", *paper)
    return (entry.target.name, _verdict(entry), *of, _input(record), *_costs(record), _statistics(record))


def _input(record: dict[str, Any]) -> Cell:
    found = record.get("input") or {}
    return value_text(found["shape"]) if found else record.get("model", {}).get("name", "")


def _costs(record: dict[str, Any]) -> tuple[Cell, ...]:
    if record.get("schema") != "stones.inspect/1":
        return (None,) * 6
    passes = (record["flops"][name] for name in ("forward", "backward"))
    flops = (number for row in passes for number in (row["card"], row["executed"]))
    return (record["params"]["total"], *flops, record["memory"]["saved"]["measured"])


def _statistics(record: dict[str, Any]) -> str:
    rows = (*record.get("stats", ()), *record.get("state", ()))
    return ", ".join(f"{each['name']} {value_text(each['observed'] or each['shape'])}" for each in rows)


def _verdict(entry: Entry) -> str:
    if entry.record is None:
        return f"left out: {entry.reason}"
    if entry.contradictions:
        return f"FAILED: {'; '.join(entry.contradictions)}"
    count = len(entry.record.get("checks", ()))
    return f"ok ({count})" if count else "nothing to compare"
