"""Clocks: how long a block of calls of a job takes, on the processor or on a CUDA device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from profiles.errors import Refusal

WALL, CPU, EVENTS = "wall", "cpu", "cuda-events"
CLOCKS = (WALL, CPU)
_TRIES = 4
_LONG = 0.05  # seconds: many time slices of the scheduler, hardly ever undisturbed
_FLUSH_BYTES = 256 * 2**20  # several times the level-2 cache of any device on sale


@dataclass(frozen=True)
class Job:
    """Something to time: ``run``, called again and again; ``prepare`` goes before each call, off the clock.

    ``compile_seconds`` is what was spent on its making by torch.compile, None where that was not asked for.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    compile_seconds: float | None = None


class Clock(Protocol):
    """Times blocks. ``cache`` says what a call finds of its data: ``warm`` (left by the call before) or ``cold``."""

    @property
    def name(self) -> str:
        """What is read."""

    @property
    def cache(self) -> str:
        """Whether data are warm or cold."""

    @property
    def repeated(self) -> int:
        """How many blocks were disturbed and run again since the clock was made."""

    def now(self) -> float:
        """Return the wall clock in seconds: what the reader waits."""

    def block(self, job: Job, calls: int) -> float:
        """Return the seconds that ``calls`` calls of ``job`` take together."""

    def once(self, job: Job, calls: int) -> tuple[float, bool]:
        """Return the seconds of a block that is never run again, and whether it was disturbed."""


def preemptions() -> int:
    """Return how often the system took the processor away from this thread; 0 where it does not count."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nivcsw


def undisturbed(once: Callable[[], tuple[float, bool]]) -> tuple[float, int]:
    """Run a block by ``once`` until it is long or was not disturbed, a few times at most.

    ``once`` returns seconds and whether it was disturbed. Returns the seconds of the last, and how many came before it.
    """
    for before in range(_TRIES):
        took, disturbed = once()
        if took > _LONG or not disturbed:
            return took, before
    return took, before


@dataclass
class HostClock:
    """A clock of the operating system, read by ``tick``.

    A block during which the system gave the processor to somebody else (``preempted`` has grown) is run again, a few
    times at most: it timed the neighbours, and found cold caches afterwards. Chosen by that sign, never by the time.
    """

    name: str = WALL
    tick: Callable[[], float] = time.perf_counter
    now: Callable[[], float] = time.perf_counter
    preempted: Callable[[], int] = preemptions
    cache: str = "warm"
    repeated: int = 0

    def block(self, job: Job, calls: int) -> float:
        """Return the time of an undisturbed block, or of the last one if they are long or none is undisturbed."""
        took, before = undisturbed(lambda: self.once(job, calls))
        self.repeated += before
        return took

    def once(self, job: Job, calls: int) -> tuple[float, bool]:
        """Return the time of one block, and whether the processor was taken away meanwhile."""
        before = self.preempted()
        took = self._block(job, calls)
        return took, self.preempted() != before

    def _block(self, job: Job, calls: int) -> float:
        """Read the clock around all calls; around each one when there is something to prepare."""
        tick, run, prepare = self.tick, job.run, job.prepare
        if prepare is None:
            start = tick()
            for _ in range(calls):
                run()
            return tick() - start
        total = 0.0
        for _ in range(calls):
            prepare()
            start = tick()
            run()
            total += tick() - start
        return total


@dataclass(frozen=True)
class EventClock:
    """CUDA events around each call, the level-2 cache flushed before it.

    The flush is a step of its own in the stream and outside the events; it also gives the processor a head start, so
    that launches are not timed unless they take longer than the flush. The device is waited for once, after the block.
    """

    event: Callable[[], Any]
    flush: Callable[[], object]
    synchronize: Callable[[], object]
    now: Callable[[], float] = time.perf_counter
    name: str = EVENTS
    cache: str = "cold"
    repeated: int = 0  # never: events do not see what disturbs the processor

    def block(self, job: Job, calls: int) -> float:
        """Return the seconds between the events, summed over the calls."""
        pairs = [(self.event(), self.event()) for _ in range(calls)]
        for start, end in pairs:
            if job.prepare is not None:
                job.prepare()
            self.flush()
            start.record()
            job.run()
            end.record()
        self.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in pairs)) / 1e3

    def once(self, job: Job, calls: int) -> tuple[float, bool]:
        """Return the time of a block; events do not see a disturbance."""
        return self.block(job, calls), False


def check_clock(device: str, name: str = WALL, threads: int = 1) -> None:
    """Raise `Refusal` unless the clock ``name`` sees all that ``threads`` do on ``device``."""
    if name not in CLOCKS:
        raise Refusal(f"clock={name!r} is not one of {', '.join(CLOCKS)}")
    if name == CPU and device.startswith("cuda"):
        raise Refusal(f"clock=cpu does not see what {device} does: take clock=wall, which there means CUDA events")
    if name == CPU and threads != 1:
        raise Refusal(f"clock=cpu counts the time of one thread, threads={threads}: give threads=1 or clock=wall")


def clock_for(device: str, name: str = WALL, threads: int = 1) -> Clock:
    """Return the clock ``name`` (wall, or cpu: processor time of one thread); on a CUDA device, events."""
    check_clock(device, name, threads)
    if device.startswith("cuda"):
        import torch

        dirt = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

        def event() -> Any:
            return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

        return EventClock(event, dirt.zero_, lambda: torch.cuda.synchronize(device))
    return HostClock(CPU, time.thread_time) if name == CPU else HostClock()
