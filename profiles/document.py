"""A YAML file read as a tree of values that know their place, with no trust in the file.

A regular file of limited size; its events are counted before anything is built (depth, aliases, number); merge keys,
duplicate keys, tags, dates, infinities and everything that is not a mapping, list, text, number, truth value or null
are refused. Every refusal is a `ProfileError` that begins with file:line:column.
"""

from __future__ import annotations

import importlib.resources
import math
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from layers import catalog
from profiles.errors import Refusal

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MOST_BYTES = 64 * 1024
MOST_EVENTS = 10_000
MOST_ALIASES = 16
DEEPEST = 32
LARGEST = 10**40  # of integers, whose digits Python may refuse to write
_SCALARS = ("str", "int", "float", "bool", "null")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Place:
    """A position in a file, counted from 1."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class ProfileError(Refusal):
    """A profile that is refused; ``place`` says where, for annotations."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{place}: {' '.join(message.split())}")
        self.place = place


@dataclass(frozen=True)
class Value:
    """A value, where it stands, and its path in the document (``stones[2].options``).

    ``value`` is a dict of name → Value, a list of Value, or a str, int, float, bool or None. The place of a value of
    a mapping is that of its key.
    """

    value: Any
    place: Place
    path: str

    def refuse(self, message: str) -> NoReturn:
        """Raise ProfileError about this value."""
        raise ProfileError(self.place, f"{self.path}: {message}" if self.path else message)


def read(path: Path, name: str) -> Value:
    """Return the only document of the YAML file at ``path``; ``name`` is the file's name in messages."""
    text = _text(path, Place(name))
    place = Place(name)
    try:
        _scan(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ProfileError(place, "the file holds no document")
        return _Builder(name).build(root, "", place)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ProfileError(_place(name, mark), f"not YAML: {error.problem or error.context}") from error
    except RecursionError as error:
        raise ProfileError(place, "an alias stands inside what it stands for") from error
    except yaml.YAMLError as error:
        raise ProfileError(place, f"not YAML: {error}") from error


def built_in(*schemas: str) -> dict[str, Traversable]:
    """Return the YAML files that come with the package, by name: those of one of ``schemas``."""
    files = sorted(importlib.resources.files("profiles").iterdir(), key=lambda file: file.name)
    found = {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
    return {name: file for name, file in found.items() if _schema(file) in schemas}


def _schema(file: Traversable) -> str:
    """Return what the line ``schema: …`` of one of our own files says."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("schema:")), "")


def opened(name: str, known: Mapping[str, Traversable]) -> tuple[Value, str]:
    """Return the document called ``name``, one of ``known`` or the path of a file, and the name without its suffix.

    Raises `Refusal` where there is none, and `ProfileError` as `read` does.
    """
    if name in known:
        with importlib.resources.as_file(known[name]) as path:
            return read(path, path.name), name
    path = Path(name)
    if not _exists(path):
        near = catalog.suggest(name, known)
        hint = f"did you mean {near}?" if near else f"built in are {', '.join(known)}"
        raise Refusal(f"there is no profile {name!r}, nor a file of that name; {hint}")
    return read(path, name), path.stem


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _text(path: Path, place: Place) -> str:
    """Read a regular file, no more of it than is admitted."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ProfileError(place, "not a regular file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ProfileError(place, f"larger than {MOST_BYTES // 1024} KiB, the most that a profile may have")
        return data.decode("utf-8")
    except OSError as error:
        raise ProfileError(place, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(place, f"not UTF-8 text at byte {error.start}") from error


def _scan(text: str, name: str) -> None:
    """Walk the parser's events, which costs no memory, and refuse what would explode when built."""
    depth = aliases = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        for found, most, what in (
            (count, MOST_EVENTS, "pieces"),
            (depth, DEEPEST, "levels"),
            (aliases, MOST_ALIASES, "aliases"),
            (documents, 1, "document"),
        ):
            if found > most:
                raise ProfileError(_place(name, event.start_mark), f"more than {most:,} {what}")


@dataclass(frozen=True)
class _Builder:
    """Turns nodes into values, without the constructors of PyYAML that merge, overwrite and guess dates."""

    file: str

    def build(self, node: yaml.Node, path: str, place: Place) -> Value:
        if isinstance(node, yaml.MappingNode):
            self._refuse_tag(node, "map", path)
            return Value(dict(self._pairs(node, path)), place, path)
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, "seq", path)
            items = [
                self.build(item, f"{path}[{i}]", _place(self.file, item.start_mark))
                for i, item in enumerate(node.value)
            ]
            return Value(items, place, path)
        return Value(self._scalar(node, path), place, path)

    def _pairs(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, Value]]:
        seen = set()
        for key, child in node.value:
            place = _place(self.file, key.start_mark)
            if key.tag != f"{_TAG}str":
                what = "merge keys (<<) are not admitted" if key.tag == f"{_TAG}merge" else "a key must be text"
                raise ProfileError(place, f"{path}: {what}" if path else what)
            name = key.value.replace("-", "_")
            below = f"{path}.{name}" if path else name
            if name in seen:
                raise ProfileError(place, f"{below} is given twice")
            seen.add(name)
            yield name, self.build(child, below, place)

    def _scalar(self, node: yaml.Node, path: str) -> Any:
        place = _place(self.file, node.start_mark)
        kind = node.tag.removeprefix(_TAG)
        if kind not in _SCALARS:
            raise ProfileError(place, f"{path}: {kind} values are not admitted; quote it if it is text")
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (ValueError, KeyError, TypeError, OverflowError, yaml.YAMLError) as error:
            raise ProfileError(place, f"{path}: {str(node.value)[:40]!r} is no {kind}") from error
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ProfileError(place, f"{path}: {str(node.value)[:40]!r} is an integer beyond all use")
        if isinstance(value, float) and not math.isfinite(value):
            raise ProfileError(place, f"{path}: {node.value} is not a finite number")
        return value

    def _refuse_tag(self, node: yaml.Node, kind: str, path: str) -> None:
        if node.tag != _TAG + kind:
            raise ProfileError(_place(self.file, node.start_mark), f"{path}: the tag {node.tag} is not admitted")


def _place(name: str, mark: Any) -> Place:
    """The place of PyYAML's mark, which counts from 0; the start of the file without one."""
    return Place(name) if mark is None else Place(name, mark.line + 1, mark.column + 1)


def per_axis(value: Value) -> tuple[int, ...] | None:
    """Return a list of several integers, an option's one number per axis, as a tuple; None for anything else."""
    items = [each.value for each in value.value] if isinstance(value.value, list) else []
    return tuple(items) if len(items) > 1 and all(type(item) is int for item in items) else None
