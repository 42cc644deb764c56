"""`stones race`: where each entrant came, the way there, and what the cards say becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stones_cli.report.tables import Cell, Prose, Report, Table, table, value_text

if TYPE_CHECKING:
    from profiles.races.race import Outcome

Record = Mapping[str, Any]
MOST_ROWS = 12


def trajectories(record: Record) -> Report:
    """Return the report of one record of `profiles.races.race.race` or `profiles.races.digits.race`."""
    return Report(record, tuple(_parts(record)), items="entrants")


def _parts(record: Record) -> Iterator[Table | Prose]:
    problem, entrants = record["problem"], record["entrants"]
    settings = ", ".join(f"{name}={value_text(value)}" for name, value in problem["settings"].items())
    yield Prose(f"{problem['name']}: {problem['says']}", (f"{settings}, where an entrant does not give its own",))
    if record["interrupted"]:
        yield Prose("", ("Interrupted: those that came to their end.",))
    if not entrants:
        return
    longest = next((each["end"] for each in entrants if each["end"]), problem["measures"])
    ends = [name for name in longest if name != "step"]
    rows = ((e["entrant"], *((e["end"] or {}).get(name) for name in ends), _verdict(e)) for e in entrants)
    yield table("At the end", ("entrant", *ends, ""), rows)
    measure = problem["measures"][0]
    yield table(f"{measure} on the way", ("step", *(e["entrant"] for e in entrants)), _way(entrants, measure))


def _verdict(entrant: Record) -> str:
    return "" if entrant["diverged"] is None else f"diverged at step {entrant['diverged']}"


def _way(entrants: Sequence[Record], measure: str) -> Iterator[tuple[Cell, ...]]:
    """A row per step, no more than a screen has, thinned out evenly; the last one stays."""
    found = [{point["step"]: point[measure] for point in entrant["points"]} for entrant in entrants]
    steps = sorted({step for each in found for step in each})
    every = -(-len(steps) // MOST_ROWS)
    for step in reversed(steps[::-1][::every]):
        yield step, *(each.get(step) for each in found)


def outcomes(found: Sequence[Outcome]) -> Report:
    """Return the report of what became of the races that cards state."""
    rows = [each.record() for each in found]
    names = ("stone", "problem", "steps", "measure", "expected", "found")
    lines = ((*(row[name] for name in names), "ok" if row["ok"] else "failed", row["says"]) for row in rows)
    record = {"schema": "stones.races/1", "races": rows, "ok": all(row["ok"] for row in rows)}
    made = table("", (*("technique", *names[1:]), "verdict", "which shows that"), lines)
    return Report(record, (made,), items="races")
