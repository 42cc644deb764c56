"""The trajectories of a race as a picture, SVG or PNG: the first measure of the problem over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from profiles.pictures.figures import DPI, PALETTE, label, plain_numbers, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", "-.", ":")


def render(record: Mapping[str, Any], form: str = "svg", dpi: int = DPI) -> bytes:
    """Return the plot of ``record`` (schema stones.race/1): the same bytes for the same record.

    Raises `Refusal` for a ``form`` other than svg and png, `Unavailable` without matplotlib.
    """
    return rendered(lambda: figure(record), form, dpi, "stones race")


def figure(record: Mapping[str, Any]) -> Figure:
    """Return the figure, a line per entrant. Needs matplotlib.

    Steps are in equal ratios but on digits; the measure too where it is positive throughout.
    """
    from matplotlib.figure import Figure

    problem = record["problem"]
    measure = problem["measures"][0]
    made = Figure(figsize=(7, 4.5), layout="constrained")
    axes = made.add_subplot()
    values = []
    for i, entrant in enumerate(record["entrants"]):
        steps = [point["step"] for point in entrant["points"]]
        found = [point[measure] for point in entrant["points"]]
        values += found
        style: Any = {"color": PALETTE[i % 8], "linestyle": _STYLES[i // 8 % 4]}
        axes.plot(steps, found, marker="." if len(steps) < 2 else None, label=label(entrant["entrant"]), **style)
    if problem["name"] != "digits":
        axes.set_xscale("log")
    if values and min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    axes.set(xlabel="epoch" if problem["name"] == "digits" else "step", ylabel=measure)
    axes.set_title(problem["name"])
    axes.grid(alpha=0.3)
    if record["entrants"]:
        axes.legend()
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    return made
