"""Ceilings remembered from one process to the next: a file of this user's cache, read without trust.

It lies under ``$STONES_CACHE``, else ``$XDG_CACHE_HOME/stones``, else ``~/.cache/stones``. Whatever is wrong with it,
or with its folder, means that the ceilings are measured again; what cannot be written is not kept. Processes that write
at the same time replace the whole file each: one may lose what the other measured, never break it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profiles import atomic, results
from profiles.errors import Refusal, Unavailable
from profiles.speed.ceilings import Ceilings, from_record

SCHEMA = "stones.ceilings/1"
MOST_ENTRIES = 64  # the newest


def path() -> Path | None:
    """Return the file, None where the environment names no place for it."""
    variables = os.environ
    if own := variables.get("STONES_CACHE"):
        return Path(own) / "ceilings.json"
    shared = variables.get("XDG_CACHE_HOME", "")
    home = variables.get("HOME") or variables.get("USERPROFILE")
    if Path(shared).is_absolute():  # the standard says to ignore a relative one
        return Path(shared) / "stones" / "ceilings.json"
    return Path(home) / ".cache" / "stones" / "ceilings.json" if home and Path(home).is_dir() else None


def recall(where: Mapping[str, Any]) -> Ceilings | None:
    """Return the ceilings that were measured under the same circumstances, None where there are none."""
    return next((found for found in _entries() if found.where == where), None)


def keep(measured: Ceilings) -> bool:
    """Remember ``measured`` in place of what was known for the same circumstances; returns whether that succeeded.

    Where it was disturbed, what was known and is higher stays.
    """
    file = path()
    if file is None:
        return False
    entries = _entries()
    others = [found for found in entries if found.where != measured.where]
    for found in entries if measured.disturbed else ():
        measured = measured.at_least(found) if found.where == measured.where else measured
    machines = [found.record() for found in [measured, *others][:MOST_ENTRIES]]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():
            return False  # a pipe would be waited for
        atomic.write(file, json.dumps({"schema": SCHEMA, "machines": machines}, indent=1) + "\n", "the cache")
    except (Unavailable, OSError, ValueError):
        return False
    return True


def _entries() -> list[Ceilings]:
    """Return whatever in the file are ceilings."""
    file, found = path(), list[Ceilings]()
    if file is None:
        return found
    try:
        document = results.read(str(file))
    except Refusal:
        return found
    machines = document.get("machines") if document["schema"] == SCHEMA else None
    for entry in machines if isinstance(machines, list) else ():
        with contextlib.suppress(ValueError):
            found.append(from_record(entry))
    return found
