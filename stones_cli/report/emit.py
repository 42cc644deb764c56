"""Writing a report: to its file first, then to standard output, and only then a word that it is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from profiles import atomic
from profiles.errors import Refusal
from profiles.expect import Expectation, judge
from profiles.speed.ranks import is_silent
from stones_cli.common import Destination
from stones_cli.failures import complain
from stones_cli.report import github, plain, strict
from stones_cli.report.inspection import expected as tables
from stones_cli.report.inspection import judged
from stones_cli.report.tables import Report
from stones_cli.streams import result_stream


def deliver(
    report: Report, destination: Destination, expected: Iterable[Expectation] | None, *, keep: bool = False
) -> list[str]:
    """Emit ``report`` with what became of the expectations about its record; return one sentence for each that failed.

    Raises `Refusal` for a key that the record does not have: before anything is written or, to ``keep`` what took long
    to measure, afterwards.
    """
    try:
        outcomes = judge(expected or (), strict.plain(report.record))
    except Refusal:
        if keep:
            emit(report, destination)
        raise
    if outcomes:
        record = {**report.record, "expectations": judged(outcomes)}
        report = replace(report, record=record, parts=(*report.parts, *tables(outcomes)), data=report.main)
    emit(report, destination)
    return [str(outcome) for outcome in outcomes if not outcome.ok]


def emit(report: Report, destination: Destination) -> None:
    """Write ``report`` where it goes, on the first of several ranks alone.

    Raises `Unavailable` for the file and OSError for standard output.
    """
    if is_silent():
        return
    if destination.file is not None:
        atomic.write(destination.file, _rendered(report, destination.file_format, terminal=False))
    out = result_stream()
    text = _rendered(report, destination.format, terminal=out.isatty())
    try:
        out.write(text)
        out.flush()
    except OSError as error:
        error.filename = "standard output"
        raise
    if destination.format == "github":
        github.summarize(report)
    if destination.file is not None:
        complain(str(destination.file), "written")


def _rendered(report: Report, format_: str, *, terminal: bool) -> str:
    if format_ == "table" and terminal:
        from stones_cli.report.terminal import drawn

        return drawn(report)
    renderers = {
        "table": plain.text,
        "json": strict.document,
        "jsonl": strict.lines,
        "markdown": plain.markdown,
        "csv": plain.comma_separated,
        "github": plain.text,
    }
    return renderers[format_](report)
