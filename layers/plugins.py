"""Stones from other distributions, by the entry points ``stones.techniques``; no code of theirs runs to find them.

    [project.entry-points."stones.techniques"]
    rms-norm = "stones_example.norm.rms_norm"

The value is the import path of the stone's file, ``package.kind.module``; the name is that of its file, with ``-`` for
``_``. The package is looked for, not imported, and the file below it is read as text, as every stone's is.

Metadata is read here, not by importlib.metadata, whose import alone costs thirty times as much: the same folders and
files, those on ``sys.path``; only what is in an archive is left to it. STONES_NO_PLUGINS, set to anything, turns all
plug-ins off.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from layers.card import Card
from layers.fitting import misfit
from layers.formula import FormulaError
from layers.stone import KINDS, CardError, Origin, Stone, card_line, name_of

GROUP = "stones.techniques"
OFF = "STONES_NO_PLUGINS"


class Entry(NamedTuple):
    """One entry point of the group: what it says and which distribution does."""

    name: str
    value: str
    origin: Origin


@dataclass(frozen=True)
class Broken:
    """Plug-ins of one name that do not stand: where they come from, why, and what to do."""

    name: str
    origins: tuple[Origin, ...]
    why: str

    def __str__(self) -> str:
        return f"plug-in {self.name} of {' and '.join(map(str, self.origins))}: {self.why}"


class Found(NamedTuple):
    """The plug-ins that are installed: the stones by name, and what does not stand."""

    stones: tuple[Stone, ...]
    broken: tuple[Broken, ...]


def found(taken: Collection[str]) -> Found:
    """Return the plug-ins whose files and cards are in order and whose names are neither ``taken`` nor given twice."""
    sound: dict[str, list[Stone]] = {}
    broken = []
    for entry in () if os.environ.get(OFF) else entries():
        try:
            sound.setdefault(entry.name, []).append(_stone(entry))
        except Exception as error:  # whatever is wrong with it, the others stand
            said = str(error) if isinstance(error, CardError) else f"{type(error).__name__}: {error}"
            broken.append(Broken(entry.name, (entry.origin,), said.partition("\n")[0]))
    for name, claimed in sound.items():
        origins = tuple(stone.origin for stone in claimed if stone.origin)
        remedy = " or ".join(f"`pip uninstall {each}`" for each in dict.fromkeys(o.distribution for o in origins))
        if name in taken:
            why = f"{name} is a technique of stones itself, and that is meant; rename the plug-in, or {remedy}"
            broken.append(Broken(name, origins, why))
        elif len(claimed) > 1:
            broken.append(Broken(name, origins, f"they have one name, and none of them is meant; {remedy}"))
    stones = [claimed[0] for name, claimed in sorted(sound.items()) if name not in taken and len(claimed) == 1]
    return Found(tuple(stones), tuple(sorted(broken, key=lambda each: each.name)))


def entries() -> Iterator[Entry]:
    """Yield the entry points of every distribution on ``sys.path``; of one that is there twice, the first counts."""
    seen = set()
    for place in dict.fromkeys(sys.path):
        for name, declared in _distributions(place or "."):
            if (key := re.sub(r"[-_.]+", "-", name).lower()) not in seen:
                seen.add(key)
                yield from declared


def _distributions(place: str) -> Iterator[tuple[str, Iterable[Entry]]]:
    """Yield the name of each distribution in a folder or archive, and what it declares, read when it is asked for."""
    try:
        names = sorted(os.listdir(place))  # noqa: PTH208 - as below
    except NotADirectoryError:
        yield from _in_archive(place)
    except OSError:  # Python, too, passes over what it cannot look into
        return
    else:
        for name in names:
            stem, _, ending = name.rpartition(".")
            if ending in ("dist-info", "egg-info"):
                named = Origin(*stem.partition("-")[::2])
                yield named.distribution, _declared(f"{place}/{name}", named)


def _declared(folder: str, named: Origin) -> Iterator[Entry]:
    """Yield what ``folder``, the metadata of one distribution, declares; ``named`` is what its own name says."""
    text = _text(f"{folder}/entry_points.txt")
    if GROUP not in text:
        return
    origin, section = _origin(folder, named), ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[] ")
        elif section == GROUP and line and not line.startswith(("#", ";")):
            name, _, value = map(str.strip, line.partition("="))
            yield Entry(name, value, origin)


def _origin(folder: str, named: Origin) -> Origin:
    """Return the name and version in the head of the metadata, or else those in the name of the folder."""
    head = (_text(f"{folder}/METADATA") or _text(f"{folder}/PKG-INFO")).partition("\n\n")[0]
    fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    return Origin(fields.get("Name", named.distribution).strip(), fields.get("Version", named.version).strip())


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a Path each is half of the time
            return file.read()
    except OSError:
        return ""


def _in_archive(place: str) -> Iterator[tuple[str, Iterable[Entry]]]:
    from importlib.metadata import distributions

    for each in distributions(path=[place]):
        origin = Origin(each.name, each.version)
        yield each.name, [Entry(point.name, point.value, origin) for point in each.entry_points.select(group=GROUP)]


def _stone(entry: Entry) -> Stone:
    """Return the stone of ``entry``, its card read; raises CardError with what is wrong and what to do."""
    name, value, origin = entry
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*){2,}", value):
        raise CardError(f"entry point {name} = {value!r}: package.kind.module is due, the import path of its file")
    *package, kind, stem = value.split(".")
    if kind not in KINDS:
        raise CardError(f"entry point {name} = {value!r}: the folder {kind!r} is none of the kinds {', '.join(KINDS)}")
    if name != (due := name_of(stem).lower()):
        raise CardError(f"entry point {name} = {value!r}: the file {stem}.py is of the name {due}; make them agree")
    stone = Stone(name, kind, _file(entry, package, kind, stem), package=".".join(package), origin=origin)
    if wrong := misfit(stone.card, Card, "card"):
        raise CardError(f"{stone.path}:{card_line(stone.path)}: {wrong}")
    try:
        stone.card.check_formulas()
    except FormulaError as error:
        raise CardError(f"{stone.path}:{card_line(stone.path)}: the card cannot be read: {error}") from error
    return stone


def _file(entry: Entry, package: list[str], kind: str, stem: str) -> Path:
    """Find the stone's file: the package is looked up, not imported, so that none of its code runs."""
    (top, *inner), what = package, f"entry point {entry.name} = {entry.value!r}"
    remedy = f"reinstall or uninstall {entry.origin.distribution}"
    spec = importlib.util.find_spec(top)
    folders = [Path(each).absolute() for each in (spec.submodule_search_locations if spec else None) or ()]
    if not folders:
        raise CardError(f"{what}: Python finds no package {top!r}; {remedy}")
    files = [folder.joinpath(*inner, kind, f"{stem}.py") for folder in folders]
    for file in files:
        if file.is_file():
            return file
    for file in files:
        if archive := next((each for each in file.parents if each.is_file()), None):
            raise CardError(
                f"{what}: it lies in the archive {archive}, but cards are read from files; install it unpacked"
            )
    raise CardError(f"{what}: there is no file {files[0]}; {remedy}")
