"""The trajectories of a race as a picture, SVG or PNG: the first measure of the problem over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from profiles.picture import check_matplotlib

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#f0e442")  # Okabe & Ito
_STYLES = ("-", "--", "-.", ":")


def render(record: Mapping[str, Any], form: str = "svg", dpi: int = 150) -> bytes:
    """Return the plot of ``record`` (schema stones.race/1): the same bytes for the same record.

    Steps are in equal ratios but on digits; the measure too where it is positive throughout. Raises `Unavailable`
    without matplotlib.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    problem = record["problem"]
    measure = problem["measures"][0]
    settings: Any = {"svg.hashsalt": "stones", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        values = []
        for i, entrant in enumerate(record["entrants"]):
            steps = [point["step"] for point in entrant["points"]]
            found = [point[measure] for point in entrant["points"]]
            values += found
            style: Any = {"color": _COLOURS[i % 8], "linestyle": _STYLES[i // 8 % 4]}
            axes.plot(steps, found, marker="." if len(steps) < 2 else None, label=entrant["entrant"], **style)
        if problem["name"] != "digits":
            axes.set_xscale("log")
        if values and min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        axes.set(xlabel="epoch" if problem["name"] == "digits" else "step", ylabel=measure)
        axes.set_title(problem["name"])
        axes.grid(alpha=0.3)
        if record["entrants"]:
            axes.legend()
        file = io.BytesIO()
        about = {"Date": None, "Creator": "stones race"} if form == "svg" else {"Software": "stones race"}
        figure.savefig(file, format=form, dpi=dpi, metadata=about)
    return file.getvalue()
