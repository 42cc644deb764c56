"""How fast layers run: cases measured one after another, each beside its references; plain records come out.

Absolute times are shown and never judged: bars are ratios to something measured in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from profiles import allocator
from profiles.cases import COPY, Case
from profiles.cautions import Warned, about_card, about_machine
from profiles.clocks import WALL, Clock, Job, check_clock, clock_for
from profiles.communication import check_graph, clock_over, completed, ranks_of, traffic
from profiles.environment import cores, environment, load
from profiles.errors import Refusal
from profiles.intervals import Interval, Verdict
from profiles.jobs import jobs
from profiles.ranks import Ranks, spanning
from profiles.roofline import Roofs, rated, work_of
from profiles.skips import Skipped, Skips
from profiles.subject import check_environment
from profiles.threads import using_threads
from profiles.timing import LEAST_ROUNDS, Plan, Ratio, Timing, summary
from profiles.variants import sweep_of

if TYPE_CHECKING:
    from profiles.workspace import Allocated

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
    done: list[Record] = []
    interrupted = False
    with _torch_as_it_was(device):
        surroundings = environment(device, allocator.KEPT if kept else allocator.SYSTEM)
        clock = clock_over(ranks, clock_for(device, what.clock))
        roofs = Roofs(device, what.clock, surroundings["allocator"]) if what.roofline else None
        try:
            with ranks.agreeing():
                progress = _ceilings_first(roofs, cases, what.plan.seconds, progress)
            for number, case in enumerate(cases):
                with skips.leaving_out(case.label):
                    _measure(case, what.plan, clock, roofs, done, _teller(progress, case, (number, len(cases)), done))
            skips.check(done)
            _measure_failures_again(what.plan, clock, roofs, {_key(case): case for case in cases}, done, progress)
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
        "cases": done,
        "skipped": [asdict(skipped) for skipped in skips.found],
        "warnings": [*machine, *(roofs.warnings() if roofs else [])],
        "verdict": worst(done),
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


def _teller(
    progress: Callable[[Progress], None] | None, case: Case, place: tuple[int, int], done: Sequence[Record]
) -> Callable[[float], None]:
    """Return what tells ``progress`` the fraction of ``case`` that is done; ``place`` is its number, from 0, of all."""

    def tell(fraction: float) -> None:
        if progress is not None:
            number, count = place
            progress(Progress(f"{case.label} {case.direction}", (number + fraction) / count, done))

    return tell


def _measure(
    case: Case, plan: Plan, clock: Clock, roofs: Roofs | None, done: list[Record], tell: Callable[[float], None]
) -> None:
    """Append the record of ``case`` to ``done``, also when interrupted after enough rounds."""
    tell(0.0)
    ranks = ranks_of(clock)
    with ranks.agreeing(), using_threads(case.threads):
        made = jobs(case, ranks.rank)
        talks = traffic(made, ranks)
        alone = [each.alone for each in talks.values() if each.alone is not None]
        timing = Timing([*made, *alone], case.comparisons, plan, clock)
        memory = {job.name: _memory(job, case.subject.setup.device) for job in made}
        work = work_of(case) if roofs else None
        try:
            timing.run(tell)
        finally:
            if len(timing.rounds) >= LEAST_ROUNDS:
                done.append(rated(completed(record(case, timing, memory), timing, talks), case, roofs, work))


def _measure_failures_again(
    plan: Plan,
    clock: Clock,
    roofs: Roofs | None,
    cases: Mapping[tuple[str, str], Case],
    done: list[Record],
    progress: Callable[[Progress], None] | None,
) -> None:
    """Put new records in the place of those that fail a binding gate."""
    for index, first in enumerate(done):
        if worst([first]) != Verdict.FAIL:
            continue
        case, second = cases[first["name"], first["direction"]], list[Record]()

        def tell(fraction: float, case: Case = case) -> None:
            if progress is not None:
                progress(Progress(f"{case.label} {case.direction}, once more", 1.0, done))

        try:
            _measure(case, plan, clock, roofs, second, tell)
        finally:
            if second:
                done[index] = {**second[0], "attempts": 2, "earlier": first["ratios"]}


def _key(case: Case) -> tuple[str, str]:
    return case.label, case.direction


def _memory(job: Job, device: str) -> Allocated:
    """Return the bytes that one call of ``job`` allocates."""
    from profiles.workspace import allocated

    if job.prepare is not None:
        job.prepare()
    return allocated(job.run, device)


def record(case: Case, timing: Timing, memory: Mapping[str, Allocated]) -> Record:
    """Return what ``timing`` says of ``case``: candidates, ratios, warnings; ``memory`` is what a call allocates."""
    setup = case.subject.setup
    verdicts = [_ratio(case, index, timing) for index in range(len(case.comparisons))]
    return {
        "name": case.label,
        "stone": case.subject.name,
        "options": dict(case.subject.options),
        "direction": case.direction,
        "mode": "train" if setup.train else "eval",
        "input": {
            "shape": list(setup.shape),
            "tensors": setup.tensors,
            "dtype": setup.dtype,
            "memory_format": setup.memory_format,
        },
        "compiled": case.compile,
        "cuda_graph": case.graph,
        "threads": case.threads,
        "at": None if case.point is None else asdict(case.point),
        "candidates": _candidates(case, timing, memory),
        "ratios": verdicts,
        "attempts": 1,
        "earlier": [],
        "warnings": [warned.record() for warned in (*_cautions(case), *timing.warnings())],
        "rounds": len(timing.rounds),
        "repeated_blocks": timing.repeated,
        "seconds": round(timing.seconds, 3),
        "settled": timing.settled,
    }


def _candidates(case: Case, timing: Timing, memory: Mapping[str, Allocated]) -> list[Record]:
    """One row per job of ``memory``: milliseconds, multiple of the copy, GB/s on the byte floor, GFLOP/s, raw samples.

    ``peak_bytes`` is the most that one call had allocated at once, ``workspace_bytes`` that beside what it returned and
    kept; ``compile_s`` what torch.compile took.
    """
    setup = case.subject.setup
    copied = 2 * setup.elements * setup.itemsize
    copy = summary(timing.samples(COPY), timing.plan.seed).median.median
    rows = []
    for job in (job for job in timing.jobs if job.name in memory):
        seconds = timing.samples(job.name)
        found = summary(seconds, timing.plan.seed)
        took = found.median.median
        moved = copied if job.name == COPY else case.bytes()
        flops = 0 if job.name == COPY else case.flops()
        rows.append(
            {
                "name": job.name,
                "role": case.role(job.name),
                "ms": _digits(took * 1e3),
                "ms_ci95": _bounds(found.median, 1e3),
                "iqr_ms": _digits(found.iqr * 1e3),
                "min_ms": _digits(found.least * 1e3),
                "copies": _digits(took / copy),
                "gb_per_s": None if moved is None else _digits(moved / took / 1e9),
                "of_copy_bandwidth": None if moved is None else _digits(moved / took / (copied / copy)),
                "images_per_s": _digits(setup.shape[0] / took) if case.subject.on_images else None,
                "gflop_per_s": None if flops is None else _digits(flops / took / 1e9),
                "workspace_bytes": memory[job.name].workspace,
                "peak_bytes": memory[job.name].peak,
                "compile_s": None if job.compile_seconds is None else _digits(job.compile_seconds),
                "calls": timing.calls[job.name],
                "samples_ns": [round(s * 1e9) for s in seconds],
            }
        )
    return rows


def _cautions(case: Case) -> list[Warned]:
    """Return what the cards of the stones that are timed say of their times."""
    cards = {what.name: what.card for what in (case.subject, *case.references.values()) if what is not None}
    return [about_card(name, card.caution) for name, card in cards.items() if card is not None and card.caution]


def _ratio(case: Case, index: int, timing: Timing) -> Record:
    comparison = case.comparisons[index]
    gate = case.gates[index] if index < len(case.gates) else None
    found: Ratio = timing.ratio(comparison)
    return {
        "of": comparison.of,
        "vs": comparison.vs,
        "ratio": _digits(found.interval.median),
        "ratio_ci95": _bounds(found.interval),
        "noise_floor": _digits(found.noise),
        "max_ratio": gate.max_ratio if gate else None,
        "advisory": gate.advisory if gate else None,
        "verdict": None if found.verdict is None else str(found.verdict),
    }


def worst(cases: Sequence[Record]) -> str | None:
    """The verdict of all binding gates together: one failure fails, else one inconclusive is; None without gates."""
    verdicts = {ratio["verdict"] for case in cases for ratio in case["ratios"] if ratio["advisory"] is False}
    return next((str(v) for v in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if v in verdicts), None)


def judgements(case: Record) -> list[tuple[str, str]]:
    """Return what is to be said of the gates of a record of a case that did not pass.

    Each is a word (fail, inconclusive, or advisory for a gate that only warns) and a sentence.
    """
    return [
        ("advisory" if ratio["advisory"] else ratio["verdict"], f"{case['name']} {case['direction']}: {_told(ratio)}")
        for ratio in case["ratios"]
        if ratio["verdict"] in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    ]


def _told(ratio: Record) -> str:
    low, high = ratio["ratio_ci95"]
    interval = f"95 % interval {low:.3g} to {high:.3g}"
    return f"{ratio['ratio']:.3g} × {ratio['vs']} ({interval}), the bar is {ratio['max_ratio']:g}"


def _bounds(interval: Interval, unit: float = 1.0) -> list[float]:
    return [_digits(interval.low * unit), _digits(interval.high * unit)]


def _digits(value: float) -> float:
    """Round to five significant digits: no clock here supports more."""
    return float(f"{value:.5g}")


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
