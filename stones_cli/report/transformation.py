"""`stones inspect` of a technique that transforms a model: which parameters it froze, set anew or penalizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stones_cli.expect import Outcome
from stones_cli.report.inspection import expected, judged
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
            f"applied to {model['name']} of {model['modules']} modules",
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
    """Return the report of one record of `profiles.touched.inspect` and of the expectations about it."""
    technique, model, total = record["technique"], record["model"], record["touched"]
    options = ", ".join(f"{name}={value_text(value)}" for name, value in technique["options"].items())
    heading = (
        f"{technique['name']}: {technique['title']}",
        options or "no options",
        f"for the parameters of {model['name']} of {model['modules']} modules",
    )
    share = None if total["share"] is None else f"{total['share']:.2%}"
    sums = [
        ("parameters touched", total["parameters"], ""),
        ("elements touched", total["elements"], share),
        ("state", total["state_bytes"], "byte"),
        ("FLOPs per step", total["flops"], ""),
    ]
    columns = ("name", "module", "kind", "shape", "matrices", "touched", "state", "state bytes", "FLOPs per step")
    rows = table("Each parameter", columns, map(_touched, record["params"]["tensors"]))
    parts: tuple[Table | Prose, ...] = (
        Prose("", heading),
        table("In all", ("", "", " "), sums),
        rows,
        *expected(outcomes),
    )
    return Report({**record, "expectations": judged(outcomes)}, parts, data=rows)


def _touched(row: Record) -> tuple[Any, ...]:
    state = ", ".join(f"{tensor['name']} {value_text(tensor['shape'])}" for tensor in row["state"])
    matrices = None if row["matrix"] is None else tuple(row["matrix"])
    what = "yes" if row["touched"] else f"no: {row['reason']}"
    kept = row["state_bytes"] or None
    return row["name"], row["module"], row["kind"], row["shape"], matrices, what, state, kept, row["flops"]
