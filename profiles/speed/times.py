"""Times of two benches beside each other: ratios of medians with bootstrap intervals, where the samples are there.

Two runs are not interleaved: the machine may have changed between them, so a ratio of times is told and never judged.
The ratio to a reference in the same run is what such a change leaves alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profiles.speed.intervals import Interval, bootstrap_ratio

# The circumstances under which times compare: all equal.
FINGERPRINT = (
    "cpu", "gpu", "device", "cores", "threads", "governor", "allocator", "torch", "python", "clock", "cache",
    "world_size", "backend",
)  # fmt: skip
# Of a case: what is timed.
_CASE = ("stone", "options", "mode", "input", "compiled", "cuda_graph", "threads")
MOST_SAMPLES = 1000
Record = dict[str, Any]


def compared(old: Record, new: Record, circumstances: Sequence[Record], *, anyway: bool = False) -> list[Record]:
    """Return a row for each candidate of each case of both benches, and for each of their ratios.

    ``old`` and ``new`` of a row are milliseconds, or multiples of ``vs``; ``ratio`` is new / old with its interval,
    None where ``reason`` says why they do not compare.
    """
    differ = [each["name"] for each in circumstances if each["name"] in FINGERPRINT]
    why = "" if anyway or not differ else f"different {', '.join(dict.fromkeys(differ))}"
    before = {_label(case): case for case in cases(old)}
    return [row for case in cases(new) if _label(case) in before for row in _rows(before[_label(case)], case, why)]


def cases(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the cases of a bench, or those among the rows of a run, as a file has them."""
    of_run = (row.get("record") for row in entries(record, "rows"))
    return [*entries(record, "cases"), *(case for case in of_run if isinstance(case, Mapping) and "candidates" in case)]


def entries(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the objects of the list ``name`` of a record from a file, none where it is no list."""
    found = record.get(name)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _label(case: Mapping[str, Any]) -> tuple[str, str]:
    return str(case.get("name")), str(case.get("direction"))


def _rows(old: Mapping[str, Any], new: Mapping[str, Any], why: str) -> Iterator[Record]:
    """Yield the rows of one case: its candidates, then its ratios."""
    other = [name for name in _CASE if old.get(name) != new.get(name)]
    why = f"different {', '.join(other)}" if other else why
    name, direction = _label(new)
    before, after = _samples(old), _samples(new)
    for candidate in (each for each in after if each in before):
        row = _row(before[candidate], after[candidate], 1e6, why)
        yield {"case": name, "direction": direction, "of": candidate, "vs": None, "unit": "ms", **row}
    for ratio in entries(new, "ratios"):
        of, vs = str(ratio.get("of")), str(ratio.get("vs"))
        if {of, vs} <= before.keys() & after.keys():
            row = _row(_paired(before, of, vs), _paired(after, of, vs), 1.0, why)
            yield {"case": name, "direction": direction, "of": of, "vs": vs, "unit": f"× {vs}", **row}


def _samples(case: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the samples of each candidate by name, no samples where there are none that could be times."""
    return {str(each.get("name")): _numbers(each.get("samples_ns")) for each in entries(case, "candidates")}


def _numbers(samples: Any) -> list[float]:
    """Return at most 1000 of ``samples``, evenly, if they are 2 or more positive numbers."""
    if not isinstance(samples, list) or len(samples) < 2 or not all(map(_is_time, samples)):
        return []
    return [float(sample) for sample in samples[:: -(-len(samples) // MOST_SAMPLES)]]


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-6 < value < 1e18


def _paired(samples: Mapping[str, list[float]], of: str, vs: str) -> list[float]:
    """Return the ratio of each round, none where the rounds do not pair."""
    if len(samples[of]) != len(samples[vs]):
        return []
    return [a / b for a, b in zip(samples[of], samples[vs], strict=True)]


def _row(old: Sequence[float], new: Sequence[float], unit: float, why: str) -> Record:
    found: Interval | None = None
    if not old or not new:
        why = "no samples in " + " and ".join(n for n, s in (("old", old), ("new", new)) if not s)
    elif not why:
        found = bootstrap_ratio(new, old)
    return {
        "old": _digits(statistics.median(old) / unit) if old else None,
        "new": _digits(statistics.median(new) / unit) if new else None,
        "ratio": _digits(found.median) if found else None,
        "ratio_ci95": [_digits(found.low), _digits(found.high)] if found else None,
        "reason": why or None,
    }


def _digits(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else value
