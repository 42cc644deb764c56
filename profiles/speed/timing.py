"""Timing jobs against each other in one process: interleaved, paired, with a measured noise floor.

Each round runs one block of every job, in shuffled order and in the next round backwards (for two jobs: ABBA). A
reference runs twice a round: the ratio of its two blocks is the noise floor, their mean is what others are divided by.
A drift of the machine that outlasts a round falls out of the ratios; the median does not feel single disturbances.
Rounds are added until every interval is narrow enough and on one side of its bar, or time is up. The intervals are not
corrected for being looked at repeatedly: `tests/noise.py` measures what that costs.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from profiles.errors import Refusal
from profiles.speed import cautions
from profiles.speed.clocks import Clock, Job
from profiles.speed.intervals import Interval, Verdict, bootstrap, interquartile_range, judge, noise_floor

LEAST_ROUNDS = 5
FIRST_LOOK = 10
WARM_UP = 0.05
MOST_CALLS = 100_000
_INSTANT = 1e-9  # a clock may not see a very short block at all


@dataclass(frozen=True)
class Plan:
    """How long to measure: ``seconds`` per case, ``rounds`` at most, ``block`` seconds per block at least.

    ``precision`` is the relative half width at which an interval is narrow enough; twice that will do once its bar is
    decided. At least 5 rounds are run whatever the time. ``seed`` decides the order of the jobs and the bootstrap.
    """

    seconds: float = 3.0
    rounds: int = 200
    block: float = 0.002
    precision: float = 0.025
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("seconds", 0, 3600), ("block", 0, 10), ("precision", 0, 1)):
            value = getattr(self, name)
            if not low < value <= high:
                raise Refusal(f"{name}={value!r} is out of range: it must be > {low} and ≤ {high}")
        if not LEAST_ROUNDS <= self.rounds <= 100_000:
            raise Refusal(f"rounds={self.rounds!r} is out of range: it must be ≥ {LEAST_ROUNDS} and ≤ 100000")


@dataclass(frozen=True)
class Comparison:
    """The time of job ``of`` divided by that of job ``vs``; with ``bar``, the ratio that it must not exceed."""

    of: str
    vs: str
    bar: float | None = None


@dataclass(frozen=True)
class Ratio:
    """What was found for a comparison; ``verdict`` is None without a bar."""

    interval: Interval
    noise: float
    verdict: Verdict | None


@dataclass
class Timing:
    """The timing of ``jobs``. `run` fills ``rounds``, complete ones only, also when it is interrupted."""

    jobs: Sequence[Job]
    comparisons: Sequence[Comparison]
    plan: Plan
    clock: Clock
    calls: dict[str, int] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    repeated: int = 0
    _found: dict[tuple[Comparison, int], Ratio] = field(default_factory=dict, repr=False)

    def run(self, progress: Callable[[float], None] | None = None) -> None:
        """Warm up, calibrate, measure. ``progress`` gets the fraction done after each round; exceptions pass through.

        Cyclic garbage is collected before and not meanwhile.
        """
        with _no_garbage_collection():
            for job in self.jobs:
                self.calls[job.name] = self._calibrate(job)
            self._align_calls()
            start, look, before = self.clock.now(), FIRST_LOOK, self.clock.repeated
            for order in self._orders():
                self.rounds.append({slot: self._sample(job) for slot, job in order})
                self.seconds, self.repeated = self.clock.now() - start, self.clock.repeated - before
                done = max(self.seconds / self.plan.seconds, len(self.rounds) / self.plan.rounds)
                if len(self.rounds) == look:
                    look = math.ceil(look * 1.3)
                    done = 1.0 if self.settled else done
                if progress is not None:
                    progress(min(1.0, done))
                if done >= 1 and len(self.rounds) >= LEAST_ROUNDS:
                    return

    def samples(self, name: str) -> list[float]:
        """Return the seconds per call of job ``name`` in each round."""
        return [sample[name] for sample in self.rounds]

    def ratio(self, comparison: Comparison) -> Ratio:
        """Return the median of the paired ratios of ``comparison``, the noise of its reference and the verdict."""
        key = comparison, len(self.rounds)
        if key not in self._found:
            self._found[key] = self._ratio(comparison)
        return self._found[key]

    def _ratio(self, comparison: Comparison) -> Ratio:
        of, vs, again = comparison.of, comparison.vs, _again(comparison.vs)
        interval = bootstrap([2 * r[of] / (r[vs] + r[again]) for r in self.rounds], self.plan.seed)
        same = bootstrap([r[again] / r[vs] for r in self.rounds], self.plan.seed)
        verdict = None if comparison.bar is None else judge(interval, comparison.bar, same)
        return Ratio(interval, noise_floor(same), verdict)

    @property
    def settled(self) -> bool:
        """Whether more rounds would tell nothing new: each interval is narrow, each bar decided."""
        return all(map(self._is_settled, self.comparisons))

    def _is_settled(self, comparison: Comparison) -> bool:
        ratio, enough = self.ratio(comparison), self.plan.precision
        if ratio.verdict is None:
            return ratio.interval.half_width <= enough
        return ratio.verdict is not Verdict.INCONCLUSIVE and ratio.interval.half_width <= 2 * enough

    def warnings(self) -> list[cautions.Warned]:
        """Return the reasons to doubt what was measured (2 or more rounds)."""
        found = []
        for job in self.jobs:
            seconds = self.samples(job.name)
            found += cautions.about_samples(job.name, seconds, self.calls[job.name], self.plan.block)
        for comparison in self.comparisons:
            name, ratio = f"{comparison.of} / {comparison.vs}", self.ratio(comparison)
            bar, undecided = comparison.bar, ratio.verdict is Verdict.INCONCLUSIVE
            if bar is not None and undecided and abs(ratio.interval.median / bar - 1) <= ratio.noise:
                found.append(cautions.about_noise(name, bar, ratio.noise))
            elif undecided or (bar is None and ratio.interval.half_width > 2 * self.plan.precision):
                found.append(cautions.about_time(name, self.seconds))
        return found

    def _calibrate(self, job: Job) -> int:
        """Warm ``job`` up and return how many calls make a block."""
        self.clock.block(job, 1)  # may import, compile, allocate: as slow as it likes, but once
        start = self.clock.now()
        took: list[float] = []
        while len(took) < 2 or (len(took) < MOST_CALLS and self._is_cold(len(took), self.clock.now() - start)):
            took.append(self.clock.block(job, 1))
        return min(MOST_CALLS, math.ceil(self.plan.block / max(min(took), _INSTANT)))

    def _is_cold(self, calls: int, seconds: float) -> bool:
        """Whether to go on warming up: for some time, and for a few calls if those are not too long."""
        return seconds < (WARM_UP if calls >= LEAST_ROUNDS else self.plan.seconds / 4)

    def _align_calls(self) -> None:
        """Give jobs of like speed equally long blocks: the first call of a block finds colder caches than the rest."""
        for of in dict.fromkeys(comparison.of for comparison in self.comparisons):
            names = [of, *(comparison.vs for comparison in self.comparisons if comparison.of == of)]
            alike = [name for name in names if self.calls[of] <= 2 * self.calls[name] <= 4 * self.calls[of]]
            most = max(self.calls[name] for name in alike)
            self.calls.update(dict.fromkeys(alike, most))

    def _sample(self, job: Job) -> float:
        calls = self.calls[job.name]
        return max(self.clock.block(job, calls), _INSTANT) / calls

    def _orders(self) -> Iterator[list[tuple[str, Job]]]:
        """Yield the order of each round: a shuffle, then the same backwards, without end."""
        references = {comparison.vs for comparison in self.comparisons}
        slots = [(job.name, job) for job in self.jobs]
        slots += [(_again(job.name), job) for job in self.jobs if job.name in references]
        shuffle = random.Random(self.plan.seed).shuffle
        while True:
            shuffle(slots)
            yield list(slots)
            yield slots[::-1]


@dataclass(frozen=True)
class Summary:
    """The numbers of one job: seconds per call."""

    median: Interval
    iqr: float
    least: float


def summary(seconds: Sequence[float], seed: int = 0) -> Summary:
    """Summarise samples, 2 or more."""
    return Summary(bootstrap(seconds, seed), interquartile_range(seconds), min(seconds))


def _again(name: str) -> str:
    return f"{name} again"


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
