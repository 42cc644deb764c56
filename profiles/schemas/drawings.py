"""The document of `stones draw`: what was found out about the running layer."""

from __future__ import annotations

from profiles.pictures.path_steps import KINDS
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    INTEGER,
    MODE,
    NUMBER,
    OPTIONS,
    SHAPE,
    STRING,
    Schema,
    about,
    any_of,
    array,
    document,
    record,
    word,
)

_PANEL = {"target": STRING, "shape": SHAPE}
_SOURCED = {"source": STRING, "source_shape": SHAPE}
_SHARING = {
    "sets": about(array(array(INTEGER)), "for each statistic the elements of the source that it is made of"),
    "of": array(INTEGER),
    "disjoint": BOOLEAN,
}
_ORIGIN = {
    "cells": about(array(INTEGER), "for each cell the element of the source in it, from 1; 0 for none"),
    "sides": array(STRING),
    "split": INTEGER,
    "reduced": STRING,
    "whole": BOOLEAN,
}
_CELL = {
    "label": array(STRING),
    "steps": about(array(record({"operation": STRING, "value": NUMBER})), "what was done, in order"),
    "sha256": about(STRING, "of the picture, row by row, red, green and blue"),
}
_SHEET = {
    "image": record({"source": word("built in", "file"), "mode": STRING, "size": SHAPE, "file_size": SHAPE}),
    "rows": array(record({"name": STRING, "cells": array(record(_CELL))})),
}
_STEP = {
    "kind": word(*KINDS),
    "tensors": array(record({"name": STRING, "shape": SHAPE})),
    "reads": about(array(COUNT), "the steps before, from 0, that it is computed from"),
}
DRAW = document(
    "draw",
    "What `stones draw --json` prints: what was found out about the running layer, which the picture shows.",
    {
        "stone": STRING,
        "title": STRING,
        "picture": STRING,
        "options": OPTIONS,
        "input": SHAPE,
        "mode": MODE,
        "seed": INTEGER,
        "panels": array(
            any_of(
                record({"kind": {"const": "sharing"}, **_PANEL, **_SOURCED, **_SHARING}),
                record({"kind": {"const": "origin"}, **_PANEL, **_SOURCED, **_ORIGIN}),
                record({"kind": {"const": "reach"}, **_PANEL, "counts": array(COUNT)}),
                record({"kind": {"const": "sheet"}, **_PANEL, **_SHEET}),
                record({"kind": {"const": "path"}, **_PANEL, **_SOURCED, "steps": array(record(_STEP))}),
            )
        ),
        "caption": STRING,
    },
)
DOCUMENTS: tuple[Schema, ...] = (DRAW,)
