"""`stones run`: a profile is refused where it is wrong, or carried out, with a row and a verdict for every item."""

from __future__ import annotations

import json

import pytest
from command_line import invoke

from layers import catalog
from profiles import run_profiles
from profiles.checks import identities
from profiles.checks.cells import claiming
from profiles.counting import facts
from profiles.run import run
from profiles.run_profiles import Check, Inspection, Timing, load
from profiles.speed import bench
from stones_cli.status import Status

SMALL = "input: 4x12x3x5, options: {groups: 3}"
GN = f"{{stone: gn, {SMALL}, expect: [params=24, stats.mean.shape=4x3]}}"
BENCH = "{stones: [gn], seconds: 0.01, rounds: 5, defaults: {input: 4x64x3x3}, gates: [%s]}"
PASSING, FAILING = (f"{{of: gn, vs: copy, max_ratio: {ratio}}}" for ratio in ("1.0e+6", "1.0e-3"))


def record(path, *arguments):
    result = invoke("run", path, "--json", *arguments)
    return json.loads(result.stdout), result


def verdicts(document):
    return [(row["name"], row["verdict"]) for row in document["rows"]]


def test_all_means_every_stone_that_the_section_is_about(profile):
    run = load(str(profile("inspect: all\ncheck-invariance: [all]\ncheck-gradients: all\ncheck-identities: all\n")))
    by = {}
    for item in run.items:
        by.setdefault(item.command if isinstance(item, Check) else "inspect", []).append(item)
    assert [item.subject.name for item in by["inspect"]] == list(catalog.stones())
    assert [item.stone for item in by["check-invariance"]] == claiming()
    assert [item.stone for item in by["check-gradients"]] == claiming()
    assert [item.stone for item in by["check-identities"]] == identities.stating()


def test_what_is_written_is_what_is_run(profile):
    path = profile(
        f"inspect:\n  - {GN}\n  - {{stone: bn, dtype: float64, mode: eval, memory-format: channels_last, seed: 7}}\n"
        "check-invariance: [{stone: ln, properties: [w-scale], carriers: [linear, conv]}]\n"
        f"bench: {BENCH % PASSING}\n"
    )
    gn, bn, ln, timing = load(str(path)).items
    assert gn.subject.options["groups"] == 3
    assert [expectation.key for expectation, _ in gn.expectations] == ["params", "stats.mean.shape"]
    setup = bn.subject.setup
    assert (setup.dtype, setup.train, setup.memory_format, setup.seed) == ("float64", False, "channels_last", 7)
    assert (ln.properties, ln.carriers) == (("w-scale",), ("linear", "conv"))
    assert isinstance(timing, Timing)
    assert [case.gates[0].max_ratio for case in timing.bench.cases] == [1e6]
    assert [item.place.line for item in (gn, bn, ln, timing)] == [3, 4, 5, 6]


@pytest.mark.parametrize("name", run_profiles.names())
def test_the_profiles_that_come_with_it_load(name):
    assert load(name).items


def test_the_counters_are_those_of_every_stone():
    items = load("ci").items
    inspected = [item for item in items if isinstance(item, Inspection)]
    assert list(dict.fromkeys(item.subject.name for item in inspected)) == list(catalog.stones())
    counted = {
        item.subject.name: {each.key for each, _ in item.expectations} for item in inspected[: len(catalog.stones())]
    }
    assert [name for name, keys in counted.items() if not keys] == ["autoaugment"], "whose images Pillow checks"
    assert counted["gn"] >= {"params", "flops.forward.kernels", "memory.saved.measured", "memory.workspace.backward"}
    assert [item.stone for item in items if isinstance(item, Check)] == identities.stating()
    assert not any(isinstance(item, Timing) for item in items)


def test_every_section_runs_and_what_holds_is_status_0(profile):
    path = profile(
        f"inspect: [{GN}, bn-only, 'torch.nn:Softplus']\ncheck-identities: [in]\n"
        "check-invariance: [{stone: ln, carriers: [linear]}]\n"
        "check-gradients: [{stone: ln, carriers: [linear], properties: [orthogonal]}]\n"
        f"bench: {BENCH % PASSING}\n"
    )
    document, result = record(path)
    assert result.exit_code == Status.DONE, result.output
    assert [(row["section"], row["verdict"]) for row in document["rows"]] == [
        *[("inspect", "ok")] * 3,
        ("check-invariance", "ok"),
        ("check-gradients", "ok"),
        ("check-identities", "ok"),
        ("bench", "ok"),
    ]
    assert document["ok"]
    assert document["rows"][0]["record"]["params"]["total"] == 24
    assert document["rows"][-1]["record"]["ratios"][0]["verdict"] == "pass"


def test_what_fails_is_told_with_its_place_and_keeps_nothing_else_from_running(profile):
    path = profile("inspect:\n  - stone: gn\n    expect: [params=128,\n      params=127, 'params<5']\n  - in\n")
    document, result = record(path)
    assert result.exit_code == Status.FAILED
    failed, passed = document["rows"]
    assert failed["verdict"] == "failed"
    assert failed["reasons"] == ["expected params=127, found params=128", "expected params<5, found params=128"]
    assert failed["place"] == {"file": str(path), "line": 5, "column": 7}
    assert passed["verdict"] == "ok"
    assert f"failed: {path}:5:7: inspect gn: expected params=127, found params=128\n" in result.stderr
    assert not document["ok"]


def test_a_card_that_is_contradicted_fails(profile, monkeypatch):
    real = facts.inspect

    def planted(*arguments, **settings):
        made = real(*arguments, **settings)
        return {**made, "checks": [{**check, "measured": 7, "ok": False} for check in made["checks"][:1]]}

    monkeypatch.setattr(facts, "inspect", planted)
    document, result = record(profile(f"inspect: [{GN.replace('params=24, ', '')}]\n"))
    assert result.exit_code == Status.FAILED
    assert document["rows"][0]["reasons"] == ["params: the card says 24, measured 7"]


def test_a_claim_or_an_identity_that_is_false_fails(profile, monkeypatch):
    real = identities.check
    monkeypatch.setattr(identities, "check", lambda stones: [identities.replace(real(stones)[0], verdict="failed")])
    monkeypatch.setattr("profiles.checks.cells.HOLDS", 1e9)
    monkeypatch.setattr("profiles.checks.invariance.HOLDS", 1e9)
    document, result = record(profile("check-invariance: [{stone: ln, carriers: [linear]}]\ncheck-identities: [in]\n"))
    assert result.exit_code == Status.FAILED
    assert verdicts(document) == [("ln", "failed"), ("in", "failed")]
    assert all(row["reasons"] for row in document["rows"])


@pytest.mark.parametrize(
    ("raised", "verdict", "status"),
    [
        ("Refusal('no')", "refused", Status.MISUSE),
        ("OptionError('no')", "refused", Status.MISUSE),
        ("Unavailable('no')", "unavailable", Status.ENVIRONMENT),
        ("MemoryError()", "unavailable", Status.ENVIRONMENT),
        ("ModuleNotFoundError('no')", "unavailable", Status.ENVIRONMENT),
        ("ZeroDivisionError('no')", "error", Status.INTERNAL),
    ],
)
def test_whatever_an_item_raises_is_its_verdict_and_the_others_run(profile, monkeypatch, raised, verdict, status):
    from layers.card import OptionError
    from profiles.errors import Refusal, Unavailable

    kinds = {"Refusal": Refusal, "OptionError": OptionError, "Unavailable": Unavailable}
    real = facts.inspect

    def planted(what, **settings):
        if what.name == "gn" and settings.get("measure", True):
            raise eval(raised, {**kinds})
        return real(what, **settings)

    monkeypatch.setattr(facts, "inspect", planted)
    document, result = record(profile("inspect: [gn, in]\n"))
    assert verdicts(document) == [("gn", verdict), ("in", "ok")]
    assert result.exit_code == status
    assert document["rows"][0]["reasons"]


def test_an_absent_device_is_no_reason_to_stop(profile, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document, result = record(profile("inspect: [{stone: gn, device: cuda}, in]\n"))
    assert verdicts(document) == [("gn", "unavailable"), ("in", "ok")]
    assert result.exit_code == Status.ENVIRONMENT


def test_a_gate_that_fails_fails_and_an_advisory_one_only_warns(profile):
    document, result = record(profile(f"bench: {BENCH % FAILING}\n"))
    (row,) = document["rows"]
    assert (row["verdict"], result.exit_code) == ("failed", Status.FAILED)
    assert row["place"]["line"] == 2
    assert row["place"]["column"] == 1 + len("bench: ") + BENCH.index("%s")
    assert document["bench"]["verdict"] == "fail"
    document, result = record(profile(f"bench: {BENCH % FAILING.replace('}', ', advisory: true}')}\n"))
    (row,) = document["rows"]
    assert (row["verdict"], result.exit_code) == ("measured", Status.DONE)
    assert row["reasons"][0].startswith("advisory: ")


def test_inconclusive_is_status_4_only_when_asked(profile, monkeypatch):
    real = bench.bench

    def planted(what, progress=None):
        made = real(what, progress)
        made["cases"][0]["ratios"][0]["verdict"] = "inconclusive"
        return made

    monkeypatch.setattr(bench, "bench", planted)
    path = profile(f"bench: {BENCH % PASSING}\n")
    document, result = record(path)
    assert (verdicts(document), result.exit_code) == ([("gn forward", "inconclusive")], Status.DONE)
    assert record(path, "--fail-inconclusive")[1].exit_code == Status.INCONCLUSIVE


def test_a_case_that_is_refused_leaves_the_others(profile):
    entries = "[{stone: orthogonal, directions: [backward]}, gn]"
    document, result = record(profile(f"bench: {BENCH.replace('[gn]', entries) % PASSING}\n"))
    assert sorted(verdicts(document)) == [("gn forward", "ok"), ("orthogonal", "refused")]
    assert result.exit_code == Status.MISUSE
    (refused,) = [row for row in document["rows"] if row["verdict"] == "refused"]
    assert refused["place"]["column"] == 1 + len("bench: {stones: [")


def test_a_bench_profile_is_run_as_it_stands(tmp_path):
    path = tmp_path / "b.yaml"
    text = "schema: stones.profile/1\nstones: [gn]\nseconds: 0.01\nrounds: 5\ndefaults: {input: 4x64x3x3}\n"
    path.write_text(f"{text}gates:\n  - {FAILING}\n")
    document, result = record(path)
    assert (verdicts(document), result.exit_code) == ([("gn forward", "failed")], Status.FAILED)
    assert document["rows"][0]["place"]["line"] == 7


def test_an_interruption_keeps_what_was_done(profile, monkeypatch):
    real = facts.inspect

    def planted(what, **settings):
        if what.name == "in" and settings.get("measure", True):
            raise KeyboardInterrupt
        return real(what, **settings)

    monkeypatch.setattr(facts, "inspect", planted)
    document, result = record(profile("inspect: [gn, in, ln]\n"))
    assert verdicts(document) == [("gn", "ok")]
    assert document["interrupted"]
    assert result.exit_code == Status.INTERRUPTED


def test_an_interruption_in_a_bench_ends_the_run(profile, monkeypatch):
    real = bench.bench
    monkeypatch.setattr(bench, "bench", lambda *arguments: {**real(*arguments), "interrupted": True})
    document, result = record(profile(f"bench: {BENCH % PASSING}\n"))
    assert verdicts(document) == [("gn forward", "ok")]
    assert document["interrupted"]
    assert result.exit_code == Status.INTERRUPTED


def test_the_progress_rises_to_the_last_item(profile):
    told = []
    run(
        load(str(profile("inspect: [gn, in]\ncheck-identities: [in]\n"))),
        lambda fraction, what: told.append((fraction, what)),
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert [what for _, what in told] == ["inspect gn", "inspect in", "check-identities in"]


def test_the_document_is_the_same_each_time(profile):
    path = profile(f"inspect: [{GN}, icnr]\ncheck-identities: [in]\n")
    assert record(path)[1].stdout == record(path)[1].stdout


def test_expectations_about_the_whole_fail_it_too(profile):
    path = profile("inspect: [gn]\n")
    assert record(path, "--expect", "counts.ok=1")[1].exit_code == Status.DONE
    assert record(path, "--expect", "counts.ok=2")[1].exit_code == Status.FAILED


def test_the_table_has_a_row_per_item_in_every_format(profile):
    path = profile("inspect: [gn, {stone: in, expect: [params=3]}]\n")
    for form in ("table", "markdown", "csv", "jsonl"):
        shown = invoke("run", path, "--format", form).stdout
        assert "expected params=3, found params=0" in shown.replace("\\", "")
        assert len([line for line in shown.splitlines() if "inspect" in line and "gn" in line]) == 1


def test_the_shell_is_offered_the_profiles_that_there_are():
    from stones_cli.handlers.run import _complete

    assert _complete("") == sorted(run_profiles.names())
    assert _complete("c") == ["ci"]
