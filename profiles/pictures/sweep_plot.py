"""A sweep of `bench` as a picture: the time of a call over the size that was swept, and how steeply it grows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from profiles.pictures.bench_plot import by_direction, circumstances, heading, nothing
from profiles.pictures.figures import INK, PALETTE, label, plain_numbers
from profiles.speed.variants import line_of, slope
from profiles.spelling import value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_MARKERS = {"stone": "o", "reference": "s", "yardstick": "^", "copy": "x"}
_EXPONENT = "exponent e, time ∝ size^e"
_FLOOR = "roofline: the machine's floor for it"
_MARGIN, _HEAD, _LEFT, _WIDE, _TALL, _AXIS = 0.25, 0.75, 0.75, 5.0, 3.4, 0.55  # inches
_ROW, _LETTER, _COLUMN, _SWATCH, _TITLE = 0.21, 0.076, 0.75, 0.45, 0.4


@dataclass
class Line:
    """A candidate along a sweep: its ``points`` and those of the ``floor`` of what it computes.

    A point has its ``value``, its ``place`` on the axis and ``ms``, of the candidate also the interval ``ms_ci95``.
    """

    name: str
    role: str
    colour: str
    points: list[Record] = field(default_factory=list)
    floor: list[Record] = field(default_factory=list)

    @property
    def exponents(self) -> dict[tuple[float, float], float]:
        """The exponent e of the cost, time ∝ value^e, between neighbours by their places; none between words."""
        found = {(one["place"], other["place"]): slope(one, other) for one, other in pairwise(self.points)}
        return {step: exponent for step, exponent in found.items() if exponent is not None}


def lines_of(cases: Iterable[Record], values: Sequence[Any]) -> list[Line]:
    """Return a line for each technique as it was set up and each thing beside it, of the cases of one direction.

    ``values`` are those that the sweep takes.
    """
    found: dict[tuple[str, str], Line] = {}
    places = _places(values)
    points = sorted((case for case in cases if case["at"] is not None), key=lambda case: places[_key(case)])
    series = [*dict.fromkeys(line_of(case) for case in points)]
    for case in points:
        what, place = line_of(case), {"value": case["at"]["value"], "place": places[_key(case)]}
        floor = (case.get("roofline") or {}).get("floor_ms")
        for candidate in case["candidates"]:
            is_stone = candidate["role"] == "stone"
            beside = "" if is_stone or len(series) == 1 else f" beside {label(what, 24)}"
            key = what, "" if is_stone else candidate["name"]
            if key not in found:
                colour = _colour(series.index(what), len(found), alone=len(series) == 1)
                name = label(what) if is_stone else label(candidate["name"], 28) + beside
                found[key] = Line(name, candidate["role"], colour)
            found[key].points.append({**place, "ms": candidate["ms"], "ms_ci95": candidate["ms_ci95"]})
            if is_stone and floor:
                found[key].floor.append({**place, "ms": floor})
    return [*found.values()]


def _key(case: Record) -> str:
    return value_text(case["at"]["value"])


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Return where values stand on the axis: numbers at themselves, words and the like in a row."""
    if _are_numbers(values):
        return {value_text(value): float(value) for value in values}
    return {value_text(value): float(place) for place, value in enumerate(values)}


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _colour(series: int, line: int, *, alone: bool) -> str:
    """Return a colour for each line of one technique; of several, one for all that belongs to each."""
    usable = [colour for colour in PALETTE if colour != "#F0E442"]  # yellow lines on white are hard to see
    return usable[(line if alone else series) % len(usable)]


def sweep(record: Record) -> Figure:
    """Return the figure: for each direction the lines, and beside them a legend with the exponents."""
    from matplotlib.figure import Figure

    panels = {
        direction: lines_of(cases, record["sweep"]["values"])
        for direction, cases in by_direction(record["cases"]).items()
    }
    panels = {direction: lines for direction, lines in panels.items() if lines}
    if not panels:
        return nothing(record)
    every = [line for lines in panels.values() for line in lines]
    steps = sorted({step for line in every for step in line.exponents})
    said = [*(line.name for line in every), *(_FLOOR for line in every if line.floor)]
    names = _SWATCH + _LETTER * max(max(map(len, said)), len(_EXPONENT) - len(steps) * 9)
    heights = [max(_TALL, _ROW * (len(lines) + 3)) for lines in panels.values()]
    table = _MARGIN + _LEFT + _WIDE + 0.3
    wide = table + names + _COLUMN * max(1, len(steps)) + _MARGIN
    tall = 2 * _MARGIN + _HEAD + sum(height + _AXIS + _TITLE for height in heights)
    made = Figure(figsize=(wide, tall), facecolor="white")
    for y, text, size, weight in ((0.3, heading(record), 13, "bold"), (0.58, circumstances(record), 9, "normal")):
        made.text(_MARGIN / wide, 1 - y / tall, text, fontsize=size, weight=weight, va="center")
    y = _MARGIN + _HEAD
    for (direction, lines), height in zip(panels.items(), heights, strict=True):
        made.text(_MARGIN / wide, 1 - (y + 0.15) / tall, direction, fontsize=11, weight="bold", va="center")
        y += _TITLE
        place = (_MARGIN + _LEFT) / wide, 1 - (y + height) / tall, _WIDE / wide, height / tall
        _panel(made.add_axes(place), lines, record["sweep"])
        place = table / wide, 1 - (y + height) / tall, (wide - table) / wide, height / tall
        _legend(made.add_axes(place), lines, steps, (wide - table, height), names)
        y += height + _AXIS
    return made


def _panel(axes: Axes, lines: Sequence[Line], swept: Record) -> None:
    """Draw times over what was swept with their intervals, and the floors."""
    for line in lines:
        places, ms = ([point[name] for point in line.points] for name in ("place", "ms"))
        low, high = zip(*(point["ms_ci95"] for point in line.points), strict=True)
        style = "-" if line.role != "copy" else ":"
        axes.plot(places, ms, style, marker=_MARKERS[line.role], color=line.colour, markersize=5, linewidth=1.4)
        axes.fill_between(places, low, high, color=line.colour, alpha=0.25, linewidth=0)
        if line.floor:
            floor = ([point[name] for point in line.floor] for name in ("place", "ms"))
            axes.plot(*floor, "--", color=line.colour, linewidth=1.2)
    ticks = {place: text for text, place in _places(swept["values"]).items()}
    axes.set_yscale("log")
    if _are_numbers(swept["values"]) and min(ticks) > 0:
        axes.set_xscale("log")
        margin = max(1.15, (max(ticks) / min(ticks)) ** 0.05)
        axes.set_xlim(min(ticks) / margin, max(ticks) * margin)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    if len(ticks) <= 12:
        axes.set_xticks([*ticks], [label(text, 12) for text in ticks.values()])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(label(swept["axis"]), fontsize=9)
    axes.set_ylabel("ms a call, with the 95 % interval", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(which="major", alpha=0.35)


def _legend(
    axes: Axes, lines: Sequence[Line], steps: Sequence[tuple[float, float]], size: tuple[float, float], names: float
) -> None:
    """Write which line is which and the exponents between neighbours, in inches from the upper left corner."""
    axes.set_axis_off()
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)

    def write(x: float, row: float, text: str, colour: str = INK, at: str = "left") -> None:
        axes.text(x, _ROW * (row + 0.5), text, fontsize=8.5, color=colour, ha=at, va="center")

    if steps:
        write(names + _COLUMN * len(steps), 0, _EXPONENT, at="right")
    for number, (here, there) in enumerate(steps):
        write(names + _COLUMN * (number + 1), 1, f"{here:g}→{there:g}", at="right")
    for row, line in enumerate(lines, 2):
        middle = _ROW * (row + 0.5)
        style = "-" if line.role != "copy" else ":"
        axes.plot((0.02, 0.32), (middle, middle), style, color=line.colour, linewidth=1.4)
        axes.plot(0.17, middle, marker=_MARKERS[line.role], color=line.colour, markersize=5)
        write(_SWATCH, row, line.name, line.colour)
        for number, step in enumerate(steps):
            if (found := line.exponents.get(step)) is not None:
                write(names + _COLUMN * (number + 1), row, f"{found:.2f}", at="right")
    if any(line.floor for line in lines):
        middle = _ROW * (len(lines) + 2.5)
        axes.plot((0.02, 0.32), (middle, middle), "--", color=INK, linewidth=1.2)
        write(_SWATCH, len(lines) + 2, _FLOOR)
