"""Ranks one by one: what the environment says of them, clocks that agree, devices, who speaks, all without a launch."""

from __future__ import annotations

import threading
import time

import pytest
from command_line import invoke
from ranked import VARIABLES

from layers.catalog import stone
from profiles.errors import Refusal, Unavailable
from profiles.speed import ranks as ranks_module
from profiles.speed.bench import Bench
from profiles.speed.cases import case
from profiles.speed.cautions import about_machine
from profiles.speed.clocks import CPU, HostClock, Job
from profiles.speed.communication import RankClock, check_graph, clock_over
from profiles.speed.jobs import jobs
from profiles.speed.ranks import Launch, Ranks, is_silent, joined, launch, placed
from profiles.speed.timing import Comparison, Plan, Timing
from profiles.subject import Setup, subject
from stones_cli import main
from stones_cli.status import Status

SHAPE = "4x8x6x6"


class Together:
    """What two threads share that play the ranks."""

    def __init__(self, size=2):
        self.size, self.meeting, self.messages = size, threading.Barrier(size, timeout=20), [None] * size

    def rank(self, number):
        made = Ranks(number, self.size)
        made.exchange = lambda one=0.0, other=0.0: self.exchange(number, [float(one), float(other)])
        return made

    def exchange(self, number, message):
        self.messages[number] = message
        self.meeting.wait()
        found = list(self.messages)
        self.meeting.wait()
        return found


class Rank:
    """A rank on a clock of its own that only jobs advance."""

    def __init__(self, together, number, start=0.0, preempted=lambda: 0):
        self.seconds, self.calls = start, 0
        self.clock = clock_over(together.rank(number), HostClock("fake", self.now, self.now, preempted))

    def now(self):
        return self.seconds

    def job(self, name, seconds):
        def run():
            self.seconds += next(seconds) if hasattr(seconds, "__next__") else seconds
            self.calls += 1

        return Job(name, run)


def in_threads(*works):
    """Run all at once and return what each returns."""
    found = [None] * len(works)

    def work(number):
        found[number] = works[number]()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_block_takes_as_long_as_on_the_slowest_rank_and_keeps_all():
    together = Together()
    a, b = Rank(together, 0), Rank(together, 1)
    found = in_threads(lambda: a.clock.block(a.job("x", 1.0), 4), lambda: b.clock.block(b.job("x", 3.0), 4))
    assert found == [12.0, 12.0]
    assert a.clock.blocks["x"] == b.clock.blocks["x"] == [[1.0, 3.0]]


def test_all_ranks_read_the_clock_of_the_first():
    together = Together()
    a, b = Rank(together, 0, start=5.0), Rank(together, 1, start=700.0)
    assert in_threads(a.clock.now, b.clock.now) == [5.0, 5.0]


def test_a_block_that_one_rank_lost_is_run_again_on_all():
    together = Together()
    counts = iter([0, 1, 1, 1])  # taken away during the first try alone
    a, b = Rank(together, 0), Rank(together, 1, preempted=lambda: next(counts))
    found = in_threads(lambda: a.clock.block(a.job("x", 0.001), 1), lambda: b.clock.block(b.job("x", 0.002), 1))
    assert found == [0.002, pytest.approx(0.002)]
    assert (a.calls, b.calls) == (2, 2)
    assert (a.clock.repeated, b.clock.repeated) == (1, 1)
    assert len(a.clock.blocks["x"]) == len(b.clock.blocks["x"]) == 1


def test_ranks_of_different_speed_decide_alike():
    """Calibration, rounds, and when enough is enough: each rank alone would choose otherwise."""
    together = Together()

    def work(number, slow):
        rank = Rank(together, number, start=number * 100.0)
        made = [rank.job("ours", 1e-3 * slow), rank.job("theirs", 4e-4)]
        timing = Timing(made, [Comparison("ours", "theirs")], Plan(seconds=0.5), rank.clock)
        timing.run()
        return timing, rank

    (one, a), (other, b) = in_threads(lambda: work(0, 1.0), lambda: work(1, 7.0))
    assert one.rounds == other.rounds
    assert one.calls == other.calls
    assert a.calls == b.calls
    assert one.ratio(one.comparisons[0]).interval.median == pytest.approx(7e-3 / 4e-4)


def test_processor_time_is_refused_for_it_does_not_see_waiting():
    with pytest.raises(Refusal, match="2 ranks waiting for each other: give clock=wall"):
        clock_over(Ranks(0, 2), HostClock(CPU))
    alone = HostClock(CPU)
    assert clock_over(Ranks(), alone) is alone
    assert isinstance(clock_over(Ranks(0, 2), HostClock()), RankClock)


def test_a_cuda_graph_in_which_nobody_hears_the_ranks_is_refused():
    made = case(subject(stone("bn"), {}, Setup((2, 4, 3, 3), device="cuda")), graph=True)
    check_graph(made, Ranks())
    with pytest.raises(Refusal, match="--cuda-graph hides what 2 ranks tell each other"):
        check_graph(made, Ranks(0, 2))


def test_one_rank_alone_agrees_with_itself():
    with pytest.raises(KeyError), Ranks().agreeing():
        raise KeyError
    assert Ranks().exchange(1.0, 2.0) == [[1.0, 2.0]]
    assert Ranks().record() is None


def test_the_environment_is_read():
    assert launch(VARIABLES) == Launch(1, 2, 1, 2)
    assert launch({**VARIABLES, "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == Launch(1, 2, 0, 1)
    for alone in ({}, {"WORLD_SIZE": "1"}, {**VARIABLES, "WORLD_SIZE": "1"}, {**VARIABLES, "WORLD_SIZE": ""}):
        assert launch(alone) is None
        assert not is_silent(alone)
    assert is_silent(VARIABLES)
    assert not is_silent({**VARIABLES, "RANK": "0"})


NUMBERS = [(n, v) for n in VARIABLES if n != "MASTER_ADDR" for v in ("x", "-1", "1.5", "²", "9" * 4000, "70000", "\n")]
HOSTS = [("MASTER_ADDR", value) for value in ("a b\n", "\x00", "x" * 4000, "no.such.host.invalid")]
MISSING = [(name, "") for name in VARIABLES if name != "WORLD_SIZE"]


@pytest.mark.parametrize(("name", "value"), NUMBERS + HOSTS + MISSING)
def test_a_hostile_environment_is_one_clear_line(name, value):
    with pytest.raises((Refusal, Unavailable), match=name) as refused:
        launch({**VARIABLES, name: value})
    assert "unset WORLD_SIZE" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 200


def test_a_rank_beyond_all_is_not_silent_about_it(monkeypatch):
    for name, value in {**VARIABLES, "RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    found = invoke("bench", "bn", "-i", SHAPE)
    assert (found.exit_code, found.stdout) == (Status.MISUSE, "")
    assert found.stderr.startswith("error: RANK='5' is no whole number from 0 to 1: start it by torchrun")


def test_a_bad_environment_is_a_status_and_costs_no_import(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    found = invoke("bench", "bn", "-i", SHAPE)
    assert (found.exit_code, found.stdout) == (Status.MISUSE, "")
    assert found.stderr == "error: WORLD_SIZE=2 without RANK: start it by torchrun, or unset WORLD_SIZE\n"


@pytest.mark.parametrize("line", ["list", "inspect bn", "doctor", "diff gn ln", "run ci", "schema"])
def test_other_commands_run_in_one_process(line, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = invoke(*line.split())
    assert (found.exit_code, found.stdout) == (Status.MISUSE, "")
    assert found.stderr.startswith(f"error: stones {line.split()[0]} runs in one process, WORLD_SIZE=2")
    assert len(found.stderr.splitlines()) == 1


def test_each_rank_takes_its_own_device():
    def on(device):
        made = case(subject(stone("gn"), {"groups": 2}, Setup((2, 4, 3, 3), device=device)), vs=["bn"])
        return placed(Bench((made,)), Launch(1, 2, 1, 2)).cases[0]

    assert on("cuda").subject.setup.device == "cuda:1"
    assert on("cuda").references["bn"].setup.device == "cuda:1"
    assert on("cpu").subject.setup.device == "cpu"
    with pytest.raises(Refusal, match="--device cuda:0: each of 2 ranks takes a device of its own"):
        on("cuda:0")


def test_too_few_devices_are_refused_before_anybody_waits(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    refused = pytest.raises(Unavailable, match="2 ranks need as many CUDA devices, this machine has 1")
    with refused, joined(Launch(0, 2, 0, 2), "cuda:0"):
        pass


def test_nobody_to_meet_is_told_after_a_while(monkeypatch):
    monkeypatch.setattr(ranks_module, "TIMEOUT", 1.0)
    for name, value in {**VARIABLES, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="2 ranks did not find each other"), joined(launch(), "cpu"):
        pass


def test_more_threads_than_cores_are_told():
    assert about_machine(1, 2, 0.0, "wall", 2) == []
    (told,) = about_machine(2, 2, 0.0, "wall", 2)
    assert (told.message, told.advice) == ("2 ranks of 2 threads share 2 cores", "give --threads 1")
    (told,) = about_machine(1, 2, 0.0, "wall", 4)
    assert told.advice == "start at most 2 ranks a machine"


def test_inputs_differ_between_ranks_and_parameters_do_not():
    made = case(subject(stone("bn"), {}, Setup((2, 4, 3, 3))))
    one, other = (jobs(made, rank)[-1].run() for rank in (0, 1))
    assert one.shape == other.shape
    assert not (one == other).any()


def test_who_is_silent_lets_the_first_speak_before_it_ends_with_a_failure(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for rank, times in (("0", 0), ("1", 1)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        main._let_the_first_speak()
        assert len(slept) == times
