"""`stones inspect` of an augmentation: its policy in printed values, what was drawn, and whether Pillow agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from profiles.augmentations import words
from profiles.expect import Outcome
from stones_cli.report.inspection import expected, judged
from stones_cli.report.tables import Prose, Report, Table, table, value_text

Record = Mapping[str, Any]


def augmentation(record: Record, outcomes: Sequence[Outcome] = ()) -> Report:
    """Return the report of one record of `profiles.augmentations.inspect` and of the expectations about it."""
    return Report({**record, "expectations": judged(outcomes)}, (*_parts(record), *expected(outcomes)))


def _parts(record: Record) -> Iterator[Table | Prose]:
    technique, given, output = record["technique"], record["input"], record["output"]
    options = ", ".join(f"{name}={value_text(value)}" for name, value in technique["options"].items())
    shapes = f"images {value_text(given['shape'])}" + (f", output {value_text(output['shape'])}" if output else "")
    heading = f"{technique['name']}: {technique['title']}"
    yield Prose("", (heading, f"{options}; augmentation", f"{shapes}, {given['dtype']}, {given['device']}"))
    columns = ("#", "first", "probability", "second", "probability")
    yield table("Sub-policies, one of them for an image", columns, _sub_policies(record["policy"]))
    drawn = record["drawn"]["operations"] if record["drawn"] else {}
    rows = ((name, share, drawn.get(name)) for name, share in record["expected"]["shares"].items())
    yield table("Operations", ("operation", "per image", "drawn here"), rows)
    yield table("Costs", ("", "", "unit"), _costs(record))
    if record["checks"]:
        verdicts = ((c["what"], c["card"], c["measured"], "ok" if c["ok"] else "FAILED") for c in record["checks"])
        yield table("Checks", ("what", "stated", "measured", "verdict"), verdicts)
    yield Prose("", tuple(_remarks(record)))


def _sub_policies(policy: Sequence[Sequence[Record]]) -> Iterator[tuple[Any, ...]]:
    for number, steps in enumerate(policy):
        yield (
            number,
            *(cell for step in steps for cell in (words(step["operation"], step["values"]), step["probability"])),
        )


def _costs(record: Record) -> Iterator[tuple[Any, ...]]:
    yield "operations expected per image", record["expected"]["operations"], None
    yield "least bytes moved, expected", record["expected"]["bytes"], "byte"
    yield "parameters", 0, None


def _remarks(record: Record) -> Iterator[str]:
    total, different = len(record["policy"]), record["different"]
    if different < total:
        yield f"{different} of the {total} sub-policies are different."
    yield f"No FLOPs are stated: {record['flops_reason']}."
    if record["measured"] and record["pillow"] is None:
        yield "Pillow is not installed: nothing was compared with it."
    elif record["pillow"]:
        found = record["pillow"]
        yield f"Pillow {found['version']} makes the same, bit for bit, of {found['equal']} of {found['images']} images."
