"""The JSON Schemas (draft 2020-12) of what the command line writes and of the YAML profiles that it reads.

Made from the constants that the commands use, without torch. A test holds every document of every command to its own:
objects are closed, so that what a command adds must be added here.
"""

from __future__ import annotations

from layers import catalog
from profiles.errors import Refusal
from profiles.schemas import cards, checks, comparisons, drawings, inputs, inspections, measurements, models
from profiles.schemas.vocabulary import Schema

_PARTS = (cards, inspections, models, checks, measurements, drawings, comparisons, inputs)
SCHEMAS: dict[str, Schema] = {found["title"]: found for part in _PARTS for found in part.DOCUMENTS}


def schema(name: str) -> Schema:
    """Return the schema called ``name``, such as inspect or stones.inspect/1; raises `Refusal` for an unknown one."""
    wanted = name.removeprefix("stones.").partition("/")[0]
    found = SCHEMAS.get(wanted)
    if found is None or name not in (wanted, named(found)):
        near = catalog.suggest(wanted, SCHEMAS)
        hint = f"did you mean {near}?" if near and near != name else f"there are {', '.join(SCHEMAS)}"
        raise Refusal(f"there is no schema {name!r}; {hint}")
    return found


def named(found: Schema) -> str:
    """Return what a document of this schema has under the key schema, such as stones.inspect/1."""
    words: str = found["properties"]["schema"]["const"]
    return words


__all__ = ["SCHEMAS", "Schema", "named", "schema"]
