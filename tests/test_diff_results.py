"""`stones diff` of two saved results: what binds, what does not, when times compare, and files that are no results."""

from __future__ import annotations

import copy
import json

import pytest
from command_line import invoke
from jsonschema import Draft202012Validator

from profiles import results
from profiles.checks.changes import results as compare
from profiles.errors import Refusal
from profiles.schemas import schema
from profiles.speed import times
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case
from profiles.speed.intervals import bootstrap_ratio
from profiles.speed.timing import Plan
from profiles.subject import Setup, subject
from profiles.target import resolve
from stones_cli.status import Status


def save(path, record):
    path.write_text(json.dumps(record), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def benched():
    """A bench of a small layer, in few rounds."""
    what = case(subject(resolve("gn"), {"groups": 3}, Setup((2, 12, 4))), vs=["copy"])
    return bench(Bench((what,), Plan(seconds=0.05, rounds=8, block=1e-4)))


def test_a_result_beside_itself_is_equal(benched):
    record = compare(benched, copy.deepcopy(benched))
    assert (record["changes"], record["circumstances"], record["binding"]) == ([], [], 0)
    Draft202012Validator(schema("diff")).validate(record)
    assert {row["ratio"] for row in record["times"]} == {1.0}


def test_a_ratio_of_times_is_that_of_the_medians_with_an_interval_around_it(benched):
    slower = copy.deepcopy(benched)
    for candidate in slower["cases"][0]["candidates"]:
        if candidate["name"] == "gn":
            candidate["samples_ns"] = [3 * sample for sample in candidate["samples_ns"]]
    found = {(row["of"], row["vs"]): row for row in compare(benched, slower)["times"]}
    assert found["gn", None]["ratio"] == pytest.approx(3, rel=1e-3)
    assert found["copy", None]["ratio"] == 1
    assert found["gn", "copy"]["ratio"] == pytest.approx(3, rel=1e-3)
    low, high = found["gn", None]["ratio_ci95"]
    assert low <= found["gn", None]["ratio"] <= high


def test_a_drift_of_the_machine_leaves_the_ratio_to_the_reference_alone(benched):
    drifted = copy.deepcopy(benched)
    for candidate in drifted["cases"][0]["candidates"]:
        candidate["samples_ns"] = [2 * sample for sample in candidate["samples_ns"]]
    found = {(row["of"], row["vs"]): row["ratio"] for row in compare(benched, drifted)["times"]}
    assert found["gn", None] == pytest.approx(2, rel=1e-3)
    assert found["gn", "copy"] == pytest.approx(1, rel=1e-3)


def test_the_interval_of_a_ratio_covers_the_true_one():
    of, vs = [110.0 + i % 7 for i in range(40)], [100.0 + i % 5 for i in range(40)]
    found = bootstrap_ratio(of, vs)
    assert found.low <= 113 / 102 <= found.high
    assert found.low < found.high
    assert bootstrap_ratio([2.0] * 5, [1.0] * 9).half_width == 0


@pytest.mark.parametrize("name", ["torch", "threads", "device", "cpu"])
def test_times_made_under_other_circumstances_are_not_compared_unless_asked(benched, name):
    other = copy.deepcopy(benched)
    other["environment"][name] = "another"
    record = compare(benched, other)
    assert [each["name"] for each in record["circumstances"]] == [name]
    assert record["changes"] == []
    assert {row["ratio"] for row in record["times"]} == {None}
    assert all(name in row["reason"] for row in record["times"])
    assert {row["ratio"] for row in compare(benched, other, anyway=True)["times"]} == {1.0}


def test_times_of_other_inputs_are_never_compared(benched):
    other = copy.deepcopy(benched)
    other["cases"][0]["input"]["shape"] = [4, 12, 4]
    record = compare(benched, other, anyway=True)
    assert [change["path"] for change in record["changes"]] == ["cases[gn forward train].input.shape"] or record[
        "changes"
    ]
    assert {row["ratio"] for row in record["times"]} == {None}
    assert {row["reason"] for row in record["times"]} == {"different input"}


@pytest.mark.parametrize(
    "samples", [None, [], [1], [1, 0], [1, -2], [1, True], ["1", "2"], {}, "12", [1, None], [5e-324, 1]]
)
def test_without_raw_samples_times_do_not_compare(benched, samples):
    other = copy.deepcopy(benched)
    for candidate in other["cases"][0]["candidates"]:
        candidate["samples_ns"] = samples
    assert {row["reason"] for row in compare(benched, other)["times"]} == {"no samples in new"}
    assert {row["reason"] for row in compare(other, benched)["times"]} == {"no samples in old"}


def test_many_samples_are_thinned_evenly_and_stay_pairs():
    samples = {"a": times._numbers(list(range(1, 5002))), "b": times._numbers(list(range(2, 10003, 2)))}
    assert len(samples["a"]) <= times.MOST_SAMPLES
    assert set(times._paired(samples, "a", "b")) == {0.5}


def test_a_changed_counter_binds_and_prose_does_not(benched):
    other = copy.deepcopy(benched)
    other["cases"][0]["candidates"][0]["workspace_bytes"] += 4
    (change,) = compare(benched, other)["changes"]
    assert change["path"] == "cases[gn train forward].candidates[gn].workspace_bytes"
    assert (change["change"], change["binding"]) == ("changed", True)
    old = {"schema": "stones.inspect/1", "params": {"total": 1}, "notes": ["a"], "flops": {"explained": "b"}}
    new = {"schema": "stones.inspect/1", "params": {"total": 1}, "notes": ["c"], "flops": {"explained": ""}}
    record = compare(old, new)
    assert [change["path"] for change in record["changes"]] == ["notes", "flops.explained"]
    assert record["binding"] == 0


def run_of(benched):
    """A result of `stones run` with one case and one inspection."""
    row = {"section": "bench", "name": "gn", "verdict": "ok", "reasons": [], "record": benched["cases"][0]}
    other = {"section": "inspect", "name": "ln", "verdict": "ok", "reasons": [], "record": {"params": {"total": 1}}}
    made = {
        "schema": "stones.run-result/1",
        "rows": [row, other],
        "counts": {"ok": 2},
        "bench": {**benched},
        "ok": True,
    }
    return copy.deepcopy(made)


def test_in_a_run_counters_bind_and_verdicts_of_the_clock_do_not(benched):
    old, new = run_of(benched), run_of(benched)
    new["rows"][0]["verdict"], new["counts"], new["ok"] = "failed", {"ok": 1, "failed": 1}, False
    record = compare(old, new)
    assert record["changes"] == []
    assert {row["ratio"] for row in record["times"]} == {1.0}
    new["rows"][1]["record"]["params"]["total"] = 2
    (change,) = compare(old, new)["changes"]
    assert change["path"] == "rows[inspect ln].record.params.total"
    new["bench"]["environment"]["torch"] = "another"
    assert {row["ratio"] for row in compare(old, new)["times"]} == {None}


def test_what_is_only_in_one_is_listed_by_its_name():
    def listed(*names):
        return {"schema": "stones.list/1", "techniques": [{"name": name, "year": 2018} for name in names]}

    record = compare(listed("bn", "gn"), listed("gn", "ln"))
    assert [(c["path"], c["change"]) for c in record["changes"]] == [
        ("techniques[bn]", "removed"),
        ("techniques[ln]", "added"),
    ]
    assert compare(listed("bn", "gn"), listed("gn", "bn"))["changes"] == []


def test_cells_of_a_matrix_are_told_apart_and_deviations_are_nobodys_change():
    cell = {"stone": "ln", "row": "", "mode": "train", "property": "w-scale", "carrier": "linear", "expected": True}
    old = {"schema": "stones.invariance/1", "rows": [{**cell, "holds": True, "deviation": 1e-15}]}
    new = {"schema": "stones.invariance/1", "rows": [{**cell, "holds": True, "deviation": 2e-15}]}
    assert compare(old, new)["changes"] == []
    new["rows"][0]["holds"] = False
    (change,) = compare(old, new)["changes"]
    assert change["path"] == "rows[ln train w-scale linear].holds"
    assert change["binding"]


def test_names_that_mean_something_elsewhere_are_compared_among_options():
    def inspected(**options):
        return {"schema": "stones.inspect/1", "technique": {"options": options}}

    (change,) = compare(inspected(ratio=0.5), inspected(ratio=0.25))["changes"]
    assert change["path"] == "technique.options.ratio"
    assert change["binding"]


def test_true_is_not_1_and_a_shape_is_one_value():
    def record(value):
        return {"schema": "stones.x/1", "value": value}

    assert len(compare(record(True), record(1))["changes"]) == 1
    assert len(compare(record([8, 32]), record([8, 1]))["changes"]) == 1
    assert compare(record(1), record(1.0))["changes"] == []
    assert len(compare(record([]), record([{"name": "a"}]))["changes"]) == 1
    assert len(compare(record(None), record({}))["changes"]) == 1


def test_the_values_of_two_sweeps_are_no_shapes(benched, tmp_path):
    files = []
    for name, values in {"one": [1, 8], "other": [[1, 1], [3, 3]]}.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({**benched, "sweep": {"axis": "N", "values": values}}))
    told = invoke("diff", *files)
    assert told.exit_code == Status.DONE
    (line,) = [line for line in told.stdout.splitlines() if line.startswith("sweep.values")]
    assert " ".join(line.split()) == "sweep.values changed 1, 8 1x1, 3x3 yes"


def test_two_schemas_do_not_compare():
    with pytest.raises(Refusal, match="only results alike"):
        compare({"schema": "stones.list/1"}, {"schema": "stones.list/2"})


def test_the_gate_fails_for_what_binds_and_times_never_fail(benched, tmp_path):
    slow, other = copy.deepcopy(benched), copy.deepcopy(benched)
    for candidate in slow["cases"][0]["candidates"]:
        candidate["samples_ns"] = [9 * sample for sample in candidate["samples_ns"]]
    other["cases"][0]["candidates"][0]["workspace_bytes"] += 4
    old = save(tmp_path / "old.json", benched)
    assert invoke("diff", old, save(tmp_path / "slow.json", slow), "--gate").exit_code == Status.DONE
    changed = save(tmp_path / "new.json", other)
    assert invoke("diff", old, changed).exit_code == Status.DONE
    result = invoke("diff", old, changed, "--gate")
    assert result.exit_code == Status.FAILED
    assert (
        result.stderr
        == "failed: 1 differ that must not, the first is cases[gn train forward].candidates[gn].workspace_bytes\n"
    )
    assert "workspace_bytes" in result.stdout


def test_results_of_the_command_line_are_read_back(tmp_path):
    files = []
    for groups in (3, 4):
        files.append(str(tmp_path / f"{groups}.json"))
        assert (
            invoke("inspect", "gn", "--groups", groups, "-i", "4x12x3x5", "--no-measure", "-o", files[-1]).exit_code
            == 0
        )
    result = invoke("diff", *files, "--json", "--expect", "results=stones.inspect/1")
    record = json.loads(result.stdout)
    assert (record["schema"], record["of"]) == ("stones.diff/1", "results")
    changed = {change["path"]: (change["old"], change["new"]) for change in record["changes"]}
    assert changed["technique.options.groups"] == (3, 4)
    assert changed["stats[mean].card"] == ([4, 3], [4, 4])
    for form in ("table", "markdown", "csv", "jsonl"):
        assert "technique.options.groups" in invoke("diff", *files, "--format", form).stdout.replace("\\", "")


# Files that are no results.

GOOD = {"schema": "stones.list/1", "techniques": []}
BAD_FILES = {
    "empty": (b"", "no JSON"),
    "no JSON": (b"{", "no JSON"),
    "two documents": (b'{"schema": "stones.list/1"}\n{}', "of several lines"),
    "no object": (b"[1]", "no schema"),
    "no schema": (b"{}", "no schema"),
    "another's": (b'{"schema": "https://json-schema.org"}', "no schema"),
    "number": (b'{"schema": 7}', "no schema"),
    "binary": (b"\xff\xfe\x00", "not UTF-8"),
    "NaN": (b'{"schema": "stones.list/1", "a": NaN}', "NaN is no JSON"),
    "infinity": (b'{"schema": "stones.list/1", "a": -Infinity}', "no JSON"),
    "deep": (b"[" * 200_000, "too deeply"),
    "deep objects": (b'{"schema": "stones.list/1", "a": ' + b"[" * 80 + b"]" * 80 + b"}", "deeper than"),
    "digits": (b'{"schema": "stones.list/1", "a": ' + b"9" * 10_000 + b"}", "digits"),
    "other": (b'{"schema": "stones.bench/1"}', "only results alike"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_result_is_one_line_and_status_2(name, tmp_path):
    content, words = BAD_FILES[name]
    good, bad = save(tmp_path / "good.json", GOOD), tmp_path / "bad.json"
    bad.write_bytes(content)
    for pair in ((good, bad), (bad, good)):
        result = invoke("diff", *pair)
        assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MOST_BYTES", 10)
    with pytest.raises(Refusal, match="larger than"):
        results.read(save(tmp_path / "a.json", GOOD))
    monkeypatch.undo()
    many = b'{"schema": "stones.list/1", "a": [' + b"[]," * 600_000 + b"[]]}"
    (tmp_path / "many.json").write_bytes(many)
    with pytest.raises(Refusal, match="values"):
        results.read(str(tmp_path / "many.json"))


def test_what_is_no_regular_file_is_not_read(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path, "/dev/null", "x" * 5000 + ".json", "a\0b.json"):
        with pytest.raises(Refusal):
            results.read(str(path))


def test_hostile_text_in_a_result_is_shown_harmless(tmp_path):
    old = save(tmp_path / "a.json", {**GOOD, "techniques": [{"name": "\x1b[31m\u202e[/red]", "year": 1}]})
    new = save(tmp_path / "b.json", {**GOOD, "techniques": [{"name": "\ud800\n", "year": 10**400}]})
    result = invoke("diff", old, new)
    assert result.exit_code == Status.DONE
    assert all(char.isprintable() or char == "\n" for char in result.stdout)


def test_a_million_differences_are_shown_by_the_first(tmp_path):
    many = {**GOOD, "techniques": [{"name": str(number)} for number in range(5000)]}
    old, new = save(tmp_path / "a.json", GOOD), save(tmp_path / "b.json", many)
    assert len(invoke("diff", old, new).stdout.splitlines()) < 120
    assert "5000 differ" in invoke("diff", old, new).stdout
    assert len(invoke("diff", old, new, "--all").stdout.splitlines()) > 5000
