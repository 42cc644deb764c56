"""Is this machine fit for measuring? What the system tells, and what it makes of jobs of known answer: one record.

import profiles.speed.doctor
record = profiles.speed.doctor.doctor(seconds=8)
record["smallest_difference"]  # 0.013: a bench here tells differences of 1.3 % and more
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from layers import catalog
from profiles.allocator import KEPT, SYSTEM, keep_freed_memory
from profiles.environment import cores, environment, load
from profiles.errors import Refusal, counted
from profiles.machine import Machine, processors
from profiles.speed import ceilings_kept, findings, selftest
from profiles.speed.ceilings import Ceilings
from profiles.speed.clocks import WALL
from profiles.speed.findings import MIB, Finding, Grade
from profiles.threads import using_threads

SCHEMA = "stones.doctor/1"
SECONDS = 12.0
TRIALS = 4  # of each job
NEEDED = 256 * MIB  # of memory, for the large job
Record = dict[str, Any]
_SHARE, _CEILINGS = 0.65, 0.25  # of the budget, for trials and ceilings; the rest is for warming up, and all else
_PRODUCTS = ("float32", "bfloat16", "float64")
_WHAT = {"noise-small": "a small job beside itself", "noise-large": "a large job beside itself"}


@dataclass
class _Visit:
    """What one run has found so far."""

    machine: Machine
    seconds: float
    progress: Callable[[float, str], None] | None
    rows: list[Finding] = field(default_factory=list)
    noise: dict[str, list[selftest.Trial]] = field(default_factory=dict)
    ceilings: list[Ceilings] = field(default_factory=list)
    kept: bool = False

    def tell(self, fraction: float, what: str) -> None:
        if self.progress is not None:
            self.progress(fraction, what)

    def look(self) -> None:
        """Look at everything, in the order of the rows."""
        machine, usable = self.machine, cores()
        self.tell(0.0, "the system")
        self.rows += [
            findings.about_cores(usable, processors(), machine),
            findings.about_frequency(machine),
            findings.about_load(load(), machine.running, usable),
            findings.about_pages(machine.huge_pages),
            findings.about_memory(machine.available),
            findings.about_timer(*selftest.timer(), machine.clock_source),
        ]
        self.tell(0.02, "torch")
        self.rows += _of_torch(usable)
        if (row := findings.about_plugins(catalog.stones().values(), catalog.broken())) is not None:
            self.rows.append(row)
        with using_threads(1):
            self.rows.append(findings.about_denormals(*selftest.denormals()))
            self.tell(0.05, "memory")
            self.kept, slower, faults = selftest.fresh_memory(keep_freed_memory)
            self.rows.append(findings.about_allocator(self.kept, slower, faults))
            for number, name in enumerate(selftest.JOBS):
                self._trials(name, number)
        self._ceilings(usable)

    def _trials(self, name: str, number: int) -> None:
        """Run the trials of one job, unless the memory does not suffice."""
        if (available := self.machine.available) is not None and available < NEEDED:
            found = "not run: too little memory"
            self.rows.append(Finding(name, _WHAT[name], found, Grade.UNKNOWN, "free some memory"))
            return
        self.noise[name] = []
        every = 1 / (TRIALS * len(selftest.JOBS))
        self.tell(0.1 + 0.6 * number / len(selftest.JOBS), _WHAT[name])
        work, lengths = selftest.normalization(selftest.JOBS[name]), repeat(self.seconds * _SHARE * every, TRIALS)
        for trial in selftest.trials(work, lengths):
            self.noise[name].append(trial)
            done = number * TRIALS + len(self.noise[name])
            self.tell(0.1 + 0.6 * done * every, _WHAT[name])

    def _ceilings(self, usable: int) -> None:
        """Measure the ceilings of one thread and of all, and remember them unless there was little time for it."""
        from profiles.speed.ceilings_measured import SECONDS as ENOUGH
        from profiles.speed.ceilings_measured import measure, where

        counts = sorted({1, usable})
        seconds = self.seconds * _CEILINGS / len(counts)
        for number, threads in enumerate(counts):

            def tell(fraction: float, what: str, number: int = number, threads: int = threads) -> None:
                done = 0.7 + 0.3 * (number + fraction) / len(counts)
                self.tell(done, f"ceilings, {counted(threads, 'thread')}: {what}")

            place = where("cpu", threads, WALL, KEPT if self.kept else SYSTEM)
            found = measure(place, _PRODUCTS, seconds=seconds, tell=tell)
            self.ceilings.append(found.at_least(self.ceilings[0]) if self.ceilings else found)
            if seconds >= ENOUGH or ceilings_kept.recall(place) is None:
                ceilings_kept.keep(self.ceilings[-1])


def doctor(
    seconds: float = SECONDS, progress: Callable[[float, str], None] | None = None, machine: Machine | None = None
) -> Record:
    """Look at ``machine`` (this one) for about ``seconds`` and return one record, schema stones.doctor/1.

    ``progress`` gets the fraction done and what is in hand. KeyboardInterrupt ends it early: what was found until then
    is returned, ``interrupted`` true. As in a bench, the process keeps freed memory from here on. Raises `Refusal` for
    ``seconds`` that are not > 0 and ≤ 3600.
    """
    if not 0 < seconds <= 3600:
        raise Refusal(f"seconds={seconds!r} is out of range: it must be > 0 and ≤ 3600")
    visit, start = _Visit(machine or Machine(), seconds, progress), time.perf_counter()
    before = visit.machine.ticks, visit.machine.waited, visit.machine.throttled
    interrupted = False
    try:
        visit.look()
    except KeyboardInterrupt:
        interrupted = True
    took = time.perf_counter() - start
    rows = [*visit.rows, *_over_the_run(visit.machine, before, took)]
    noise = [{"name": n, "shape": list(selftest.JOBS[n]), **selftest.pooled(t)} for n, t in visit.noise.items() if t]
    rows += _of_noise(noise)
    least = max((each["noise_floor"] for each in noise), default=None)
    return {
        "schema": SCHEMA,
        "environment": environment("cpu", KEPT if visit.kept else SYSTEM),
        "budget": seconds,
        "findings": [row.record() for row in rows],
        "noise": noise,
        "smallest_difference": least,
        "ceilings": [found.record() for found in visit.ceilings],
        "verdict": str(worst(rows)),
        "summary": _summary(least, noise, worst(rows)),
        "seconds": round(took, 3),
        "interrupted": interrupted,
    }


def _of_torch(usable: int) -> list[Finding]:
    """Look at torch, in the state in which it starts."""
    import torch

    known = {"oneDNN": torch.backends.mkldnn, "MKL": torch.backends.mkl, "OpenMP": torch.backends.openmp}
    libraries = [name for name, backend in known.items() if backend.is_available()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a driver that is too old: then there is no device
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [torch.cuda.get_device_name(index) for index in range(count)]
    return [
        findings.about_threads(torch.get_num_threads(), usable),
        findings.about_torch(torch.__version__, libraries, torch.backends.cpu.get_cpu_capability()),
        findings.about_cuda(torch.version.cuda, devices),
    ]


def _over_the_run(machine: Machine, before: tuple[Any, Any, Any], seconds: float) -> Iterator[Finding]:
    """Look at what others did while this ran; ``before`` are ticks, seconds waited and times throttled."""
    ticks, waited, throttled = before
    yield findings.about_steal(ticks, machine.ticks)
    yield findings.about_waiting(waited, machine.waited, seconds)
    if (row := findings.about_throttling(throttled, machine.throttled)) is not None:
        yield row


def _of_noise(noise: Sequence[Record]) -> Iterator[Finding]:
    for each in noise:
        name = each["name"]
        floors = each["noise_floor_median"], each["noise_floor"]
        yield findings.about_noise(name, _WHAT[name], floors, each["false_alarms"], each["trials"])
    if any(each["trials"] > 1 for each in noise):
        yield findings.about_drift(max(each["drift"] for each in noise))


def worst(rows: Sequence[Finding]) -> Grade:
    """Return the verdict on all rows: bad or caution if one is, else ok; what is unknown decides nothing."""
    verdicts = {row.verdict for row in rows}
    return next((grade for grade in (Grade.BAD, Grade.CAUTION) if grade in verdicts), Grade.OK)


def _summary(least: float | None, noise: Sequence[Record], verdict: Grade) -> str:
    if least is None:
        return "No comparison was finished: nothing is known of the smallest difference that a bench here can tell."
    count, usual = sum(each["trials"] for each in noise), max(each["noise_floor_median"] for each in noise)
    fit = {Grade.OK: "fit", Grade.CAUTION: "fit with care", Grade.BAD: "not fit"}[verdict]
    return (
        f"The smallest difference that a bench here can tell: {findings.percent(least)} (usually "
        f"{findings.percent(usual)}; {count} comparisons of a job with itself). The machine is {fit} for measuring."
    )
