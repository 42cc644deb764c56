"""`stones schema`: the JSON Schemas of documents and profiles, without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from profiles.errors import Refusal
from stones_cli import common
from stones_cli.report.emit import emit
from stones_cli.status import Status


def _complete(incomplete: str) -> list[str]:
    from profiles import schemas

    return [name for name in schemas.SCHEMAS if name.startswith(incomplete)]


Name = Annotated[
    str | None,
    typer.Argument(
        parser=str,
        metavar="NAME",
        help="of a document, such as inspect or stones.inspect/1; without it they are listed",
        autocompletion=_complete,
    ),
]


def schema(
    name: Name = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Print the JSON Schema of a document or profile.

    Draft 2020-12, of what --json prints and of the YAML files that --profile and `stones run` read.
    """
    from profiles import schemas
    from stones_cli.report.schemas import listing, spelt

    where = common.destination(format_, json, output)
    if name is None:
        emit(listing(schemas.SCHEMAS.values()), where)
        return Status.DONE
    found = schemas.schema(name)
    if format_ not in (None, "json") or where.file_format not in ("json", "table"):
        raise Refusal("a schema is JSON: give no other --format, and a file.json")
    emit(spelt(found), common.Destination("json", where.file))
    return Status.DONE
