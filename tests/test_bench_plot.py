"""`stones bench --plot`: what the picture of a record says, for records of every size and with any names in them."""

from __future__ import annotations

import copy
import json
import sys
import xml.etree.ElementTree as ET

import pytest
from command_line import invoke
from matplotlib.backends.backend_agg import FigureCanvasAgg

import profiles.speed.bench
from layers.catalog import stone
from profiles.errors import Refusal, Unavailable
from profiles.pictures import figures
from profiles.pictures.bench_plot import figure, render
from profiles.pictures.sweep_plot import lines_of
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import Gate, case
from profiles.speed.timing import Plan
from profiles.spelling import value_text
from profiles.subject import Setup, subject
from stones_cli.status import Status

TINY = ("bench", "gn", "--groups", "2", "-i", "2x4x3x3", "--rounds", "8", "--budget", "0.05")
PEER = "torch.nn:GroupNorm"


def candidate(name, role, ms):
    samples = [round(1e6 * ms * (1 + 0.01 * (round_ % 5))) for round_ in range(12)]
    return {"name": name, "role": role, "ms": ms, "ms_ci95": [0.9 * ms, 1.1 * ms], "samples_ns": samples}


def ratio(of, vs, found, bar=None, verdict=None, advisory=None):
    return {
        "of": of, "vs": vs, "ratio": found, "ratio_ci95": [0.9 * found, 1.1 * found], "noise_floor": 0.02,
        "max_ratio": bar, "verdict": verdict, "advisory": advisory,
    }  # fmt: skip


def made_case(name="gn", ms=2.0, **more):
    candidates = [candidate(name, "stone", ms), candidate(PEER, "reference", 2 * ms), candidate("copy", "copy", ms / 4)]
    gates = [ratio(name, PEER, 0.5, 0.8, "pass", advisory=False), ratio(name, "copy", 4.0)]
    known = {"name": name, "stone": "gn", "direction": "forward", "candidates": candidates, "ratios": gates}
    known |= {"threads": 2, "at": None}
    return {**known, **more}


def made_record(cases, **more):
    surroundings = {"gpu": None, "cpu": "a processor", "platform": "Linux", "torch": "2.13.0"}
    known = {"profile": None, "environment": surroundings, "sweep": None, "cases": cases, "interrupted": False}
    return {**known, **more}


def swept(*exponents, direction="forward", roofline=None, values=(1, 8, 64)):
    cases = [
        made_case(
            f"{name} N={value} bfloat16",
            0.5 * value**exponent,
            direction=direction,
            at={"axis": "N", "value": value},
            roofline=roofline and {"floor_ms": roofline * value},
        )
        for name, exponent in zip(("gn", "ln"), exponents, strict=False)
        for value in values
    ]
    return made_record(cases, sweep={"axis": "N", "values": list(values)})


def texts(record):
    with figures.drawing():
        drawn = figure(record)
        return [text.get_text() for text in [*drawn.texts, *(text for axes in drawn.axes for text in axes.texts)]]


def panels(record):
    with figures.drawing():
        return figure(record).axes


def test_every_candidate_stands_in_a_row_with_its_ratio_and_its_verdict():
    told = texts(made_record([made_case()], profile="mine"))

    assert {"stones bench, profile mine", "a processor, 2 threads, torch 2.13.0", "forward"} <= {*told}
    assert {"gn", PEER, "copy", "2 ms", "4 ms", "0.5 ms"} <= {*told}
    assert "0.5 (0.45 to 0.55); pass, bar 0.8" in told
    assert "4 (3.6 to 4.4)" in told, "there is no bar, so no verdict"


def test_the_interval_the_noise_and_the_bar_are_where_the_record_says():
    axes, _ = panels(made_record([made_case()]))
    lines = [line.get_xydata().tolist() for line in axes.lines]

    assert [[0.45, 1], [0.55, 1]] in lines
    assert [[0.8, 1]] in lines
    assert [[0.5, 1]] in lines
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.x0, band.x1) == pytest.approx((0.98, 1.02))
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"] == [0.8]


def test_every_round_is_a_dot_and_time_goes_downwards():
    record = made_record([made_case()])
    _, strip = panels(record)
    found = [line.get_xydata() for line in strip.lines if line.get_marker() == "."]
    wanted = [each["samples_ns"] for each in record["cases"][0]["candidates"]]

    assert [len(line) for line in found] == [12, 12, 12]
    for row, (line, samples, ms) in enumerate(zip(found, wanted, (2.0, 4.0, 0.5), strict=True)):
        assert line[:, 0] == pytest.approx([sample / 1e6 / ms for sample in samples])
        assert [*line[:, 1]] == sorted(line[:, 1])
        assert row - 0.5 < line[0, 1] < line[-1, 1] < row + 0.5
    assert strip.yaxis_inverted()


def test_several_bars_against_one_reference_are_all_told():
    ratios = [ratio("gn", PEER, 0.5, 0.4, "fail", advisory=True), ratio("gn", PEER, 0.5, 0.8, "pass", advisory=False)]
    told = texts(made_record([made_case(ratios=ratios)]))

    assert "0.5 (0.45 to 0.55); fail, bar 0.4, advisory; pass, bar 0.8" in told


def test_each_direction_has_panels_of_its_own():
    record = made_record([made_case(), made_case(direction="backward"), made_case("bn")])

    assert [text for text in texts(record) if text.endswith("ward")] == ["forward", "backward"]
    assert len(panels(record)) == 4


def test_a_sweep_is_a_line_for_each_candidate_with_its_band_and_the_floor():
    record = swept(1.0, roofline=0.3)
    axes, legend = panels(record)
    curves = {line.get_linestyle(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"}

    assert curves == {"-": [[1, 0.5], [8, 4], [64, 32]]}
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("log", "log", "N")
    assert len(axes.lines) == 4
    (floor,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert [*floor.get_xdata()] == [1, 8, 64]
    assert floor.get_ydata() == pytest.approx([0.3, 2.4, 19.2])
    edges = axes.collections[0].get_paths()[0].get_extents()
    assert (edges.y0, edges.y1) == pytest.approx((0.45, 35.2))
    assert {"gn bfloat16", PEER, "copy", "roofline: the machine's floor for it"} <= {t.get_text() for t in legend.texts}


@pytest.mark.parametrize("roofline", [None, 0.3])
def test_without_a_roofline_there_is_no_floor(roofline):
    told = texts(swept(1.0, roofline=roofline))
    assert any("roofline" in text for text in told) == (roofline is not None)


def test_the_exponent_of_the_cost_is_told_between_neighbours():
    record = swept(1.5, 0.25)
    lines = lines_of(record["cases"], record["sweep"]["values"])

    assert [line.name for line in lines] == [
        "gn bfloat16", f"{PEER} beside gn bfloat16", "copy beside gn bfloat16",
        "ln bfloat16", f"{PEER} beside ln bfloat16", "copy beside ln bfloat16",
    ]  # fmt: skip
    assert lines[0].exponents == pytest.approx({(1, 8): 1.5, (8, 64): 1.5})
    assert lines[3].exponents == pytest.approx({(1, 8): 0.25, (8, 64): 0.25})
    told = texts(record)
    assert {"1→8", "8→64"} <= {*told}
    assert (told.count("1.50"), told.count("0.25")) == (6, 6)


def test_points_that_are_missing_or_out_of_order_are_drawn_in_order():
    record = swept(1.0, values=(64, 1))
    (line, *_) = lines_of(record["cases"], record["sweep"]["values"])
    assert [point["value"] for point in line.points] == [1, 64]
    (line, *_) = lines_of(swept(1.0, values=(8,))["cases"], [8])
    assert line.exponents == {}
    assert render(swept(1.0, values=(8,))).startswith(b"<?xml")


@pytest.mark.parametrize("values", [("eigen", "isqrt"), (True, False), ([3, 3], [3, 5]), (None, 4), (0, 2)])
def test_words_are_swept_in_their_order_and_have_no_exponents(values):
    words = [value_text(list(value) if isinstance(value, tuple) else value) for value in values]
    cases = [
        made_case(f"gn how={word}", ms, at={"axis": "how", "value": value})
        for word, value, ms in zip(words, values, (1.0, 2.0), strict=True)
    ]
    record = made_record(cases, sweep={"axis": "how", "values": [*values]})
    axes, _ = panels(record)
    assert axes.get_xscale() == "linear"
    assert [label.get_text() for label in axes.get_xticklabels()] == words
    assert {(line.name, *line.exponents) for line in lines_of(cases, values)} == {("gn",), (PEER,), ("copy",)}
    assert render(record).startswith(b"<?xml")


HOSTILE = ["$x^2$", "$", "<b>&amp;", "--><script>", "a" * 500, "\u202egn\u202c", "gn\n\x1b[31m\x00", "\ud800", "漢字🪨"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("sweep", [None, {"axis": "N", "values": [1]}])
def test_a_name_is_only_a_name(name, sweep, recwarn):
    at = sweep and {"axis": "N", "value": 1}
    record = made_record([made_case(name, at=at)], profile=name or None, sweep=sweep)
    drawn = render(record)

    ET.fromstring(drawn)
    assert not recwarn.list
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    told = texts(record)
    assert shown in told or any(text.startswith("aaa") and "…" in text and len(text) <= 40 for text in told)


@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("sweep", [False, True])
def test_what_is_written_stays_inside_the_picture(count, sweep):
    names = [f"case {number} of a rather long name that goes on" for number in range(count)]
    at = {"axis": "N", "value": 4} if sweep else None
    record = made_record(
        [made_case(name, at=at) for name in names], sweep={"axis": "N", "values": [4]} if sweep else None
    )
    with figures.drawing():
        drawn = figure(record)
        renderer = FigureCanvasAgg(drawn).get_renderer()
        right, top = (side * drawn.dpi for side in drawn.get_size_inches())
        for text in [*drawn.texts, *(text for axes in drawn.axes for text in axes.texts)]:
            box = text.get_window_extent(renderer)
            assert 0 <= box.x0 <= box.x1 <= right, text.get_text()
            assert 0 <= box.y0 <= box.y1 <= top, text.get_text()


@pytest.mark.parametrize("sweep", [None, {"axis": "N", "values": [1, 8]}])
def test_a_record_without_cases_says_so(sweep):
    record = made_record([], interrupted=True, sweep=sweep)
    assert texts(record) == ["stones bench (interrupted)", "Nothing was measured."]
    assert render(record, "png", 40).startswith(b"\x89PNG")


@pytest.mark.parametrize("form", figures.FORMATS)
def test_the_same_record_gives_the_same_bytes_and_stays_as_it_was(form):
    for record in (made_record([made_case()]), swept(1.0, roofline=0.1)):
        before = copy.deepcopy(record)
        assert render(record, form, 40) == render(record, form, 40)
        assert record == before
    assert b"<dc:date>" not in render(record)


def test_a_measured_record_is_drawn_and_more_samples_than_an_svg_holds_are_a_picture_in_it(monkeypatch):
    what = case(subject(stone("gn"), {"groups": 2}, Setup((2, 4, 3, 3))), gates=[Gate("copy", 1e6)])
    record = bench(Bench((what,), Plan(seconds=0.1, block=1e-5, rounds=8)))
    assert any("pass, bar 1e+06" in text for text in texts(record))
    assert b"<image" not in render(record)
    monkeypatch.setattr("profiles.pictures.bench_plot.MOST_DOTS", 3)
    assert b"<image" in render(record)


def test_another_form_is_refused_and_without_matplotlib_the_extra_is_named(monkeypatch):
    with pytest.raises(Refusal, match="svg, png"):
        render(made_record([]), "pdf")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unavailable, match="pip install"):
        render(made_record([]))


def test_the_command_writes_the_picture_of_what_it_prints(tmp_path):
    file = tmp_path / "gn.svg"
    result = invoke(*TINY, "--plot", file, "--json")
    assert result.exit_code == Status.DONE
    assert json.loads(result.stdout)["cases"]
    assert file.read_bytes() == render(json.loads(result.stdout))
    assert [entry.name for entry in tmp_path.iterdir()] == ["gn.svg"]


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("gn.pdf", Status.MISUSE, "must end in .svg or .png"),
        ("-", Status.MISUSE, "goes to a file"),
        ("none/gn.svg", Status.ENVIRONMENT, "error: --plot"),
        ("folder.svg", Status.ENVIRONMENT, "error: --plot"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_anything_is_measured(name, status, word, tmp_path, monkeypatch):
    (tmp_path / "folder.svg").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stones_cli.handlers.bench._run", None)
    result = invoke(*TINY, "--plot", name)
    assert (result.exit_code, result.stdout) == (status, "")
    assert word in " ".join(result.stderr.split())


def test_without_matplotlib_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("stones_cli.handlers.bench._run", None)
    result = invoke(*TINY, "--plot", tmp_path / "gn.svg")
    assert (result.exit_code, result.stdout) == (Status.ENVIRONMENT, "")
    assert "pip install 'dl-stones[draw]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_at_the_end_leaves_the_table(tmp_path, monkeypatch):
    def full(*arguments):
        raise Unavailable("no space left")

    monkeypatch.setattr("profiles.atomic.write", full)
    result = invoke(*TINY, "--plot", tmp_path / "gn.svg", "--json")
    assert (result.exit_code, result.stderr) == (Status.ENVIRONMENT, "error: no space left\n")
    assert json.loads(result.stdout)["cases"]


def test_a_pipe_that_closes_early_still_leaves_the_picture(tmp_path, monkeypatch):
    def closed(*arguments):
        raise BrokenPipeError

    monkeypatch.setattr("stones_cli.handlers.bench.emit", closed)
    invoke(*TINY, "--plot", tmp_path / "gn.svg")
    assert (tmp_path / "gn.svg").read_bytes().startswith(b"<?xml")


def test_an_early_ctrl_c_writes_no_picture(tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("profiles.speed.bench.bench", stop)
    result = invoke(*TINY, "--plot", tmp_path / "gn.svg", "--json")
    assert result.exit_code == Status.INTERRUPTED
    assert json.loads(result.stdout)["interrupted"] is True
    assert not list(tmp_path.iterdir())


def test_ctrl_c_draws_what_was_measured(tmp_path, monkeypatch):
    measure, file = profiles.speed.bench._Measuring.measure, tmp_path / "gn.svg"

    def until_backward(run, what, place):
        if what.direction == "backward":
            raise KeyboardInterrupt
        measure(run, what, place)

    monkeypatch.setattr("profiles.speed.bench._Measuring.measure", until_backward)
    result = invoke(*TINY, "--forward", "--backward", "--plot", file, "--json")
    assert result.exit_code == Status.INTERRUPTED
    record = json.loads(result.stdout)
    assert (len(record["cases"]), record["interrupted"]) == (1, True)
    assert file.read_bytes() == render(record)
