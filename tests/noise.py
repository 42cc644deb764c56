"""Can `bench` be trusted on this machine? Trials with a known answer: `python tests/noise.py`, or `make noise`.

Both sides of each trial are torch's group normalization, in this process, as `stones bench` times them, against a bar
of 1.05: first the same work (A/A: a failure is a false alarm), then one sample in eight more (+12.5 %: to be found),
by the wall clock and by processor time. Beside it what the samples say without pairing. Exit status 0 when one of the
clocks raises at most 1 false alarm in 30 and finds at least 28 of 30.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.nn import functional as F

from profiles.allocator import keep_freed_memory
from profiles.environment import environment
from profiles.speed.clocks import CLOCKS, Job, clock_for
from profiles.speed.intervals import Verdict
from profiles.speed.timing import Comparison, Plan, Timing

TRIALS, BAR, SECONDS = 30, 1.05, 1.2
SAMPLES, MORE = 8, 9


def job(name: str, samples: int) -> Job:
    """Return the normalization of ``samples`` feature maps, 64×32×32 each, in 32 groups."""
    x = torch.randn(samples, 64, 32, 32)
    return Job(name, lambda: F.group_norm(x, 32))


def trial(clock: str, samples: int, seed: int) -> Timing:
    """Time ``samples`` feature maps against `SAMPLES` by ``clock``."""
    made = [job("A", SAMPLES), job("B", samples)]
    timing = Timing(made, [Comparison("B", "A", BAR)], Plan(seconds=SECONDS, seed=seed), clock_for("cpu", clock))
    timing.run()
    return timing


def row(clock: str, what: str, samples: int) -> int:
    """Run the trials of one kind, print their line and return how many failed the bar."""
    start, trials = time.perf_counter(), [trial(clock, samples, seed) for seed in range(TRIALS)]
    found = [timing.ratio(timing.comparisons[0]) for timing in trials]
    counts = {v: sum(ratio.verdict is v for ratio in found) for v in Verdict}
    ratios = [ratio.interval.median for ratio in found]
    alone = [statistics.median(t.samples("B")) for t in trials]
    once = [b / statistics.median(t.samples("A")) for b, t in zip(alone, trials[1:] + trials[:1], strict=True)]
    print(
        f"{clock} {what:<11} {counts[Verdict.FAIL]:>4} {counts[Verdict.PASS]:>5} {counts[Verdict.INCONCLUSIVE]:>13}"
        f"   {min(ratios):.3f}–{max(ratios):.3f}   {statistics.median(r.noise for r in found):>6.1%}"
        f"   {max(alone) / min(alone):>10.2f}   {min(once):.3f}–{max(once):.3f}"
        f"   {statistics.median(len(t.rounds) for t in trials):>6g}   {time.perf_counter() - start:>6.1f}"
    )
    return counts[Verdict.FAIL]


def main() -> int:
    """Print the table; return the exit status."""
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    machine = environment(allocator="kept" if kept else "system")
    print(", ".join(f"{name} {machine[name]}" for name in ("cpu", "cores", "load", "torch", "allocator")))
    print(f"{TRIALS} trials each, one thread, bar {BAR}, at most {SECONDS:g} s per trial")
    print(
        f"{'':<16} {'fail':>4} {'pass':>5} {'inconclusive':>13}   {'paired':^11}   {'noise':>6}"
        f"   {'abs spread':>10}   {'not paired':^11}   {'rounds':>6}   {'s':>6}"
    )
    good = []
    for clock in CLOCKS:
        alarms = row(clock, "A/A", SAMPLES)
        found = row(clock, f"A/+{MORE / SAMPLES - 1:.1%}", MORE)
        if alarms <= 1 and found >= 28:
            good.append(clock)
    print(f"clocks to gate by on this machine, now: {', '.join(good) or 'none, it is too noisy'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
