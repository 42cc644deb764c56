"""Rooflines in the records and reports of `bench` and `doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import count

import pytest
from command_line import environment, invoke, process
from jsonschema import Draft202012Validator
from machines import KNOWN

from profiles.loading import load
from profiles.machine import Machine
from profiles.schemas import schema
from profiles.speed import ceilings_kept, ceilings_measured, doctor, selftest
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case
from profiles.speed.ceilings import Ceilings, Rung, Work
from profiles.speed.ceilings_measured import where
from profiles.speed.roofline import Roofs, rated
from profiles.speed.timing import Plan
from profiles.subject import Setup, subject
from profiles.target import resolve
from stones_cli.report import plain
from stones_cli.report.bench import report
from stones_cli.report.tables import binary
from stones_cli.status import Status

SHAPE = (4, 12, 6, 6)
PLAN = Plan(seconds=0.02, rounds=5, block=1e-4)
E = 4 * 12 * 6 * 6 * 4  # bytes of the input


def of(name, direction="forward", options=None, **setup):
    return case(subject(resolve(name), options or {}, Setup(**{"shape": SHAPE, **setup})), direction)


def measured(*cases, **settings):
    return bench(Bench(cases, PLAN, **settings))


def test_the_floor_of_a_record_is_the_formula(cache):
    record = measured(of("gn", options={"groups": 3}), of("torch.nn:Identity"))
    (found,), (first, second) = record["ceilings"], record["cases"]
    roof, ladder = first["roofline"], {rung["bytes"]: rung for rung in found["ladder"]}
    below = [rung for size, rung in ladder.items() if size >= 2**15]  # 13.5 KiB lie below all rungs
    memory = 2 * E / max(rung["copy_gb_per_s"] for rung in below) / 1e6
    assert roof["memory_ms"] == pytest.approx(memory, rel=1e-3)
    assert roof["arithmetic_ms"] == pytest.approx(roof["flops"] / found["gflop_per_s"]["float32"] / 1e6, rel=1e-3)
    assert roof["call_ms"] == found["call_ms"]
    assert roof["floor_ms"] == max(roof["memory_ms"], roof["arithmetic_ms"], roof["call_ms"])
    assert (roof["bytes"], roof["written_bytes"], roof["working_set_bytes"]) == (2 * E, E, 2 * E)
    for row in first["candidates"][:2]:
        assert row["of_roofline"] == pytest.approx(roof["floor_ms"] / row["ms"], rel=1e-3)
    copy = first["candidates"][-1]
    assert copy["of_roofline"] == pytest.approx(memory / copy["ms"], rel=1e-3)
    assert second["roofline"]["floor_ms"] == 0
    assert second["candidates"][0]["of_roofline"] is None


def test_a_copy_never_exceeds_its_roof_and_raises_what_is_remembered(cache):
    place = where("cpu", 1, "wall", "kept")
    stale = Ceilings(place, (Rung(2**15, 1e3, 1e3),), {"float32": 1e9}, 1e-6)
    ceilings_kept.keep(stale)
    record = measured(of("in", shape=(8, 16, 32, 32)))
    assert record["environment"]["allocator"] == "kept"
    copy = record["cases"][0]["candidates"][-1]
    assert 0 < copy["of_roofline"] <= 1
    assert ceilings_kept.recall(place).copy(2**20) == pytest.approx(
        8 * 16 * 32 * 32 * 8 / copy["min_ms"] * 1e3, rel=1e-3
    )


def test_a_yardstick_has_no_share_and_others_have(cache):
    record = measured(of("weight-standardization"))
    roles = {row["role"]: row["of_roofline"] for row in record["cases"][0]["candidates"]}
    assert roles["yardstick"] is None
    assert roles["stone"] > 0
    assert roles["copy"] > 0


def test_without_a_roofline_nothing_is_measured(cache, monkeypatch):
    monkeypatch.setattr(ceilings_measured, "measure", None)
    record = measured(of("in"), roofline=False)
    assert record["ceilings"] == []
    assert record["cases"][0]["roofline"] is None
    assert {row["of_roofline"] for row in record["cases"][0]["candidates"]} == {None}
    assert not cache.exists()
    assert "of roof" not in plain.text(report(record))


def test_what_is_remembered_is_not_measured_again(cache, monkeypatch):
    first = measured(of("in"))
    monkeypatch.setattr(ceilings_measured, "measure", None)
    second = measured(of("in"))
    assert second["ceilings"][0]["measured"] == first["ceilings"][0]["measured"]


def test_another_dtype_or_number_of_threads_is_measured_as_well(cache, monkeypatch):
    monkeypatch.setattr(Ceilings, "at_least", lambda self, other: self)
    roofs, asked, real = Roofs("cpu", "wall", "kept"), [], ceilings_measured.measure

    def noted(place, dtypes, **settings):
        asked.append((place["threads"], *dtypes))
        return real(place, dtypes, **settings)

    monkeypatch.setattr(ceilings_measured, "measure", noted)
    told = []
    roofs.find([(1, "float32")], lambda fraction, what: told.append(fraction))
    roofs.find([(2, "bfloat16"), (1, "float32")], lambda fraction, what: told.append(fraction))
    assert asked == [(1, "float32"), (1, "bfloat16", "float32"), (2, "bfloat16", "float32")]
    assert roofs.seconds([(2, "bfloat16"), (1, "float32")]) == 0
    assert [found["threads"] for found in roofs.records()] == [1, 2]


def test_more_threads_can_do_what_one_can(cache, monkeypatch):
    def planned(place, dtypes, **_):
        rate = 8.0 / place["threads"]
        return Ceilings(place, (Rung(10, rate, rate),), {"float32": rate}, place["threads"])

    monkeypatch.setattr(ceilings_measured, "measure", planned)
    roofs = Roofs("cpu", "wall", "kept")
    roofs.find([(2, "float32")], lambda fraction, what: None)
    assert roofs.found[2].ladder == (Rung(10, 8.0, 8.0),)
    assert roofs.found[2].call == 1


def test_ceilings_that_were_disturbed_are_doubted(cache, monkeypatch):
    number = count(step=10**6)
    monkeypatch.setattr(ceilings_measured, "_switches", lambda: next(number))
    record = measured(of("in"))
    assert record["ceilings"][0]["disturbed"] is True
    assert "ceilings-disturbed" in {warning["code"] for warning in record["warnings"]}


def test_an_interrupt_while_the_ceilings_are_measured_leaves_a_valid_record(cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ceilings_measured, "_call", interrupted)
    result = invoke("bench", "in", "-i", "4x12x6x6", "--json")
    assert result.exit_code == Status.INTERRUPTED
    document = json.loads(result.stdout)
    Draft202012Validator(schema("bench")).validate(document)
    assert (document["interrupted"], document["ceilings"], document["cases"]) == (True, [], [])
    assert not cache.exists()


def test_the_progress_of_the_ceilings_comes_before_that_of_the_cases(cache):
    seen = []
    bench(Bench((of("in"),), PLAN), lambda now: seen.append((now.fraction, now.case)))
    fractions = [fraction for fraction, _ in seen]
    names = [name.partition(",")[0] for _, name in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert list(dict.fromkeys(names)) == ["ceilings", "in forward"]


def told(work, dtype="float32", name="gn"):
    row = {"name": name, "role": "stone", "ms": 1e6, "min_ms": 1e7}
    made = {"name": name, "direction": "forward", "candidates": [row, {**row, "name": "copy", "role": "copy"}]}
    roofs = Roofs("cpu", "wall", "kept", {1: KNOWN})
    return rated(made, of("gn", options={"groups": 3}, dtype=dtype), roofs, work)


def test_a_share_is_the_floor_by_the_time(cache):
    made = told(Work(800, 0, 0, 100))  # 80 s of 1000
    assert made["roofline"]["floor_ms"] == 80_000
    assert made["candidates"][0]["of_roofline"] == 0.08
    copied = 2 * E / KNOWN.copy(2 * E)
    assert made["candidates"][1]["of_roofline"] == pytest.approx(copied / 1000)


QUICK = ("--rounds", "5", "--budget", "0.01")


def test_the_command_line_says_what_bounds_a_case(cache):
    shown = invoke("bench", "gn", "--groups", "3", "-i", "4x12x6x6", *QUICK)
    assert shown.exit_code == Status.DONE
    assert "of roof" in shown.stdout
    assert "gn forward: bound by " in shown.stdout
    nothing = invoke("bench", "torch.nn:Identity", "-i", "4x12x6x6", *QUICK)
    assert "moves and computes nothing" in nothing.stdout
    without = invoke("bench", "gn", "--groups", "3", "-i", "4x12x6x6", *QUICK, "--no-roofline")
    assert "roof" not in without.stdout
    assert "bound by" not in without.stdout


def test_rooflines_are_the_clocks_and_change_nothing_that_is_compared(tmp_path, cache):
    with_one, without = tmp_path / "with.json", tmp_path / "without.json"
    invoke("bench", "in", "-i", "4x12x6x6", *QUICK, "-o", with_one)
    invoke("bench", "in", "-i", "4x12x6x6", *QUICK, "--no-roofline", "-o", without)
    assert json.loads(with_one.read_text())["cases"][0]["roofline"]
    compared = invoke("diff", with_one, without, "--json")
    assert (compared.exit_code, json.loads(compared.stdout)["changes"]) == (Status.DONE, [])


def test_a_profile_may_do_without(tmp_path, cache):
    file = tmp_path / "p.yaml"
    text = "schema: stones.profile/1\nstones: [in]\n"
    for line, expected in (("", True), ("roofline: true\n", True), ("roofline: false\n", False)):
        file.write_text(text + line)
        assert load(str(file)).roofline is expected
    result = invoke("bench", "--profile", file, "-i", "4x12x6x6")
    assert result.exit_code == Status.MISUSE
    file.write_text(text + "roofline: maybe\n")
    assert "roofline" in invoke("bench", "--profile", file).stderr


def test_no_home_and_no_cache_is_no_error(tmp_path):
    variables = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "STONES_CACHE", "USERPROFILE"))
    program = (
        "from profiles.speed import ceilings_measured as m; m.LADDER = (2**15,); m.SIDES = (64,); "
        "from stones_cli.main import main; import sys; "
        "sys.argv = ['stones', 'bench', 'in', '-i', '4x12x6x6', '--rounds', '5', '--budget', '0.01', '--json']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**variables), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == Status.DONE, done.stderr
    assert json.loads(done.stdout)["ceilings"]
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_measures_nothing(cache):
    assert process("bench", "gn", "--groups", "5", "-i", "4x12x6x6").returncode == Status.MISUSE
    assert not cache.exists()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1, "1 B"),
        (1000, "1000 B"),
        (2**15, "32 KiB"),
        (51380224, "49 MiB"),
        (11863040, "11.3 MiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_bytes_are_told_in_the_unit_that_keeps_them_short(size, words):
    assert binary(size) == words


def test_the_doctor_measures_the_ceilings_afresh_and_keeps_them(cache, monkeypatch):
    def look(seconds):
        visit = doctor._Visit(Machine(), seconds, None)
        visit._ceilings(2)
        return visit.ceilings

    one, two = look(0.05)
    assert [found.where["threads"] for found in (one, two)] == [1, 2]
    assert {"float32", "bfloat16", "float64"} == set(one.products) == set(two.products)
    assert two.copy(2**19) >= one.copy(2**19), "two threads can do what one can"
    place = where("cpu", 1, "wall", "system")
    kept = ceilings_kept.recall(place)
    assert kept.record() == one.record()
    look(0.05)
    assert ceilings_kept.recall(place) == kept, "there was little time: what was known stays"
    monkeypatch.setattr(ceilings_measured, "SECONDS", 1e-9)
    monkeypatch.setattr(ceilings_measured, "_switches", lambda: 0)
    assert look(0.05)[0].record() == ceilings_kept.recall(place).record() != kept.record()


def test_the_doctor_shows_the_ceilings(cache, monkeypatch):
    monkeypatch.setattr(selftest, "JOBS", {"noise-small": (2, 32, 2, 2)})
    shown = invoke("doctor", "--budget", "0.01").stdout
    assert "Ceilings, GB/s by" in shown
    assert "512 KiB" in shown
    assert "smallest call" in shown
