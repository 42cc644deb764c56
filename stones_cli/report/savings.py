"""What a rule for the backward saves, beside the backward of its peer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stones_cli.report.tables import Cell, Prose, Table, table


def savings(found: Mapping[str, Any]) -> Iterator[Table | Prose]:
    """Yield the table of `profiles.counting.savings`, and what must be said of it."""
    time = found["measured"]
    rows: list[tuple[Cell, ...]] = [(f"{found['peer']}, dense", found["flops"]["dense"], 1, "", 1)]
    for name in ("definition", "executed"):
        rows.append((name, found["flops"][name], found["ratio"][name], "", found["bound"][name]))
    rows.append(("time, 1 thread", None, time["ratio"], f"{time['low']} … {time['high']}", found["bound"]["measured"]))
    title = f"Backward savings, {found['share']:g} of the training time being such backwards"
    yield table(title, ("", "FLOPs", "of dense", "95 %", "training × at most"), rows)
    if found["says"]:
        yield Prose("", (found["says"],))
