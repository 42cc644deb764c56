"""`bench` on two ranks: one speaks for both, the slowest one's times, communication apart, one that goes alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import ROOT, environment, invoke
from jsonschema import Draft202012Validator as Validator
from ranked import NOWHERE, ends, two

from layers.catalog import stone
from profiles.checks import changes
from profiles.schemas import schema
from profiles.speed import ranks
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case
from profiles.speed.timing import Plan
from profiles.subject import Setup, subject
from stones_cli.report.bench import report
from stones_cli.report.plain import comma_separated, text
from stones_cli.status import Status

CHANNELS, SHAPE = 8, "4x8x6x6"
SYNC, PLAIN = "bn", "torch.nn:BatchNorm2d"
# Times itself out of the way: a file appears once it has been called so often that rounds are being measured.
LAYER = """
from pathlib import Path
import os
from torch import distributed, nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 200 and os.environ.get("RANK") == "0":
            Path("measuring").touch()
        y = x * 1
        distributed.all_reduce(y.detach())
        return y
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """One bench under torchrun: its process, and the file it wrote."""
    file = tmp_path_factory.mktemp("ranks") / "out.json"
    picture = file.with_suffix(".svg")
    line = ["bench", "bn", "--sync", "-i", SHAPE, "--forward", "--both", "--rounds", "5", "--budget", "0.2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "stones_cli", *line, "--json", "-o", str(file), "--plot", str(picture)],
        cwd=ROOT,
        env=environment(**NOWHERE),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, file


def test_under_torchrun_the_first_rank_alone_speaks(launched):
    done, file = launched
    assert done.returncode == Status.DONE, done.stderr
    document = json.loads(done.stdout)
    assert json.loads(file.read_text()) == document
    assert [line for line in done.stderr.splitlines() if "written" in line] == [f"written: {file}"]
    assert sorted(file.parent.iterdir()) == [file, file.with_suffix(".svg")]


def test_the_record_of_two_ranks_is_as_its_schema_says(launched):
    document = json.loads(launched[0].stdout)
    assert list(Validator(schema("bench")).iter_errors(document)) == []
    assert document["ranks"] == {"world_size": 2, "backend": "gloo"}
    for one in document["cases"]:
        assert [c["name"] for c in one["candidates"]] == [SYNC, PLAIN, "copy"]
        assert [c["role"] for c in one["candidates"]] == ["stone", "yardstick", "copy"]
        for candidate in one["candidates"]:
            assert candidate["slowest_rank"] in (0, 1)
            assert candidate["spread_ms"] >= 0


def test_the_collectives_of_synchronised_bn_are_those_of_its_source(launched):
    """Forward gathers m, μ and σ², backward sums two gradients, C values each, all of float32."""
    forward, both = json.loads(launched[0].stdout)["cases"]
    gathered, summed = 4 * (1 + 2 * CHANNELS), 4 * 2 * CHANNELS
    for one, count, handed in ((forward, 1, gathered), (both, 2, gathered + summed)):
        ours, *others = (candidate["communication"] for candidate in one["candidates"])
        assert (ours["collectives"], ours["bytes"]) == (count, handed)
        assert ours["ms"] > 0
        assert ours["share"] > 0
        assert others == [{"collectives": 0, "bytes": 0, "ms": 0, "share": 0}] * 2


@pytest.mark.parametrize("width", [40, 80])
def test_the_report_tells_ranks_in_a_table_and_in_the_circumstances(launched, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    told = text(report(json.loads(launched[0].stdout)))
    assert "Ranks, forward+backward" in told
    assert "2 ranks over gloo: shapes are of each rank, times of the slowest" in told
    assert "share,collectives,bytes" in comma_separated(report(json.loads(launched[0].stdout)))
    alone = json.loads(invoke("bench", "bn", "-i", SHAPE, "--rounds", 5, "--budget", 0.01, "--json").stdout)
    assert alone["ranks"] is None
    assert {(c["spread_ms"], c["slowest_rank"], c["communication"]) for c in alone["cases"][0]["candidates"]} == {
        (None, None, None)
    }
    assert "anks" not in text(report(alone))


def test_times_on_one_rank_and_on_two_do_not_compare(launched):
    two_ranks = json.loads(launched[0].stdout)
    found = changes.results({**two_ranks, "ranks": None}, two_ranks)
    assert {each["name"] for each in found["circumstances"]} >= {"world_size", "backend"}
    assert {row["reason"] for row in found["times"]} == {"different world_size, backend"}
    assert found["binding"] == 0


def test_a_refusal_is_said_once_and_has_one_status():
    first, second = two("bench", "bn", "--eps", "-1", "-i", SHAPE)
    out, err = first.communicate(timeout=60)
    second.send_signal(signal.SIGTERM)  # as torchrun does, once one has failed
    assert (first.returncode, out, err.count("error:")) == (Status.MISUSE, "", 1)
    assert ends([second])[0] in [("", "", Status.MISUSE), ("", "", Status.TERMINATED)]


@pytest.fixture
def measuring(tmp_path):
    """Two ranks in the midst of measuring."""
    (tmp_path / "layer.py").write_text(LAYER)
    line = ["bench", "layer.py:Layer", "-i", "2x4x3x3", "--rounds", "100000", "--budget", "60", "--json"]
    processes = two(*line, cwd=tmp_path)
    until = time.monotonic() + 60
    while not (tmp_path / "measuring").exists() and time.monotonic() < until:
        assert all(each.poll() is None for each in processes), ends(processes)
        time.sleep(0.05)
    yield processes
    for each in processes:
        each.kill()
        each.wait()
        each.stdout.close()
        each.stderr.close()


def test_an_interruption_of_all_reports_what_was_measured(measuring):
    for each in measuring:
        each.send_signal(signal.SIGINT)
    (out, err, status), silent = ends(measuring)
    assert (status, err) == (Status.INTERRUPTED, "note: interrupted\n")
    document = json.loads(out)
    assert document["interrupted"]
    assert document["cases"][0]["candidates"][0]["communication"]["collectives"] == 1
    assert silent == ("", "", Status.INTERRUPTED)


def test_a_rank_that_dies_ends_the_others(measuring):
    first, second = measuring
    second.kill()
    start = time.monotonic()
    out, err, status = ends([first])[0]
    assert (out, status) == ("", Status.ENVIRONMENT)
    assert err.startswith("error: another of 2 ranks is gone: ")
    assert len(err.splitlines()) == 1
    assert time.monotonic() - start < ranks.TIMEOUT / 2


RANK_OF_ITS_OWN = """
import json, sys
from torch import distributed, ones
from layers.catalog import stone
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case
from profiles.subject import Setup, subject
from profiles.target import resolve
from profiles.speed.timing import Plan

distributed.init_process_group("gloo")
rank, plan = distributed.get_rank(), Plan(seconds=0.05, block=1e-4, rounds=8)
setup = Setup((4, 8, 6, 6))
synchronised = case(subject(stone("bn"), {"sync": True}, setup), "backward", vs=[])
one_fails = case(subject(resolve("failing.py:OnRank1"), {}, setup), vs=[])
one_breaks = case(subject(resolve("failing.py:LateOnRank1"), {}, setup), vs=[])
every = case(subject(resolve("failing.py:Every"), {}, setup), vs=[])
uneven = case(subject(resolve("failing.py:Uneven"), {}, setup), vs=[])
cases = one_fails, synchronised, one_breaks, every, uneven
found = {"skipping": bench(Bench(cases, plan, skips=True, roofline=False))}  # ceilings would be each rank's own
try:
    bench(Bench((one_breaks,), plan))
except Exception as error:
    found["raised"] = [type(error).__name__, str(error)]
total = ones(1)
distributed.all_reduce(total)
found["still there"] = total.item()
print(json.dumps(found))
distributed.destroy_process_group()
"""
FAILING = """
from torch import distributed, nn
from torch.distributed import _functional_collectives as functional

class OnRank1(nn.Module):
    def forward(self, x):
        if distributed.get_rank() == 1:
            raise ValueError("no")
        return x

class LateOnRank1(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if distributed.get_rank() == 1 and self.calls == 8:
            raise MemoryError("enough")
        return x * 1

class Every(nn.Module):
    def forward(self, x):
        here = x.detach().clone()
        distributed.all_gather([here.clone(), here.clone()], here)
        distributed.all_reduce(here, async_op=True).wait()
        distributed.broadcast(here, 0)
        distributed.barrier()
        distributed.send(here, 1) if distributed.get_rank() == 0 else distributed.recv(here, 0)
        return x + functional.all_reduce(here, "sum", distributed.group.WORLD)

class Uneven(nn.Module):
    def forward(self, x):
        if distributed.get_rank() == 1:
            distributed.all_reduce(x.detach().clone(), group=MINE)
        return x

MINE = [distributed.new_group([rank]) for rank in range(2)][1] if distributed.is_initialized() else None
"""


@pytest.fixture(scope="module")
def from_python(tmp_path_factory):
    """What each of two ranks found that initialised torch.distributed themselves."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "failing.py").write_text(FAILING)
    (folder / "work.py").write_text(RANK_OF_ITS_OWN)
    done = ends(two("work.py", cwd=folder, command=[sys.executable]))
    assert [status for *_, status in done] == [0, 0], done
    return [json.loads(out) for out, *_ in done]


def test_a_group_that_is_there_is_used_and_left_alone(from_python):
    assert [found["still there"] for found in from_python] == [2, 2]
    one, other = (found["skipping"]["cases"][0] for found in from_python)
    assert one["stone"] == "bn"
    assert [c["samples_ns"] for c in one["candidates"]] == [c["samples_ns"] for c in other["candidates"]]
    for candidate in (*one["candidates"], *other["candidates"]):
        del candidate["peak_bytes"]  # each rank's own: gloo's threads free what they sent when they come to it
    assert one["candidates"] == other["candidates"]
    assert one["ratios"] == other["ratios"]
    assert one["candidates"][0]["communication"]["bytes"] == 4 * 2 * CHANNELS, "of the backward alone"


def test_every_way_to_communicate_is_heard_and_done_again(from_python):
    size = 4 * 4 * CHANNELS * 6 * 6
    for found, sends in zip(from_python, (True, False), strict=True):
        told = found["skipping"]["cases"][1]["candidates"][0]["communication"]
        assert (told["collectives"], told["bytes"]) == (6, (4 + sends) * size)
        assert told["ms"] > 0


def test_what_one_rank_refuses_all_leave_out(from_python):
    skipped = [found["skipping"]["skipped"] for found in from_python]
    assert skipped[0] == skipped[1]
    reasons = {each["name"]: each["reason"] for each in skipped[0]}
    assert reasons["failing.py:OnRank1"] == "rank 1: failing.py:OnRank1 refuses an input of 4x8x6x6: no"
    assert reasons["failing.py:LateOnRank1"] == "rank 1: out of memory: enough"
    assert reasons["failing.py:Uneven"].endswith("issues 1 collectives on one rank, 0 on another: they hang")


def test_what_one_rank_raises_all_raise(from_python):
    assert [found["raised"] for found in from_python] == [["Unavailable", "rank 1: out of memory: enough"]] * 2


def test_without_a_group_nothing_is_different():
    assert not os.environ.get("WORLD_SIZE")
    found = bench(
        Bench((case(subject(stone("bn"), {"sync": True}, Setup((2, 4, 3, 3)))),), Plan(seconds=0.05, rounds=5))
    )
    assert found["ranks"] is None
    assert [c["role"] for c in found["cases"][0]["candidates"]] == ["stone", "reference", "copy"]
