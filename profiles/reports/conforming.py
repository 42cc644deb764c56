"""Whether a document from a file is as its schema says, to the extent that a reader depends on it.

Of JSON Schema it knows the words that `profiles.schemas.vocabulary` writes. More lenient than that: what a later
version added is let pass. Stricter: no number may be too large to compute with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiles.schemas.vocabulary import Schema

LARGEST = 1e30
LONGEST = 60  # characters of a key that are told
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": Mapping,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def violation(value: Any, schema: Schema, path: str = "") -> str:
    """Return the first thing in ``value`` that is not as ``schema`` says, with its place; empty where all is."""
    where = path or "the document"
    if "anyOf" in schema:
        found = [violation(value, form, path) for form in schema["anyOf"]]
        return "" if "" in found else found[0]
    if "const" in schema or "enum" in schema:
        words = schema.get("enum", [schema.get("const")])
        return "" if value in words else f"{where} is not one of {', '.join(map(str, words))}"
    types = schema.get("type", ())
    types = [types] if isinstance(types, str) else types
    if types and not any(_is(value, name) for name in types):
        return f"{where} is no {' or '.join(types)}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value, schema, where)
    if isinstance(value, list):
        return _list(value, schema, path)
    return _object(value, schema, path) if isinstance(value, Mapping) else ""


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name in ("boolean", "null") or not isinstance(value, bool))


def _number(value: float, schema: Schema, where: str) -> str:
    if not abs(value) <= LARGEST:
        return f"{where} is too large a number"
    return f"{where} is less than {schema['minimum']}" if value < schema.get("minimum", -LARGEST) else ""


def _list(value: list[Any], schema: Schema, path: str) -> str:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{path} has {len(value)} entries"
    inner = schema.get("items", {})
    found = (violation(entry, inner, f"{path}[{number}]") for number, entry in enumerate(value))
    return next(filter(None, found), "")


def _object(value: Mapping[str, Any], schema: Schema, path: str) -> str:
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    if missing := [name for name in schema.get("required", ()) if name not in value]:
        return f"{path or 'the document'} has no {missing[0]}"
    for name, inner in value.items():
        form = known.get(name, others if isinstance(others, dict) else {})
        if found := violation(inner, form, f"{path}.{name[:LONGEST]}".lstrip(".")):
            return found
    return ""
