"""The measurement is honest: known jobs are timed right, disturbances do not move it, verdicts follow the numbers.

All of it runs on a fake clock that advances by what each job says it takes.
"""

from __future__ import annotations

import gc
import math
import random

import pytest

from profiles.errors import Refusal
from profiles.speed.cautions import Caution, about_machine
from profiles.speed.clocks import EventClock, HostClock, Job, clock_for
from profiles.speed.intervals import Interval, Verdict, bootstrap, judge
from profiles.speed.timing import FIRST_LOOK, LEAST_ROUNDS, Comparison, Plan, Timing


class Time:
    """A clock that only jobs advance; ``pace(now)`` slows every job alike."""

    def __init__(self, pace=lambda now: 1.0):
        self.seconds, self.pace, self.log = 0.0, pace, []

    def now(self):
        return self.seconds

    def clock(self):
        return HostClock("fake", self.now, self.now, lambda: 0)

    def job(self, name, seconds, spread=0.0, outliers=0.0, prepare=None):
        """A job of ``seconds``, with normal relative ``spread``, ``outliers`` of the calls twenty times as long."""
        dice = random.Random(name)

        def run():
            took = seconds() if callable(seconds) else seconds
            took *= max(0.1, dice.gauss(1, spread)) * (20 if dice.random() < outliers else 1)
            self.log.append(name)
            self.seconds += took * self.pace(self.seconds)

        return Job(name, run, prepare)


def timed(time, *made, bar=None, plan=None):
    """Time jobs, the first against the second."""
    timing = Timing(made, [Comparison(made[0].name, made[1].name, bar)], plan or Plan(), time.clock())
    timing.run()
    return timing


def within(value, wanted, part):
    return abs(value / wanted - 1) <= part


@pytest.mark.parametrize("seconds", [2e-3, 50e-6])
def test_a_known_job_is_timed_within_5_percent(seconds):
    time = Time()
    timing = timed(time, time.job("job", seconds, spread=0.1), time.job("other", 1e-3))

    assert within(bootstrap(timing.samples("job")).median, seconds, 0.05)


def test_the_warm_up_is_excluded():
    time = Time()
    calls = iter(range(10**9))
    timing = timed(time, time.job("job", lambda: 0.1 if next(calls) < 5 else 1e-3), time.job("other", 1e-3))

    assert max(timing.samples("job")) == pytest.approx(1e-3)
    assert timing.calls["job"] == 2


def test_outliers_do_not_move_the_median_nor_the_ratio():
    time = Time()
    plan = Plan(block=1e-9, precision=1e-9, rounds=100)  # one call per block: outliers are not averaged away
    noise = {"spread": 0.01, "outliers": 0.07}
    timing = timed(time, time.job("job", 3e-3, **noise), time.job("other", 2e-3, **noise), plan=plan)

    assert max(timing.samples("job")) > 15 * 3e-3, "the outliers happened"
    assert within(bootstrap(timing.samples("job")).median, 3e-3, 0.01)
    assert within(timing.ratio(timing.comparisons[0]).interval.median, 1.5, 0.01)


def test_the_least_number_of_rounds_is_run_whatever_the_time():
    time = Time()
    timing = timed(time, time.job("job", 0.4, spread=0.3), time.job("other", 0.4), plan=Plan(seconds=0.01))

    assert len(timing.rounds) == LEAST_ROUNDS


def test_an_unstable_job_is_flagged_and_a_stable_one_is_not():
    time = Time()
    plan = Plan(block=1e-9)
    timing = timed(time, time.job("shaky", 2e-3, spread=0.2), time.job("calm", 2e-3, spread=0.02), plan=plan)
    flagged = [warned.about for warned in timing.warnings() if warned.code is Caution.UNSTABLE]

    assert flagged == ["shaky"]


def test_a_slow_first_round_and_a_short_block_are_flagged():
    time = Time()
    timing = timed(time, time.job("job", 1e-3), time.job("other", 1e-3))
    timing.rounds[0]["job"] *= 1.5
    timing.calls["other"] = 0
    codes = {(warned.code, warned.about) for warned in timing.warnings()}

    assert codes == {(Caution.FIRST_SLOW, "job"), (Caution.BLOCK_SHORT, "other")}


def false_alarms(factor, trials, bar=1.05):
    """Run trials of a job ``factor`` as long as its reference on a machine that drifts and is noisy; count failures."""
    failed = 0
    for trial in range(trials):
        time = Time(pace=lambda now, trial=trial: 1.3 + 0.3 * math.sin(now * 3 + trial))
        noisy = [time.job(f"{name}{trial}", seconds, spread=0.08, outliers=0.02) for name, seconds in
                 (("job", 2e-3 * factor), ("other", 2e-3))]  # fmt: skip
        timing = timed(time, *noisy, bar=bar)
        failed += timing.ratio(timing.comparisons[0]).verdict is Verdict.FAIL
    return failed


def test_a_thing_against_itself_rarely_fails():
    assert false_alarms(1.0, 30) <= 2


def test_fifteen_percent_more_work_is_found():
    assert false_alarms(1.15, 12) >= 11


def test_fifteen_percent_less_work_is_found():
    time = Time(pace=lambda now: 1.3 + 0.3 * math.sin(now * 3))
    jobs = time.job("job", 1.7e-3, spread=0.08), time.job("other", 2e-3, spread=0.08)

    assert timed(time, *jobs, bar=0.95).ratio(Comparison("job", "other", 0.95)).verdict is Verdict.PASS


def test_exceptions_pass_through_and_garbage_collection_comes_back():
    time = Time()

    def broken():
        raise ZeroDivisionError("the job's own")

    with pytest.raises(ZeroDivisionError, match="the job's own"):
        timed(time, Job("job", broken), time.job("other", 1e-3))
    assert gc.isenabled()


def test_garbage_is_not_collected_while_measuring():
    time = Time()
    states = set()
    timed(time, time.job("job", lambda: states.add(gc.isenabled()) or 1e-3), time.job("other", 1e-3))

    assert states == {False}
    assert gc.isenabled()


def test_jobs_alternate_there_and_back():
    time = Time()
    timing = timed(time, time.job("A", 3e-3), time.job("B", 4e-3), plan=Plan(rounds=FIRST_LOOK))
    rounds = time.log[-3 * len(timing.rounds) :]  # the reference B twice a round
    orders = [rounds[i : i + 3] for i in range(0, len(rounds), 3)]

    assert all(sorted(order) == ["A", "B", "B"] for order in orders)
    assert all(back == there[::-1] for there, back in zip(orders[::2], orders[1::2], strict=True))
    assert len({tuple(order) for order in orders}) > 1, "and not always the same"


def test_blocks_are_as_long_as_asked_and_no_longer():
    time = Time()
    timing = timed(time, time.job("A", 70e-6), time.job("B", 9e-3), plan=Plan(block=2e-3))

    assert timing.calls == {"A": math.ceil(2e-3 / 70e-6), "B": 1}


def test_jobs_of_like_speed_get_equally_long_blocks():
    time = Time()
    timing = timed(time, time.job("A", 0.3e-3), time.job("B", 0.21e-3), plan=Plan(block=2e-3))

    assert timing.calls["A"] == timing.calls["B"] == math.ceil(2e-3 / 0.21e-3)


def test_it_stops_early_when_all_is_settled_and_at_the_budget_when_not():
    time = Time()
    quiet = timed(time, time.job("A", 2e-3), time.job("B", 2e-3), plan=Plan(seconds=60))
    time = Time()
    loud = timed(time, time.job("A", 2e-3, spread=0.5), time.job("B", 2e-3, spread=0.5), plan=Plan(seconds=0.3))

    assert len(quiet.rounds) == FIRST_LOOK
    assert quiet.settled
    assert not loud.settled
    assert 0.3 <= loud.seconds < 0.35
    assert Caution.OPEN in {warned.code for warned in loud.warnings()}


def test_what_is_prepared_is_off_the_clock():
    time = Time()

    def prepare():
        time.seconds += 5e-3

    timing = timed(time, time.job("A", 1e-3, prepare=prepare), time.job("B", 1e-3))

    assert within(bootstrap(timing.samples("A")).median, 1e-3, 1e-6)


@pytest.mark.parametrize(
    ("low", "median", "high", "bias", "verdict"),
    [
        (0.90, 0.92, 0.95, 0.01, Verdict.PASS),
        (1.06, 1.10, 1.12, 0.01, Verdict.FAIL),
        (0.98, 1.00, 1.02, 0.01, Verdict.PASS),
        (1.02, 1.04, 1.06, 0.001, Verdict.INCONCLUSIVE),
        (1.06, 1.10, 1.12, 0.08, Verdict.INCONCLUSIVE),
        (0.90, 0.92, 0.95, 0.15, Verdict.INCONCLUSIVE),
    ],
)
def test_three_verdicts_on_a_bar_of_5_percent(low, median, high, bias, verdict):
    for same in (Interval(1 + bias, 1 + bias, 1.3), Interval(1 - bias, 0.7, 1 - bias)):
        assert judge(Interval(median, low, high), 1.05, same) is verdict


def test_a_bar_within_the_noise_floor_is_reported_as_untestable():
    time = Time()
    plan = Plan(seconds=0.2, block=1e-9)
    timing = timed(time, time.job("A", 2e-3), time.job("B", 2e-3, spread=0.4), bar=1.0, plan=plan)

    assert timing.ratio(timing.comparisons[0]).verdict is Verdict.INCONCLUSIVE
    assert [warned.code for warned in timing.warnings() if warned.about == "A / B"] == [Caution.NOISE]


def test_the_interval_covers_the_median_nineteen_times_in_twenty():
    dice = random.Random(0)
    trials = [bootstrap([dice.gauss(1, 0.1) for _ in range(30)]) for _ in range(200)]
    covered = sum(found.low <= 1 <= found.high for found in trials) / len(trials)

    assert 0.90 <= covered <= 1.0
    assert all(found.low <= found.median <= found.high for found in trials)


def test_a_block_that_was_preempted_is_run_again():
    time = Time()
    switches = iter([0, 1, 1, 1, *range(2, 100)])
    clock = HostClock("fake", time.now, time.now, lambda: next(switches))
    took = iter([9e-3, 2e-3, *[3e-3] * 4, 1.0])
    job = time.job("job", lambda: next(took))

    assert clock.block(job, 1) == pytest.approx(2e-3), "the second was undisturbed"
    assert clock.block(job, 1) == pytest.approx(3e-3), "none was, after four"
    assert len(time.log) == 6
    assert clock.block(job, 1) == pytest.approx(1.0), "long ones stand as they are"


def test_events_time_each_call_alone_after_a_flush():
    log = []

    class Event:
        def record(self):
            log.append("record")

        def elapsed_time(self, end):
            assert log[-1] == "wait", "elapsed time is only known after waiting"
            return 3.0

    clock = EventClock(Event, lambda: log.append("flush"), lambda: log.append("wait"))
    job = Job("job", lambda: log.append("run"), lambda: log.append("prepare"))

    assert clock.block(job, 2) == pytest.approx(6e-3)
    assert log == ["prepare", "flush", "record", "run", "record"] * 2 + ["wait"]


def test_the_machine_is_looked_at():
    assert [w.code for w in about_machine(4, 2, 0.0, "wall")] == [Caution.THREADS]
    assert [w.code for w in about_machine(1, 2, 3.0, "wall")] == [Caution.LOAD]
    assert about_machine(2, 2, 0.3, "wall") == []
    assert about_machine(1, 2, None, "wall") == []


def test_advice_does_not_name_what_is_already_done():
    (wall,), (cpu,) = (about_machine(1, 2, 3.0, clock) for clock in ("wall", "cpu"))

    assert "cpu clock" in wall.advice
    assert "clock" not in cpu.advice


def test_processor_time_is_that_of_one_thread():
    assert clock_for("cpu", "cpu").name == "cpu"
    for device, name, threads in (("cpu", "cpu", 2), ("cuda", "cpu", 1), ("cpu", "sun", 1)):
        with pytest.raises(Refusal, match="clock="):
            clock_for(device, name, threads)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": math.nan}, {"rounds": 4}, {"block": math.inf}, {"precision": -1}]
)
def test_a_plan_refuses_what_is_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(Refusal, match=f"^{name}="):
        Plan(**wrong)
