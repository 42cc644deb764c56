"""The command line of stones: it parses, checks, runs, reports and chooses an exit status; it holds no mathematics.

`main.py` is the way in and out, `app.py` holds the commands, `commands.py` turns cards into options, `report/` turns
records into tables and JSON.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


def _check_sibling(name: str) -> None:
    """Raise ImportError when ``name`` is not the package beside this one: its name is common, another may shadow it."""
    ours = Path(__file__).resolve().parent.parent / name
    found = find_spec(name)
    origin = found.origin if found is not None and found.origin is not None else "nothing"
    if Path(origin).resolve().parent != ours:
        raise ImportError(
            f"stones needs its own package {name!r} from {ours}, but Python finds {origin}; "
            f"run the `stones` command, or `python -P -m stones_cli`, from another directory"
        )


for _name in ("layers", "profiles"):
    _check_sibling(_name)
