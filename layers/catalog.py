"""Which stones there are: a file is a stone, its stem the name, its folder the kind.

A card is data. It is read from the text of its file, the statement ``card = Card(...)`` that starts and ends at the
left margin, by building the calls it spells out of the vocabulary of `layers.card` and the constants of
`layers.shared`, nothing else; so no torch is imported and no code of the stone runs. A test asserts for every stone
that this reading equals the imported card.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from layers import card as vocabulary
from layers import shared
from layers.card import Card

ROOT = Path(__file__).parent
KINDS = ("norm", "weight", "conv", "pool", "upsample", "backward", "optim", "regularize", "init", "augment")


class UnknownStone(ValueError):
    """No stone has this name; the message suggests one that is near."""


class CardError(ValueError):
    """A stone's file has no readable card; the message gives file and line."""


@dataclass(frozen=True)
class Stone:
    """One technique: its name, kind and file. `card` reads the card, `load` imports the implementation."""

    name: str
    kind: str
    path: Path

    @property
    def module(self) -> str:
        """The import path of the stone's file."""
        return f"layers.{self.kind}.{self.path.stem}"

    @property
    def card(self) -> Card:
        """The stone's card, read without importing torch."""
        return _read(self.path)

    def load(self) -> Callable[..., Any]:
        """Import the stone's file (and with it torch) and return its class or function."""
        implementation: Callable[..., Any] = getattr(importlib.import_module(self.module), self.card.impl)
        return implementation


@cache
def stones() -> dict[str, Stone]:
    """Return all stones by name, in the order of `KINDS`, then by name."""
    found = {}
    for kind in KINDS:
        for path in sorted((ROOT / kind).glob("*.py")):
            if not path.stem.startswith("_"):
                name = path.stem.rstrip("_").replace("_", "-")
                found[name] = Stone(name, kind, path)
    return found


def stone(name: str) -> Stone:
    """Return the stone called ``name`` (case and ``_`` for ``-`` are forgiven); raises UnknownStone."""
    known = stones()
    wanted = name.strip().lower().replace("_", "-")
    if wanted in known:
        return known[wanted]
    near = suggest(wanted, known)
    raise UnknownStone(f"no stone is called {name!r}" + (f"; did you mean {near}?" if near else "; see `stones list`"))


def suggest(wanted: str, known: Any) -> str:
    """Return the nearest of ``known`` or an empty string; short names need a looser cut-off than difflib's."""
    near = difflib.get_close_matches(wanted.lower(), list(known), n=1, cutoff=0.5 if len(wanted) < 5 else 0.6)
    return near[0] if near else ""


@cache
def _read(path: Path) -> Card:
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("card = Card(")]
    if len(starts) != 1:
        raise CardError(f"{path}: expected one statement `card = Card(...)` at the left margin, found {len(starts)}")
    start = starts[0]
    end = next((i for i in range(start, len(lines)) if lines[i].startswith(")")), len(lines) - 1)
    try:
        statement = ast.parse("\n".join(lines[start : end + 1])).body[0]
        assert isinstance(statement, ast.Assign)
        made = _build(statement.value)
    except (SyntaxError, ValueError, TypeError, AttributeError) as error:
        line = start + getattr(error, "lineno", 1)
        raise CardError(f"{path}:{line}: the card cannot be read: {error}") from error
    assert isinstance(made, Card)
    return made


def _build(node: ast.expr) -> Any:
    """Build the value that ``node`` spells: literals, and calls of the vocabulary."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _VOCABULARY:
            return _VOCABULARY[name](*map(_build, args), **{str(k.arg): _build(k.value) for k in keywords})
        case ast.Tuple(elts=items):
            parts = (_build(i.value) if isinstance(i, ast.Starred) else (_build(i),) for i in items)
            return tuple(each for part in parts for each in part)
        case ast.Dict(keys=keys, values=values):
            pairs = ((k, _build(v)) for k, v in zip(keys, values, strict=True))
            return {key: each for k, v in pairs for key, each in (v.items() if k is None else ((_build(k), v),))}
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Constant(value=value):
            return value
    raise ValueError(
        f"line {node.lineno} of the card: {ast.unparse(node)!r} is no literal, no name of layers.card or layers.shared"
    )


_VOCABULARY: dict[str, Callable[..., Any]] = {
    name: getattr(vocabulary, name)
    for name in ("Card", "Claim", "Flops", "Identity", "Option", "Paper", "Peer", "Race", "Rule", "Stat")
}
_CONSTANTS: dict[str, Any] = {
    **{name: value for name, value in vars(shared).items() if name.isupper()},
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
}
