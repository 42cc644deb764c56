"""How fast layers run: cases measured one after another, each beside its references; plain records come out.

Absolute times are shown and never judged: bars are ratios to something measured in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from profiles import allocator
from profiles.environment import cores, environment, load
from profiles.errors import Refusal
from profiles.skips import Skipped, Skips
from profiles.speed.bench_record import record, worst
from profiles.speed.cases import Case
from profiles.speed.cautions import about_machine
from profiles.speed.clocks import WALL, Clock, Job, check_clock, clock_for
from profiles.speed.communication import check_graph, clock_over, completed, ranks_of, traffic
from profiles.speed.intervals import Verdict
from profiles.speed.jobs import jobs
from profiles.speed.ranks import Ranks, spanning
from profiles.speed.roofline import Roofs, rated, work_of
from profiles.speed.timing import LEAST_ROUNDS, Plan, Timing
from profiles.speed.variants import sweep_of
from profiles.subject import check_environment
from profiles.threads import using_threads

if TYPE_CHECKING:
    from profiles.counting.workspace import Allocated

SCHEMA = "stones.bench/1"
Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What to measure and how: the cases, a plan for each, the clock, the allocator.

    ``clock`` is wall or cpu (processor time of one thread); a CUDA device is timed by events. ``allocator`` is kept
    (freed memory is, so page faults are not timed) or system. With ``skips`` a case that is refused is left out and its
    reason recorded, beside what was ``skipped`` before; one at least must run. ``roofline`` says whether to look for
    the ceilings of the machine, and to measure what is not remembered of them, in a few seconds.
    """

    cases: tuple[Case, ...]
    plan: Plan = field(default_factory=Plan)
    clock: str = WALL
    allocator: str = allocator.KEPT
    name: str = ""
    skips: bool = False
    skipped: tuple[Skipped, ...] = ()
    roofline: bool = True

    def __post_init__(self) -> None:
        if self.allocator not in allocator.ALLOCATORS:
            raise Refusal(f"allocator={self.allocator!r} is not one of {', '.join(allocator.ALLOCATORS)}")
        if not self.cases:
            raise Refusal("there is nothing to bench: name a stone")
        if len({case.subject.setup.device for case in self.cases}) > 1:
            raise Refusal("a bench runs on one device; these cases name several")
        for case in self.cases:
            check_clock(case.subject.setup.device, self.clock, case.threads)


@dataclass(frozen=True)
class Progress:
    """Where a bench stands: the case in hand, the fraction of all done, the records of the cases finished."""

    case: str
    fraction: float
    finished: Sequence[Record]


def bench(what: Bench, progress: Callable[[Progress], None] | None = None) -> Record:
    """Measure every case of ``what`` and return one JSON-able record.

    KeyboardInterrupt ends it early: what was measured so far is returned, ``interrupted`` true. Raises `Refusal` when
    a layer refuses its input, `Unavailable` when device or memory are missing; other exceptions pass through. Where
    ``what`` skips, a case that is refused stands under ``skipped``, by name and reason, and only the last one raises.

    A case that fails a binding gate is measured once more, in new rounds, and what these say counts: a failure is one
    that was found twice. Its record has 2 ``attempts`` and the ratios of the first under ``earlier``.

    Where torch.distributed is initialised with several ranks, every rank must call this alike: each has an input of its
    own of the shape given, times are those of the slowest, and what one raises all raise.
    """
    with spanning() as ranks:
        return _bench(what, progress, ranks)


def _bench(what: Bench, progress: Callable[[Progress], None] | None, ranks: Ranks) -> Record:
    device = what.cases[0].subject.setup.device
    skips = Skips(what.skips, [*what.skipped])
    cases = _fitting(what.cases, skips, ranks)
    kept = what.allocator == allocator.KEPT and allocator.keep_freed_memory()
    threads = max(case.threads for case in cases)
    machine = [warned.record() for warned in about_machine(threads, cores(), load(), what.clock, ranks.here)]
    interrupted = False
    with _torch_as_it_was(device):
        surroundings = environment(device, allocator.KEPT if kept else allocator.SYSTEM)
        clock = clock_over(ranks, clock_for(device, what.clock))
        roofs = Roofs(device, what.clock, surroundings["allocator"]) if what.roofline else None
        run = _Measuring(what.plan, clock, roofs, progress)
        try:
            with ranks.agreeing():
                run.progress = _ceilings_first(roofs, cases, what.plan.seconds, progress)
            for number, case in enumerate(cases):
                with skips.leaving_out(case.label):
                    run.measure(case, (number, len(cases)))
            skips.check(run.done)
            run.measure_failures_again(cases)
        except KeyboardInterrupt:
            interrupted = True
    return {
        "schema": SCHEMA,
        "profile": what.name or None,
        "environment": surroundings,
        "plan": {**asdict(what.plan), "clock": clock.name, "cache": clock.cache},
        "sweep": sweep_of(cases),
        "ranks": ranks.record(),
        "ceilings": roofs.records() if roofs else [],
        "cases": run.done,
        "skipped": [asdict(skipped) for skipped in skips.found],
        "warnings": [*machine, *(roofs.warnings() if roofs else [])],
        "verdict": worst(run.done),
        "interrupted": interrupted,
    }


def _fitting(cases: Sequence[Case], skips: Skips, ranks: Ranks) -> list[Case]:
    """Return the cases for which device and memory are there, on every rank."""
    found = []
    for case in cases:
        with skips.leaving_out(case.label), ranks.agreeing():
            check_graph(case, ranks)
            check_environment(case.subject, tensors=(8 + 2 * len(case.references)) * ranks.here)
            found.append(case)
    skips.check(found)
    return found


def _ceilings_first(
    roofs: Roofs | None, cases: Sequence[Case], seconds: float, progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None] | None:
    """Find the ceilings for ``cases`` of so many ``seconds``; returns what tells ``progress`` of what comes after."""
    if roofs is None:
        return progress
    wanted = [(case.threads, case.subject.setup.dtype) for case in cases]
    missing = roofs.seconds(wanted)
    share, told = missing / (missing + seconds * len(cases)), progress or (lambda progress: None)
    roofs.find(wanted, lambda fraction, what: told(Progress(what, fraction * share, [])))
    return lambda now: told(replace(now, fraction=share + (1 - share) * now.fraction))


@dataclass
class _Measuring:
    """The measuring of cases one after another: how, and the records of those that are ``done``."""

    plan: Plan
    clock: Clock
    roofs: Roofs | None
    progress: Callable[[Progress], None] | None
    done: list[Record] = field(default_factory=list)

    def measure(self, case: Case, place: tuple[int, int]) -> None:
        """Add the record of ``case``, also when interrupted after enough rounds; ``place`` is its number of all."""
        number, count = place
        self._measure(case, self.done, lambda fraction: self._tell(case, (number + fraction) / count))

    def measure_failures_again(self, cases: Sequence[Case]) -> None:
        """Put new records in the place of those that fail a binding gate."""
        known = {(case.label, case.direction): case for case in cases}
        for index, first in enumerate(self.done):
            if worst([first]) != Verdict.FAIL:
                continue
            again, second = known[first["name"], first["direction"]], list[Record]()
            try:
                self._measure(again, second, lambda fraction, case=again: self._tell(case, 1.0, ", once more"))  # type: ignore[misc]
            finally:
                if second:
                    self.done[index] = {**second[0], "attempts": 2, "earlier": first["ratios"]}

    def _measure(self, case: Case, to: list[Record], tell: Callable[[float], None]) -> None:
        tell(0.0)
        ranks = ranks_of(self.clock)
        with ranks.agreeing(), using_threads(case.threads):
            made = jobs(case, ranks.rank)
            talks = traffic(made, ranks)
            alone = [each.alone for each in talks.values() if each.alone is not None]
            timing = Timing([*made, *alone], case.comparisons, self.plan, self.clock)
            memory = {job.name: _memory(job, case.subject.setup.device) for job in made}
            work = work_of(case) if self.roofs else None
            try:
                timing.run(tell)
            finally:
                if len(timing.rounds) >= LEAST_ROUNDS:
                    found = completed(record(case, timing, memory), timing, talks)
                    to.append(rated(found, case, self.roofs, work))

    def _tell(self, case: Case, fraction: float, more: str = "") -> None:
        if self.progress is not None:
            self.progress(Progress(f"{case.label} {case.direction}{more}", fraction, self.done))


def _memory(job: Job, device: str) -> Allocated:
    """Return the bytes that one call of ``job`` allocates."""
    from profiles.counting.workspace import allocated

    if job.prepare is not None:
        job.prepare()
    return allocated(job.run, device)


@contextmanager
def _torch_as_it_was(device: str) -> Iterator[None]:
    """Set torch's gradient mode, device and random state for the block, and put them back."""
    import torch

    cuda = device.startswith("cuda")
    with (
        torch.enable_grad(),
        torch.cuda.device(device) if cuda else nullcontext(),
        torch.random.fork_rng(devices=[device] if cuda else []),
    ):
        yield
