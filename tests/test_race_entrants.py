"""Races with odd entrants, rates and files: one line for each that cannot race, and a result for each that can."""

import json
import warnings

import pytest
from command_line import invoke

from layers.card import OptionError
from profiles.errors import Refusal
from profiles.pictures.race_plot import render
from profiles.races.entrants import entrant
from profiles.races.problems import PROBLEMS
from profiles.races.race import race

SGD = "torch.optim:SGD"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_at_a_learning_rate_of_zero_nothing_moves(problem):
    record = race(PROBLEMS[problem], [entrant(f"{SGD}:lr=0")], steps=3)
    first, *_, last = record["entrants"][0]["points"]
    moved = {name for name in ("travel", "pace", "x0") if name in last and last[name] != first[name]}
    assert not moved
    assert last.get("travel", 0) == last.get("pace", 0) == 0


@pytest.mark.parametrize("problem", ["quadratic", "digits"])
def test_an_optimizer_that_cannot_step_is_refused_before_anybody_runs(problem):
    found = invoke("race", SGD, "torch.optim:SparseAdam", "--problem", problem, "--steps", "1")
    assert found.exit_code == 2
    assert "torch.optim:SparseAdam" in found.stderr
    assert "dense gradients" in found.stderr
    assert not found.stdout


def test_an_optimizer_that_evaluates_a_closure_again_races_on_digits():
    found = invoke(
        "race", "torch.optim:LBFGS:lr=0.1", "--problem", "digits", "--steps", "1", "--batch", "718", "--json"
    )
    assert found.exit_code == 0
    assert json.loads(found.stdout)["entrants"][0]["end"]["loss"] > 0


@pytest.mark.parametrize("text", ["adax+", "+adax", "bn-only++adax"])
def test_an_entrant_with_a_name_missing_is_refused_as_it_was_written(text):
    with pytest.raises(Refusal, match="a name is missing") as refusal:
        entrant(text)
    assert repr(text) in str(refusal.value)


def test_an_option_given_twice_is_refused():
    with pytest.raises(OptionError, match="adax: lr is given twice"):
        entrant("adax:lr=0.1,lr=0.2")


def test_a_plot_that_cannot_be_written_is_refused_by_its_own_option(tmp_path):
    found = invoke("race", "adax", "--problem", "reddi", "--plot", str(tmp_path / "none" / "a.svg"))
    assert found.exit_code == 3
    assert found.stderr.startswith("error: --plot ")


def test_where_the_first_entrant_diverges_the_others_keep_their_range():
    found = invoke("race", f"{SGD}:lr=1e38", SGD, "--problem", "digits", "--steps", "1", "--batch", "718")
    assert "diverged at step 1" in found.stdout
    assert "accuracy_min" in found.stdout


def test_a_plot_of_no_entrant_warns_of_nothing():
    record = race(PROBLEMS["impulse"], [entrant(SGD)], steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render({**record, "entrants": []}).startswith(b"<?xml")
