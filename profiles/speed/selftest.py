"""What the machine makes of jobs of known answer: the same work twice, fresh memory, vanishing numbers, an empty clock.

The noise is measured as `bench` measures: in rounds, paired, with its clock, one thread, and freed memory kept.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from profiles.machine import page_faults
from profiles.speed.clocks import Clock, Job, clock_for
from profiles.speed.intervals import Interval, bootstrap, noise_floor
from profiles.speed.timing import LEAST_ROUNDS, Comparison, Plan, Timing

ALARM = 1.05  # a bar that the ratio of a job to itself should pass
JOBS = {"noise-small": (8, 64, 8, 8), "noise-large": (32, 64, 56, 56)}  # in the cache of a core, and beyond all caches
GROUPS = 32
FRESH = (32, 64, 56, 56)  # a result of 25 MB
_FINE = 1e-4  # a precision that no time reaches: every trial takes all of its seconds


@dataclass(frozen=True)
class Trial:
    """One comparison of a job with itself: the ratio, its distance from 1 with the noise, seconds per call, rounds."""

    ratio: Interval
    floor: float
    seconds: float
    rounds: int

    @property
    def is_alarm(self) -> bool:
        """Whether a gate of 5 % would have failed: falsely."""
        return self.ratio.low > ALARM


def normalization(shape: tuple[int, ...]) -> Callable[[], object]:
    """Return torch's group normalization of an input of ``shape``, the job whose noise is measured."""
    import torch
    from torch.nn import functional as F

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return lambda: F.group_norm(x, GROUPS)


def trials(
    work: Callable[[], object], seconds: Iterable[float], clock: Clock | None = None, seed: int = 0
) -> Iterator[Trial]:
    """Yield one trial of ``work`` for each of ``seconds``; an interrupted one too, then KeyboardInterrupt passes."""
    for number, length in enumerate(seconds):
        timing = Timing(
            [Job("A", work), Job("B", work)],
            [Comparison("B", "A")],
            Plan(seconds=length, rounds=1000, precision=_FINE, seed=seed + number),
            clock or clock_for("cpu"),
        )
        try:
            timing.run()
        except KeyboardInterrupt:
            if len(timing.rounds) >= LEAST_ROUNDS:
                yield _trial(timing)
            raise
        yield _trial(timing)


def _trial(timing: Timing) -> Trial:
    found = timing.ratio(timing.comparisons[0])
    floor = max(found.noise, noise_floor(found.interval))
    return Trial(found.interval, floor, statistics.median(timing.samples("A")), len(timing.rounds))


def pooled(found: list[Trial]) -> dict[str, Any]:
    """Return what 1 or more trials of a job say together: the worst floor, the ratio over all, the moved times."""
    ratios = [trial.ratio.median for trial in found]
    times = [trial.seconds for trial in found]
    middle = bootstrap(ratios)
    return {
        "ms": float(f"{statistics.median(times) * 1e3:.5g}"),
        "ratio": round(middle.median, 5),
        "ratio_ci95": [round(min(t.ratio.low for t in found), 5), round(max(t.ratio.high for t in found), 5)],
        "noise_floor": round(max(t.floor for t in found), 5),
        "noise_floor_median": round(statistics.median(t.floor for t in found), 5),
        "drift": round(max(times) / min(times) - 1, 5),
        "false_alarms": sum(t.is_alarm for t in found),
        "trials": len(found),
        "rounds": sum(t.rounds for t in found),
    }


def timer() -> tuple[float, float]:
    """Return the smallest step of the clock that was seen, and what reading it costs, both in seconds."""
    count, tick = 2000, time.perf_counter
    start = tick()
    for _ in range(count):
        tick()
    cost = (tick() - start) / count
    read = [tick() for _ in range(count)]
    steps = [after - before for before, after in pairwise(read) if after > before]
    return min(steps, default=cost), cost


def denormals() -> tuple[bool, float]:
    """Return whether denormal numbers become 0, and the time of a product with them over that with normal ones."""
    import torch

    tiny, usual = torch.full((4096,), 1e-40), torch.full((4096,), 1.0)
    out = torch.empty_like(usual)
    seconds = {x: _least(lambda x=x: torch.mul(x, 1.0, out=out), 50) for x in (usual, tiny)}  # type: ignore[misc]
    return float(torch.mul(tiny, 1.0)[0]) == 0.0, seconds[tiny] / seconds[usual]


def fresh_memory(keep: Callable[[], bool]) -> tuple[bool, float, int | None]:
    """Return whether ``keep`` keeps freed memory, the time of an operation without it over that with it, and how many
    pages one call without it had to be given. Called before anything else has asked to keep memory.
    """
    import torch

    x = torch.zeros(FRESH)

    def work() -> object:
        return torch.add(x, 1.0)

    work()
    before = page_faults()
    work()
    after = page_faults()
    fresh = _least(work, 1)
    kept = keep()
    work()
    faults = None if before is None or after is None else after - before
    return kept, fresh / _least(work, 1), faults


def _least(work: Callable[[], object], calls: int, times: int = 7) -> float:
    """Return the least time of ``calls`` calls."""
    least = math.inf
    for _ in range(times):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        least = min(least, time.perf_counter() - start)
    return least
