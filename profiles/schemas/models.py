"""The documents of `stones inspect` of a technique on a model: what becomes of each parameter."""

from __future__ import annotations

from profiles.schemas.inspections import NAMED, TECHNIQUE
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    EXPECTED,
    NUMBER,
    SHAPE,
    SHAPES,
    STRING,
    Schema,
    about,
    array,
    document,
    nullable,
    record,
)

_TRANSFORM = record({name: of for name, of in NAMED.items() if name != "role"})
TRANSFORM = document(
    "transform",
    "What `stones inspect` prints of a technique that transforms a model: what becomes of each parameter.",
    {
        "technique": _TRANSFORM,
        "batch": SHAPES,
        "model": record({"name": STRING, "modules": COUNT}),
        "params": record(
            {
                **dict.fromkeys(("total", "trainable", "trainable_before", "set", "penalized"), COUNT),
                "tensors": array(
                    record(
                        {
                            "name": STRING,
                            "module": STRING,
                            "shape": SHAPE,
                            "elements": COUNT,
                            **dict.fromkeys(("trainable", "trainable_before", "set", "penalized"), BOOLEAN),
                        }
                    )
                ),
            }
        ),
        "penalty": nullable(NUMBER),
        "buffers_changed": COUNT,
        "ok": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
TOUCHED = document(
    "touched",
    "What `stones inspect --model` prints of a technique on weights: which parameters of the model it is for.",
    {
        "technique": TECHNIQUE,
        "model": record({"name": STRING, "modules": COUNT}),
        "params": record(
            {
                "total": COUNT,
                "tensors": array(
                    record(
                        {
                            "name": STRING,
                            "module": STRING,
                            "shape": SHAPE,
                            "elements": COUNT,
                            "kind": STRING,
                            "matrix": about(SHAPES, "groups, outputs, weights of one output"),
                            "touched": BOOLEAN,
                            "reason": STRING,
                            "state": array(record({"name": STRING, "shape": SHAPE, "bytes": COUNT})),
                            "state_bytes": COUNT,
                            "flops": nullable(COUNT),
                        }
                    )
                ),
            }
        ),
        "touched": record(
            {
                "parameters": COUNT,
                "elements": COUNT,
                "share": nullable(NUMBER),
                "state_bytes": COUNT,
                "flops": nullable(COUNT),
            }
        ),
        "ok": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
DOCUMENTS: tuple[Schema, ...] = (TRANSFORM, TOUCHED)
