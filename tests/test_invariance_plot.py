"""The table of invariances, and of gradients, as a picture: every cell in its place, with its mark."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from command_line import invoke
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from layers.catalog import stone
from profiles.checks import geometry, invariance
from profiles.checks.cells import Cell
from profiles.pictures import figures
from profiles.pictures import invariance_plot as plots
from profiles.pictures.invariance_plot import ABSENT, FAILED, NO, UNCLEAR, YES, figure, render, symbol
from stones_cli.status import Status


def cell(stone="ln", carrier="linear", name="w-scale", verdict="ok", holds=True, expected=True, row="a row"):
    return Cell(stone, row, "", "train", "frozen", name, carrier, expected=expected, holds=holds, verdict=verdict)


MARKS = [
    (cell(), YES),
    (cell(holds=False, expected=False), NO),
    (cell(verdict="failed"), FAILED),
    (cell(verdict="failed", holds=None), FAILED),
    (cell(verdict="measured", holds=None, expected=None), UNCLEAR),
    (cell(verdict="n/a", holds=None), ABSENT),
]


def texts(drawn):
    return [(text.get_text(), *text.get_position()) for text in drawn.axes[0].texts]


def marks(drawn):
    """What stands in the cells above the legend, by place."""
    bottom = drawn.axes[0].get_ylim()[0] - 2
    return {
        (round(x, 3), round(y, 3)): text for text, x, y in texts(drawn) if text.strip("()") in "✓✗?!–" and y < bottom
    }


@pytest.mark.parametrize(("made", "mark"), MARKS)
def test_a_cell_has_the_mark_of_its_verdict(made, mark):
    assert symbol(made) == mark
    assert [drawn.strip("()") for drawn in marks(figure([made, cell(name="x-scale")])).values()] == [mark, YES]


def test_what_nobody_claimed_stands_in_brackets():
    rows = [cell(verdict="measured", expected=None), cell("bn", verdict="measured", holds=False, expected=None)]
    assert [*marks(figure(rows)).values()] == ["(✓)", "(✗)"]


def test_every_cell_stands_in_the_row_and_column_of_its_names():
    rows = [
        cell(stone, carrier, name, holds=stone == "ln", expected=stone == "ln")
        for stone in ("ln", "bn")
        for carrier in ("linear", "conv")
        for name in ("w-scale", "x-scale", "pre-bias")
    ]
    drawn = figure(rows)
    placed = {text: (x, y) for text, x, y in texts(drawn)}
    found = marks(drawn)

    assert len(found) == 12
    for name, mark in (("ln", YES), ("bn", NO)):
        height = placed[f"{name}: a row; train"][1]
        assert [text for (_, y), text in found.items() if y == pytest.approx(height)] == [mark] * 6
    columns = sorted({x for x, _ in found})
    assert columns == pytest.approx(
        sorted(x for text, x, _ in texts(drawn) if text in ("w-scale", "x-scale", "pre-bias"))
    )
    assert placed["behind linear"][0] < placed["behind conv"][0]


def test_a_line_on_which_nothing_was_measured_is_left_out():
    drawn = figure([cell(), cell("bn", verdict="n/a", holds=None)])
    assert not [text for text, *_ in texts(drawn) if text.startswith("bn")]
    assert "Nothing was measured." in [text for text, *_ in texts(figure([cell(verdict="n/a", holds=None)]))]
    assert render([]).startswith(b"<?xml")


def test_in_grey_a_yes_a_no_and_a_failure_are_far_apart():
    greys = [sum(w * c for w, c in zip((0.3, 0.59, 0.11), to_rgb(plots._FILLS[mark]), strict=True)) for mark in "✓!✗"]
    assert greys == sorted(greys)
    assert min(b - a for a, b in pairwise(greys)) > 0.25


def test_what_is_drawn_is_what_was_measured():
    rows = invariance.check(stone("ln"), carriers=["linear", "conv"])
    drawn = figure(rows)
    assert sorted(marks(drawn).values()) == sorted(map(symbol, rows))
    assert [*marks(drawn).values()].count(YES) == sum(row.holds is True for row in rows) > 0


def test_the_table_of_gradients_is_drawn_too():
    rows = geometry.check(stone("weight-norm"), carriers=["linear"])
    drawn = figure(rows, plots.GRADIENTS)
    assert {plots.GRADIENTS, *(row.property for row in rows)} <= {text for text, *_ in texts(drawn)}
    assert len(marks(drawn)) == len(rows)


@pytest.mark.parametrize("name", ["$x^2$", "<b>", "a" * 400, "\u202egn\x1b[31m", "漢字"])
def test_a_name_is_only_a_name_and_stays_inside(name, recwarn):
    rows = [cell(f"{name}{number}", row=name) for number in range(12)]
    ET.fromstring(render(rows))
    assert render(rows, "png", 30) == render(rows, "png", 30)
    assert not recwarn.list
    with figures.drawing():
        drawn = figure(rows)
        renderer = FigureCanvasAgg(drawn).get_renderer()
        right, top = (side * drawn.dpi for side in drawn.get_size_inches())
        for text in drawn.axes[0].texts:
            box = text.get_window_extent(renderer)
            assert 0 <= box.x0 <= box.x1 <= right, text.get_text()
            assert 0 <= box.y0 <= box.y1 <= top, text.get_text()


@pytest.mark.parametrize("command", ["check-invariance", "check-gradients"])
def test_the_command_draws_the_table_that_it_prints(command, tmp_path):
    file = tmp_path / "table.svg"
    result = invoke(command, "ln", "--carrier", "linear", "--plot", file, "--json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (Status.DONE, True)
    check, title = {
        "check-invariance": (invariance.check, plots.INVARIANCES),
        "check-gradients": (geometry.check, plots.GRADIENTS),
    }[command]
    assert file.read_bytes() == render(check(stone("ln"), carriers=["linear"]), title=title)
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.svg"]


def test_the_published_table_is_drawn(tmp_path):
    assert invoke("check-invariance", "--published", "--plot", tmp_path / "t.png").exit_code == Status.DONE
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["check-invariance", "check-gradients"])
@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (("--plot", "t.pdf"), Status.MISUSE, "must end in .svg or .png"),
        (("--plot", "none/t.svg"), Status.ENVIRONMENT, "error: --plot none/t.svg"),
        (("--list", "--plot", "t.svg"), Status.MISUSE, "--list measures nothing"),
    ],
)
def test_a_picture_that_cannot_be_is_refused_before_anything_is_measured(
    command, more, status, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stones_cli.handlers.checks._rows", None)
    result = invoke(command, *more)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = invoke("check-invariance", "ln", "--plot", tmp_path / "t.svg")
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert "pip install 'dl-stones[draw]'" in result.stderr
