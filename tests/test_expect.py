"""Expectations: how they are written, looked up and judged."""

from __future__ import annotations

import pytest
from command_line import invoke

from profiles.checks import geometry, identities, invariance
from profiles.errors import Refusal
from profiles.expect import find, judge, parse
from profiles.races import race
from profiles.speed import bench, doctor
from stones_cli.status import Status

RECORD = {
    "params": {"total": 128, "trainable": 64},
    "stats": [
        {"name": "mean", "shape": [8, 32], "kept": False},
        {"name": "rstd", "shape": [64]},
        {"name": "mean", "shape": [1, 1]},
    ],
    "flops": {"forward": {"total": 3_670_528, "status": "complete"}},
    "ratio": 1.25,
    "output": None,
    "ok": True,
}


def holds(text):
    (outcome,) = judge([parse(text)], RECORD)
    return outcome.ok


@pytest.mark.parametrize(
    "text",
    [
        "params=128",
        "params==128",
        "params = 128.0",
        "params.trainable=64",
        "params!=127",
        "params<129",
        "params<=128",
        "params>127",
        "params>=128",
        "params>-1",
        "stats.mean.shape=8x32",
        "stats.mean.shape=8×32",
        "stats.mean.shape=8,32",
        "stats.mean.shape=[8,32]",
        "stats.rstd.shape=64",
        "stats.2.shape=1x1",
        "stats.mean.kept=false",
        "flops.forward<=3.7M",
        "flops.forward=3670.528k",
        "flops.forward<1G",
        "flops.forward.status=complete",
        "flops.forward.status!=partial",
        "ratio=1.25",
        "ratio<1.3",
        "ratio=125e-2",
        "output=none",
        "output=null",
        "ok=true",
    ],
)
def test_what_holds(text):
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "params=127",
        "params!=128",
        "params<128",
        "params>128",
        "stats.mean.shape=32x8",
        "stats.mean.shape=8",
        "stats.mean<3",
        "stats.mean.kept=0",
        "flops.forward<=2.7M",
        "flops.forward.status>1",
        "ratio>=1.26",
        "output=0",
        "output<1",
        "ok=1",
        "ok=false",
        "ok>0",
    ],
)
def test_what_fails(text):
    assert not holds(text)


def test_every_comparison_has_its_opposite():
    for one, other in (("=", "!="), ("<", ">="), (">", "<=")):
        for wanted in (127, 128, 129):
            assert holds(f"params{one}{wanted}") != holds(f"params{other}{wanted}")


@pytest.mark.parametrize("text", ["", "params", "=3", "params=", "<=3", "params~3", "a b=3", "params<x", "params>8x32"])
def test_what_is_no_expectation_is_refused(text):
    with pytest.raises(Refusal, match=r"key=value|compares by size"):
        parse(text)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("parms", "did you mean params"),
        ("flops.foward", "did you mean flops.forward"),
        ("stats.meen.shape", "did you mean stats.mean"),
        ("stats.7", "there are mean, rstd"),
        ("qqq", "there are params, stats"),
        ("ratio.low", "nothing is below"),
        ("output.shape", "nothing is below"),
    ],
)
def test_an_unknown_key_names_near_ones(key, hint):
    with pytest.raises(Refusal, match=hint):
        find(RECORD, key)


def test_names_that_no_key_can_have_are_told_by_their_numbers():
    record = {"cases": [{"name": name, "threads": 1} for name in ("gn N=1", "gn N=2", "bn", "in eps=0.1")]}
    told = r"there are 0 \(gn N=1\), 1 \(gn N=2\), bn, 3 \(in eps=0\.1\)$"
    for key in ("cases.7.threads", "cases.gn_N=2.threads", "cases.gn N.threads"):
        with pytest.raises(Refusal, match=told):
            find(record, key)
    assert find(record, "cases.1.threads") == find(record, "cases.bn.threads") == 1
    with pytest.raises(Refusal, match=r"a name with spaces in it is written as its number, cases\.0$"):
        parse("cases.gn N=2.threads=1")


def test_a_failure_tells_what_was_found():
    (outcome,) = judge([parse("stats.mean.shape=8x33")], RECORD)
    assert str(outcome) == "expected stats.mean.shape=8x33, found stats.mean.shape=8x32"


def test_a_huge_number_is_compared_exactly():
    record = {"n": 10**30 + 1}
    assert judge([parse(f"n={10**30 + 1}")], record)[0].ok
    assert not judge([parse("n=1e30")], record)[0].ok


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("list --expect techniques.gn.year=2018", 0),
        ("list --expect techniques.gn.year=2017", 1),
        ("list --expect nothing.gn=1", 2),
        ("list --expect techniques.gn.year!=2018B", 2),
        ("list --expect techniques.gn.year=nan", 2),
        ("show gn --expect params!=0", 0),
        ("show gn --expect peer=nothing", 1),
        ("check-identities gn --expect ok=true", 0),
        ("check-identities gn --expect ok=false", 1),
        ("check-invariance gn --property w-scale --carrier linear --expect ok=true --expect rows.0.holds=true", 0),
        ("check-invariance gn --property w-scale --carrier linear --expect rows.0.holds=false", 1),
        ("check-invariance --list --expect properties.w-scale.paper=true", 0),
    ],
)
def test_every_command_takes_expectations(line, status):
    result = invoke(*line.split())
    assert result.exit_code == status
    assert (result.stdout == "") == (status == 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bench gn --expect foo=1", "the result has no 'foo'; there are schema"),
        ("bench gn --expect cases.gn.thread=1", "cases.gn has no 'thread'; did you mean cases.gn.threads?"),
        ("bench gn --expect cases.0.ratios.0.ratio.x=1", "cases.0.ratios.0.ratio has no 'x'; nothing is below it"),
        ("run ci --expect counts.okay=1", "counts has no 'okay'; did you mean counts.ok?"),
        ("check-invariance gn --expect rows.0.hold=true", "rows.0 has no 'hold'; did you mean rows.0.holds?"),
        ("check-gradients gn --expect okay=true", "did you mean ok?"),
        ("check-identities gn --expect okay=true", "did you mean ok?"),
        ("doctor --expect verdikt=ok", "did you mean verdict?"),
        ("race --expect raced=1", "did you mean races?"),
        ("race adax --problem reddi --expect entrant=1", "did you mean entrants?"),
    ],
)
def test_what_no_result_has_is_refused_before_anything_is_measured(line, words, monkeypatch):
    for module in (geometry, identities, invariance):
        monkeypatch.setattr(module, "check", None)
    for module in (bench, doctor, race):
        monkeypatch.setattr(module, module.__name__.rpartition(".")[2], None)
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("bench in -i 4x12x6x6 --rounds 5 --budget 0.01 --expect cases.im.threads=1", "Times, forward"),
        ("race adax --problem reddi --steps 3 --expect entrants.adam.diverged=none", "At the end"),
    ],
)
def test_what_was_measured_is_written_though_an_expectation_is_about_nothing(line, kept):
    result = invoke(*line.split())
    assert result.exit_code == Status.MISUSE
    assert kept in result.stdout
    assert "error: --expect" in result.stderr
