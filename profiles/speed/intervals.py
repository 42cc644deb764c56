"""Medians with a bootstrap interval, and the three verdicts on a bar."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LEVEL = 0.95
RESAMPLES = 1000


class Verdict(StrEnum):
    """What a measurement says of a bar."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Interval:
    """A median and the bounds between which it lies with probability 0.95."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width relative to the median."""
        return (self.high - self.low) / (2 * self.median)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the median of ``values`` (1 or more) with its percentile bootstrap interval (Efron 1979)."""
    draw = random.Random(seed).choices
    medians = sorted(statistics.median(draw(values, k=len(values))) for _ in range(RESAMPLES))
    cut = round((1 - LEVEL) / 2 * RESAMPLES)
    return Interval(statistics.median(values), medians[cut], medians[-1 - cut])


def bootstrap_ratio(of: Sequence[float], vs: Sequence[float], seed: int = 0) -> Interval:
    """Return the median of ``of`` over that of ``vs``, positive numbers measured apart, with its bootstrap interval.

    Both are resampled on their own (Efron & Tibshirani 1993, chapter 8): nothing pairs them.
    """
    draw = random.Random(seed).choices
    drawn = ([statistics.median(draw(values, k=len(values))) for values in (of, vs)] for _ in range(RESAMPLES))
    ratios = sorted(one / other for one, other in drawn)
    cut = round((1 - LEVEL) / 2 * RESAMPLES)
    return Interval(statistics.median(of) / statistics.median(vs), ratios[cut], ratios[-1 - cut])


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance between the quartiles of ``values`` (2 or more)."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def noise_floor(same: Interval) -> float:
    """Return how far from 1 the ratio of a thing to itself may be taken for, given its interval."""
    return max(abs(same.low - 1), abs(same.high - 1))


def bias(same: Interval) -> float:
    """Return how far from 1 the ratio of a thing to itself must be taken for: 0 when its interval holds 1."""
    return max(0.0, same.low - 1, 1 - same.high)


def judge(ratio: Interval, bar: float, same: Interval) -> Verdict:
    """Judge ``ratio`` ≤ ``bar``: pass below it, fail above it, by the whole interval.

    ``same`` is the ratio of the reference to itself, measured alike: a distance from the bar that is no larger than its
    bias proves nothing.
    """
    if abs(ratio.median / bar - 1) <= bias(same):
        return Verdict.INCONCLUSIVE
    if ratio.high <= bar:
        return Verdict.PASS
    return Verdict.FAIL if ratio.low > bar else Verdict.INCONCLUSIVE
