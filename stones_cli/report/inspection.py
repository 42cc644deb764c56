"""`stones inspect`: what the card states beside what was measured, a verdict on each pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from layers.formula import pretty
from profiles.expect import Outcome
from stones_cli.report.modules import modules
from stones_cli.report.peers import peers
from stones_cli.report.savings import savings
from stones_cli.report.tables import Cell, Prose, Report, Table, table, value_text

Record = Mapping[str, Any]
# What one pass is called where there is no backward, by role.
CALLS = {"projection": "per call", "initializer": "per call", "optimizer": "per step"}


def inspection(record: Record, outcomes: Sequence[Outcome] = ()) -> Report:
    """Return the report of one record of `profiles.counting.facts.inspect` and of the expectations about it."""
    return Report({**record, "expectations": judged(outcomes)}, (*_parts(record), *expected(outcomes)))


def judged(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return what became of the expectations, for the JSON document."""
    return [{"expression": o.expectation.text, "found": o.found, "ok": o.ok} for o in outcomes]


def expected(outcomes: Sequence[Outcome]) -> Iterator[Table]:
    """Yield what became of the expectations as a table, if there are any."""
    if outcomes:
        rows = ((o.expectation.text, value_text(o.found), "ok" if o.ok else "failed") for o in outcomes)
        yield table("Expectations", ("expected", "found", "verdict"), rows)


def _parts(record: Record) -> Iterator[Table | Prose]:
    yield Prose("", tuple(_heading(record)))
    yield _operations_table([row for row in _operations(record) if any(row[1:5]) or row[3] == 0])
    yield table("Costs", _COST_COLUMNS, (row for row in _costs(record) if row[1:3] != (None, None)))
    if record["peers"]:
        yield from peers(record)
    if record["modules"]:
        yield from modules(record["modules"])
    if record["backward_savings"]:
        yield from savings(record["backward_savings"])
    if record["state"]:
        yield _tensors_table("State per parameter", _tensors(record, record["state"]))
    if record["stats"] or record["buffers"]["tensors"]:
        rows = (*record["stats"], *record["buffers"]["tensors"])
        yield _tensors_table("Statistics and buffers", _tensors(record, rows))
    if record["params"]["tensors"]:
        names = ("name", "shape", "elements", "bytes")
        yield table("Parameters", names, ([t[name] for name in names] for t in record["params"]["tensors"]))
    formulas = [row for row in _formulas(record) if row[1]]
    if formulas:
        yield table("Formulas of the card", ("", "formula"), formulas)
    yield Prose("", tuple(_remarks(record)))


def _heading(record: Record) -> Iterator[str]:
    technique, given = record["technique"], record["input"]
    options = ", ".join(f"{name}={value_text(value)}" for name, value in technique["options"].items())
    yield f"{technique['name']}: {technique['title']}" if technique["title"] != technique["name"] else technique["name"]
    layer = technique["role"] == "layer"
    yield f"{options or 'no options'}; " + (f"mode {technique['mode']}" if layer else f"{technique['role']}")
    output = record["output"]
    found = f", output {value_text(output['shape'])}" if output else ""
    shapes = ("input" if layer else "weight") + f" {value_text(given['shape'])}{found}"
    yield f"{shapes}, {given['dtype']}, {given['memory_format']}, {given['device']}"


def _passes(record: Record) -> list[tuple[str, str]]:
    """Return the passes that there are, by name and in the words of the role."""
    role = record["technique"]["role"]
    return [("forward", CALLS[role])] if role in CALLS else [("forward", "forward"), ("backward", "backward")]


_OPERATION_COLUMNS = ("", "definition", "card", "executed", "fvcore", "verdict")


def _operations(record: Record) -> Iterator[tuple[Cell, ...]]:
    """One row of FLOPs and one of MACs per pass: the definition, what the card says is executed, what is, fvcore."""
    verdicts = {check["what"]: _verdict(check["ok"]) for check in record["checks"]}
    for name, words in _passes(record):
        row = record["flops"][name]
        fvcore = _fvcore(record["flops"]["fvcore"]) if name == "forward" else None
        verdict = verdicts.get(f"flops.{name}.executed", "")
        yield f"FLOPs {words}", row["card"], row["executed_card"], _counted(row), fvcore, verdict
        yield f"MACs {words}", None, None, row["macs"], None, ""


def _operations_table(rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Return the operations; for narrow terminals what fvcore counts in a table of its own."""
    whole = table("Operations", _OPERATION_COLUMNS, rows)
    fvcore = _OPERATION_COLUMNS.index("fvcore")
    narrow = table("Operations", _less(_OPERATION_COLUMNS, fvcore), [_less(row, fvcore) for row in rows])
    theirs = [(row[0], row[fvcore]) for row in rows if row[fvcore] is not None]
    return replace(whole, folds=False, narrow=(narrow, *([table("", ("", "fvcore"), theirs)] if theirs else [])))


def _less(cells: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    return cells[:number] + cells[number + 1 :]


_COST_COLUMNS = ("", "card", "measured", "unit", "verdict")


def _costs(record: Record) -> Iterator[tuple[Cell, ...]]:
    verdicts = {check["what"]: _verdict(check["ok"]) for check in record["checks"]}
    if record["flops"]["per_element"] is not None:
        yield "FLOPs per element", record["flops"]["per_element"], None, "", ""
    params, memory = record["params"], record["memory"]
    total = params["total"] if record["measured"] else None
    yield "parameters", params.get("card"), total, "", verdicts.get("params", "")
    saved = memory["saved"]
    passes = _passes(record)
    if len(passes) > 1:
        yield "saved for backward", saved["card"], saved["measured"], "byte", verdicts.get("memory.saved", "")
    space = memory["workspace"]
    measured = {passes[0][0]: space["measured"], "backward": space["backward"]}
    for name, words in passes:
        stated, verdict = (space["card"], verdicts.get("memory.workspace", "")) if name == "forward" else (None, "")
        yield f"workspace {words}", stated, measured[name], "byte", verdict
    for name, words in passes:
        yield f"least traffic {words}", memory["floor"][name], None, "byte", ""
        yield f"intensity {words}", memory["intensity"][name], None, "FLOP/byte", ""


def _formulas(record: Record) -> Iterator[tuple[str, str]]:
    """Every formula of the card that a number above comes from."""
    yield "parameters", _pretty(record["params"].get("formula"))
    passes = _passes(record)
    for name, words in passes:
        row = record["flops"][name]
        yield f"FLOPs {words}", _pretty(row["formula"])
        if row["executed_formula"] != row["formula"]:
            yield f"executed {words}", _pretty(row["executed_formula"])
    if len(passes) > 1:
        yield "saved for backward", _pretty(record["memory"]["saved"]["formula"])
    yield "workspace forward", _pretty(record["memory"]["workspace"]["formula"])
    for name, words in passes:
        yield f"least traffic {words}", _pretty(record["memory"]["floor"]["formula"][name])


def costs(record: Record) -> Table:
    """Return every cost in one table, a row each: its formula on the card, what that comes to, what was measured."""
    formulas, rows = dict(_formulas(record)), list[tuple[Cell, ...]]()
    for words, definition, executed, measured, fvcore, verdict in _operations(record):
        formula, ours = formulas.get(str(words), ""), str(words).replace("FLOPs", "executed")
        if words != ours:
            rows.append((words, formula, definition, None, "", ""))
        rows.append((ours, formulas.get(ours, formula), executed, measured, "", verdict))
        rows.append((f"{ours}, as fvcore counts", "", None, fvcore, "", ""))
    for words, card, measured, unit, verdict in _costs(record):
        rows.append((words, formulas.get(str(words), ""), card, measured, unit, verdict))
    columns = ("", "formula", "card", "measured", "unit", "verdict")
    return table("Costs", columns, (row for row in rows if row[2] is not None or row[3] not in (None, 0) or row[5]))


def _counted(row: Record) -> Cell:
    """Return the executed operations; a lower bound where some were not counted."""
    if row["status"] == "partial" and row["executed"] is not None:
        return f"≥ {row['executed']:,}"
    executed: Cell = row["executed"]
    return executed


def _fvcore(row: Record | None) -> Cell:
    if row is None:
        return None
    if row["value"] is None:
        return f"unavailable: {row['error']}"
    value: Cell = row["value"] if row["status"] == "complete" else f"≥ {row['value']:,}"
    return value


_TENSOR_COLUMNS = ("name", "symbolic", "card", "measured", "bytes", "in state_dict", "what it is")
_WORDS = ("name", "symbolic", "what it is")


def _tensors_table(title: str, rows: Iterable[tuple[Cell, ...]]) -> Table:
    """Return the tensors; for narrow terminals their numbers, and then what they are in symbols and words."""
    rows = list(rows)
    alike = all(row[2] == row[3] for row in rows)
    shapes = ("card = measured",) if alike else ("card", "measured")
    numbers = [(row[0], *row[2 + alike : 4], *row[4:6]) for row in rows]
    words = [(row[0], row[1], row[6]) for row in rows]
    narrow = table(title, ("name", *shapes, *_TENSOR_COLUMNS[4:6]), numbers), table("", _WORDS, words)
    return replace(table(title, _TENSOR_COLUMNS, rows), folds=False, narrow=narrow)


def _tensors(record: Record, rows: Iterable[Record]) -> Iterator[tuple[Cell, ...]]:
    for row in rows:
        shapes = row["card"], row["observed"] if record["measured"] else None
        yield row["name"], row["symbolic"], *shapes, row["bytes"], row.get("kept"), row["help"]


def _remarks(record: Record) -> Iterator[str]:
    flops = record["flops"]
    yield f"FLOPs: {flops['convention']}."
    if flops["fvcore"]:
        yield f"fvcore: {flops['fvcore']['unit']}."
    for name in ("forward", "backward"):
        if flops[name]["uncounted"]:
            yield f"not counted in {name}: {_times(flops[name]['uncounted'])}"
    if flops["fvcore"] and flops["fvcore"]["uncounted"]:
        yield f"not counted by fvcore: {_times(flops['fvcore']['uncounted'])}"
    if flops["explained"]:
        yield flops["explained"]
    yield from record["notes"]


def _times(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in counts.items())


def _pretty(text: str | None) -> str:
    return pretty(text) if text else ""


def _verdict(ok: bool) -> str:
    return "ok" if ok else "failed"
