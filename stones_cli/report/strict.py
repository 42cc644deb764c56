"""JSON that every parser reads: ASCII, no NaN, the order of the record, nothing that depends on the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stones_cli.report.tables import Report


def document(report: Report) -> str:
    """Return the record as one indented document."""
    return json.dumps(plain(report.record), indent=2, allow_nan=False, ensure_ascii=True) + "\n"


def lines(report: Report) -> str:
    """Return one line per item, each with the schema in front, or the whole record on one line."""
    record = plain(report.record)
    rows = [record]
    if report.items:
        rows = [{"schema": record["schema"], **item} for item in record[report.items]]
    return "".join(json.dumps(row, allow_nan=False, ensure_ascii=True) + "\n" for row in rows)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON's own types: records of any kind as objects, what is not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    return str(value)
