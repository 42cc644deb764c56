"""Reports as text without a terminal: aligned columns that never fold, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from stones_cli.report.tables import Cell, Drawing, Prose, Report, Table
from stones_cli.visible import one_line


def text(report: Report) -> str:
    """Return aligned columns, two spaces apart, one line per row, paragraphs on one line each."""
    blocks = []
    for part in report.parts:
        lines = _aligned(part) if isinstance(part, Table) else part.lines
        title = [one_line(part.title)] if part.title else []
        blocks.append("\n".join([*title, *(_visible_line(line) for line in lines)]))
    return "\n\n".join(blocks) + "\n"


def _visible_line(line: str) -> str:
    return one_line(line).rstrip()


def _aligned(part: Table) -> list[str]:
    rows = [list(part.columns), *part.texts()]
    widths, numeric = [max(map(len, column)) for column in zip(*rows, strict=True)], part.numeric
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in rows
    ]


def markdown(report: Report) -> str:
    """Return GitHub's Markdown: a heading per part, tables with bars."""
    blocks = []
    for part in report.parts:
        if part.title:
            blocks.append(f"### {_escaped(part.title)}")
        if isinstance(part, Prose):
            blocks += [_escaped(paragraph) for paragraph in part.lines]
        elif isinstance(part, Drawing):
            blocks.append("\n".join(["```text", *map(_visible_line, part.lines), "```"]))
        else:
            marks = ["---:" if right else "---" for right in part.numeric]
            rows = [[_escaped(cell) for cell in row] for row in (part.columns, *part.texts())]
            blocks.append("\n".join(_barred(row) for row in (rows[0], marks, *rows[1:])))
    return "\n\n".join(blocks) + "\n"


def _barred(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(words: str) -> str:
    """Return one line in which no character is taken for markup."""
    return "".join(f"\\{char}" if char in r"\`*_[]<>|#~" else char for char in one_line(words))


def comma_separated(report: Report) -> str:
    """Return the main table as CSV with exact values (RFC 4180, but lines end in a newline alone)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(report.main.columns)
    writer.writerows([_exact(cell) for cell in row] for row in report.main.rows)
    return out.getvalue()


def _exact(cell: Cell) -> object:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, str):
        return one_line(cell)
    return cell if isinstance(cell, (int, float)) or cell is None else "x".join(map(str, cell))
