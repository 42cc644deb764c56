"""`stones check-identities`: each equation with how far its sides are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stones_cli.report.tables import Report, table

if TYPE_CHECKING:
    from profiles.checks.identities import Row


def equations(rows: Sequence[Row]) -> Report:
    """Return one row per identity."""
    columns = ("technique", "equation", "mode", "deviation", "within", "verdict", "where", "reason")
    lines = ((r.stone, r.says, r.mode, r.deviation, r.within, r.verdict, _place(r), r.reason) for r in rows)
    ok = not any(row.verdict == "failed" for row in rows)
    record = {"schema": "stones.identities/1", "rows": list(rows), "ok": ok}
    return Report(record, (table("", columns, lines),), items="rows")


def _place(row: Row) -> str:
    """Say which element is furthest apart, where the sides are not equal enough."""
    if row.verdict == "ok" or row.at is None:
        return ""
    index = ", ".join(map(str, row.at.index))
    return f"{row.differs}[{index}]: {row.at.left} and {row.at.right}"
