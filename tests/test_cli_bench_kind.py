"""`bench` of whole kinds and of several techniques with common options; the workspace beside the times."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from command_line import invoke, process

from layers import catalog
from layers.catalog import KINDS, stone
from profiles.errors import Refusal
from profiles.kinds import bench_of, stones_of, timeable
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case, check_timeable
from profiles.speed.timing import Plan
from profiles.speed.variants import Variant
from profiles.subject import Setup, Subject, subject
from profiles.target import Foreign
from stones_cli.options import in_common
from stones_cli.report.bench import report
from stones_cli.report.terminal import drawn
from stones_cli.status import Status

SMALL = Setup(shape=(2, 4, 6, 6))
QUICK = ("--rounds", "5", "--budget", "0.01")
PLAN = Plan(seconds=0.01, rounds=5, block=1e-5)


def record(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code == Status.DONE, result.output
    return json.loads(result.stdout)


def foreign(forward):
    class Own(torch.nn.Module):
        pass

    Own.forward = lambda self, x: forward(x)
    return Subject(Foreign("Own", Own, ()), {}, SMALL)


def test_a_kind_is_all_its_techniques_each_beside_its_peer():
    found = record("bench", "--kind", "weight", "-i", "1x8x9x9", "--padding", 1, *QUICK)

    assert found["skipped"] == []
    assert [made["stone"] for made in found["cases"]] == [s.name for s in stones_of("weight")]
    for made in found["cases"]:
        assert made["options"]["padding"] == [1, 1]
        assert [c["name"] for c in made["candidates"]] == [made["stone"], "torch.nn:Conv2d", "copy"]


def test_what_refuses_is_listed_and_the_rest_is_timed(tmp_path):
    text, found = (
        tmp_path / "out.txt",
        record("bench", "--kind", "upsample", "-i", "1x4x5x5", "-o", tmp_path / "out.txt", *QUICK),
    )

    assert [skipped["name"] for skipped in found["skipped"]] == ["irevnet-squeeze"]
    assert {made["stone"] for made in found["cases"]} == {s.name for s in stones_of("upsample")} - {"irevnet-squeeze"}
    assert f"Not timed\nirevnet-squeeze: {found['skipped'][0]['reason']}\n" in text.read_text()


def test_a_direction_that_one_lacks_is_left_out_of_it_alone():
    found = record("bench", "--kind", "regularize", "-i", "6x4x3x3", "--forward", "--backward", *QUICK)
    timed = {(made["stone"], made["direction"]) for made in found["cases"]}
    left_out = {skipped["name"]: skipped["reason"] for skipped in found["skipped"]}

    assert ("svb", "forward") in timed
    assert ("svb", "backward") not in timed
    assert left_out["svb"] == "has no backward: a projection is not differentiated"
    assert left_out["bbn"] == "transforms a model: it has no forward to time"


def test_a_refusal_while_running_leaves_out_one_of_a_kind_and_ends_what_was_named():
    def refuse(x):
        raise ValueError("too small")

    cases = case(foreign(refuse)), case(subject(stone("gn"), {"groups": 2}, SMALL))
    found = bench(Bench(cases, PLAN, skips=True))

    assert [made["name"] for made in found["cases"]] == ["gn"]
    assert found["skipped"] == [{"name": "Own", "reason": "refuses an input of 2x4x6x6: too small"}]
    for refused in (Bench(cases, PLAN), Bench(cases[:1], PLAN, skips=True)):
        with pytest.raises(Refusal, match="too small"):
            bench(refused)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if stones_of(kind)])
def test_every_technique_of_a_kind_is_a_case_or_left_out_with_a_reason(kind):
    made = bench_of(kind, {}, lambda s: [Variant(Setup(shape=(32, 3 if kind == "augment" else 32, 12, 12)))])
    timed, left_out = {c.label for c in made.cases}, {skipped.name for skipped in made.skipped}

    assert timed | left_out == {s.name for s in stones_of(kind)}
    assert {s.name for s in timeable(kind)} >= timed
    for transform in set(stones_of(kind)) - set(timeable(kind)):
        with pytest.raises(Refusal, match="transforms a model"):
            check_timeable(transform)


def test_options_of_a_kind_leave_out_whom_they_do_not_suit():
    made = bench_of("norm", {"eps": 0.0}, lambda s: [Variant(Setup(shape=(4, 32, 3, 3)))])
    reasons = {skipped.name: skipped.reason for skipped in made.skipped}

    assert "actnorm" in {c.label for c in made.cases}
    assert reasons["bn"].startswith("eps=0.0 is out of range")
    with pytest.raises(Refusal, match="kind='nrom' is not one of norm"):
        bench_of("nrom", {}, lambda s: [Variant(SMALL)])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bench --kind cnov --padding 1", "did you mean conv?"),
        ("bench --kind conv im2col", "give no names and no --profile beside it"),
        ("bench --kind conv --profile quick", "give no names and no --profile beside it"),
        ("bench --kind conv --paddin 1", "did you mean --padding?\nsee 'stones bench --kind conv --help'"),
        ("bench --kind conv --kernel-size 0", "must be an integer ≥ 1"),
        ("bench --kind pool --bins 2", "no such option --bins"),
        ("bench --kind weight -i 1x4", "nothing can be timed\ncen-conv: --input 1x4"),
        ("bench --kind norm --vs nosuch", "no stone is called 'nosuch'"),
        ("bench svb omd --method svd", "; it is an option of svb, not of omd: name only techniques that share it"),
        ("bench gn in ln --groups 4 --eps 1", "an option of gn, not of in and ln"),
        ("bench ln bn --affine true", "not alike in ln and bn"),
        ("bench actnorm bn --eps 0 -i 2x4x3x3", "bn: eps=0.0 is out of range"),
        ("check-invariance actnorm bn --eps 0", "bn: eps=0.0 is out of range"),
        ("inspect gn bn --eps 1", "unexpected extra argument"),
    ],
)
def test_what_does_not_go_together_is_refused(line, words):
    result = invoke(*line.split())

    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert words in result.stderr


def test_common_options_are_given_to_all():
    cases = record("bench", "im2col", "normalized-conv", "-i", "1x4x5x5", "--kernel-size", "3x1", *QUICK)["cases"]
    rows = record("check-invariance", "ln", "bn", "--eps", 1, "--property", "w-scale", "--carrier", "linear")["rows"]
    slopes = record("check-gradients", "weight-standardization", "weight-norm", "--eps", 0.5, "--carrier", "conv")[
        "rows"
    ]

    assert [made["options"]["kernel_size"] for made in cases] == [[3, 1], [3, 1]]
    assert {(row["stone"], row["verdict"], row["holds"]) for row in rows} == {
        ("ln", "measured", False),
        ("bn", "measured", False),
    }
    assert {(row["stone"], row["verdict"]) for row in slopes} == {
        ("weight-standardization", "measured"),
        ("weight-norm", "measured"),
    }


def test_an_option_in_common_admits_what_one_of_them_does():
    def found(*names):
        return {option.name: option for option in in_common([stone(name) for name in names])}

    assert found("bn") == {option.name: option for option in stone("bn").card.options}
    assert found("actnorm", "bn", "ln").keys() == {"eps"}, "affine is a word in ln"
    eps = found("actnorm", "bn")["eps"]
    assert (eps.default, eps.ge, eps.gt) == ("that of each", None, None)
    assert found("bn", "mabn")["momentum"].optional, "none is for bn alone"
    assert set(found("subpixel", "irevnet-squeeze")["order"].choices) == {"crd", "dcr"}


def test_help_lists_the_common_options():
    text = invoke("bench", "im2col", "normalized-conv", "--help").stdout

    assert "Options of im2col and normalized-conv:" in text
    assert "--padding <integer|AxB>" in text
    assert "--batched" not in text
    assert "--batched" in invoke("bench", "im2col", "--help").stdout
    assert "techniques:" in invoke("bench", "--kind", "weight", "--help").stdout
    assert "Techniques without a common option" in invoke("bench", "pono", "omd", "--help").stdout


def test_the_workspace_is_what_the_card_states():
    stated = subject(stone("im2col"), {"padding": 1}, Setup(shape=(2, 4, 6, 6))).symbols["lowered"]
    found = record("bench", "im2col", "-i", "2x4x6x6", "--padding", 1, *QUICK)["cases"][0]["candidates"]

    assert (found[0]["workspace_bytes"], found[-1]["workspace_bytes"]) == (stated, 0)


@pytest.mark.parametrize("direction", ["forward", "backward", "forward+backward"])
def test_the_workspace_is_measured_once_and_not_while_it_is_timed(direction):
    profiled = []

    def forward(x):
        profiled.append(torch.autograd._profiler_enabled())
        aside = torch.empty(250)
        return x * 2 + aside[0] * 0

    found = bench(Bench((case(foreign(forward), direction),), PLAN))

    assert sum(profiled) == (direction != "backward")
    assert len(profiled) > 7
    if direction == "forward":
        assert found["cases"][0]["candidates"][0]["workspace_bytes"] >= 1000


def test_nothing_is_said_while_it_is_measured():
    line = ("bench", "torch.nn:GroupNorm", "--num-groups", 2, "-i", "2x4x5x5", "--both", "--backward", *QUICK)
    result = process(*line)

    assert (result.returncode, result.stderr) == (Status.DONE, "")
    assert "workspace" in result.stdout


def test_tables_fit_80_characters_and_csv_has_every_number(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    line = ("bench", "weight-standardization", "-i", "2x8x9x9", "--forward", "--both", *QUICK)
    text = drawn(report(record(*line, "-o", tmp_path / "out.csv")))
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))

    assert max(map(len, text.splitlines())) <= 80
    assert text.index("Times, forward\n") < text.index("Ratios, forward\n") < text.index("Times, forward+backward\n")
    assert 2 <= text.count("candidate ") <= 4, "a column, in one table or two for each direction"
    assert "(yardstick)" in text
    assert {"case", "direction", "as", "IQR ms", "of copy's GB/s", "workspace B"} < rows[0].keys()
    assert [row["workspace B"] for row in rows if row["candidate"] == "copy"] == ["0", "0"]


def test_a_card_may_caution_against_its_times(monkeypatch):
    monkeypatch.setitem(catalog.stone("gn").card.__dict__, "caution", "these are not the times of the paper")
    sentence = "gn: these are not the times of the paper; see `stones show gn`"

    assert (
        invoke("bench", "gn", "--groups", 2, "-i", "2x4x3x3", "--both", "--forward", *QUICK).stdout.count(sentence) == 1
    )
    made = record("bench", "bn", "--vs", "gn:groups=2", "-i", "2x4x3x3", *QUICK)["cases"][0]
    assert made["warnings"][0]["code"] == "card"
    assert "these are not the times" in invoke("show", "gn").stdout
