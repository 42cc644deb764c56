"""A contact sheet: rows of small pictures, each over what was done to make it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from profiles.pictures.figures import INK
from profiles.pictures.picture_sketch import PALE, POINTS, Canvas, Sketch

_SIDE, _PITCH, _LINE, _GAP = 3.0, 3.4, 0.42, 0.35  # of a picture, of a column, of a line of text, under a row
_SIZE = 0.28  # of the text
_FAINT = "#666666"
_BLOCKS = 2  # beside each other, so that a sheet is hardly taller than wide


def sheet_rows(panel: Mapping[str, Any], pictures: Mapping[str, Any]) -> list[list[Sketch]]:
    """Return the sketches of a panel of kind sheet: its rows in two blocks; ``pictures`` by their digests."""
    rows = panel["rows"]
    each = math.ceil(len(rows) / _BLOCKS)
    named = panel["target"] != "operations"  # there the cells say the same
    columns = panel["shape"][1]
    blocks = [rows[start : start + each] for start in range(0, len(rows), each)]
    return [[_block(block, columns, panel["image"]["size"], pictures, named) for block in blocks]]


def _block(rows: Sequence[Any], columns: int, size: Sequence[int], pictures: Mapping[str, Any], named: bool) -> Sketch:
    lines = max(len(cell["label"]) for row in rows for cell in row["cells"])
    wide, tall = (_SIDE * side / max(size) for side in size)
    room = max(tall, 1.0)
    high = named * 1.5 * _LINE + room + lines * _LINE + _GAP

    def draw(canvas: Canvas) -> None:
        text = _SIZE * POINTS * canvas.unit
        for number, row in enumerate(rows):
            y = number * high
            if named:
                canvas.word(0.0, y + 0.6 * _LINE, row["name"], 1.15 * text, at="left")
                y += 1.5 * _LINE
            for column, cell in enumerate(row["cells"]):
                x = column * _PITCH + (_PITCH - _SIDE) / 2
                corner = x + (_SIDE - wide) / 2, y + (room - tall) / 2
                if cell["sha256"] in pictures:
                    canvas.image(*corner, pictures[cell["sha256"]], wide, tall)
                else:
                    canvas.cell(*corner, PALE, width=wide, height=tall)
                for line, said in enumerate(cell["label"]):
                    ink = INK if line < len(cell["steps"]) else _FAINT
                    canvas.word(x + _SIDE / 2, y + room + (line + 0.6) * _LINE, said, text, ink)

    return Sketch("", columns * _PITCH, len(rows) * high, draw)
