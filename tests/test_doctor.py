"""`stones doctor`: noise of clocks that are known, a record whatever happens, and the command line."""

from __future__ import annotations

import json
import signal
from itertools import accumulate
from random import Random

import pytest
from command_line import invoke, signalled
from jsonschema import Draft202012Validator

from profiles.errors import Refusal
from profiles.machine import Machine
from profiles.schemas import schema
from profiles.speed import doctor, findings, selftest
from profiles.speed.clocks import HostClock
from profiles.speed.findings import Finding, Grade
from stones_cli.report import plain
from stones_cli.report.doctor import examination
from stones_cli.status import Status


def clocked(*factors):
    """A clock without a processor: each block of calls takes 1 ms a call times the next of ``factors``."""
    count, passed = [0], [0.0]

    class Planned(HostClock):
        def block(self, job, calls):
            took = 1e-3 * calls * factors[count[0] % len(factors)]
            count[0] += 1
            passed[0] += took
            return took

    return Planned(now=lambda: passed[0])


def test_a_steady_clock_has_no_noise():
    (trial,) = selftest.trials(lambda: None, [0.5], clocked(1.0))
    assert (trial.ratio.median, trial.floor, trial.is_alarm) == (1.0, 0.0, False)
    assert trial.seconds == pytest.approx(1e-3)


def test_a_restless_clock_has_the_noise_that_it_has():
    (trial,) = selftest.trials(lambda: None, [1.0], clocked(1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.0))
    assert trial.floor > 0.01
    assert trial.ratio.low <= 1 <= trial.ratio.high


def test_trials_are_pooled_by_the_worst_of_them():
    steady, restless = clocked(1.0), clocked(1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.0)
    found = [*selftest.trials(lambda: None, [0.3], steady), *selftest.trials(lambda: None, [0.3], restless)]
    together = selftest.pooled(found)
    assert together["noise_floor"] == pytest.approx(max(t.floor for t in found), abs=1e-5)
    assert together["noise_floor_median"] < together["noise_floor"]
    assert together["trials"] == 2
    assert together["drift"] == pytest.approx(
        max(t.seconds for t in found) / min(t.seconds for t in found) - 1, abs=1e-4
    )


def take(running, kept):
    for trial in running:
        kept.append(trial.rounds >= 5)


def test_an_interrupted_trial_counts_when_it_has_rounds_enough():
    def work():
        if next(left, None) is None:
            raise KeyboardInterrupt

    for calls, whole in ((10, []), (2000, [True])):
        left, tick = iter(range(calls)), accumulate(iter(Random(0).random, None)).__next__
        clock = HostClock(tick=tick, now=tick, preempted=lambda: 0)
        running, kept = selftest.trials(work, [3e3, 3e3], clock), []
        with pytest.raises(KeyboardInterrupt):
            take(running, kept)
        assert kept == whole


def test_numbers_below_the_normal_range_are_seen_to_vanish():
    import torch

    if torch.set_flush_denormal(True):
        try:
            assert selftest.denormals()[0] is True
        finally:
            torch.set_flush_denormal(False)
    flushed, slower = selftest.denormals()
    assert flushed is False
    assert slower > 0


def test_fresh_memory_is_what_is_not_kept():
    kept, slower, faults = selftest.fresh_memory(lambda: False)
    assert kept is False
    assert slower > 0
    assert faults is None or faults >= 0


def test_a_clock_has_steps_and_a_price():
    step, cost = selftest.timer()
    assert 0 < step < 1
    assert 0 < cost < 1


SMALLER = {"noise-small": (2, 32, 2, 2), "noise-large": (2, 32, 8, 8)}


@pytest.fixture(scope="module")
def examined():
    seen = []
    with pytest.MonkeyPatch.context() as edited:
        edited.setattr(selftest, "JOBS", SMALLER)
        return doctor.doctor(0.2, lambda fraction, what: seen.append((fraction, what))), seen


def test_the_record_has_a_row_for_everything_and_the_worst_verdict(examined):
    record, seen = examined
    names = [row["name"] for row in record["findings"]]
    assert {"cores", "threads", "load", "steal", "timer", "denormals", "allocator", "memory", "torch", "cuda"} < {
        *names
    }
    assert {"noise-small", "noise-large", "drift"} < {*names}
    assert len(names) == len(set(names))
    verdicts = {row["verdict"] for row in record["findings"]}
    assert record["verdict"] == next((v for v in ("bad", "caution") if v in verdicts), "ok")
    assert record["smallest_difference"] == max(each["noise_floor"] for each in record["noise"]) > 0
    assert findings.percent(record["smallest_difference"]) in record["summary"]
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    Draft202012Validator(schema("doctor")).validate(json.loads(json.dumps(record, allow_nan=False)))


def test_the_report_says_every_row_and_ends_with_one_line(examined):
    record, _ = examined
    lines = plain.text(examination(record)).splitlines()
    assert all(any(line.startswith(row["name"]) for line in lines) for row in record["findings"])
    assert lines[-1] == record["summary"]
    advice = {row[1] for part in examination(record).parts if part.title == "Advice" for row in part.rows}
    assert advice == {row["advice"] for row in record["findings"]} - {""}


def test_a_machine_without_files_or_memory_is_examined_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(selftest, "JOBS", SMALLER)
    bare = doctor.doctor(0.05, machine=Machine(tmp_path))
    unknown = {row["name"] for row in bare["findings"] if row["verdict"] == "unknown"}
    assert {"frequency", "steal", "waiting", "huge-pages", "memory"} <= unknown
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 1024 kB")
    record = doctor.doctor(0.05, machine=Machine(tmp_path))
    assert record["noise"] == []
    assert record["smallest_difference"] is None
    assert "nothing is known" in record["summary"]
    assert record["verdict"] == "bad"


def test_what_is_unknown_decides_nothing():
    def rows(*grades):
        return [Finding("a", "b", "c", grade) for grade in grades]

    assert doctor.worst(rows(Grade.UNKNOWN, Grade.OK)) is Grade.OK
    assert doctor.worst(rows(Grade.UNKNOWN, Grade.CAUTION)) is Grade.CAUTION
    assert doctor.worst(rows(Grade.CAUTION, Grade.BAD, Grade.OK)) is Grade.BAD


def test_an_interrupt_keeps_what_was_found(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as edited:
        edited.setattr(selftest, "denormals", interrupted)
        record = doctor.doctor(0.05)
    assert record["interrupted"] is True
    assert {"cores", "torch", "steal"} <= {row["name"] for row in record["findings"]}
    assert record["noise"] == []
    monkeypatch.setattr(selftest, "normalization", interrupted)
    result = invoke("doctor", "--budget", "0.05", "--json", "--expect", "noise.nosuch=1")
    assert result.exit_code == Status.INTERRUPTED
    assert json.loads(result.stdout)["interrupted"] is True


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan")])
def test_a_budget_out_of_range_is_refused(seconds):
    with pytest.raises(Refusal, match="out of range"):
        doctor.doctor(seconds)


def with_verdict(monkeypatch, *grades):
    rows = [Finding(f"row{number}", "what", "found", grade, "do this") for number, grade in enumerate(grades)]
    record = {**EMPTY, "findings": [row.record() for row in rows], "verdict": str(doctor.worst(rows))}
    monkeypatch.setattr(doctor, "doctor", lambda *_: record)


EMPTY = {
    "schema": doctor.SCHEMA,
    "environment": {},
    "noise": [],
    "ceilings": [],
    "summary": "in short",
    "interrupted": False,
}


def test_the_status_is_0_unless_strict(monkeypatch):
    with_verdict(monkeypatch, Grade.BAD, Grade.CAUTION, Grade.UNKNOWN, Grade.OK)
    assert invoke("doctor").exit_code == Status.DONE
    result = invoke("doctor", "--strict")
    assert result.exit_code == Status.FAILED
    assert result.stderr.splitlines() == ["failed: row0: found; do this", "failed: row1: found; do this"]
    with_verdict(monkeypatch, Grade.UNKNOWN, Grade.OK)
    assert invoke("doctor", "--strict").exit_code == Status.DONE


def test_expectations_look_at_the_rows(monkeypatch):
    with_verdict(monkeypatch, Grade.BAD)
    assert invoke("doctor", "--expect", "findings.row0.verdict=bad").exit_code == Status.DONE
    assert invoke("doctor", "--expect", "verdict!=bad").exit_code == Status.FAILED
    assert invoke("doctor", "--expect", "noise.nosuch=1").exit_code == Status.MISUSE


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "jsonl", "json"])
def test_every_format_names_the_rows(form, monkeypatch):
    with_verdict(monkeypatch, Grade.CAUTION)
    assert "row0" in invoke("doctor", "--format", form).stdout


@pytest.mark.parametrize("line", ["doctor --budget 0", "doctor --budget inf", "doctor --budget 4000", "doctor gn"])
def test_wrong_use_is_status_2(line):
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")


def test_a_signal_ends_it_with_what_it_has():
    status, stdout, stderr = signalled(signal.SIGINT, "doctor", "--budget", 60, "--json", seconds=5)
    assert status == Status.INTERRUPTED
    assert "Traceback" not in stderr
    assert json.loads(stdout)["interrupted"] is True
