"""`stones check-invariance`: one matrix, a row per technique under conditions, a column per property."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from stones_cli.report.tables import Cell, Prose, Report, Table, table

if TYPE_CHECKING:
    from profiles.checks.cells import Cell as Claimed
    from profiles.checks.invariance import Row
    from profiles.checks.transformations import Property

Line = TypeVar("Line", bound="Claimed")
Label = tuple[str, str, str]  # technique, conditions, carrier
LEGEND = (
    "yes: the output stays, no: it changes, with the largest change relative to the largest output; both as claimed. "
    "FAILED: not as claimed. (yes), (no): nothing was claimed. –: not measured."
)


def matrix(rows: Sequence[Row], *, verbose: bool) -> Report:
    """Return the matrix of ``rows``; counterexamples below it for what failed, with ``verbose`` for every “no”."""
    return claims(rows, "stones.invariance/1", LEGEND, _counterexample, verbose=verbose)


def claims(
    rows: Sequence[Line], schema: str, legend: str, counterexample: Callable[[Line], str], *, verbose: bool
) -> Report:
    """Return a matrix of cells, with a sentence of ``counterexample`` for each that failed or, ``verbose``, is no.

    That is empty for a cell that has none.
    """
    lines: dict[Label, dict[str, Claimed]] = {}
    for row in rows:
        lines.setdefault((row.stone, row.under(), row.carrier), {})[row.property] = row
    measured = {label: cells for label, cells in lines.items() if any(c.verdict != "n/a" for c in cells.values())}
    columns = list(dict.fromkeys(row.property for row in rows))
    body = [
        (*label, *(_cell(cells[name]) if name in cells else "" for name in columns))
        for label, cells in measured.items()
    ]
    parts: list[Table | Prose] = [
        Table("", ("technique", "under", "behind", *columns), tuple(body), _transposed(measured, columns)),
        Prose("", (legend,)),
    ]
    examples = tuple(counterexample(row) for row in rows if verbose or row.verdict == "failed")
    if any(examples):
        parts.append(Prose("Counterexamples", tuple(filter(None, examples))))
    ok = not any(row.verdict == "failed" for row in rows)
    record = {"schema": schema, "rows": list(rows), "ok": ok}
    return Report(record, tuple(parts), items="rows", data=_long(rows))


def _transposed(lines: Mapping[Label, Mapping[str, Claimed]], columns: Sequence[str]) -> tuple[Table, ...]:
    """Return a table per technique and conditions: a row per property, a column per layer that it stands behind."""
    groups: dict[tuple[str, str], dict[str, Mapping[str, Claimed]]] = {}
    for (stone, under, carrier), cells in lines.items():
        groups.setdefault((stone, under), {})[carrier] = cells
    return tuple(
        Table(
            f"{stone}: {under}",
            ("property", *behind),
            tuple(
                (name, *(_cell(cells[name]) if name in cells else "" for cells in behind.values())) for name in columns
            ),
        )
        for (stone, under), behind in groups.items()
    )


def definitions(properties: Iterable[Property]) -> Report:
    """Return what each property is."""
    made = list(properties)
    record = {
        "schema": "stones.properties/1",
        "properties": [{"name": p.id, "title": p.title, "definition": p.definition, "paper": p.paper} for p in made],
    }
    rows = ((p.id, p.title, p.definition, p.paper) for p in made)
    return Report(record, (table("", ("property", "title", "definition", "in the paper"), rows),), items="properties")


def _cell(row: Claimed) -> str:
    if row.verdict == "n/a":
        return "–"
    found = "unclear" if row.holds is None else "yes" if row.holds else "no"
    number = (
        "" if row.deviation is None else f" {row.deviation:.0e}" if row.deviation < 0.01 else f" {row.deviation:.2g}"
    )
    if row.verdict == "failed":
        return f"FAILED {found}{number}"
    return f"({found}){number}" if row.expected is None else f"{found}{number}"


def _counterexample(row: Row) -> str:
    found = row.counterexample
    if found is None:
        return ""
    where = ", ".join(map(str, found.index))
    return (
        f"{row.stone} ({row.under()}), {row.property} on {row.carrier}: output[{where}] was "
        f"{found.before:.6g}, becomes {found.after:.6g} (seed {found.seed})"
    )


def _long(rows: Sequence[Claimed]) -> Table:
    """One line per cell, for programs."""
    names = (
        "stone",
        "row",
        "weight",
        "mode",
        "history",
        "property",
        "carrier",
        "expected",
        "holds",
        "deviation",
        "verdict",
    )

    def cells() -> Iterator[tuple[Cell, ...]]:
        for row in rows:
            yield tuple(getattr(row, name) for name in names)

    return Table("", names, tuple(cells()))
