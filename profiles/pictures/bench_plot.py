"""The record of a bench as a picture: ratios with their intervals beside every sample; a sweep as lines (`sweep_plot`).

A row of the picture is a candidate, the first of each case the technique itself; candidates in panels by direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from profiles.pictures.figures import DPI, INK, PALETTE, label, plain_numbers, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
COLOURS = {"stone": PALETTE[0], "reference": PALETTE[5], "yardstick": "#A0578A", "copy": "#555555"}
MOST_DOTS = 20_000  # of an SVG; more are a picture in it
TALLEST = 200.0  # inches
_ROW, _TOP, _AXIS, _MARGIN, _LINE = 0.24, 0.45, 0.6, 0.25, 0.17  # inches
_RATIO, _TOLD, _STRIP, _MS, _LETTER = 3.2, 2.9, 4.2, 0.9, 0.078
_BAND = "#C8C8C8"
_SPREAD = 0.36  # of a row, up and down, for the samples in their order


def render(record: Record, form: str = "svg", dpi: int = DPI) -> bytes:
    """Return the plot of ``record`` (schema stones.bench/1) as svg, or as png of ``dpi`` per inch.

    The same bytes for the same record. Raises `Refusal` for another ``form``, `Unavailable` without matplotlib.
    """
    return rendered(lambda: figure(record), form, dpi, "stones bench", {"Title": heading(record)})


def figure(record: Record) -> Figure:
    """Return the figure: of a sweep times over what was swept, else ratios and samples. Needs matplotlib."""
    if record.get("sweep"):
        from profiles.pictures.sweep_plot import sweep

        return sweep(record)
    return _ratios(record)


def heading(record: Record) -> str:
    """Return what was measured, and whether to the end."""
    what = f"stones bench, profile {label(record['profile'])}" if record["profile"] else "stones bench"
    return f"{what} (interrupted)" if record["interrupted"] else what


def circumstances(record: Record) -> str:
    """Return on what it was measured."""
    where, threads = record["environment"], sorted({case["threads"] for case in record["cases"]})
    machine = where["gpu"] or where["cpu"] or where["platform"]
    counts = f"{', '.join(map(str, threads))} thread{'' if threads == [1] else 's'}"
    return f"{label(machine, 60)}, {counts}, torch {where['torch']}"


def by_direction(cases: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the cases of each direction that was timed, in order."""
    found: dict[str, list[Record]] = {}
    for case in cases:
        found.setdefault(case["direction"], []).append(case)
    return found


def nothing(record: Record) -> Figure:
    """Return the figure of a record without a single case."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(6, 1.2), facecolor="white")
    made.text(0.04, 0.7, heading(record), fontsize=13, weight="bold", va="center")
    made.text(0.04, 0.3, "Nothing was measured.", fontsize=10, va="center")
    return made


@dataclass(frozen=True)
class _Row:
    """A candidate of a case, and the ratios of the technique to it."""

    case: Record
    candidate: Record
    ratios: Sequence[Record]

    @property
    def is_first(self) -> bool:
        return bool(self.candidate["role"] == "stone")

    @property
    def name(self) -> str:
        return label(self.candidate["name"])

    @property
    def colour(self) -> str:
        return COLOURS[self.candidate["role"]]


def _rows(cases: Iterable[Record]) -> list[_Row]:
    return [
        _Row(case, candidate, [ratio for ratio in case["ratios"] if ratio["vs"] == candidate["name"]])
        for case in cases
        for candidate in case["candidates"]
    ]


def _ratios(record: Record) -> Figure:
    """Return a panel of ratios beside one of samples for each direction."""
    from matplotlib.figure import Figure

    panels = {direction: _rows(cases) for direction, cases in by_direction(record["cases"]).items()}
    if not panels:
        return nothing(record)
    count = sum(map(len, panels.values()))
    row = min(_ROW, TALLEST / count)
    names = _MARGIN + _LETTER * max(len(one.name) for rows in panels.values() for one in rows) + 0.15
    told = names + _RATIO + 0.12
    strip = told + _TOLD
    wide = strip + _STRIP + _MS + _MARGIN
    tall = 2 * _MARGIN + 2.6 * _LINE + sum(_TOP + _AXIS + row * len(rows) for rows in panels.values()) + _LINE
    made = Figure(figsize=(wide, tall), facecolor="white")
    _head(made, record)
    y = _MARGIN + 2.6 * _LINE
    dots = sum(len(c["samples_ns"]) for case in record["cases"] for c in case["candidates"])
    for direction, rows in panels.items():
        high = row * len(rows)
        made.text(_MARGIN / wide, 1 - (y + 0.25) / tall, direction, fontsize=11, weight="bold", va="center")
        y += _TOP
        left, right = (
            made.add_axes((x / wide, 1 - (y + high) / tall, width / wide, high / tall))
            for x, width in ((names, _RATIO), (strip, _STRIP))
        )
        for axes in (left, right):
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_yticks([])
            axes.set_xscale("log")
            _stripes(axes, rows)
        _ratio_panel(left, rows)
        _sample_panel(right, rows, as_picture=dots > MOST_DOTS)
        y += high + _AXIS
    return made


def _head(made: Figure, record: Record) -> None:
    """Write what is shown, on what it was measured, and at the foot how to read it."""
    wide, tall = made.get_size_inches()
    made.text(_MARGIN / wide, 1 - 0.3 / tall, heading(record), fontsize=13, weight="bold", va="center")
    made.text(_MARGIN / wide, 1 - 0.56 / tall, circumstances(record), fontsize=9, va="center")
    legend = (
        "Left: the median ratio of the rounds, its 95 % interval, in grey what the same code differs from itself, and "
        "the bar ◇. Right: each round's time beside the median, which is written; first rounds above, last below."
    )
    made.text(_MARGIN / wide, 0.2 / tall, legend, fontsize=8, va="center", color="#555555")


def _stripes(axes: Axes, rows: Sequence[_Row]) -> None:
    """Draw a line between cases."""
    for number, row in enumerate(rows):
        if row.is_first and number:
            axes.axhline(number - 0.5, color="#BBBBBB", linewidth=0.7)


def _ratio_panel(axes: Axes, rows: Sequence[_Row]) -> None:
    """Draw ratios with interval, noise floor and bar; the names to their left, their verdicts to their right."""
    axes.axvline(1, color="#888888", linewidth=0.8)
    for number, row in enumerate(rows):
        weight = "bold" if row.is_first else "normal"
        across: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
        axes.text(-0.03, number, row.name, ha="right", weight=weight, color=row.colour, **across)
        for ratio in row.ratios:
            low, high = ratio["ratio_ci95"]
            noise = min(ratio["noise_floor"], 0.99)
            axes.fill_betweenx((number - 0.5, number + 0.5), 1 - noise, 1 + noise, color=_BAND, linewidth=0)
            axes.plot((low, high), (number, number), color=row.colour, linewidth=1.6)
            axes.plot(ratio["ratio"], number, "o", color=row.colour, markersize=4.5)
            if ratio["max_ratio"] is not None:
                axes.plot(ratio["max_ratio"], number, "D", color=INK, markersize=4.5, fillstyle="none")
        axes.text(1.04, number, _told(row.ratios), color=_shade(row.ratios), **across)
    axes.set_xlabel("time of the technique ÷ time of the reference", fontsize=8.5)
    _number_axis(axes)


def _told(ratios: Sequence[Record]) -> str:
    """Return the ratio in numbers and its verdict in words: one for each bar."""
    if not ratios:
        return ""
    low, high = ratios[0]["ratio_ci95"]
    found = f"{ratios[0]['ratio']:.3g} ({low:.3g} to {high:.3g})"
    bars = [
        f"{ratio['verdict']}, bar {ratio['max_ratio']:.3g}{', advisory' if ratio['advisory'] else ''}"
        for ratio in ratios
        if ratio["verdict"] is not None
    ]
    return "; ".join([found, *bars])


def _shade(ratios: Sequence[Record]) -> str:
    """Return the colour of a verdict, which its word says too."""
    fails = any(ratio["verdict"] == "fail" and not ratio["advisory"] for ratio in ratios)
    return PALETTE[5] if fails else INK


def _sample_panel(axes: Axes, rows: Sequence[_Row], *, as_picture: bool) -> None:
    """Draw every round of every candidate beside its median, from the first at the top of its row to the last."""
    axes.axvline(1, color="#888888", linewidth=0.8)
    for number, row in enumerate(rows):
        median = row.candidate["ms"]
        times = [sample / 1e6 / median for sample in row.candidate["samples_ns"]] if median else []
        step = 2 * _SPREAD / max(1, len(times) - 1)
        places = [number - _SPREAD + step * i for i in range(len(times))]
        style: Any = {"markersize": 2.6, "markeredgewidth": 0, "alpha": 0.7, "rasterized": as_picture}
        axes.plot(times, places, ".", color=row.colour, **style)
        across: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
        axes.text(1.02, number, f"{median:.4g} ms", color=row.colour, **across)
    axes.set_xlabel("time of a round ÷ median", fontsize=8.5)
    _number_axis(axes)


def _number_axis(axes: Axes) -> None:
    """Write plain numbers below the panel and lines through them."""
    low, high = axes.get_xlim()
    if high < 1.05 * low:  # what differs so little is not shown large
        axes.set_xlim(low / 1.02, high * 1.02)
    plain_numbers(axes.xaxis)
    axes.tick_params(axis="x", which="major", labelsize=8)
    axes.grid(axis="x", which="major", alpha=0.35)
    axes.set_axisbelow(True)
