"""The command `check-gradients`: its record, its matrix at any width, its statuses."""

import csv
import io
import json
from dataclasses import asdict

import pytest
from command_line import invoke, process
from rich.cells import cell_len

from layers import catalog
from layers.catalog import stone
from profiles.checks.geometry import check
from profiles.checks.gradients import GRADIENT_PROPERTIES
from stones_cli.report import terminal
from stones_cli.report.geometry import matrix
from stones_cli.status import Status

INSTANT = ["orthogonal", "orthogonal-total", "inverse-scale", "zero-mean", "common-mode"]


def record(*arguments):
    result = invoke("check-gradients", *arguments, "--json")
    assert result.exit_code == Status.DONE, result.output
    return json.loads(result.stdout)


def test_the_command_prints_the_record_of_the_library():
    document = record("gn", "--property", "orthogonal-total", "--carrier", "linear", "--expect", "rows.0.holds=true")
    assert document["schema"] == "stones.gradients/1"
    assert document["ok"] is True
    rows = check(stone("gn"), properties=["orthogonal-total"], carriers=["linear"])
    assert document["rows"] == json.loads(json.dumps([asdict(row) for row in rows], allow_nan=False))


def test_the_matrix_has_a_line_per_claim_and_carrier():
    chosen = ("--property", "orthogonal", "--property", "zero-mean")
    result = invoke("check-gradients", "weight-norm", *chosen, "--carrier", "linear", "-v")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["technique", "under", "behind", "orthogonal", "zero-mean"]
    assert "yes " in lines[1]
    assert "no " in lines[1]
    assert any("row " in line and "instead of 0" in line for line in lines)
    data = invoke("check-gradients", "weight-norm", *chosen, "--format", "csv").stdout
    assert {row["verdict"] for row in csv.DictReader(io.StringIO(data))} == {"ok"}


def test_the_step_at_which_adam_shortens_the_weight_is_shown():
    text = invoke("check-gradients", "weight-norm", "--property", "adam-growth", "--carrier", "linear", "-v").stdout
    assert "(no)" in text
    (row,) = check(stone("weight-norm"), properties=["adam-growth"], carriers=["linear"])
    assert f"step {row.counterexample.index[0]}: ‖W‖ is {row.counterexample.found:.9g}, down from" in text


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_terminal_of_any_width_holds_the_matrix(width, monkeypatch):
    rows = check(stone("weight-norm"), properties=INSTANT)
    monkeypatch.setenv("COLUMNS", str(width))
    drawn = terminal.drawn(matrix(rows, verbose=True))
    assert all(cell_len(line) <= width for line in drawn.splitlines())
    letters = "".join(drawn.split())
    assert all(name[:4] in letters for name in (*INSTANT, "weight-norm", "conv-padded"))


def test_a_process_with_a_pipe_prints_one_line_per_row():
    result = process("check-gradients", "pono", "--carrier", "linear", COLUMNS="80")
    assert result.returncode == Status.DONE
    assert result.stderr == ""
    assert [line.split()[0] for line in result.stdout.splitlines()[:2]] == ["technique", "pono"]
    assert "\x1b" not in result.stdout


def test_a_card_that_lies_exits_with_1(monkeypatch):
    claim = stone("pono").card.claims[0]
    lie = type(claim)(holds=(*claim.holds, "w-vec-recenter"), options=claim.options)
    line = ("check-gradients", "pono", "--property", "zero-mean", "--carrier", "linear")
    with monkeypatch.context() as edited:
        edited.setitem(catalog.stone("pono").card.__dict__, "claims", (lie,))
        result = invoke(*line)
        assert result.exit_code == Status.FAILED
        assert "failed: pono" in result.stderr
        assert "FAILED no" in result.stdout
        assert "Counterexamples" in result.stdout
    assert invoke(*line).exit_code == Status.DONE


def test_an_expectation_that_is_not_met_and_wrong_use_have_their_statuses(tmp_path):
    small = ("pono", "--property", "zero-mean", "--carrier", "linear")
    assert invoke("check-gradients", *small, "--expect", "rows.0.holds=true").exit_code == Status.FAILED
    for words, message in (
        (("pono", "--property", "zero-men"), "did you mean zero-mean?"),
        (("pono", "--carrier", "cnov"), "did you mean conv?"),
        (("bn-only",), "transform"),
        (("weight-norm", "--kernel-size", "5"), "that of the carrier"),
    ):
        result = invoke("check-gradients", *words)
        assert result.exit_code == Status.MISUSE
        assert message in result.stderr
        assert result.stdout == ""
    file = tmp_path / "out.json"
    assert invoke("check-gradients", *small, "-o", file).exit_code == Status.DONE
    assert json.loads(file.read_text())["ok"] is True


def test_given_options_and_classes_are_measured_without_expectation():
    for arguments in (("gn", "--groups", "4"), ("torch.nn:GroupNorm", "--num-groups", "4")):
        rows = record(*arguments, "--property", "orthogonal-total", "--carrier", "linear")["rows"]
        assert [(row["verdict"], row["holds"]) for row in rows] == [("measured", True)]


def test_properties_are_defined_without_measuring():
    defined = {entry["name"]: entry for entry in record("--list")["properties"]}
    assert list(defined) == list(GRADIENT_PROPERTIES)
    assert defined["zero-mean"]["invariance"] == "w-vec-recenter"
    assert defined["adam-growth"]["invariance"] == ""
