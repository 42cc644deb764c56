"""Reading a result that was saved with ``-o file.json``, with no trust in the file. Standard library only."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layers import catalog
from profiles.errors import Refusal

DIFF = "stones.diff/1"  # the schema of what is said of two results, or of two techniques
MOST_BYTES = 8 * 2**20
MOST_VALUES = 500_000  # ten times what the largest result of stones has
DEEPEST = 64
_SCHEMA = re.compile(r"stones\.[a-z-]+/[1-9][0-9]{0,3}", re.ASCII)
Record = dict[str, Any]


def is_file(word: str) -> bool:
    """Tell whether ``word`` names a saved result: it ends in .json, or is the path of a file and no technique."""
    if word.lower().endswith((".json", ".jsonl")):
        return True
    if not word or ":" in word or word.lower().replace("_", "-") in catalog.stones():
        return False
    with contextlib.suppress(OSError, ValueError):  # too long, a null character
        return "/" in word or Path(word).exists()
    return False


def read(path: str) -> Record:
    """Return the result saved at ``path``; raises `Refusal`, in one line that begins with the path, for all else."""
    try:
        made = json.loads(_text(path), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise Refusal(f"{path}: nested too deeply for a result of stones") from error
    except json.JSONDecodeError as error:
        hint = "; of several lines of JSON, save one, or take --json" if error.msg == "Extra data" else ""
        raise Refusal(f"{path}:{error.lineno}:{error.colno}: no JSON: {error.msg}{hint}") from error
    except ValueError as error:  # Refusal, and an integer of too many digits
        raise Refusal(f"{path}: {error}") from error
    schema = made.get("schema") if isinstance(made, dict) else None
    if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):
        raise Refusal(f"{path}: no result of stones: it has no schema such as stones.bench/1; save one by -o {path}")
    _check_extent(made, path)
    return dict(made)


def _text(path: str) -> str:
    """Read a regular file of admitted size."""
    try:
        file = Path(path)
        if not stat.S_ISREG(file.stat().st_mode):
            raise Refusal("not a regular file")
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise Refusal(f"larger than {MOST_BYTES // 2**20} MiB, the most that a result may have")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise Refusal(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise Refusal(f"not UTF-8 text at byte {error.start}") from error


def _refuse_constant(text: str) -> None:
    raise Refusal(f"{text} is no JSON")


def _check_extent(value: Any, path: str) -> None:
    """Refuse what is deeper or larger than any result, without recursion."""
    level, depth, count = [value], 0, 0
    while level := [each for each in level if isinstance(each, (Mapping, list))]:
        level = [entry for each in level for entry in (each.values() if isinstance(each, Mapping) else each)]
        depth, count = depth + 1, count + len(level)
        if depth > DEEPEST:
            raise Refusal(f"{path}: nested deeper than {DEEPEST} levels, which no result of stones is")
        if count > MOST_VALUES:
            raise Refusal(f"{path}: more than {MOST_VALUES:,} values, which no result of stones has")
