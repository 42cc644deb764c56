"""Reports for a terminal: boxes, a little colour, text folded to its width. The only file that knows rich."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Drawn
from rich.text import Text

from stones_cli.report.tables import Drawing, Part, Prose, Report, Table
from stones_cli.streams import result_stream
from stones_cli.visible import one_line

_VERDICTS = {
    "ok": "green",
    "failed": "bold red",
    "pass": "green",
    "fail": "bold red",
    "FAILED": "bold red",
    "inconclusive": "yellow",
    "caution": "yellow",
    "bad": "bold red",
}


def drawn(report: Report) -> str:
    """Return the report as the terminal behind standard output shows it; NO_COLOR leaves out every escape."""
    settings = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    console = Console(file=result_stream(), markup=False, emoji=False, highlight=False, **settings)  # type: ignore[arg-type]
    with console.capture() as capture:
        width = console.width
        parts = (fitting for part in report.parts for fitting in _fitting(part, width))
        for number, part in enumerate(parts):
            if number:
                console.print()
            if part.title:
                console.print(Text(one_line(part.title), style="bold"))
            console.print(_body(part, width))
    return capture.get()


def _body(part: Part, width: int) -> RenderableType:
    if isinstance(part, Drawing):
        return Group(*(Text(one_line(line), overflow="fold") for line in part.lines))
    return _prose(part, width) if isinstance(part, Prose) else _table(part, width)


def _fitting(part: Part, width: int) -> tuple[Part, ...]:
    """Return the part, or what stands for it where its columns do not fit side by side."""
    if not isinstance(part, Table) or not part.narrow:
        return (part,)
    columns = _columns(part)
    fits = _widths(columns, width) is not None if part.folds else sum(_sizes(columns)) <= _room(columns, width)
    return (part,) if fits else part.narrow


def _prose(part: Prose, width: int) -> Group:
    texts = (Text(one_line(line)) for line in part.lines)
    return Group(*(_indented(text, width) if part.title else text for text in texts))


def _indented(text: Text, width: int) -> RenderableType:
    return Padding(text, (0, 0, 0, 2)) if width > _NARROW else text


def _table(part: Table, width: int) -> RenderableType:
    """Draw a table, or its rows one below the other where the words of its columns do not fit side by side."""
    rows = part.texts()
    widths = _widths(_columns(part), width)
    if widths is None:
        return Group(*_stacked(part.columns, rows, width))
    made = Drawn(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column, right, size in zip(part.columns, part.numeric, widths, strict=True):
        made.add_column(Text(column), justify="right" if right else "left", overflow="fold", width=size)
    for row in rows:
        made.add_row(*map(_styled, row))
    return made


def _columns(part: Table) -> list[list[str]]:
    return [[name, *cells] for name, *cells in zip(part.columns, *part.texts(), strict=True)]


_BETWEEN = 3  # characters from one column to the next
_NARROW = 20  # up to this width nothing is indented


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Return a width for each column so that no word breaks, or None where that is impossible.

    The widest column gives way first. (rich shrinks columns too, but then breaks words or, kept from that, loses them.)
    """
    least = [max(max(map(cell_len, cell.split()), default=0) for cell in column) for column in columns]
    sizes, room = _sizes(columns), _room(columns, width)
    if sum(least) > room:
        return None
    while sum(sizes) > room:
        widest = max(range(len(sizes)), key=lambda number: (sizes[number] > least[number], sizes[number]))
        sizes[widest] -= 1
    return sizes


def _sizes(columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column with no cell folded."""
    return [max(map(cell_len, column)) for column in columns]


def _room(columns: Sequence[Sequence[str]], width: int) -> int:
    """Return what ``width`` leaves for the cells of a row."""
    return width - _BETWEEN * (len(columns) - 1)


def _stacked(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[RenderableType]:
    """Yield each row as a line of its own for its first cell, and one for each other that is not empty."""
    for first, *rest in rows:
        yield Text(first)
        for column, cell in zip(columns[1:], rest, strict=True):
            if cell:
                yield _indented(Text(f"{column}: ").append_text(_styled(cell)), width)


def _styled(cell: str) -> Text:
    return Text(cell, style=_VERDICTS.get(cell.partition(" ")[0], ""))
