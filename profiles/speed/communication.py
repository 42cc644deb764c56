"""What the ranks of a bench tell about a case: who is slowest, by how much, and what communication alone takes.

The collectives that one call of a job issues are listened to, and the same operations on tensors of the same sizes are
a job of their own, interleaved with the others: what a call would take that did nothing else. The rest of a call is
not what a rank alone would take, for waiting for the others is part of it.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from profiles.errors import Refusal
from profiles.speed.clocks import CPU, Clock, Job, undisturbed
from profiles.speed.ranks import Ranks

if TYPE_CHECKING:
    from profiles.speed.cases import Case
    from profiles.speed.timing import Timing

Record = dict[str, Any]


@dataclass
class RankClock:
    """A clock over ``ranks``: a block begins on all of them together and takes as long as on the slowest.

    Everything it returns is the same on all ranks. A block that was disturbed on one is run again on all. ``blocks``
    keeps, by the job's name, the seconds per call of every block that counts, on every rank.
    """

    clock: Clock
    ranks: Ranks
    repeated: int = 0
    blocks: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    _last: list[float] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """What is read."""
        return self.clock.name

    @property
    def cache(self) -> str:
        """Whether data are warm or cold."""
        return self.clock.cache

    def now(self) -> float:
        """Return the wall clock of rank 0 in seconds."""
        return self.ranks.exchange(self.clock.now())[0][0]

    def block(self, job: Job, calls: int) -> float:
        """Return the time of the slowest rank for a block that was disturbed on none, or for the last one."""
        took, before = undisturbed(lambda: self.once(job, calls))
        self.repeated += before
        self.blocks[job.name].append([seconds / calls for seconds in self._last])
        return took

    def once(self, job: Job, calls: int) -> tuple[float, bool]:
        """Return the time of the slowest rank for one block, and whether it was disturbed on any."""
        self.ranks.exchange()
        rows = self.ranks.exchange(*self.clock.once(job, calls))
        self._last = [took for took, _ in rows]
        return max(self._last), any(disturbed for _, disturbed in rows)


def clock_over(ranks: Ranks, clock: Clock) -> Clock:
    """Return ``clock`` for ``ranks``. Raises `Refusal` for processor time, which does not see a rank waiting."""
    if ranks.size == 1:
        return clock
    if clock.name == CPU:
        raise Refusal(f"clock=cpu does not see {ranks.size} ranks waiting for each other: give clock=wall")
    return RankClock(clock, ranks)


def check_graph(case: Case, ranks: Ranks) -> None:
    """Raise `Refusal` for a ``case`` that replays a CUDA graph, in which nobody hears what goes between ``ranks``."""
    if case.graph and ranks.size > 1:
        raise Refusal(f"--cuda-graph hides what {ranks.size} ranks tell each other: leave it out, or run on one")


def ranks_of(clock: Clock) -> Ranks:
    """Return the ranks that ``clock`` is over."""
    return clock.ranks if isinstance(clock, RankClock) else Ranks()


@dataclass(frozen=True)
class Traffic:
    """The collectives of one call of a job: how many, the bytes that this rank hands over, a job of them alone."""

    collectives: int
    bytes: int
    alone: Job | None


def traffic(jobs: Sequence[Job], ranks: Ranks) -> dict[str, Traffic]:
    """Listen to one call of each of ``jobs``; return what each issues by its name, nothing for one rank.

    Raises `Refusal` when some ranks issue more than others.
    """
    if ranks.size == 1:
        return {}
    from profiles.speed.collectives import Collectives

    found: dict[str, Traffic] = {}
    for job in jobs:
        if job.prepare is not None:
            job.prepare()
        with Collectives() as heard:
            job.run()
        counts = [int(count) for count, _ in ranks.exchange(heard.count)]
        if len(set(counts)) > 1:
            raise Refusal(
                f"{job.name} issues {max(counts)} collectives on one rank, {min(counts)} on another: they hang"
            )
        alone = Job(f"communication of {job.name}", heard.again) if heard.count else None
        found[job.name] = Traffic(heard.count, heard.bytes, alone)
    return found


def completed(record: Record, timing: Timing, found: Mapping[str, Traffic]) -> Record:
    """Return the ``record`` of a case with what the ranks say of each candidate, by ``found``; None for one rank.

    A reference that issues no collective beside a stone that does computes something else: it is a yardstick.
    """
    stone = next((each["name"] for each in record["candidates"] if each["role"] == "stone"), "")
    talks = stone in found and found[stone].collectives > 0
    rows = []
    for candidate in record["candidates"]:
        issued = found.get(candidate["name"])
        alone = talks and issued is not None and not issued.collectives and candidate["role"] == "reference"
        role = {"role": "yardstick"} if alone else {}
        rows.append({**candidate, **role, **_told(candidate["name"], timing, issued)})
    return {**record, "candidates": rows}


def _told(name: str, timing: Timing, issued: Traffic | None) -> Record:
    """Return the slowest rank, the spread and the communication of the job ``name``, over the rounds measured."""
    if issued is None or not isinstance(timing.clock, RankClock):
        return {"spread_ms": None, "slowest_rank": None, "communication": None}
    blocks = timing.clock.blocks[name][-len(timing.rounds) :]
    spreads = [max(ranks) - min(ranks) for ranks in blocks]
    slowest = Counter(ranks.index(max(ranks)) for ranks in blocks).most_common(1)[0][0]
    told: Record = {"collectives": issued.collectives, "bytes": issued.bytes, "ms": 0.0, "share": 0.0}
    if issued.alone is not None:
        alone, whole = timing.samples(issued.alone.name), timing.samples(name)
        shares = [a / b for a, b in zip(alone, whole, strict=True)]
        told |= {"ms": _digits(statistics.median(alone) * 1e3), "share": _digits(statistics.median(shares))}
    return {
        "spread_ms": _digits(statistics.median(spreads) * 1e3),
        "slowest_rank": slowest,
        "communication": told,
    }


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
