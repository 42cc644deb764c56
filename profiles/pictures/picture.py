"""From the record of a probed stone (`probe.probe`) to its picture, SVG or PNG: the same bytes for the same record."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from profiles.pictures.figures import DPI, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from profiles.pictures.picture_sketch import Sketch

UNIT, WIDEST, TALLEST, NARROWEST = 0.3, 16.0, 20.0, 7.0  # inches: a cell, the drawings, the figure
_MARGIN, _GAP, _TITLE, _HEAD, _LINE = 0.3, 0.45, 0.32, 0.5, 0.18


def render(
    record: Mapping[str, Any], form: str = "svg", dpi: int = DPI, pictures: Mapping[str, Any] | None = None
) -> bytes:
    """Return the picture of ``record`` (schema stones.draw/1) as a file of ``form``, svg or png of ``dpi`` per inch.

    ``pictures`` are those of a contact sheet by their digests; where one is missing, its place stays empty.
    Raises `Refusal` for another form, `Unavailable` without matplotlib.
    """

    def made() -> Figure:
        return figure(record, pictures)

    return rendered(made, form, dpi, "stones draw", {"Title": record["title"], "Description": record["caption"]})


def figure(record: Mapping[str, Any], pictures: Mapping[str, Any] | None = None) -> Figure:
    """Return the figure: the title, the sketches of all panels row by row, the caption. Needs matplotlib."""
    from matplotlib.figure import Figure

    from profiles.pictures.picture_sketch import Canvas

    rows = _rows(record, pictures or {})
    unit = _unit(rows)
    wide = max(NARROWEST, *(sum(_room(sketch, unit) for sketch in row) for row in rows)) + 2 * _MARGIN
    lines = textwrap.wrap(record["caption"], max(20, int((wide - 2 * _MARGIN) / 0.077)))
    title = textwrap.wrap(record["title"], max(20, int((wide - 2 * _MARGIN) / 0.125)))
    head = _HEAD + 0.25 * (len(title) - 1)
    heights = [_TITLE + unit * max(sketch.height for sketch in row) + _GAP for row in rows]
    tall = _MARGIN + head + sum(heights) + _LINE * len(lines) + _MARGIN
    made = Figure(figsize=(wide, tall), facecolor="white")

    def write(x: float, y: float, text: str, size: float, weight: str = "normal") -> None:
        made.text(x / wide, 1 - y / tall, text, fontsize=size, weight=weight, va="center", parse_math=False)

    for number, line in enumerate(title):
        write(_MARGIN, _MARGIN + 0.1 + 0.25 * number, line, 13, "bold")
    y = _MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        x = _MARGIN
        for sketch in row:
            size = unit * sketch.width, unit * sketch.height
            write(x, y + 0.12, sketch.title, 10)
            axes = made.add_axes((x / wide, 1 - (y + _TITLE + size[1]) / tall, size[0] / wide, size[1] / tall))
            axes.set_axis_off()
            axes.set_xlim(0, sketch.width)
            axes.set_ylim(sketch.height, 0)
            sketch.draw(Canvas(axes, unit))
            x += _room(sketch, unit)
        y += height
    for number, line in enumerate(lines):
        write(_MARGIN, y + _LINE * (number + 0.5), line, 9)
    return made


def _rows(record: Mapping[str, Any], pictures: Mapping[str, Any]) -> list[list[Sketch]]:
    from profiles.pictures import picture_matrix as matrices
    from profiles.pictures.picture_path import path_rows
    from profiles.pictures.picture_sharing import sharing_rows
    from profiles.pictures.picture_sheet import sheet_rows

    panels = record["panels"]
    if panels[0]["kind"] == "sheet":
        return sheet_rows(panels[0], pictures)
    if panels[0]["kind"] == "path":
        return path_rows(panels[0])
    if panels[0]["kind"] == "reach":
        return matrices.reach_rows(panels)
    if panels[0]["kind"] == "sharing":
        return sharing_rows(panels, record["picture"])
    if record["picture"] == "taps":
        return matrices.taps_rows(panels)
    if record["picture"] == "matrix":
        return matrices.matrix_rows(panels[0])
    return matrices.rearrangement_rows(panels[0])


def _unit(rows: list[list[Sketch]]) -> float:
    """Return the side of a cell in inches: smaller where a picture would be too large for a page."""
    wide = max(sum(sketch.width for sketch in row) for row in rows)
    tall = sum(max(sketch.height for sketch in row) for row in rows)
    return min(UNIT, WIDEST / wide, TALLEST / tall)


def _room(sketch: Sketch, unit: float) -> float:
    """Return the inches that a sketch and its title take from left to right, with a gap."""
    return max(unit * sketch.width, 0.08 * len(sketch.title)) + _GAP
