"""Races on digits as YAML files, checked without importing torch.

    schema: stones.race-profile/1
    batch: 2                # samples a step
    epochs: 5
    repeats: 3              # seeds in a row
    seed: 0
    entrants:
      - "mabn"
      - "torch.optim:SGD:lr=0.01"

Entrants are written as on the command line; of classes only those of torch.optim are admitted, because a file must not
make code run.
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import Any

from layers.card import OptionError
from layers.catalog import UnknownStone
from profiles.document import Value, read
from profiles.errors import Refusal
from profiles.races.digits import Training
from profiles.races.entrants import Entrant, entrant

SCHEMA = "stones.race-profile/1"
_NUMBERS = ("batch", "epochs", "repeats", "seed")
_CLASS_OF_TORCH = re.compile(r"torch\.optim:[A-Za-z_]\w*(:.*)?", re.ASCII)


def built_in() -> list[str]:
    """Return the names of the races that come with the package."""
    files = (importlib.resources.files("profiles") / "races").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load(name: str) -> tuple[list[Entrant], Training]:
    """Return entrants and training of the race ``name``: one that is built in, or the path of a YAML file.

    Raises `ProfileError`, a `Refusal` that begins with file:line:column.
    """
    if name in built_in():
        with importlib.resources.as_file(importlib.resources.files("profiles") / "races" / f"{name}.yaml") as path:
            return _made(read(path, path.name))
    if not Path(name).suffix:
        raise Refusal(f"--profile {name}: there is no race of this name; {', '.join(built_in())}, or a file.yaml")
    return _made(read(Path(name), name))


def _made(root: Value) -> tuple[list[Entrant], Training]:
    if not isinstance(root.value, dict):
        root.refuse("a race is a mapping")
    entries: dict[str, Value] = root.value
    for key, value in entries.items():
        if key not in ("schema", "entrants", *_NUMBERS):
            value.refuse(f"there is no {key!r}; there are schema, entrants, {', '.join(_NUMBERS)}")
    if "schema" not in entries or entries["schema"].value != SCHEMA:
        entries.get("schema", root).refuse(f"schema: {SCHEMA} is needed")
    numbers: dict[str, Any] = {}
    for key in _NUMBERS:
        if key in entries:
            value = entries[key].value
            if not isinstance(value, int) or isinstance(value, bool):
                entries[key].refuse(f"{value!r} is not an integer")
            numbers[key] = value
    try:
        training = Training(**numbers)
    except Refusal as error:
        root.refuse(str(error))
    named = entries.get("entrants", root)
    if named is root or not isinstance(named.value, list) or not named.value:
        named.refuse("entrants: a list of them is needed")
    return [_entrant(each) for each in named.value], training


def _entrant(each: Value) -> Entrant:
    text = each.value
    if not isinstance(text, str):
        each.refuse(f"{text!r} is not an entrant, such as adax:lr=0.01")
    for word in text.split("+"):
        if ":" in word and "=" not in word.partition(":")[2] and not _CLASS_OF_TORCH.fullmatch(word.strip()):
            each.refuse(f"{word}: of classes only those of torch.optim may stand in a file")
        if "=" in word and word.count(":") > 1 and not _CLASS_OF_TORCH.fullmatch(word.strip()):
            each.refuse(f"{word}: of classes only those of torch.optim may stand in a file")
    try:
        return entrant(text)
    except (Refusal, OptionError, UnknownStone) as error:
        each.refuse(str(error))
