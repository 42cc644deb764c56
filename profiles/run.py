"""A run profile carried out: every item in order, a row for each, whatever becomes of the others.

Exact counters are compared exactly. A bench gives a row for each of its cases. Rows do not depend on the machine, but
for those of a bench.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from layers.card import OptionError
from profiles import expect
from profiles.document import Place
from profiles.errors import Refusal, Unavailable, first_line, is_out_of_memory
from profiles.run_profiles import Check, Inspection, Item, Run, Timing
from profiles.speed.intervals import Verdict
from profiles.spelling import value_text
from profiles.target import options_of

SCHEMA = "stones.run-result/1"
VERDICTS = ("ok", "failed", "inconclusive", "measured", "refused", "unavailable", "error")
Record = dict[str, Any]
Progress = Callable[[float, str], None]
_SECONDS = 0.2  # of an item that is no bench, to weigh the progress
_OF_GATES = {Verdict.PASS: "ok", Verdict.FAIL: "failed", Verdict.INCONCLUSIVE: "inconclusive", None: "measured"}


def run(what: Run, progress: Progress | None = None) -> Record:
    """Run every item of ``what`` and return one JSON-able record; ``progress`` gets the fraction done and the item.

    A row's ``verdict`` is ok, failed, inconclusive or measured (a case with and without gates), refused (the stone
    refuses what it is given), unavailable (the machine lacks something) or error (anything else that was raised).
    KeyboardInterrupt ends it early: what was done so far is returned, ``interrupted`` true.
    """
    rows: list[Record] = []
    benches: list[Record] = []
    weights = [_weight(item) for item in what.items]
    ended = False
    try:
        for number, item in enumerate(what.items):

            def tell(fraction: float, about: str, number: int = number) -> None:
                if progress is not None:
                    progress((sum(weights[:number]) + fraction * weights[number]) / sum(weights), about)

            rows += _rows(item, tell, benches)
            if benches and benches[-1]["interrupted"]:
                ended = True
                break
    except KeyboardInterrupt:
        ended = True
    return _record(what, rows, benches, ended)


def interrupted(what: Run) -> Record:
    """Return the record of a run that was interrupted before anything was done."""
    return _record(what, [], [], True)


def _record(what: Run, rows: list[Record], benches: Sequence[Record], interrupted: bool) -> Record:
    counts = Counter(row["verdict"] for row in rows)
    return {
        "schema": SCHEMA,
        "profile": what.name or None,
        "rows": rows,
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "bench": benches[0] if benches else None,
        "ok": not any(counts[verdict] for verdict in ("failed", "refused", "unavailable", "error")),
        "interrupted": interrupted,
    }


def _weight(item: Item) -> float:
    return len(item.bench.cases) * item.bench.plan.seconds if isinstance(item, Timing) else _SECONDS


def _rows(item: Item, tell: Callable[[float, str], None], benches: list[Record]) -> list[Record]:
    """Return the rows of ``item``; whatever it raises becomes one, so that the others run."""
    try:
        match item:
            case Inspection():
                return [_inspected(item, tell)]
            case Check():
                return [_checked(item, tell)]
            case Timing():
                return list(_timed(item, tell, benches))
    except Exception as error:
        return [_raised(item, error)]


def _row(item: Item, name: str, verdict: str, reasons: Sequence[str] = (), *, place: Place | None = None) -> Record:
    """Return a row; the place is that of the item unless one is given."""
    section = item.command if isinstance(item, Check) else "inspect" if isinstance(item, Inspection) else "bench"
    return {
        "section": section,
        "name": name,
        "verdict": verdict,
        "reasons": list(reasons),
        "place": dataclasses.asdict(place or item.place),
        "record": None,
    }


def _raised(item: Item, error: Exception) -> Record:
    if isinstance(error, (Refusal, OptionError)):
        verdict, reason = "refused", str(error)
    elif isinstance(error, (Unavailable, ImportError, OSError)) or is_out_of_memory(error):
        verdict, reason = "unavailable", str(error) or "out of memory"
    else:
        verdict, reason = "error", f"{type(error).__name__}: {first_line(error)}"
    return _row(item, _name(item), verdict, [reason])


def _name(item: Item) -> str:
    """Return what the item is about: the stone, with the options that are not at their defaults."""
    match item:
        case Check():
            return item.stone.name
        case Timing():
            return item.bench.name
    what = item.subject
    usual = {option.name: option.default for option in options_of(what.target)}
    changed = [
        f"{name}={value_text(value)}"
        for name, value in what.options.items()
        if value != usual.get(name) and value_text(value) != value_text(usual.get(name))
    ]
    return " ".join([what.name, *changed])


def _inspected(item: Inspection, tell: Callable[[float, str], None]) -> Record:
    """Compare what is measured with the card and with what is expected; fvcore counts only where it is asked about."""
    from profiles.inspecting import contradictions, inspect

    name = _name(item)
    tell(0.0, f"inspect {name}")
    expectations = [expectation for expectation, _ in item.expectations]
    counts = any(expectation.key.startswith("flops.fvcore") for expectation in expectations)
    record = inspect(item.subject, fvcore=counts)
    outcomes = zip(expect.judge(expectations, record), item.expectations, strict=True)
    failed = [(str(outcome), place) for outcome, (_, place) in outcomes if not outcome.ok]
    false = contradictions(record)
    reasons = [*false, *(words for words, _ in failed)]
    place = failed[0][1] if failed and not false else None
    return {**_row(item, name, "failed" if reasons else "ok", reasons, place=place), "record": record}


def _checked(item: Check, tell: Callable[[float, str], None]) -> Record:
    """Check what the card claims."""
    from profiles.checks import cells, geometry, identities, invariance

    tell(0.0, f"{item.command} {item.stone.name}")
    if item.command == "check-identities":
        reasons = identities.failures(identities.check([item.stone]))
    else:
        check = invariance.check if item.command == "check-invariance" else geometry.check
        found: Sequence[cells.Cell] = check(item.stone, properties=item.properties, carriers=item.carriers)
        reasons = cells.failures(found)
    return _row(item, item.stone.name, "failed" if reasons else "ok", reasons)


def _timed(item: Timing, tell: Callable[[float, str], None], benches: list[Record]) -> Iterator[Record]:
    """Yield a row for each case that was measured or refused; ``benches`` gets the record of the bench without them."""
    from profiles.speed import bench
    from profiles.speed.bench_record import judgements, worst

    record = bench.bench(dataclasses.replace(item.bench, skips=True), lambda p: tell(p.fraction, f"bench {p.case}"))
    for case in record.pop("cases"):
        told = [f"{word}: {said}" if word == "advisory" else said for word, said in judgements(case)]
        row = _row(
            item,
            f"{case['name']} {case['direction']}",
            _OF_GATES[worst([case])],  # type: ignore[index]
            told,
            place=item.place_of(case["name"], case["direction"]),
        )
        yield {**row, "record": case}
    for skipped in record["skipped"]:
        yield _row(item, skipped["name"], "refused", [skipped["reason"]], place=item.place_of(skipped["name"], ""))
    benches.append(record)
