"""`stones doctor`: a row for each thing that was looked at, and in one line what a bench here can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stones_cli.report.tables import Prose, Report, Table, table

Record = Mapping[str, Any]


def examination(record: Record) -> Report:
    """Return the report of one record of `profiles.doctor.doctor`."""
    everything = _table(record, "name", "what", "found", "verdict", "advice")
    return Report(record, tuple(_parts(record)), items="findings", data=everything)


def _table(record: Record, *names: str) -> Table:
    return table("", names, (tuple(row[name] for name in names) for row in record["findings"]))


def _parts(record: Record) -> Iterator[Table | Prose]:
    yield _table(record, "name", "found", "verdict")
    advice = [(row["name"], row["advice"]) for row in record["findings"] if row["advice"]]
    if advice:
        yield table("Advice", ("about", "what to do"), advice)
    if record["interrupted"]:
        yield Prose("", ("Interrupted: what was found until then.",))
    yield Prose("", (record["summary"],))
