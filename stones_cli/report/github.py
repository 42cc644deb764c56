"""Jobs of GitHub Actions: what fails as an annotation, beside the line of a file where it has one; a step's summary.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions: at most 10 annotations of a level are
shown for a step, and 1 MiB of summary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stones_cli.report import plain
from stones_cli.report.tables import Report
from stones_cli.streams import result_stream
from stones_cli.visible import visible

if TYPE_CHECKING:
    from profiles.document import Place

SUMMARY = "GITHUB_STEP_SUMMARY"
MOST_BYTES = 2**19  # of one summary: a step may write several


@dataclass(frozen=True)
class Annotation:
    """A remark, at a place of a file or at none; ``level`` is error or warning."""

    message: str
    level: str = "error"
    title: str = "stones"
    place: Place | None = None


def annotate(annotations: Iterable[Annotation]) -> None:
    """Write a workflow command for each to standard output, below the result; errors before warnings."""
    ordered = sorted(annotations, key=lambda each: each.level)
    out = result_stream()
    out.write("".join(f"{command(each)}\n" for each in ordered))
    out.flush()


def command(of: Annotation) -> str:
    """Return the workflow command of an annotation, one line."""
    place = {"file": of.place.file, "line": of.place.line, "col": of.place.column} if of.place is not None else {}
    spelt = ",".join(f"{name}={_escaped(str(value), ':,')}" for name, value in {**place, "title": of.title}.items())
    return f"::{of.level} {spelt}::{_escaped(of.message)}"


def _escaped(words: str, more: str = "") -> str:
    r"""Return ``words`` with %, line ends and the characters of ``more`` as %25, %0A, …"""
    kept = visible(words)  # which leaves only \n of the line ends
    return "".join(f"%{ord(char):02X}" if char in f"%\n{more}" else char for char in kept)


def summarize(report: Report) -> None:
    """Append the report, or its summary, to the file that GITHUB_STEP_SUMMARY names, if it does; raises OSError."""
    path = os.environ.get(SUMMARY)
    if not path:
        return
    told = plain.markdown(replace(report, parts=report.summary or report.parts)).encode("utf-8", "replace")
    if len(told) > MOST_BYTES:
        told = told[:MOST_BYTES].rpartition(b"\n")[0] + b"\n\nThe rest is left out.\n"
    with Path(path).open("ab") as file:
        file.write(told + b"\n")
