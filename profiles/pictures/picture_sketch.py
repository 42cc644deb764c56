"""The pencil of the pictures: cells, outlines, words and arrows on a canvas that counts in cells, y downwards.

Numbers say the same as the colours once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle

from profiles.pictures.figures import INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMPTY, PALE = "#FFFFFF", "#EDEDED"
POINTS, LARGEST = 72, 9.5  # per inch; points of the numbers in cells, so that up to three digits look alike
_NARROW = 0.64  # width of a digit, in its height
Point = tuple[float, float]


def colour(number: int) -> str:
    """Return the colour of a group; they repeat after eight."""
    return PALETTE[number % len(PALETTE)]


def shade(share: float) -> str:
    """Return a grey, white for 0, dark enough for white figures at 1."""
    level = round(255 * (1 - 0.62 * share))
    return f"#{level:02x}{level:02x}{level:02x}"


def _ink(background: str) -> str:
    """Return black or white, whichever reads better on ``background``."""
    red, green, blue = to_rgb(background)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#FFFFFF"


@dataclass(frozen=True)
class Canvas:
    """Axes in which one unit is the side of a cell, ``unit`` inches long."""

    axes: Axes
    unit: float

    def cell(self, x: float, y: float, fill: str, text: str = "", width: float = 1.0, height: float = 1.0) -> None:
        """Draw a filled cell with its upper left corner at (x, y), and a short text that fits it."""
        line = "#BBBBBB" if fill in (EMPTY, PALE) else "#FFFFFF"
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=line, linewidth=0.6))
        if text:
            side = POINTS * self.unit
            size = min(0.62 * side * height, 0.86 * side * width / (_NARROW * len(text)), LARGEST)
            self.word(x + width / 2, y + height / 2, text, size, _ink(fill))

    def image(self, x: float, y: float, pixels: Any, width: float, height: float) -> None:
        """Draw a picture (rows, columns, 3) with its upper left corner at (x, y); pixels stay sharp when enlarged."""
        self.axes.imshow(pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation="antialiased")

    def face(self, corners: list[Point], fill: str) -> None:
        """Draw a polygon: a visible face of a cell of a cube."""
        self.axes.add_patch(Polygon(corners, closed=True, facecolor=fill, edgecolor="#FFFFFF", linewidth=0.5))

    def frame(self, x: float, y: float, width: float, height: float, line: str, weight: float = 1.6) -> None:
        """Draw an outline."""
        self.axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=line, linewidth=weight, joinstyle="miter")
        )

    def word(
        self, x: float, y: float, text: str, size: float, ink: str = INK, *, at: str = "center", turned: bool = False
    ) -> None:
        """Write ``text`` in ``size`` points, centred on (x, y), or starting or ending there (``at`` left, right)."""
        self.axes.text(
            x, y, text, fontsize=size, color=ink, ha=at, va="center_baseline" if not turned else "center",
            rotation=90 if turned else 0, parse_math=False,
        )  # fmt: skip

    def span(self, start: Point, end: Point, ink: str = INK) -> None:
        """Draw an arrow with two heads along a side."""
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="<->", mutation_scale=9, color=ink, linewidth=1.2, shrinkA=0, shrinkB=0
            )
        )

    def wire(self, corners: list[Point]) -> None:
        """Draw a line through ``corners``."""
        self.axes.plot(*zip(*corners, strict=True), color=INK, linewidth=1, solid_capstyle="butt")

    def dot(self, x: float, y: float) -> None:
        """Draw the point at which wires are joined."""
        self.axes.plot(x, y, "o", color=INK, markersize=4)

    def arrow(self, start: Point, end: Point) -> None:
        """Draw an arrow."""
        self.axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="->", mutation_scale=9, color=INK, linewidth=1, shrinkA=0, shrinkB=0)
        )


@dataclass(frozen=True)
class Sketch:
    """One drawing, ``width`` × ``height`` cells, under a title."""

    title: str
    width: float
    height: float
    draw: Callable[[Canvas], None]


def words(lines: list[tuple[str | None, str]], size: float = 8.5) -> Sketch:
    """Return a legend: lines of text, each behind a square of its colour where it has one."""

    def draw(canvas: Canvas) -> None:
        for row, (fill, text) in enumerate(lines):
            if fill is not None:
                canvas.cell(0.0, row + 0.15, fill, width=0.7, height=0.7)
            canvas.word(1.0, row + 0.5, text, size, at="left")

    longest = max(len(text) for _, text in lines)
    return Sketch("", 1.2 + 0.27 * longest, len(lines), draw)
