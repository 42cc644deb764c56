"""`stones schema`: which schemas there are, or one of them as it stands."""

from __future__ import annotations

from collections.abc import Iterable

from profiles.schemas import Schema, named
from stones_cli.report.tables import Report, table


def listing(found: Iterable[Schema]) -> Report:
    """Return what each schema is for."""
    entries = [{"name": each["title"], "of": named(each), "description": each["description"]} for each in found]
    rows = ((each["name"], each["of"], each["description"]) for each in entries)
    record = {"schema": "stones.schemas/1", "schemas": entries}
    return Report(record, (table("", ("name", "document", "what it is"), rows),), items="schemas")


def spelt(schema: Schema) -> Report:
    """Return a schema, which is JSON and nothing else."""
    return Report(schema, ())
