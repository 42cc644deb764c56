"""`stones inspect` of a technique that transforms a model: which parameters it froze, set anew or penalizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from profiles.expect import Outcome
from stones_cli.report.inspection import CALLS, expected, judged
from stones_cli.report.tables import Prose, Report, Table, table, value_text

Record = Mapping[str, Any]


def transformation(record: Record, outcomes: Sequence[Outcome] = ()) -> Report:
    """Return the report of one record of `profiles.transforms.inspect` and of the expectations about it."""
    return Report({**record, "expectations": judged(outcomes)}, (*_parts(record), *expected(outcomes)))


def _parts(record: Record) -> Iterator[Table | Prose]:
    technique, model, params = record["technique"], record["model"], record["params"]
    options = ", ".join(f"{name}={value_text(value)}" for name, value in technique["options"].items())
    yield Prose(
        "",
        (
            f"{technique['name']}: {technique['title']}",
            options or "no options",
            f"applied to {model['name']} of {model['modules']} modules"
            + (f", batch {value_text(record['batch'])}" if record["batch"] else ""),
        ),
    )
    total = params["total"]
    rows = [(words, params[what], f"{params[what] / total:.2%}" if total else None) for what, words in _WHAT.items()]
    yield table("Parameters", ("", "elements", "share"), rows)
    if record["penalty"] is not None:
        yield table("Penalty", ("", "value"), [("at the model as it is", record["penalty"])])
    yield table("Each parameter", ("name", "module", "shape", "elements", "what happens"), map(_row, params["tensors"]))
    if record["buffers_changed"]:
        yield Prose("", (f"{record['buffers_changed']:,} elements of buffers changed.",))


_WHAT = {
    "total": "in all",
    "trainable_before": "trained before",
    "trainable": "trained",
    "set": "set anew",
    "penalized": "penalized",
}


def _row(tensor: Record) -> tuple[Any, ...]:
    done = {
        "trained": tensor["trainable"],
        "frozen": not tensor["trainable"],
        "set anew": tensor["set"],
        "penalized": tensor["penalized"],
    }
    words = ", ".join(word for word, true in done.items() if true)
    return tensor["name"], tensor["module"], tensor["shape"], tensor["elements"], words


def touched(record: Record, outcomes: Sequence[Outcome] = ()) -> Report:
    """Return the report of one record of `profiles.counting.touched.inspect` and of the expectations about it.

    CSV has every column; so has a terminal that is wide enough.
    """
    technique, model = record["technique"], record["model"]
    options = ", ".join(f"{name}={value_text(value)}" for name, value in technique["options"].items())
    heading = (
        f"{technique['name']}: {technique['title']}",
        options or "no options",
        f"for the parameters of {model['name']} of {model['modules']} modules",
    )
    flops = f"FLOPs {CALLS.get(technique['role'], 'forward')}"
    params = [_touched(row) for row in record["params"]["tensors"]]
    columns = ("name", "module", "kind", "shape", "matrices", "touched", "state", "state bytes", flops)
    rows = replace(table("Each parameter", columns, params), narrow=_narrow(record, columns))
    parts: tuple[Table | Prose, ...] = (
        Prose("", heading),
        table("In all", ("touched", "number", "share", "unit"), _sums(record["touched"], flops)),
        rows,
        Prose("", tuple(_legend(record))),
        *expected(outcomes),
    )
    return Report({**record, "expectations": judged(outcomes)}, parts, data=rows)


def _narrow(record: Record, columns: Sequence[str]) -> tuple[Table, ...]:
    """Return what stands for the table on a narrow terminal: fewer columns, and every reason once."""
    tensors = record["params"]["tensors"]
    names = ("name", "kind", "shape", "touched")
    cells = [[row[name] for name in names] + [row["state_bytes"] or None, row["flops"]] for row in tensors]
    short = table("Each parameter", (*names, *columns[-2:]), cells)
    reasons: dict[str, list[str]] = {}
    for row in tensors:
        if not row["touched"]:
            reasons.setdefault(row["reason"], []).append(row["name"])
    why = table("Not touched", ("parameters", "such as", "why"), ((len(n), n[0], why) for why, n in reasons.items()))
    return (short, why) if reasons else (short,)


def _sums(total: Record, flops: str) -> Iterator[tuple[Any, ...]]:
    share = None if total["share"] is None else f"{total['share']:.2%}"
    yield "parameters", total["parameters"], None, None
    yield "elements", total["elements"], share, None
    if total["state_bytes"]:
        yield "state", total["state_bytes"], None, "byte"
    if total["flops"] is not None:
        yield flops, total["flops"], None, None


def _legend(record: Record) -> Iterator[str]:
    """Say what the columns of the table mean."""
    rows = record["params"]["tensors"]
    yield f"touched: whether {record['technique']['name']} is for the parameter, and why not."
    if any(row["matrix"] for row in rows):
        yield "matrices: a kernel as groups x outputs x weights of one output."
    state = dict.fromkeys(tensor["name"] for row in rows for tensor in row["state"])
    if state:
        yield f"state: what is kept for each parameter touched, {', '.join(state)}."


def _touched(row: Record) -> tuple[Any, ...]:
    state = ", ".join(f"{tensor['name']} {value_text(tensor['shape'])}" for tensor in row["state"])
    matrices = None if row["matrix"] is None else tuple(row["matrix"])
    what = "yes" if row["touched"] else f"no: {row['reason']}"
    kept = row["state_bytes"] or None
    return row["name"], row["module"], row["kind"], row["shape"], matrices, what, state, kept, row["flops"]
