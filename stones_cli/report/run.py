"""`stones run`: a row per item, then how many came out how; on GitHub a remark beside the line of what failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiles.document import Place
from stones_cli.report.github import Annotation
from stones_cli.report.tables import Part, Prose, Report, Table, table

Record = Mapping[str, Any]
_COLUMNS = ("section", "what", "verdict", "why")
_WARNS = ("ok", "measured", "inconclusive")  # the other verdicts fail


def report(record: Record) -> Report:
    """Return the report of one record of `profiles.run.run`."""
    rows = record["rows"]
    counts = Prose("", tuple(_ending(record)))
    everything = Table("", _COLUMNS, tuple(map(_cells, rows)))
    return Report(
        record,
        (everything, counts),
        items="rows",
        summary=tuple(_summary(record, counts)),
    )


def complaints(record: Record) -> Iterator[tuple[str, str]]:
    """Yield a word and a sentence for each row that is not as it should be."""
    for row in record["rows"]:
        for reason in row["reasons"]:
            kind, sentence = _weighed(row, reason)
            yield kind, f"{_where(row)}: {sentence}"


def remarks(record: Record) -> Iterator[Annotation]:
    """Yield a remark at the place of each row that is not as it should be."""
    for row in record["rows"]:
        if row["reasons"]:
            level = "warning" if row["verdict"] in _WARNS else "error"
            title = f"{row['section']} {row['name']}: {row['verdict']}"
            yield Annotation("\n".join(row["reasons"]), level, title, Place(**row["place"]))


def _weighed(row: Record, reason: str) -> tuple[str, str]:
    """Return the verdict of a row, or what its reason calls itself, and the reason."""
    if reason.startswith("advisory: "):
        return "advisory", reason.removeprefix("advisory: ")
    return row["verdict"], reason


def _where(row: Record) -> str:
    place = row["place"]
    return f"{place['file']}:{place['line']}:{place['column']}: {row['section']} {row['name']}"


def _cells(row: Record) -> tuple[str, ...]:
    return row["section"], row["name"], row["verdict"], "; ".join(row["reasons"])


def _ending(record: Record) -> Iterator[str]:
    yield ", ".join(f"{count} {verdict}" for verdict, count in record["counts"].items() if count) or "nothing was run"
    if record["interrupted"]:
        yield "Interrupted: what was done until then."


def _summary(record: Record, counts: Prose) -> Iterator[Part]:
    """Yield what the summary of a step shows: the counts, and only the rows that have something to say."""
    yield Prose(f"stones run {record['profile'] or ''}".strip(), counts.lines)
    told = [_cells(row) for row in record["rows"] if row["reasons"]]
    if told:
        yield table("", _COLUMNS, told)
