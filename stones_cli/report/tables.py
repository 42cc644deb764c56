"""What a report is made of: plain tables and paragraphs, without a thought of how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiles.spelling import value_text as value_text  # the words of the command line, beside those of tables
from stones_cli.visible import one_line

Cell = str | int | float | bool | None | Sequence[int]


@dataclass(frozen=True)
class Table:
    """Rows under named columns. A cell is a value, not its text, so that CSV can keep it exact.

    ``narrow`` are the tables that say the same where this one does not fit the terminal, with its cells folded if it
    ``folds``.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    narrow: tuple[Table, ...] = ()
    folds: bool = True

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers only: those stand on the right."""
        return tuple(
            any(cell is not None for cell in column) and all(_is_number(cell) or cell is None for cell in column)
            for column in (zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns))
        )

    def texts(self) -> list[list[str]]:
        """Return every cell as one printable line."""
        return [[text_of(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Prose:
    """Paragraphs under a title, each one line here and folded where it is drawn; the title may be empty."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """Lines in which every character stands where it stands, drawn as they are."""

    title: str
    lines: tuple[str, ...]


Part = Table | Prose | Drawing


@dataclass(frozen=True)
class Report:
    """One result. ``record`` is the JSON document; ``parts`` tell it to people.

    ``items`` names the list in the record whose entries are the lines of JSON Lines; without it there is one line.
    ``data`` is what CSV shows where that is not the first table, ``summary`` what GitHub shows of a step where that
    is not all ``parts``.
    """

    record: Mapping[str, Any]
    parts: tuple[Part, ...]
    items: str = ""
    data: Table | None = None
    summary: tuple[Part, ...] = ()

    @property
    def main(self) -> Table:
        """The table that CSV shows: ``data``, or else the first part that is a table."""
        return self.data or next((part for part in self.parts if isinstance(part, Table)), Table("", (), ()))


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Cell]]) -> Table:
    """Return a table, leaving out the columns that are empty in every row (unless there is no row)."""
    names, made = tuple(columns), [tuple(row) for row in rows]
    kept = [i for i in range(len(names)) if not made or any(row[i] not in (None, "") for row in made)]
    return Table(title, tuple(names[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in made))


def text_of(cell: Cell) -> str:
    """Return a cell as one printable line: 1,024 for an integer, 8x32 for sizes, yes and no."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, str):
        return one_line(cell)
    return "x".join(map(str, cell)) or "scalar"


def binary(count: int) -> str:
    """Return a number of bytes in the unit that keeps it short: 512 B, 32 KiB, 49 MiB."""
    sizes = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
    size, unit = next((each for each in sizes if count >= each[0]), sizes[-1])
    value = count / size
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)
