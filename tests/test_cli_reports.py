"""`inspect`, `bench` and the checks: records become tables, JSON and an exit status; options reach the layer."""

from __future__ import annotations

import csv
import io
import json

import pytest
from command_line import invoke
from typer.main import get_command

from layers import catalog
from layers.card import Claim, Identity
from profiles.checks import identities, invariance
from profiles.counting import facts
from profiles.inspecting import contradictions
from profiles.speed import bench
from profiles.subject import Setup, subject
from profiles.target import resolve
from stones_cli.app import app
from stones_cli.report import plain
from stones_cli.report.identities import equations
from stones_cli.report.inspection import inspection
from stones_cli.report.invariance import matrix
from stones_cli.status import Status

SMALL = ("-i", "4x12x3x5")
QUICK = ("--rounds", "5", "--budget", "0.01")


def record(*arguments):
    result = invoke(*arguments, "--json")
    assert result.exit_code in (Status.DONE, Status.FAILED), result.output
    return json.loads(result.stdout)


def test_inspect_prints_the_record_of_the_library():
    document = record("inspect", "gn", "--groups", 3, *SMALL)
    made = facts.inspect(subject(resolve("gn"), {"groups": 3}, Setup((4, 12, 3, 5))))
    assert document == json.loads(json.dumps({**made, "expectations": []}))
    table = invoke("inspect", "gn", "--groups", 3, *SMALL).stdout
    assert f"{made['flops']['forward']['card']:,}" in table
    assert f"{made['memory']['saved']['measured']:,}" in table
    assert "4x3" in table


def test_options_of_every_type_reach_the_layer():
    def options(*arguments):
        return record("inspect", *arguments, *SMALL, "--no-measure")["technique"]["options"]

    assert options("gn", "--groups=4", "--eps", "1e-3", "--no-affine") == {
        "groups": 4, "channels_per_group": None, "eps": 1e-3, "affine": False,
    }  # fmt: skip
    assert options("gn", "--groups", 3, "--channels-per-group", "none")["channels_per_group"] is None
    assert options("bn", "--momentum", "none")["momentum"] is None
    assert options("bn")["momentum"] == resolve("bn").card.option("momentum").default
    assert options("ln", "--axes", "channel")["axes"] == "channel"


def test_the_name_may_stand_anywhere_and_in_any_case():
    first = record("inspect", "gn", "--groups", 3, *SMALL, "--no-measure")
    assert record("inspect", *SMALL, "--groups", 3, "--no-measure", "GN") == first
    assert record("inspect", "--no-measure", "gn", *SMALL, "--groups", 3) == first


def test_setup_reaches_the_layer():
    document = record("inspect", "gn", "--groups", 3, "-i", "4,12,3,5", "--dtype", "float64", "--eval",
                      "--memory-format", "channels_last")  # fmt: skip
    given = document["input"]
    assert (given["shape"], given["dtype"], given["memory_format"]) == ([4, 12, 3, 5], "float64", "channels_last")
    assert (document["technique"]["mode"], document["output"]["dtype"]) == ("eval", "float64")
    assert record("inspect", "gn", "--groups", 3, "-i", "4×12×3×5", "--no-measure")["input"]["shape"] == [4, 12, 3, 5]


def test_inspect_reads_the_options_of_a_class(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nprint('loud')\n"
        "class Scale(torch.nn.Module):\n"
        "    def __init__(self, dim: int, factor: float = 2.0, seed: int = 3, bias: bool = False):\n"
        "        super().__init__()\n"
        "        self.factor, self.weight = factor * seed, torch.nn.Parameter(torch.ones(dim))\n"
        "    def forward(self, x):\n"
        "        return x * self.factor\n"
    )
    document = record("inspect", f"{file}:Scale", "--factor", 3, "--class-seed", 5, *SMALL)
    assert document["technique"]["options"] == {"factor": 3.0, "seed": 5, "dim": 12}
    assert document["params"]["total"] == 12
    panel = invoke("inspect", f"{file}:Scale", "--help").stdout
    assert "--factor <number>" in panel
    assert "--bias / --no-bias" in panel


def test_expectations_decide_the_status():
    small = ("inspect", "gn", "--groups", 3, *SMALL, "--no-fvcore")
    good = invoke(*small, "--expect", "params=24", "--expect", "stats.mean.shape=4x3", "--json")
    assert good.exit_code == Status.DONE
    assert [e["ok"] for e in json.loads(good.stdout)["expectations"]] == [True, True]
    bad = invoke(*small, "--expect", "params=24", "--expect", "params>24", "--expect", "params=25")
    assert bad.exit_code == Status.FAILED
    assert bad.stderr.splitlines() == [
        "failed: expected params>24, found params=24",
        "failed: expected params=25, found params=24",
    ]
    unknown = invoke(*small, "--expect", "parms=24")
    assert (unknown.exit_code, unknown.stdout) == (Status.MISUSE, "")


def test_a_card_that_lies_is_told_so():
    made = facts.inspect(subject(resolve("gn"), {"groups": 3}, Setup((4, 12, 3, 5))), fvcore=False)
    lying = {**made, "checks": [{"what": "params", "card": 25, "measured": 24, "ok": False}]}
    assert contradictions(lying) == ["params: the card says 25, measured 24"]
    row = next(line for line in plain.text(inspection(lying)).splitlines() if line.startswith("parameters"))
    assert "failed" in row


@pytest.mark.parametrize(
    ("line", "field", "lie"),
    [
        ("inspect gn --groups 3 -i 4x12x3x5", "params", "3*C"),
        ("check-invariance gn", "claims", (Claim(holds=("x-recenter",), options={"groups": 3}),)),
        ("check-identities gn", "identities", (Identity(says="GN = BN", options={"groups": 3}, equals="bn"),)),
    ],
)
def test_a_command_given_a_card_that_lies_exits_with_1(line, field, lie, monkeypatch):
    """The card in the catalogue is edited; told the truth again, the same command is content."""
    with monkeypatch.context() as edited:
        edited.setitem(catalog.stone("gn").card.__dict__, field, lie)
        result = invoke(*line.split())
        assert result.exit_code == Status.FAILED
        assert "failed: " in result.stderr
    assert invoke(*line.split()).exit_code == Status.DONE


def test_a_transformation_is_shown_by_what_it_touches():
    document = record("inspect", "bn-only")
    assert document["schema"] == "stones.transform/1"
    table = invoke("inspect", "bn-only").stdout
    assert f"{document['params']['trainable']:,}" in table
    assert "frozen" in table
    assert invoke("inspect", "bn-only", "-i", "4x4").exit_code == Status.MISUSE
    assert invoke("inspect", "gn", "--model", "a:b").exit_code == Status.MISUSE


def test_invariances_are_one_matrix():
    document = record("check-invariance", "ln", "gn", "--property", "w-scale", "--property", "x-recenter",
                      "--carrier", "linear")  # fmt: skip
    assert document["ok"] is True
    lines = invoke("check-invariance", "gn", "--property", "w-scale", "--property", "x-recenter").stdout.splitlines()
    assert lines[0].split() == ["technique", "under", "behind", "w-scale", "x-recenter"]
    for line in lines[1:4]:
        assert "yes " in line
        assert "no " in line
    rows = csv.DictReader(
        io.StringIO(invoke("check-invariance", "gn", "--carrier", "linear", "--format", "csv").stdout)
    )
    assert all(float(r["deviation"]) < 1e-9 for r in rows if r["holds"] == "true")


def test_a_false_claim_is_shown_with_its_counterexample():
    rows = invariance.check(resolve("pono"), properties=["x-recenter"], carriers=["linear"])
    (row,) = [invariance.Row(**{**vars(row), "verdict": "failed", "expected": True}) for row in rows]
    text = plain.text(matrix([row], verbose=False))
    assert "FAILED no" in text
    assert f"{row.counterexample.before:.6g}" in text
    assert "Counterexamples" not in plain.text(matrix(rows, verbose=False))
    assert f"{row.counterexample.after:.6g}" in plain.text(matrix(rows, verbose=True))


def test_a_class_and_given_options_are_measured_without_expectation():
    for arguments in (("gn", "--groups", "4"), ("torch.nn:GroupNorm", "--num-groups", "4")):
        rows = record("check-invariance", *arguments, "--carrier", "linear")["rows"]
        assert {row["verdict"] for row in rows} == {"measured"}
        assert {row["property"] for row in rows if row["holds"]} >= {"w-scale", "case-scale"}


def test_properties_are_defined_without_measuring():
    names = [entry["name"] for entry in record("check-invariance", "--list")["properties"]]
    assert {claim for claim in resolve("gn").card.claims[0].holds if "@" not in claim} <= set(names)


def test_identities_are_listed_with_their_deviations():
    stated = [identity.says for identity in resolve("gn").card.identities]
    document = record("check-identities", "gn")
    assert [row["says"] for row in document["rows"]] == stated
    assert document["ok"] is all(row["verdict"] == "ok" for row in document["rows"])
    wrong = [identities.Row(**{**vars(row), "verdict": "failed"}) for row in identities.check([resolve("gn")])]
    assert equations(wrong).record["ok"] is False


def test_bench_reports_what_was_asked():
    document = record("bench", "gn", "--groups", 3, *SMALL, *QUICK, "--vs", "copy", "--forward", "--both",
                      "--dtype", "float64", "--threads", 1)  # fmt: skip
    assert [case["direction"] for case in document["cases"]] == ["forward", "forward+backward"]
    for case in document["cases"]:
        assert (case["options"]["groups"], case["rounds"]) == (3, 5)
        assert case["input"]["dtype"] == "float64"
        assert [candidate["name"] for candidate in case["candidates"]] == ["gn", "copy"]
    assert document["interrupted"] is False


def test_bench_takes_several_techniques_and_the_peer_by_default():
    document = record("bench", "in", "gn", "-i", "4x32x3x5", *QUICK)
    assert [case["name"] for case in document["cases"]] == ["in", "gn"]
    assert [r["vs"] for r in document["cases"][1]["ratios"]] == ["torch.nn:GroupNorm", "copy"]


def test_gates_decide_the_status(monkeypatch):
    made = record("bench", "in", *SMALL, *QUICK, "--max-ratio", 1000)
    assert made["verdict"] == "pass"
    for verdict, flags, status in (
        ("fail", (), Status.FAILED),
        ("inconclusive", (), Status.DONE),
        ("inconclusive", ("--fail-inconclusive",), Status.INCONCLUSIVE),
        ("pass", ("--fail-inconclusive",), Status.DONE),
    ):
        case = {**made["cases"][0], "ratios": [{**made["cases"][0]["ratios"][0], "verdict": verdict}]}
        judged = {**made, "cases": [case], "verdict": verdict}
        monkeypatch.setattr(bench, "bench", lambda what, progress, judged=judged: judged)
        result = invoke("bench", "in", *SMALL, "--max-ratio", 2, *flags)
        assert result.exit_code == status
        assert ("the bar is" in result.stderr) == (verdict != "pass")
        assert json.loads(invoke("bench", "in", *SMALL, "--json").stdout)["verdict"] == verdict


def test_an_interrupted_bench_reports_what_it_has(monkeypatch, tmp_path):
    made = record("bench", "in", *SMALL, *QUICK)
    monkeypatch.setattr(bench, "bench", lambda what, progress: {**made, "interrupted": True})
    file = tmp_path / "out.json"
    result = invoke("bench", "in", *SMALL, "--json", "-o", file, "--expect", "cases.nosuch.threads=1")
    assert result.exit_code == Status.INTERRUPTED
    assert json.loads(result.stdout)["interrupted"] is True
    assert file.read_text() == result.stdout


def test_profiles_are_run_whole_or_in_part(tmp_path):
    profile = tmp_path / "own.yaml"
    profile.write_text(
        "schema: stones.profile/1\ndefaults: {input: 4x12x3x5}\nseconds: 0.01\nrounds: 5\n"
        "stones: [in, {stone: gn, options: {groups: 3}}]\n"
    )
    document = record("bench", "--profile", profile)
    assert (document["profile"], [case["name"] for case in document["cases"]]) == ("own", ["in", "gn"])
    assert [case["name"] for case in record("bench", "gn", "--profile", profile, "--rounds", 6)["cases"]] == ["gn"]
    assert invoke("bench", "bn", "--profile", profile).exit_code == Status.MISUSE
    assert "--input" in invoke("bench", "--profile", profile, *SMALL).stderr


@pytest.mark.parametrize("command", ["inspect", "bench", "draw", "check-invariance", "check-gradients"])
def test_no_option_of_a_technique_hides_one_of_the_command(command):
    flags = {flag for p in get_command(app).commands[command].params for flag in (*p.opts, *p.secondary_opts)}
    for stone in catalog.stones().values():
        for option in stone.card.options:
            assert f"--{option.name.replace('_', '-')}" not in flags


def test_the_file_has_the_format_of_its_suffix(tmp_path):
    for suffix, begins in (
        (".json", "{\n"),
        (".jsonl", '{"schema"'),
        (".csv", "name,"),
        (".md", "| name"),
        (".txt", "name "),
    ):
        file = tmp_path / f"out{suffix}"
        result = invoke("list", "-o", file, "--format", "markdown")
        assert file.read_text().startswith(begins)
        assert result.stdout.startswith("| name")
        assert str(file) in result.stderr
    other = tmp_path / "out"
    invoke("list", "--json", "-o", other)
    assert json.loads(other.read_text())["schema"] == "stones.list/1"
