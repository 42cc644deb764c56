"""`stones check-gradients`: the matrix of `check-invariance`, of what the gradient of a weight has to do with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from profiles.checks.gradients import GRADIENT_PROPERTIES, GradientProperty
from stones_cli.report.invariance import claims
from stones_cli.report.tables import Report, table

if TYPE_CHECKING:
    from profiles.checks.geometry import Row

LEGEND = (
    "yes: it holds, no: it does not, with how far it is from it (see --list); both as the claimed invariances imply. "
    "FAILED: not as they imply. (yes), (no): nothing is implied. –: not measured."
)


def matrix(rows: Sequence[Row], *, verbose: bool) -> Report:
    """Return the matrix of ``rows``; counterexamples below it for what failed, with ``verbose`` for every “no”."""
    return claims(rows, "stones.gradients/1", LEGEND, _counterexample, verbose=verbose)


def definitions(properties: Iterable[GradientProperty]) -> Report:
    """Return what each property is, and the invariance of the output that it follows from."""
    made = list(properties)
    record = {
        "schema": "stones.gradient-properties/1",
        "properties": [
            {"name": p.id, "title": p.title, "definition": p.definition, "invariance": _source(p)} for p in made
        ],
    }
    rows = ((p.id, p.title, p.definition, _source(p)) for p in made)
    columns = ("property", "title", "definition", "follows from")
    return Report(record, (table("", columns, rows),), items="properties")


def _source(column: GradientProperty) -> str:
    """Return the invariance that implies the property; nothing where none does."""
    return column.invariance if column.claimed else ""


def _counterexample(row: Row) -> str:
    found, column = row.counterexample, GRADIENT_PROPERTIES[row.property]
    if found is None:
        return ""
    place = f"{column.place} {', '.join(map(str, found.index))}: " if found.index else ""
    return (
        f"{row.stone} ({row.under()}), {row.property} on {row.carrier}: {place}{column.value} is "
        f"{found.found:.9g}, {column.instead} {found.wanted:.9g} (seed {found.seed})"
    )
