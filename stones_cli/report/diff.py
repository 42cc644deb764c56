"""`stones diff`: what differs between two techniques, or between two saved results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from stones_cli.report.tables import Cell, Prose, Report, Table, table, text_of, value_text

Record = Mapping[str, Any]
MOST_ROWS = 100
LONGEST = 60  # characters of a value
_SECTIONS = {
    "technique": "Techniques",
    "option": "Options",
    "cost": "Costs",
    "statistic": "Statistics",
    "buffer": "Buffers",
    "state": "State per parameter",
    "invariance": "Invariances, as the cards claim",
}


def beside(record: Record, *, everything: bool) -> Report:
    """Return the report of one record of `profiles.checks.diff.techniques`: the rows that differ, or ``everything``."""
    rows = [row for row in record["rows"] if everything or not row["same"]]
    columns = ("section", "name", *_headings(record), "ratio")
    flat = table("", columns, ((row["section"], row["name"], *_sides(row), row["ratio"]) for row in rows))
    return Report(record, tuple(_beside(record, rows)), items="rows", data=flat)


def _beside(record: Record, rows: Iterable[Record]) -> Iterator[Table | Prose]:
    given, made = record["input"], list(rows)
    sizes = value_text(given["shape"])
    yield Prose("", (f"input {sizes}, {given['dtype']}, {given['memory_format']}, {given['device']}",))
    for section, title in _SECTIONS.items():
        found = [row for row in made if row["section"] == section]
        if found:
            cells = ((row["name"], *_sides(row), row["ratio"]) for row in found)
            yield table(title, ("", *_headings(record), "ratio"), cells)
    yield Prose("", tuple(_remarks(record, len(made))))


def _headings(record: Record) -> tuple[str, str]:
    """Return the names of both sides, told apart where they are the same."""
    left, right = record["names"]
    return (left, right) if left != right else (f"{left} (1)", f"{right} (2)")


def _sides(row: Record) -> tuple[Cell, Cell]:
    """Return both values; a dash for what one does not have."""
    return tuple("–" if row[side] is None else row[side] for side in ("left", "right"))  # type: ignore[return-value]


def _remarks(record: Record, shown: int) -> Iterator[str]:
    for name, said in zip(record["names"], record["claims"], strict=True):
        if said is None:
            yield f"{name}: its card claims no invariance under these conditions."
        else:
            yield f"{name}: invariances are claimed for {said}."
    if alike := len(record["rows"]) - shown:
        yield f"{alike} rows are alike: --all shows them."
    yield f"FLOPs: {record['left']['flops']['convention']}."


def differences(record: Record, *, everything: bool) -> Report:
    """Return the report of one record of `profiles.checks.changes.results`."""
    return Report(record, tuple(_differences(record, everything)), items="changes", data=_changes(record["changes"]))


def _differences(record: Record, everything: bool) -> Iterator[Table | Prose]:
    most = None if everything else MOST_ROWS
    yield Prose("", (f"{record['results']}: {record['old']} and {record['new']}",))
    if record["circumstances"]:
        rows = ((each["name"], _short(each["old"]), _short(each["new"])) for each in record["circumstances"][:most])
        yield table("Circumstances that differ", ("", "old", "new"), rows)
    if record["changes"]:
        yield _changes(record["changes"][:most], "What differs")
    yield from _times(record["times"])
    yield Prose("", tuple(_verdict(record, everything)))


def _changes(changes: Iterable[Record], title: str = "") -> Table:
    made = list(changes)
    rows = (
        (each["path"], each["change"], _on(each, "old"), _on(each, "new"), "yes" if each["binding"] else "no")
        for each in made
    )
    lines = table(title, ("where: old → new",), ((_line(each),) for each in made))
    return replace(table(title, ("where", "change", "old", "new", "binds"), rows), narrow=(lines,))


def _on(change: Record, side: str) -> str:
    """Return the value on one side, nothing where there is none."""
    absent = {"added": "old", "removed": "new"}.get(change["change"])
    value = change[side]
    if change["path"] == "sweep.values" and isinstance(value, list):  # no sizes of one thing
        value = ", ".join(map(value_text, value))
    return "" if side == absent else _short(value)


def _line(change: Record) -> str:
    free = "" if change["binding"] else " (does not bind)"
    return f"{change['path']}: {_on(change, 'old') or '–'} → {_on(change, 'new') or '–'}{free}"


_TIMES = ("of", "old", "new", "new / old", "95 % interval")


def _times(times: Iterable[Record]) -> Iterator[Table]:
    """Yield a table of times and ratios for each case."""
    cases: dict[str, list[tuple[Cell, ...]]] = {}
    for each in times:
        cases.setdefault(f"{each['case']} {each['direction']}", []).append(_time(each))
    for case, rows in cases.items():
        yield table(f"Times, {case}", _TIMES, rows)


def _time(each: Record) -> tuple[Cell, ...]:
    of = f"{each['of']}, ms" if each["vs"] is None else f"{each['of']} / {each['vs']}"
    if each["ratio"] is None:
        return of, each["old"], each["new"], None, f"not comparable: {each['reason']}"
    low, high = each["ratio_ci95"]
    return of, each["old"], each["new"], each["ratio"], f"{low:.3g} to {high:.3g}"


def _verdict(record: Record, everything: bool) -> Iterator[str]:
    changes, binding = record["changes"], record["binding"]
    if not changes:
        yield "Everything that counts is equal."
    else:
        yield f"{len(changes)} differ, {binding} of them bind under --gate."
    if len(changes) > MOST_ROWS and not everything:
        yield f"The first {MOST_ROWS} are shown: --all shows the rest."
    if record["times"]:
        yield (
            "Times of two runs are told, not judged: the machine may have changed between them. What is measured in "
            "multiples of a reference of the same run suffers least."
        )


def _short(value: Any) -> str:
    """Return a value in one line of readable length; of what is nested, what it is."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    if isinstance(value, list) and any(isinstance(entry, (Mapping, list)) for entry in value):
        return f"a list of {len(value)}"
    text = text_of(value) if isinstance(value, int) else value_text(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
