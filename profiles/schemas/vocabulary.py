"""The words in which schemas are written: JSON Schema, draft 2020-12, by a few functions.

Objects are closed: they have the properties listed, all of them unless they are ``optional``, and no other.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}


def array(items: Schema, **bounds: int) -> Schema:
    """Return lists of ``items``."""
    return {"type": "array", "items": items, **bounds}


def mapping(values: Schema) -> Schema:
    """Return objects whose keys are not known before, with ``values``."""
    return {"type": "object", "additionalProperties": values}


def word(*words: str) -> Schema:
    """Return one of ``words``."""
    return {"enum": list(words)}


def nullable(schema: Schema) -> Schema:
    """Return ``schema`` or null."""
    if isinstance(schema.get("type"), str) and "properties" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def any_of(*schemas: Schema) -> Schema:
    """Return whatever is one of ``schemas``."""
    return {"anyOf": list(schemas)}


def about(schema: Schema, description: str) -> Schema:
    """Return ``schema`` with a description."""
    return {**schema, "description": description}


def record(properties: Mapping[str, Schema], optional: Collection[str] = ()) -> Schema:
    """Return a closed object; those of ``optional`` may be missing."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": dict(properties),
        "additionalProperties": False,
    }


def document(name: str, description: str, properties: Mapping[str, Schema], optional: Collection[str] = ()) -> Schema:
    """Return the schema of the document ``stones.NAME/1``, whose key schema says so."""
    found = record({"schema": {"const": f"stones.{name}/1"}, **properties}, optional)
    head = {"$schema": DRAFT, "$id": f"urn:stones:{name}:1", "title": name, "description": description}
    return copy.deepcopy({**head, **found})


def embedded(schema: Schema) -> Schema:
    """Return the schema of a document as it stands within another."""
    return {name: value for name, value in schema.items() if name not in ("$schema", "$id")}


SHAPE = array(COUNT)
SHAPES = nullable(SHAPE)
VALUE = about(
    any_of({"type": ["string", "boolean", "number", "null"]}, array(INTEGER)),
    "a value of an option; a list is one number per axis",
)
OPTIONS = mapping(VALUE)
MODE = word("train", "eval")
EXPECTATIONS = about(
    array(
        record(
            {"expression": STRING, "found": about({}, "the value in the result, of any type"), "ok": BOOLEAN},
        )
    ),
    "what became of --expect",
)
EXPECTED = {"expectations": EXPECTATIONS}
