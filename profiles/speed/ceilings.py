"""How fast this machine can be at all: its measured ceilings, and the least time that a piece of work takes under them.

A roofline: work that moves bytes and does arithmetic takes at least as long as the slower of the two, and no less than
the smallest call. Whatever comes close to that floor can only be made faster by moving or computing less.
Standard library only; `profiles.speed.ceilings_measured` measures, `profiles.speed.ceilings_kept` remembers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MEMORY, ARITHMETIC, CALL = "memory", "arithmetic", "call"
BOUNDS = (MEMORY, ARITHMETIC, CALL)
FLOAT32 = "float32"
HALVES = ("bfloat16", "float16")
PRODUCTS = (FLOAT32, "float64", *HALVES)
# What ceilings are of: they hold where all of it is the same, but for what is written as None and unknown.
WHERE = {
    "cpu": str, "gpu": str, "cores": int, "torch": str, "python": str, "capability": str, "device": str,
    "threads": int, "clock": str, "allocator": str,
}  # fmt: skip
_MOST = 1e18  # of anything per second that a file may claim
Record = dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """The ceilings of a working set of ``bytes``: copying and reading, bytes moved per second.

    A copy moves each byte twice, and its working set are source and target together.
    """

    bytes: int
    copy: float
    read: float


@dataclass(frozen=True)
class Work:
    """The least that something must do in one call: ``bytes`` moved, of them ``written``; ``flops`` (a multiply-add is
    2); ``working_set``, the bytes of different memory that it touches. Nothing at all is no call of a kernel.
    """

    bytes: int
    written: int
    flops: int
    working_set: int


@dataclass(frozen=True)
class Floor:
    """The least seconds of ``work``: for its ``memory`` traffic, its ``arithmetic``, and a ``call`` of any kind."""

    work: Work
    memory: float
    arithmetic: float
    call: float

    @property
    def seconds(self) -> float:
        """The least time: the largest of the three."""
        return max(self.memory, self.arithmetic, self.call)

    @property
    def bound(self) -> str:
        """Which of the three that is: memory, arithmetic or call; call too where nothing is done at all."""
        times = {CALL: self.call, MEMORY: self.memory, ARITHMETIC: self.arithmetic}
        return max(times, key=lambda name: times[name])

    def record(self) -> Record:
        """Return all numbers, JSON-able: bytes, operations, milliseconds."""
        return {
            "bytes": self.work.bytes,
            "written_bytes": self.work.written,
            "flops": self.work.flops,
            "working_set_bytes": self.work.working_set,
            "floor_ms": _digits(self.seconds * 1e3),
            "bound": self.bound,
            "memory_ms": _digits(self.memory * 1e3),
            "arithmetic_ms": _digits(self.arithmetic * 1e3),
            "call_ms": _digits(self.call * 1e3),
        }


@dataclass(frozen=True)
class Ceilings:
    """What was measured ``where``: a ``ladder`` of rungs, the smallest first; ``products``, multiplications of matrices
    by dtype, operations per second; ``call``, the seconds of the smallest call; ``measured``, when (UTC, ISO 8601).
    They were ``disturbed`` when others took the processor away meanwhile: then the machine may do better.
    """

    where: Mapping[str, Any]
    ladder: tuple[Rung, ...]
    products: Mapping[str, float]
    call: float
    measured: str = ""
    disturbed: bool = False

    def copy(self, working_set: int) -> float:
        """Return the bytes per second that a copy moves at best; see `floor` for which rung counts."""
        return max(rung.copy for rung in self._rungs(working_set))

    def read(self, working_set: int) -> float:
        """Return the bytes per second that are read at best. A copy reads too: what it moves, a read could."""
        return max(max(rung.read, rung.copy) for rung in self._rungs(working_set))

    def arithmetic(self, dtype: str) -> float:
        """Return the operations per second in ``dtype`` at best: of whole numbers those in float32; of half precision
        those in float32 where these are faster, as such numbers may be computed with in float32.
        """
        usual = self.products[FLOAT32] if dtype != "float64" else 0.0
        return max(usual, self.products.get(dtype, 0.0))

    def floor(self, work: Work, dtype: str = FLOAT32) -> Floor:
        """Return the least time of ``work`` on numbers of ``dtype``.

        memory = 2 w / copy + (bytes − 2 w) / read, w = min(written, bytes − written): what is written goes with as much
        that is read at the copy's rate, the rest at the read rate. The rates are the best of the rungs from the largest
        that is not larger than the working set upwards: caches are faster than memory, so that the true ceiling between
        two rungs lies below that of the lower one, and the overhead of calls, which small rungs show, does not count.
        So what is measured honestly does not pass through the roof. arithmetic = flops / products. call: that of the
        smallest, unless there is no work at all.
        """
        paired = min(work.written, work.bytes - work.written)
        copied, rest = 2 * paired, work.bytes - 2 * paired
        memory = copied / self.copy(work.working_set) + rest / self.read(work.working_set)
        call = self.call if work.bytes or work.flops else 0.0
        return Floor(work, memory, work.flops / self.arithmetic(dtype), call)

    def raised(self, working_set: int, rate: float) -> Ceilings:
        """Return these ceilings, higher where a copy moved ``rate`` bytes per second: it cannot exceed its ceiling."""
        if rate <= self.copy(working_set):
            return self
        number = self._first(working_set)
        rungs = [replace(rung, copy=rate) if at == number else rung for at, rung in enumerate(self.ladder)]
        return replace(self, ladder=tuple(rungs))

    def at_least(self, other: Ceilings) -> Ceilings:
        """Return these ceilings where they are higher, else those of ``other``: of what both have.

        Of the same machine with fewer threads, which more can leave idle; or measured before.
        """
        known = {rung.bytes: rung for rung in other.ladder}
        both = ((rung, known.get(rung.bytes, rung)) for rung in self.ladder)
        ladder = tuple(Rung(a.bytes, max(a.copy, b.copy), max(a.read, b.read)) for a, b in both)
        products = {dtype: max(rate, other.products.get(dtype, 0.0)) for dtype, rate in self.products.items()}
        return replace(self, ladder=ladder, products=products, call=min(self.call, other.call))

    def _first(self, working_set: int) -> int:
        """Return the number of the largest rung that is not larger than ``working_set``, 0 if all are."""
        return max(0, sum(rung.bytes <= working_set for rung in self.ladder) - 1)

    def _rungs(self, working_set: int) -> Sequence[Rung]:
        return self.ladder[self._first(working_set) :]

    def record(self) -> Record:
        """Return all of it, JSON-able: GB/s (10⁹ bytes), GFLOP/s, milliseconds."""
        return {
            **self.where,
            "measured": self.measured,
            "disturbed": self.disturbed,
            "ladder": [
                {
                    "bytes": rung.bytes,
                    "copy_gb_per_s": _digits(rung.copy / 1e9),
                    "read_gb_per_s": _digits(rung.read / 1e9),
                }
                for rung in self.ladder
            ],
            "gflop_per_s": {dtype: _digits(rate / 1e9) for dtype, rate in self.products.items()},
            "call_ms": _digits(self.call * 1e3),
        }


def from_record(record: Any) -> Ceilings:
    """Return the ceilings of a record that anybody may have written; raises ValueError for what is none."""
    found = _object(record)
    where = {name: _of(found.get(name), kind, name) for name, kind in WHERE.items()}
    ladder = tuple(
        Rung(_whole(rung.get("bytes")), _rate(rung.get("copy_gb_per_s")) * 1e9, _rate(rung.get("read_gb_per_s")) * 1e9)
        for rung in map(_object, _list(found.get("ladder")))
    )
    sizes = [rung.bytes for rung in ladder]
    if not sizes or sizes != sorted(set(sizes)):
        raise ValueError("the ladder does not rise")
    rates = _object(found.get("gflop_per_s"))
    products = {dtype: _rate(rates[dtype]) * 1e9 for dtype in PRODUCTS if dtype in rates}
    if FLOAT32 not in products:
        raise ValueError("no products in float32")
    measured, disturbed = _of(found.get("measured"), str, "measured"), _of(found.get("disturbed"), bool, "disturbed")
    return Ceilings(where, ladder, products, _rate(found.get("call_ms")) / 1e3, str(measured)[:40], bool(disturbed))


def needed(dtype: str) -> tuple[str, ...]:
    """Return the dtypes whose products `Ceilings.arithmetic` looks at for ``dtype``."""
    return tuple(dict.fromkeys((FLOAT32, dtype))) if dtype in PRODUCTS else (FLOAT32,)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("no object")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > 1000:
        raise ValueError("no list of that length")
    return value


def _of(value: Any, kind: type, name: str) -> Any:
    if value is not None and type(value) is not kind:
        raise ValueError(f"{name} is no {kind.__name__}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**62:
        raise ValueError("no number of bytes")
    return value


def _rate(value: Any) -> float:
    """Return a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-12 < value < _MOST:
        raise ValueError("no rate")
    return float(value)


def _digits(value: float) -> float:
    """Round to five significant digits."""
    return float(f"{value:.5g}") if math.isfinite(value) else value
