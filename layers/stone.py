"""What a stone is: a file whose stem is the name and whose folder is the kind; and how its card is read.

A card is data. It is read from the text of its file, the statement ``card = Card(...)`` that starts and ends at the
left margin, by building the calls it spells out of the vocabulary of `layers.card` and the constants of
`layers.shared`, nothing else; so no torch is imported and no code of the stone runs. A test asserts for every stone
that this reading equals the imported card.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from layers import card as vocabulary
from layers import shared
from layers.card import Card

ROOT = Path(__file__).parent
KINDS = ("norm", "weight", "conv", "pool", "upsample", "backward", "optim", "regularize", "init", "augment")


class CardError(ValueError):
    """A stone's file has no readable card; the message gives file and line."""


class PluginError(ImportError):
    """The code of a plug-in cannot be imported; the message names the distribution, the file and the remedy."""


class Origin(NamedTuple):
    """The distribution that a plug-in comes from, as its metadata calls it."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Stone:
    """One technique: its name, kind and file. `card` reads the card, `load` imports the implementation.

    ``package`` is the import path of the folder of its kind's folder; ``origin`` is None for the stones of this
    library, and says where a plug-in comes from.
    """

    name: str
    kind: str
    path: Path
    package: str = field(default="layers", kw_only=True)
    origin: Origin | None = field(default=None, kw_only=True)

    @property
    def module(self) -> str:
        """The import path of the stone's file."""
        return f"{self.package}.{self.kind}.{self.path.stem}"

    @property
    def card(self) -> Card:
        """The stone's card, read without importing torch."""
        return _read(self.path)

    def imported(self) -> ModuleType:
        """Import the stone's file (and with it torch); raises `PluginError` where the code of a plug-in fails."""
        try:
            return importlib.import_module(self.module)
        except Exception as error:
            if self.origin is None:
                raise
            said = str(error).partition("\n")[0]
            raise self._unusable(f"cannot be imported: {type(error).__name__}: {said}") from error

    def load(self) -> Callable[..., Any]:
        """Import the stone's file and return its class or function; raises `PluginError` as `imported` does."""
        module, name = self.imported(), self.card.impl
        if self.origin is not None and not callable(getattr(module, name, None)):
            raise self._unusable(f"has no class or function {name!r}, which its card calls impl")
        implementation: Callable[..., Any] = getattr(module, name)
        return implementation

    def _unusable(self, why: str) -> PluginError:
        return PluginError(f"{self.path}: plug-in {self.name} of {self.origin} {why}; mend or uninstall it")


def name_of(stem: str) -> str:
    """Return the name of the stone whose file has ``stem``."""
    return stem.rstrip("_").replace("_", "-")


def card_line(path: Path) -> int:
    """Return the number of the line at which the card of the file begins."""
    return _started(path)[1] + 1


def _started(path: Path) -> tuple[list[str], int]:
    """Return the lines of the file and the index of the one at which the card begins."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: cannot be read: {error}") from error
    starts = [i for i, line in enumerate(lines) if line.startswith("card = Card(")]
    if len(starts) != 1:
        where = f"{path}:{starts[1] + 1}" if starts else path
        raise CardError(f"{where}: expected one statement `card = Card(...)` at the left margin, found {len(starts)}")
    return lines, starts[0]


@cache
def _read(path: Path) -> Card:
    lines, start = _started(path)
    end = next((i for i in range(start, len(lines)) if lines[i].startswith(")")), len(lines) - 1)
    try:
        statement = ast.parse("\n".join(lines[start : end + 1])).body[0]
        assert isinstance(statement, ast.Assign)
        made = _build(statement.value)
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError) as error:
        line = start + (getattr(error, "lineno", None) or 1)
        said = error.msg if isinstance(error, SyntaxError) else error
        raise CardError(f"{path}:{line}: the card cannot be read: {said}") from error
    if not isinstance(made, Card):
        raise CardError(f"{path}:{start + 1}: expected `card = Card(...)`, found a {type(made).__name__}")
    return made


class _UnreadableError(ValueError):
    """What stands at ``lineno``, counted from the card's first line, is not part of a card."""

    def __init__(self, node: ast.expr, why: str) -> None:
        super().__init__(f"{ast.unparse(node)!r} {why}")
        self.lineno = node.lineno


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
    if isinstance(node, ast.Name):
        raise _UnreadableError(node, "is no name of layers.card or layers.shared, and no other is known: write it out")
    raise _UnreadableError(node, "is no literal and no call of a name of layers.card")


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
