"""The YAML profiles that are read: of benches, races and runs. ``-`` and ``_`` are alike in their keys.

A schema cannot say all: that a stone has an option, or a gate an entry, is checked when a profile is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from layers import catalog
from profiles import loading
from profiles.allocator import ALLOCATORS
from profiles.checks.carriers import CARRIERS
from profiles.checks.gradients import GRADIENT_PROPERTIES
from profiles.checks.transformations import PROPERTIES
from profiles.document import built_in
from profiles.fields import CLASS_OF_TORCH, DEVICES, MODES
from profiles.run_profiles import ALL
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    OPTIONS,
    STRING,
    Schema,
    about,
    any_of,
    array,
    document,
    embedded,
    word,
)
from profiles.speed.cases import DIRECTIONS
from profiles.speed.clocks import CLOCKS
from profiles.subject import DTYPES, MEMORY_FORMATS, MOST_TENSORS
from profiles.threads import MOST_THREADS

_STONE = about(any_of(word(*catalog.built_in()), STRING), "a name from `stones list`; case and _ for - are forgiven")
_CLASS = {"type": "string", "pattern": f"^{CLASS_OF_TORCH.pattern}$"}
_RATIO = {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000}
_SETUP = {
    "input": {"type": "string", "pattern": "^[0-9]+(x[0-9]+)+$"},
    "dtype": word(*DTYPES),
    "device": word(*DEVICES),
    "memory_format": word(*MEMORY_FORMATS),
    "mode": word(*MODES),
    "seed": {**COUNT, "exclusiveMaximum": 2**32},
}
_DIRECTIONS = array(word(*DIRECTIONS))


def _spelt(properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return ``properties`` under both spellings of their names."""
    return {spelt: of for name, of in properties.items() for spelt in dict.fromkeys((name, name.replace("_", "-")))}


def _mapping(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    """Return a closed mapping of which only ``required`` must be there, under either spelling."""
    one_of = [any_of(*({"required": [spelt]} for spelt in _spelt({name: {}}))) for name in required if "_" in name]
    plain = [name for name in required if "_" not in name]
    found = {"type": "object", "properties": _spelt(properties), "required": plain, "additionalProperties": False}
    return {**found, **({"allOf": one_of} if one_of else {})}


def _profile(name: str, description: str, properties: Mapping[str, Schema], required: Iterable[str]) -> Schema:
    made = document(name, description, {})
    closed = _mapping({**made["properties"], **properties}, ("schema", *required))
    return {**made, **closed}


_GATE = {
    "of": about(STRING, "the name of an entry"),
    "vs": about(STRING, "copy, peer, the name of another entry, a stone, or a class torch.nn:Name"),
    "direction": word(*DIRECTIONS),
    "max_ratio": _RATIO,
    "advisory": about(BOOLEAN, "whether it only warns"),
}
_RUNNING = {"threads": {"type": "integer", "minimum": 1, "maximum": MOST_THREADS}, "compile": BOOLEAN}
_ENTRY = {"stone": _STONE, "name": STRING, "options": OPTIONS, "directions": _DIRECTIONS, **_SETUP, **_RUNNING}
_ENTRY["tensors"] = about({"type": "integer", "minimum": 1, "maximum": MOST_TENSORS}, "of an optimizer")
PROFILE = _profile(
    "profile",
    "A bench as a YAML file, for `stones bench --profile` and `stones run`: stones, and gates on their times.",
    {
        "defaults": _mapping({**_SETUP, **_RUNNING}),
        "seconds": about({"type": "number", "exclusiveMinimum": 0}, "for each case"),
        "rounds": about({"type": "integer", "minimum": 1}, "at most"),
        "block": about({"type": "number", "exclusiveMinimum": 0}, "least seconds of a sample"),
        "precision": about({"type": "number", "exclusiveMinimum": 0}, "half width at which to stop"),
        "clock": word(*CLOCKS),
        "allocator": word(*ALLOCATORS),
        "roofline": about(BOOLEAN, "whether to look for the ceilings of the machine; true unless it is said"),
        "directions": _DIRECTIONS,
        "stones": array(any_of(_STONE, _mapping(_ENTRY, ["stone"])), minItems=1),
        "gates": array(_mapping(_GATE, ["of", "vs", "max_ratio"])),
    },
    ["stones"],
)
RACE_PROFILE = _profile(
    "race-profile",
    "A race on digits as a YAML file, for `stones race --profile`.",
    {
        **{key: {"type": "integer", "minimum": 1} for key in ("batch", "epochs", "repeats")},
        "seed": COUNT,
        "entrants": about(array(STRING, minItems=1), "as on the command line; of classes only those of torch.optim"),
    },
    ["entrants"],
)


def _section(entry: Schema) -> Schema:
    """Return what a section of a run holds: all, a stone, or a list of these and of entries."""
    named = any_of({"const": ALL}, _STONE)
    return any_of(named, array(any_of(named, entry)))


def _check(properties: Iterable[str]) -> Schema:
    chosen = {"properties": array(word(*properties)), "carriers": array(word(*CARRIERS))}
    return _section(_mapping({"stone": _STONE, **chosen}, ["stone"]))


_EXPECT = about(array(STRING), "what must hold of the JSON document of `stones inspect`, such as params=128")
_INSPECTION = {"stone": any_of(_STONE, _CLASS), "options": OPTIONS, "expect": _EXPECT, **_SETUP}
_INLINE = {name: of for name, of in embedded(PROFILE).items() if name not in ("title", "description")}
RUN = _profile(
    "run",
    "What `stones run` carries out, as a YAML file: inspections with expectations, checks, a bench with gates.",
    {
        "inspect": _section(_mapping(_INSPECTION, ["stone"])),
        "check_invariance": _check(PROPERTIES),
        "check_gradients": _check(GRADIENT_PROPERTIES),
        "check_identities": _section(_mapping({"stone": _STONE}, ["stone"])),
        "bench": any_of(word(*built_in(loading.SCHEMA)), {**_INLINE, "required": ["stones"]}),
    },
    [],
)
DOCUMENTS: tuple[Schema, ...] = (PROFILE, RACE_PROFILE, RUN)
