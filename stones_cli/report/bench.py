"""`stones bench`: times as multiples of a copy, ratios with their intervals and verdicts, reasons to doubt.

A table of times and one of ratios for each direction, narrow enough for 80 characters; CSV has all numbers in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from profiles.expect import Outcome
from stones_cli.report.inspection import expected, judged
from stones_cli.report.tables import Cell, Prose, Report, Table, binary, table, value_text

Record = Mapping[str, Any]
_NUMBERS = {
    "ms": "ms",
    "iqr_ms": "IQR ms",
    "copies": "× copy",
    "gb_per_s": "GB/s",
    "of_copy_bandwidth": "of copy's GB/s",
    "gflop_per_s": "GFLOP/s",
    "workspace_bytes": "workspace B",
    "peak_bytes": "peak B",
    "compile_s": "compile s",
    "of_roofline": "of roof",
}
_OF_RANKS = ("spread ms", "slowest", "communication ms", "share", "collectives", "bytes")
_COSTS = "copies", "workspace_bytes", "peak_bytes"
_RATES = "of_roofline", "gb_per_s", "gflop_per_s"


def report(record: Record, outcomes: Sequence[Outcome] = ()) -> Report:
    """Return the report of one record of `profiles.speed.bench.bench` and of the expectations about it."""
    document = {**record, "expectations": judged(outcomes)}
    parts = (*_parts(record), *expected(outcomes))
    return Report(document, parts, items="cases", data=_everything(record))


def _parts(record: Record) -> Iterator[Table | Prose]:
    cases = record["cases"]
    if record["sweep"]:
        yield from _sweeps(record)
    for direction in dict.fromkeys(case["direction"] for case in cases):
        measured = [case for case in cases if case["direction"] == direction]
        yield _times(f"Times, {direction}", measured)
        columns = ("case", "vs", "ratio", "95 % interval", "noise floor", "bar", "verdict")
        yield table(f"Ratios, {direction}", columns, _ratios(measured))
        if record["ranks"]:
            yield _ranks(f"Ranks, {direction}", measured)
    if record["skipped"]:
        yield Prose("Not timed", tuple(f"{skipped['name']}: {skipped['reason']}" for skipped in record["skipped"]))
    doubts = [*record["warnings"], *(warning for case in cases for warning in case["warnings"])]
    if doubts:
        sentences = (f"{doubt['about']}: {doubt['message']}; {doubt['advice']}" for doubt in doubts)
        yield Prose("Doubts", tuple(dict.fromkeys(sentences)))
    yield Prose("", tuple(_circumstances(record)))


def _times(title: str, cases: Sequence[Record]) -> Table:
    """Return the times of all candidates, those of a case from its stone to its copy; for narrow terminals in two."""

    def made(title: str, names: Sequence[str], spread: Sequence[str] = ()) -> Table:
        rows = (
            (c["name"], *((c["ms"], f"{c['iqr_ms'] / c['ms']:.1%}") if spread else ()), *(_told(c, n) for n in names))
            for case in cases
            for c in case["candidates"]
        )
        return table(title, ("candidate", *spread, *(_NUMBERS[name] for name in names)), rows)

    time = ("ms", "IQR")
    costs = (*_COSTS, "compile_s") if any(case["compiled"] for case in cases) else _COSTS
    narrow = made(title, costs, time), made(title.replace("Times", "Rates"), _RATES)
    return replace(made(title, ("copies", *_RATES, *costs[1:]), time), narrow=narrow)


def _sweeps(record: Record) -> Iterator[Table]:
    """Return how the time of each technique and reference grows along the sweep, a table for each direction."""
    from profiles.speed.variants import growth

    axis, rows = record["sweep"]["axis"], growth(record)
    columns = ("candidate", axis, "ms", "× copy", f"growth with {axis}")
    for direction in dict.fromkeys(row["direction"] for row in rows):
        lines = [row for row in rows if row["direction"] == direction]
        beside = len({row["case"] for row in lines}) > 1  # then a reference stands beside several
        names = {id(row): _beside(row) if beside else row["candidate"] for row in lines}
        lines.sort(key=lambda row: list(dict.fromkeys(names.values())).index(names[id(row)]))
        cells = ((names[id(r)], value_text(r["value"]), r["ms"], r["copies"], _power(r["exponent"])) for r in lines)
        yield table(f"Along {axis}, {direction}", columns, cells)


def _beside(row: Record) -> str:
    return str(row["candidate"] if row["candidate"] == row["case"] else f"{row['candidate']} beside {row['case']}")


def _power(exponent: float | None) -> str | None:
    return None if exponent is None else f"power {exponent:.2f}"


def _everything(record: Record) -> Table:
    """Return every number of every candidate, a candidate a row."""
    columns = ("case", "direction", "candidate", "as", *_NUMBERS.values(), *(_OF_RANKS if record["ranks"] else ()))
    rows = (
        (case["name"], case["direction"], c["name"], _yardstick(c), *(_shown(c, name) for name in _NUMBERS))
        + (_of_ranks(c) if record["ranks"] else ())
        for case in record["cases"]
        for c in case["candidates"]
    )
    return table("Times", columns, rows)


def _shown(candidate: Record, name: str) -> Cell:
    """Return a number of ``candidate``; no rate is 0 but for want of anything to count."""
    found: Cell = candidate[name]
    return None if found == 0 and name not in _COSTS else found


def _told(candidate: Record, name: str) -> Cell:
    """Return a number of ``candidate`` as it is read: the share of the roofline in percent."""
    found = _shown(candidate, name)
    return _share(found) if name == "of_roofline" and isinstance(found, float) else found


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.2g}".replace("e-0", "e-") if value < 1e-4 else f"{value:.2%}"


def _yardstick(candidate: Record) -> str:
    return "yardstick" if candidate["role"] == "yardstick" else ""  # of another computation


def _ratios(cases: Sequence[Record]) -> Iterator[tuple[Cell, ...]]:
    for case in cases:
        marks = {c["name"]: f" ({_yardstick(c)})" for c in case["candidates"] if _yardstick(c)}
        for ratio in case["ratios"]:
            verdict = ratio["verdict"] and f"{ratio['verdict']}{' (advisory)' if ratio['advisory'] else ''}"
            found = ratio["ratio"], _interval(*ratio["ratio_ci95"]), f"{ratio['noise_floor']:.1%}"
            yield case["name"], ratio["vs"] + marks.get(ratio["vs"], ""), *found, ratio["max_ratio"], verdict


def _ranks(title: str, cases: Sequence[Record]) -> Table:
    """Return how far the ranks lie apart and what communication alone takes; for narrow terminals in two."""
    rows = [(c["name"], *_of_ranks(c)) for case in cases for c in case["candidates"]]
    parts = (title, slice(1, 3)), (title.replace("Ranks", "Communication"), slice(3, 7))
    columns = ("candidate", *_OF_RANKS)
    narrow = (
        table(name, ("candidate", *columns[part]), [(row[0], *row[part]) for row in rows]) for name, part in parts
    )
    return replace(table(title, columns, rows), narrow=tuple(narrow))


def _of_ranks(candidate: Record) -> tuple[Cell, ...]:
    """Return the cells of ``_OF_RANKS``."""
    sent = candidate["communication"]
    told = (sent["ms"], f"{sent['share']:.1%}", sent["collectives"], sent["bytes"])
    return candidate["spread_ms"], f"rank {candidate['slowest_rank']}", *(told if sent["collectives"] else (None,) * 4)


def _interval(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _roofline(case: Record) -> Iterator[str]:
    """Say what bounds ``case``, and how much of its roofline the technique reaches."""
    roof, (stone, *_) = case["roofline"], case["candidates"]
    if roof is None:
        return
    what = f"{case['name']} {case['direction']}"
    if stone["of_roofline"] is None:
        yield f"{what}: moves and computes nothing, so that there is no floor"
        return
    rate = "the smallest call"
    if roof["bound"] == "memory":
        rate = f"{roof['bytes'] / roof['memory_ms'] / 1e6:.3g} GB/s at {binary(roof['working_set_bytes'])}"
    elif roof["bound"] == "arithmetic":
        rate = f"{roof['flops'] / roof['arithmetic_ms'] / 1e6:.4g} GFLOP/s"
    yield (
        f"{what}: bound by {roof['bound']}; the floor is {roof['floor_ms']:.3g} ms ({rate}), "
        f"{stone['name']} reaches {_share(stone['of_roofline'])}"
    )


def _circumstances(record: Record) -> Iterator[str]:
    machine, plan = record["environment"], record["plan"]
    for case in record["cases"]:
        given, again = case["input"], case["repeated_blocks"]
        several = f"{given['tensors']} × " if given["tensors"] > 1 else ""
        yield (
            f"{case['name']} {case['direction']}: {several}{value_text(given['shape'])}, {given['dtype']}, "
            f"{given['memory_format']}, {case['mode']}, {case['threads']} thread{'s' if case['threads'] > 1 else ''}, "
            f"{case['rounds']} rounds in {case['seconds']:.3g} s"
            + (f", {again} blocks preempted and run again" if again else "")
        )
        yield from _roofline(case)
        if case["attempts"] > 1:
            found = ", ".join(f"{ratio['ratio']:.3g} × {ratio['vs']}" for ratio in case["earlier"])
            yield f"{case['name']} {case['direction']} was measured again, having failed at first ({found})."
        if any(c["images_per_s"] for c in case["candidates"]):
            rates = (f"{c['name']} {c['images_per_s']:,.0f}" for c in case["candidates"])
            yield f"Images per second: {', '.join(rates)}"
    yield (
        f"{machine['gpu'] or machine['cpu'] or 'unknown processor'}, "
        f"{plan['clock']} clock, torch {machine['torch']}, Python {machine['python']}"
    )
    if ranks := record["ranks"]:
        yield f"{ranks['world_size']} ranks over {ranks['backend']}: shapes are of each rank, times of the slowest"
    if record["interrupted"]:
        yield "Interrupted: what was measured until then."
