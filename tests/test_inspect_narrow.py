"""`inspect` on a terminal of 80 characters: tables stay tables, and nothing that they say is lost."""

from dataclasses import replace

import pytest
from rich.cells import cell_len

from layers import catalog
from profiles.counting.facts import inspect
from profiles.subject import Setup, subject
from stones_cli.report.inspection import inspection
from stones_cli.report.tables import Report, Table, table
from stones_cli.report.terminal import drawn

SHAPE = (8, 64, 32, 32)
LAYERS = ("drconv", "mixed-pooling", "dsg", "im2col", "bn")


def report(name):
    return inspection(inspect(subject(catalog.stone(name), {}, Setup(shape=SHAPE))))


def texts(part: Table):
    """The cells of a table that are not empty."""
    return {cell for row in part.texts() for cell in row if cell}


@pytest.fixture(params=LAYERS)
def made(request):
    return report(request.param)


def test_no_row_is_drawn_cell_below_cell_at_80_characters(made, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = drawn(made).splitlines()
    assert max(map(cell_len, lines)) <= 80
    names = {f"  {name}:" for part in made.parts if isinstance(part, Table) for name in part.columns if name}
    assert [line for line in lines if line.startswith(tuple(names))] == []
    assert not any(line.startswith(("forward ", "backward ")) for line in lines), "a row of operations is folded"


def test_narrow_tables_say_what_the_whole_one_does(made):
    for part in made.parts:
        if isinstance(part, Table) and part.narrow:
            assert set().union(*map(texts, part.narrow)) == texts(part)


def test_shapes_that_differ_are_shown_side_by_side():
    record = inspect(subject(catalog.stone("bn"), {}, Setup(shape=SHAPE)))
    record["stats"][0]["observed"] = (65,)
    tensors = next(part for part in inspection(record).parts if part.title == "Statistics and buffers")
    numbers = tensors.narrow[0]
    assert numbers.columns[1:3] == ("card", "measured")
    assert numbers.texts()[0][1:3] == ["64", "65"]


@pytest.mark.parametrize("folds", [True, False])
def test_a_table_that_does_not_fold_gives_way_before_its_cells_do(folds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    whole = table("", ("a", "b"), [("long words here", "and more words")])
    seen = drawn(Report({}, (replace(whole, folds=folds, narrow=(table("", ("a",), [("short",)]),)),)))
    assert ("long" in seen, "short" in seen) == (folds, not folds)
