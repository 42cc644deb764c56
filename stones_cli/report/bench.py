"""`stones bench`: times as multiples of a copy, ratios with their intervals and verdicts, reasons to doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stones_cli.expect import Outcome
from stones_cli.report.inspection import expected, judged
from stones_cli.report.tables import Cell, Prose, Report, Table, table, value_text

Record = Mapping[str, Any]
_TIMES = ("ms", "iqr_ms", "copies", "gb_per_s", "of_copy_bandwidth", "gflop_per_s")
_TITLES = ("ms", "IQR ms", "× copy", "GB/s", "of copy's GB/s", "GFLOP/s")


def report(record: Record, outcomes: Sequence[Outcome] = ()) -> Report:
    """Return the report of one record of `profiles.bench.bench` and of the expectations about it."""
    document = {**record, "expectations": judged(outcomes)}
    return Report(document, (*_parts(record), *expected(outcomes)), items="cases")


def _parts(record: Record) -> Iterator[Table | Prose]:
    cases = record["cases"]
    yield table("Times", ("case", "direction", "candidate", "as", *_TITLES), _times(cases))
    columns = ("case", "direction", "vs", "ratio", "95 % interval", "noise floor", "bar", "verdict")
    yield table("Ratios", columns, _ratios(cases))
    doubts = [*record["warnings"], *(warning for case in cases for warning in case["warnings"])]
    if doubts:
        yield Prose("Doubts", tuple(f"{w['about']}: {w['message']}; {w['advice']}" for w in doubts))
    yield Prose("", tuple(_circumstances(record)))


def _times(cases: Sequence[Record]) -> Iterator[tuple[Cell, ...]]:
    for case in cases:
        for candidate in case["candidates"]:
            kind = "yardstick" if candidate["role"] == "yardstick" else ""  # of another computation
            what = case["name"], case["direction"], candidate["name"], kind
            yield *what, *(candidate[name] or None for name in _TIMES)


def _ratios(cases: Sequence[Record]) -> Iterator[tuple[Cell, ...]]:
    for case in cases:
        for ratio in case["ratios"]:
            verdict = ratio["verdict"] and f"{ratio['verdict']}{' (advisory)' if ratio['advisory'] else ''}"
            found = ratio["ratio"], _interval(*ratio["ratio_ci95"]), f"{ratio['noise_floor']:.1%}"
            yield case["name"], case["direction"], ratio["vs"], *found, ratio["max_ratio"], verdict


def _interval(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _circumstances(record: Record) -> Iterator[str]:
    machine, plan = record["environment"], record["plan"]
    for case in record["cases"]:
        given, again = case["input"], case["repeated_blocks"]
        yield (
            f"{case['name']} {case['direction']}: {value_text(given['shape'])}, {given['dtype']}, "
            f"{given['memory_format']}, {case['mode']}, {case['rounds']} rounds in {case['seconds']:.3g} s"
            + (f", {again} blocks preempted and run again" if again else "")
        )
    yield (
        f"{machine['gpu'] or machine['cpu'] or 'unknown processor'}, {plan['threads']} thread(s), "
        f"{plan['clock']} clock, torch {machine['torch']}, Python {machine['python']}"
    )
    if record["interrupted"]:
        yield "Interrupted: what was measured until then."
