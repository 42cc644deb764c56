"""The table of invariances as a picture, and that of gradients: a row per technique, a column per property, a block per
layer that the technique stands behind.

It is made of the cells that `invariance.check` or `geometry.check` measured; symbols say the same as colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from profiles.checks.cells import Cell
from profiles.pictures.figures import DPI, INK, PALETTE, label, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from profiles.pictures.picture_sketch import Canvas

INVARIANCES, GRADIENTS = "What the output is invariant to", "What the gradient of the weight has to do with the weight"
YES, NO, UNCLEAR, FAILED, ABSENT = "✓", "✗", "?", "!", "–"
# Dark, pale and white, so that the table reads in grey as well.
_FILLS = {YES: "#004B78", NO: "#FFFFFF", UNCLEAR: "#BBBBBB", FAILED: PALETTE[1], ABSENT: "#EDEDED"}
_UNCLAIMED = {YES: "#9CC8E4", NO: "#FFFFFF", UNCLEAR: "#BBBBBB"}
_LEGEND = (
    (YES, False, "it holds, as claimed"),
    (NO, False, "it does not, as claimed"),
    (FAILED, False, "not as claimed"),
    (YES, True, "(✓), (✗): nothing was claimed"),
    (UNCLEAR, True, "unclear"),
    (ABSENT, False, "not measured"),
)
_UNIT, _LETTER, _MARGIN = 0.25, 0.34, 1.0  # inches of a cell; the others in cells
_GAP, _HEAD, _TITLE = 0.8, 0.8, 2.2


def render(rows: Sequence[Cell], form: str = "svg", dpi: int = DPI, title: str = INVARIANCES) -> bytes:
    """Return the table of ``rows`` under ``title`` as svg, or as png of ``dpi`` per inch: the same bytes for the same.

    Raises `Refusal` for another ``form``, `Unavailable` without matplotlib.
    """
    return rendered(lambda: figure(rows, title), form, dpi, "stones", {"Title": title})


def symbol(cell: Cell) -> str:
    """Return what stands in a cell: ✓ it holds, ✗ it does not, ? neither, ! not as claimed, – not measured."""
    if cell.verdict == "n/a":
        return ABSENT
    if cell.verdict == "failed":
        return FAILED
    return UNCLEAR if cell.holds is None else YES if cell.holds else NO


def figure(rows: Sequence[Cell], title: str = INVARIANCES) -> Figure:
    """Return the figure. Needs matplotlib."""
    from matplotlib.figure import Figure

    from profiles.pictures.picture_sketch import Canvas

    lines = _lines(rows)
    carriers = list(dict.fromkeys(carrier for cells in lines.values() for carrier, _ in cells))
    columns = list(dict.fromkeys(row.property for row in rows))
    names = [label(f"{stone}: {under}", 64) for stone, under in lines]
    left = _MARGIN + _LETTER * max(map(len, names), default=0)
    top = _TITLE + _HEAD + _LETTER * max(map(len, columns), default=0)
    legend = sum(2.2 + _LETTER * len(said) for *_, said in _LEGEND)
    wide = max(left + len(carriers) * (len(columns) + _GAP), _MARGIN + legend) + _MARGIN
    tall = top + max(1, len(lines)) + 3.0
    made = Figure(figsize=(wide * _UNIT, tall * _UNIT), facecolor="white")
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, wide)
    axes.set_ylim(tall, 0)
    canvas = Canvas(axes, _UNIT)
    axes.text(_MARGIN, 1.2, title, fontsize=13, weight="bold", va="center")
    for number, carrier in enumerate(carriers):
        _block(canvas, (left + number * (len(columns) + _GAP), top), carrier, columns, [*lines.values()])
    for row, name in enumerate(names):
        canvas.word(left - 0.4, top + row + 0.5, name, 8.5, at="right")
    if not lines:
        canvas.word(_MARGIN, top + 0.5, "Nothing was measured.", 10, at="left")
    _explained(canvas, tall - 1.7)
    return made


def _lines(rows: Sequence[Cell]) -> dict[tuple[str, str], dict[tuple[str, str], Cell]]:
    """Return for each technique under conditions its cells by carrier and property; none where all is n/a."""
    lines: dict[tuple[str, str], dict[tuple[str, str], Cell]] = {}
    for row in rows:
        lines.setdefault((row.stone, row.under()), {})[row.carrier, row.property] = row
    return {line: cells for line, cells in lines.items() if any(cell.verdict != "n/a" for cell in cells.values())}


def _block(
    canvas: Canvas,
    corner: tuple[float, float],
    carrier: str,
    columns: Sequence[str],
    lines: Sequence[dict[tuple[str, str], Cell]],
) -> None:
    """Draw the cells of all lines behind one carrier, the names of the properties upright above them."""
    x, y = corner
    canvas.word(x, _TITLE + 0.3, f"behind {carrier}", 10, at="left")
    for place, name in enumerate(columns):
        canvas.axes.text(
            x + place + 0.5, y - 0.25, name, fontsize=8.5, color=INK, rotation=90, ha="center", va="bottom"
        )
        for row, cells in enumerate(lines):
            if (cell := cells.get((carrier, name))) is not None:
                _mark(canvas, x + place, y + row, symbol(cell), unclaimed=cell.expected is None)


def _mark(canvas: Canvas, x: float, y: float, which: str, *, unclaimed: bool) -> None:
    """Draw one cell with its symbol: in brackets where nothing was claimed, in a thick frame where it failed."""
    bracketed = unclaimed and which in _UNCLAIMED
    fill = _UNCLAIMED[which] if bracketed else _FILLS[which]
    canvas.cell(x, y, fill, f"({which})" if bracketed else which)
    if which == FAILED:
        canvas.frame(x + 0.06, y + 0.06, 0.88, 0.88, "#000000", 1.8)


def _explained(canvas: Canvas, y: float) -> None:
    """Draw the legend."""
    x = _MARGIN
    for which, unclaimed, said in _LEGEND:
        _mark(canvas, x, y, which, unclaimed=unclaimed)
        canvas.word(x + 1.3, y + 0.5, said, 8.5, at="left")
        x += 2.2 + _LETTER * len(said)
