"""What `inspect` says of a rule for the backward: operations and time beside the dense backward, and Amdahl's bound."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from layers import catalog
from profiles.counting import facts
from profiles.counting.savings import NOTHING, SMALL, _words, saves
from profiles.errors import Refusal
from profiles.shares import bound
from profiles.subject import Setup, subject
from stones_cli.app import app

CONV = Setup(shape=(4, 12, 9, 8))


def found(name, options, setup, share=0.7):
    return facts.inspect(subject(catalog.stone(name), options, setup), fvcore=False, backward_share=share)[
        "backward_savings"
    ]


def invoke(*words):
    return CliRunner().invoke(app, ["inspect", *words])


def test_amdahls_law_gives_the_numbers_of_the_abstract():
    assert bound(0.6996, 0.1) == pytest.approx(2.7, abs=1e-3)
    assert bound(2 / 3, 0.1) == pytest.approx(2.5)
    assert bound(0.5, 1) == 1
    assert bound(1, 0.25) == 4


def test_the_dense_backward_is_that_of_the_peer():
    record = found("meprop", {"k": 4}, Setup(shape=(16, 64)))
    dense = 4 * 16 * 64 * 64 + 16 * 64 - 64
    executed = 4 * 16 * 4 * 64 + 2 * 16 * 64 + 16 * 64 - 64
    assert record["peer"] == "torch.nn:Linear"
    assert record["flops"] == {"dense": dense, "definition": executed, "executed": executed}
    assert record["ratio"]["executed"] == pytest.approx(executed / dense, abs=1e-6)
    assert record["bound"]["executed"] == pytest.approx(1 / (0.3 + 0.7 * executed / dense), abs=1e-4)
    assert record["says"] in ("", SMALL)


def test_the_measured_ratio_lies_in_its_interval_and_sets_its_bound():
    record = found("meprop", {"k": 4}, Setup(shape=(16, 64)), share=0.5)
    measured = record["measured"]
    assert 0 < measured["low"] <= measured["ratio"] <= measured["high"]
    assert measured["rounds"] >= 5
    assert record["bound"]["measured"] == pytest.approx(1 / (0.5 + 0.5 * measured["ratio"]), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "setup", "nothing"),
    [
        ("resprop", {}, CONV, True),
        ("resprop", {"structure": "sample", "reuse_sparsity": 0.5}, CONV, False),
        ("resprop", {"reuse_sparsity": 0.0}, CONV, False),
        ("meprop", {"unified": False}, Setup(shape=(16, 64)), True),
        ("meprop", {}, Setup(shape=(16, 64)), False),
    ],
)
def test_it_is_said_plainly_where_single_elements_save_nothing(name, options, setup, nothing):
    record = found(name, options, setup)
    assert (record["says"] == NOTHING) == nothing
    assert (record["flops"]["executed"] > record["flops"]["dense"]) == nothing


def test_only_rules_of_the_backward_that_replace_a_layer_have_savings():
    assert {name for name, stone in catalog.stones().items() if stone.kind == "backward" and saves_something(name)} >= {
        "meprop",
        "resprop",
    }
    assert found("gn", {"groups": 4}, CONV) is None
    assert found("omd-modulation", {}, CONV) is None


def saves_something(name):
    stone = catalog.stone(name)
    return saves(subject(stone, {}, Setup(shape=(4, 12, 9, 8)[: max(stone.card.ranks)])))


def test_nothing_is_timed_unless_it_is_asked_for():
    record = facts.inspect(subject(catalog.stone("meprop"), {}, Setup(shape=(16, 64))), fvcore=False)
    assert record["backward_savings"] is None


@pytest.mark.parametrize("share", [0, -1, 1.01])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(Refusal, match="must be > 0 and ≤ 1"):
        found("meprop", {}, Setup(shape=(16, 64)), share=share)


def test_inspect_shows_the_savings_of_a_rule_and_null_elsewhere():
    words = ["meprop", "-i", "16x64", "--backward-share", "0.5", "--no-fvcore", "--json"]
    record = json.loads(invoke(*words).stdout)
    assert record["backward_savings"]["share"] == 0.5
    assert json.loads(invoke("gn", "-i", "4x32x4x4", "--no-fvcore", "--json").stdout)["backward_savings"] is None
    assert json.loads(invoke("meprop", "-i", "16x64", "--no-measure", "--json").stdout)["backward_savings"] is None
    text = invoke("resprop", "-i", "4x12x6x6", "--no-fvcore").stdout
    assert "Backward savings, 0.7 of the training time" in text
    assert "Nothing is saved" in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["gn", "--backward-share", "0.5"],
            "--backward-share is for rules of the backward that replace a layer; gn is",
        ),
        (["meprop", "--backward-share", "1.5"], "--backward-share 1.5 is out of range: it must be > 0 and ≤ 1"),
        (["meprop", "--backward-share", "0"], "not a number > 0"),
        (["meprop", "--no-measure", "--backward-share", "0.5"], "no meaning beside --no-measure"),
    ],
)
def test_a_share_without_meaning_is_misuse(words, message):
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_fewer_operations_that_take_longer_are_said_to():
    assert _words(definition=1, executed=2, dense=9, least=1.1) == SMALL
    assert _words(definition=1, executed=2, dense=9, least=0.9) == ""
    assert _words(definition=1, executed=10, dense=9, least=1.1) == NOTHING
