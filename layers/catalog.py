"""Which stones there are: those of this library, found by file and folder, and plug-ins of other distributions."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

from layers import plugins
from layers.plugins import Broken, Found
from layers.stone import KINDS, ROOT, CardError, Origin, PluginError, Stone, name_of


class UnknownStone(ValueError):
    """No stone has this name; the message suggests one that is near, or says why a plug-in of it does not stand."""


@cache
def built_in() -> dict[str, Stone]:
    """Return the stones of this library by name, in the order of `KINDS`, then by file."""
    found = {}
    for kind in KINDS:
        for path in sorted((ROOT / kind).glob("*.py")):
            if not path.stem.startswith("_"):
                name = name_of(path.stem)
                found[name] = Stone(name, kind, path)
    return found


@cache
def stones() -> dict[str, Stone]:
    """Return all stones by name: in the order of `KINDS`, of each those of this library, then plug-ins by name."""
    every = [*built_in().values(), *_plugins().stones]
    return {stone.name: stone for kind in KINDS for stone in every if stone.kind == kind}


def broken() -> tuple[Broken, ...]:
    """Return the plug-ins that do not stand, because they clash or are broken; each says why and what to do."""
    return _plugins().broken


def stone(name: str) -> Stone:
    """Return the stone called ``name`` (case and ``_`` for ``-`` are forgiven); raises UnknownStone."""
    wanted = name.strip().lower().replace("_", "-")
    for known in (built_in, stones):  # without a look at what else is installed, where that is not needed
        if wanted in known():
            return known()[wanted]
    for each in broken():
        if each.name == wanted:
            raise UnknownStone(str(each))
    near = suggest(wanted, stones())
    raise UnknownStone(f"no stone is called {name!r}" + (f"; did you mean {near}?" if near else "; see `stones list`"))


def suggest(wanted: str, known: Any) -> str:
    """Return the nearest of ``known`` or an empty string; short names need a looser cut-off than difflib's."""
    near = difflib.get_close_matches(wanted.lower(), list(known), n=1, cutoff=0.5 if len(wanted) < 5 else 0.6)
    return near[0] if near else ""


@cache
def _plugins() -> Found:
    return plugins.found(built_in())


__all__ = [
    "KINDS", "Broken", "CardError", "Origin", "PluginError", "Stone", "UnknownStone", "broken", "built_in", "stone",
    "stones", "suggest",
]  # fmt: skip
