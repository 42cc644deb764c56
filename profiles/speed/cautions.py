"""Reasons to doubt a timing: each with its own advice, which looks at what the reader already does."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from profiles.errors import counted
from profiles.speed.clocks import WALL
from profiles.speed.intervals import interquartile_range

SPREAD = 0.10  # interquartile range over median, as torch.utils.benchmark and pyperf warn
SLOW_START = 1.25


class Caution(StrEnum):
    """What is doubtful."""

    UNSTABLE = "unstable"
    BLOCK_SHORT = "block-too-short"
    FIRST_SLOW = "first-round-slow"
    NOISE = "noise-floor-above-bar"
    OPEN = "out-of-time"
    THREADS = "threads-exceed-cores"
    LOAD = "load-high"
    CARD = "card"
    CEILINGS = "ceilings-disturbed"


@dataclass(frozen=True)
class Warned:
    """One warning: its code, what it is about, one line that says the numbers, and what to do."""

    code: Caution
    about: str
    message: str
    advice: str

    def record(self) -> dict[str, str]:
        """Return the JSON-able form."""
        return asdict(self) | {"code": str(self.code)}


def about_samples(name: str, seconds: Sequence[float], calls: int, block: float) -> list[Warned]:
    """Look at the samples of one candidate (2 or more, seconds per call) timed in blocks of ``calls`` calls."""
    found, middle = [], statistics.median(seconds)
    spread = interquartile_range(seconds) / middle
    if spread > SPREAD:
        found.append(
            Warned(
                Caution.UNSTABLE,
                name,
                f"interquartile range is {spread:.0%} of the median",
                "trust the ratios, which are paired, not the times; close what else runs, or give more seconds",
            )
        )
    if middle * calls < block / 2:
        found.append(
            Warned(
                Caution.BLOCK_SHORT,
                name,
                f"{calls} calls took {middle * calls * 1e3:.3g} ms, blocks of {block * 1e3:g} ms were wanted",
                "something slowed the calibration; run again, or take a larger input",
            )
        )
    if seconds[0] > SLOW_START * middle and seconds[0] > max(seconds[1:]):
        found.append(
            Warned(
                Caution.FIRST_SLOW,
                name,
                f"the first round took {seconds[0] / middle:.2f} × the median",
                "the warm-up did not cover everything that happens once; the median does not feel it",
            )
        )
    return found


def about_noise(name: str, bar: float, noise: float) -> Warned:
    """Warn that ``bar`` cannot be tested because the reference differs from itself by ``noise``."""
    return Warned(
        Caution.NOISE,
        name,
        f"the reference differs from itself by up to {noise:.1%}: too close to the bar {bar:g} to judge",
        "give more seconds, a quieter machine, or a wider bar",
    )


def about_time(name: str, seconds: float) -> Warned:
    """Warn that the time budget ended before the interval was narrow enough."""
    return Warned(
        Caution.OPEN,
        name,
        f"the interval was still wide, or across its bar, after {seconds:.3g} s",
        "give more seconds or rounds",
    )


def about_card(name: str, caution: str) -> Warned:
    """Warn of what the card of ``name`` says of its times."""
    return Warned(Caution.CARD, name, caution, f"see `stones show {name}`")


def about_machine(threads: int, cores: int, load: float | None, clock: str, ranks: int = 1) -> list[Warned]:
    """Look at the machine, which runs ``ranks`` processes of ``threads`` threads, before anything is timed."""
    found = []
    if threads * ranks > cores:
        who, advice = f"{threads} threads share", f"give at most {cores} threads"
        if ranks > 1:
            who = f"{ranks} ranks of {counted(threads, 'thread')} share"
            advice = f"give --threads {cores // ranks}" if cores >= ranks else f"start at most {cores} ranks a machine"
        found.append(Warned(Caution.THREADS, "machine", f"{who} {cores} cores", advice))
    elif load is not None and load + threads * ranks > cores + 0.5:
        advice = "wait, or give fewer threads" if threads > 1 else "wait"
        if threads == ranks == 1 and clock == WALL:
            advice += ", or use the cpu clock"
        found.append(Warned(Caution.LOAD, "machine", f"{load:g} processes already run on {cores} cores", advice))
    return found


def about_ceilings(threads: int) -> Warned:
    """Say that the ceilings for ``threads`` were measured while others ran."""
    those = f"those of {counted(threads, 'thread')}"
    message = f"{those} were measured while others took the processor away, and may be too low"
    return Warned(Caution.CEILINGS, "ceilings", message, "measure them again on a quiet machine: stones doctor")
