"""Whether a value has the type that an annotation says, down to the entries of tuples, mappings and dataclasses."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints


def misfit(value: object, kind: Any, where: str) -> str:
    """Return what of ``value``, called ``where``, is not of type ``kind``; nothing where all of it is."""
    return next(_misfits(value, kind, where), "")


def _misfits(value: object, kind: Any, where: str) -> Iterator[str]:
    made, inner = get_origin(kind), get_args(kind)
    if made in (Union, types.UnionType):
        if all(misfit(value, each, where) for each in inner):
            yield _said(value, kind, where)
    elif not _is_a(value, made or kind):
        yield _said(value, kind, where)
    elif isinstance(value, tuple):
        kinds = inner[:1] * len(value) if Ellipsis in inner else inner
        if len(kinds) != len(value):
            yield _said(value, kind, where)
        for i, (each, of) in enumerate(zip(value, kinds, strict=False)):
            yield from _misfits(each, of, f"{where}[{i}]")
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _misfits(name, inner[0], f"a key of {where}")
            yield from _misfits(each, inner[1], f"{where}[{name!r}]")
    else:
        for name, of in _hints(kind).items():
            yield from _misfits(getattr(value, name), of, f"{where}.{name}")


def _is_a(value: object, kind: Any) -> bool:
    """Tell whether ``value`` is a ``kind``; an integer is a float too, a truth value no number."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _said(value: object, kind: Any, where: str) -> str:
    named = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    shown = repr(value)
    due = named.replace("layers.card.", "").replace("collections.abc.", "")
    return f"{where} = {shown[:60]}{'…' if len(shown) > 60 else ''} is not of type {due}"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
