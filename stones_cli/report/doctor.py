"""`stones doctor`: a row for each thing that was looked at, and in one line what a bench here can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stones_cli.report.tables import Prose, Report, Table, binary, table

Record = Mapping[str, Any]


def examination(record: Record) -> Report:
    """Return the report of one record of `profiles.speed.doctor.doctor`."""
    everything = _table(record, "name", "what", "found", "verdict", "advice")
    return Report(record, tuple(_parts(record)), items="findings", data=everything)


def _table(record: Record, *names: str) -> Table:
    return table("", names, (tuple(row[name] for name in names) for row in record["findings"]))


def _parts(record: Record) -> Iterator[Table | Prose]:
    yield _table(record, "name", "found", "verdict")
    advice = [(row["name"], row["advice"]) for row in record["findings"] if row["advice"]]
    if advice:
        yield table("Advice", ("about", "what to do"), advice)
    if record["ceilings"]:
        yield _memory(record["ceilings"])
        yield _speed(record["ceilings"])
        if any(found["disturbed"] for found in record["ceilings"]):
            yield Prose("", ("Others took the processor away meanwhile: the ceilings may be higher.",))
    if record["interrupted"]:
        yield Prose("", ("Interrupted: what was found until then.",))
    yield Prose("", (record["summary"],))


def _memory(ceilings: Sequence[Record]) -> Table:
    """Return what is copied and read in GB/s, a row for each working set, columns for each number of threads."""
    rungs: dict[int, dict[str, float]] = {}
    for found in ceilings:
        for rung in found["ladder"]:
            for what in ("copy", "read"):
                rungs.setdefault(rung["bytes"], {})[f"{what}, {found['threads']}"] = rung[f"{what}_gb_per_s"]
    names = tuple(dict.fromkeys(name for rung in rungs.values() for name in rung))
    rows = ((binary(size), *(rungs[size].get(name) for name in names)) for size in sorted(rungs))
    return table("Ceilings, GB/s by the number of threads", ("working set", *names), rows)


def _speed(ceilings: Sequence[Record]) -> Table:
    """Return how fast matrices are multiplied, and how long the smallest call takes."""
    dtypes = tuple(dict.fromkeys(dtype for found in ceilings for dtype in found["gflop_per_s"]))
    rows = (
        (_threads(found), *(found["gflop_per_s"].get(dtype) for dtype in dtypes), found["call_ms"] * 1e3)
        for found in ceilings
    )
    return table("Ceilings, GFLOP/s of products of matrices", ("with", *dtypes, "smallest call, µs"), rows)


def _threads(found: Record) -> str:
    return f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
