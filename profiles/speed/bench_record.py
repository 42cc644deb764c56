"""The record of one timed case: its candidates, its ratios, what its gates say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from profiles.speed.cases import COPY, Case
from profiles.speed.cautions import Warned, about_card
from profiles.speed.intervals import Interval, Verdict
from profiles.speed.timing import Ratio, Timing, summary

if TYPE_CHECKING:
    from profiles.counting.workspace import Allocated

Record = dict[str, Any]


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
