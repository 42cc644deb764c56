"""The documents of `stones inspect`, one for each thing that can be inspected."""

from __future__ import annotations

from layers.card import ROLES
from layers.catalog import KINDS
from profiles.schemas.peers import PEERS
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    EXPECTED,
    MODE,
    NUMBER,
    OPTIONS,
    SHAPE,
    SHAPES,
    STRING,
    Schema,
    about,
    any_of,
    array,
    document,
    mapping,
    nullable,
    record,
    word,
)
from profiles.subject import DTYPES, MEMORY_FORMATS

_COUNTED = nullable(COUNT)
NAMED = {"name": STRING, "title": STRING, "kind": word(*KINDS, "class"), "role": word(*ROLES), "options": OPTIONS}
TECHNIQUE = record(NAMED)
_OUTPUT = nullable(record({"shape": SHAPE, "dtype": STRING, "bytes": COUNT}))
_COMPARED = any_of(SHAPES, {"type": ["string", "boolean", "integer", "null"]})
_CHECKS = about(
    array(record({"what": STRING, "card": _COMPARED, "measured": _COMPARED, "ok": BOOLEAN})),
    "every number of the card that was measured too",
)
_PARAMETER = {"name": STRING, "shape": SHAPE, "elements": COUNT, "bytes": COUNT, "trainable": BOOLEAN}
_TENSORS = array(
    record(
        {
            "name": STRING,
            "symbolic": nullable(STRING),
            "formula": nullable(STRING),
            "card": SHAPES,
            "shape": SHAPE,
            "observed": SHAPES,
            "bytes": _COUNTED,
            "help": STRING,
            "kept": about(BOOLEAN, "whether it is in the state_dict"),
        },
        ("kept",),
    )
)
_BY_NAME = about(mapping(COUNT), "by name of the operation of torch")
_PASS = record(
    {
        "total": about(_COUNTED, "of the definition where the card states it, else executed"),
        "formula": nullable(STRING),
        "card": about(_COUNTED, "the formula at these sizes"),
        "executed_formula": nullable(STRING),
        "executed_card": _COUNTED,
        "executed": _COUNTED,
        "macs": about(_COUNTED, "multiply-adds among those executed"),
        "status": word("complete", "partial", "stated", "unavailable"),
        "kernels": about(_COUNTED, "calls that compute, move or draw something: all but views and allocations"),
        "by_op": _BY_NAME,
        "free": about(mapping(COUNT), "calls that compute nothing"),
        "uncounted": about(mapping(COUNT), "calls that could not be counted: then executed is a lower bound"),
    }
)
_FVCORE = record(
    {
        "value": _COUNTED,
        "unit": STRING,
        "status": STRING,
        "version": STRING,
        "by_op": _BY_NAME,
        "uncounted": mapping(COUNT),
        "error": STRING,
    }
)
_BOTH = record({"forward": _COUNTED, "backward": _COUNTED})
_MEMORY = record(
    {
        "saved": about(
            record(
                {
                    "formula": nullable(STRING),
                    "card": _COUNTED,
                    "measured": _COUNTED,
                    "holds_input": nullable(BOOLEAN),
                }
            ),
            "bytes kept for backward beside parameters and buffers",
        ),
        "workspace": about(
            record({"formula": nullable(STRING), "card": _COUNTED, "measured": _COUNTED, "backward": _COUNTED}),
            "bytes allocated beside the result",
        ),
        "floor": about(
            record({"formula": record({"forward": STRING, "backward": STRING}), **_BOTH["properties"]}),
            "fewest bytes moved",
        ),
        "intensity": about(
            record({"forward": nullable(NUMBER), "backward": nullable(NUMBER)}), "FLOPs per byte of the floor"
        ),
    }
)

_THREE = record({"definition": NUMBER, "executed": NUMBER, "measured": NUMBER})
_SAVINGS = about(
    nullable(
        record(
            {
                "peer": STRING,
                "share": about(NUMBER, "of the training time spent in such backwards"),
                "flops": record({"dense": COUNT, "definition": COUNT, "executed": COUNT}),
                "ratio": about(_THREE, "to the dense backward, of operations and of time"),
                "bound": about(_THREE, "times as fast as the training gets, by Amdahl's law"),
                "measured": record(
                    {
                        "ratio": NUMBER,
                        "low": NUMBER,
                        "high": NUMBER,
                        "noise": NUMBER,
                        "rounds": COUNT,
                        "clock": STRING,
                    }
                ),
                "says": STRING,
            }
        )
    ),
    "what a rule for the backward saves",
)

_COSTS = {
    "params": COUNT,
    "flops_forward": COUNT,
    "macs_forward": COUNT,
    "flops_backward": _COUNTED,
    "macs_backward": _COUNTED,
    "saved": about(COUNT, "bytes kept for backward"),
}
_MODULES = about(
    nullable(
        record(
            {
                "depth": _COUNTED,
                "rows": about(
                    array(
                        record(
                            {
                                "name": about(STRING, "as in named_modules(): of the model itself empty"),
                                "type": STRING,
                                "depth": COUNT,
                                "also": about(array(STRING), "its other names"),
                                "calls": COUNT,
                                "outputs": about(array(SHAPE), "of the last call, one shape for each tensor"),
                                **_COSTS,
                                "uncounted": record(dict.fromkeys(("forward", "backward"), mapping(COUNT))),
                                "folded": about(BOOLEAN, "whether the row stands for the modules in it too"),
                                "within": about(record(_COSTS), "the module and all that are in it, by name"),
                            }
                        )
                    ),
                    "what each module costs outside those that it calls",
                ),
                "total": record(_COSTS),
            }
        )
    ),
    "the costs by module, under --modules",
)

INSPECT = document(
    "inspect",
    "What `stones inspect` prints of a layer, or of what works on one weight: the card beside what was measured.",
    {
        "technique": record({**NAMED, "mode": MODE}),
        "input": record(
            {
                "shape": SHAPE,
                "dtype": word(*DTYPES),
                "device": STRING,
                "memory_format": word(*MEMORY_FORMATS),
                "elements": COUNT,
                "bytes": COUNT,
            }
        ),
        "output": _OUTPUT,
        "params": record(
            {
                "total": _COUNTED,
                "trainable": _COUNTED,
                "bytes": _COUNTED,
                "formula": STRING,
                "card": COUNT,
                "tensors": array(record(_PARAMETER)),
            },
            ("formula", "card"),
        ),
        "buffers": record({"total": _COUNTED, "bytes": _COUNTED, "tensors": _TENSORS}),
        "state": _TENSORS,
        "stats": _TENSORS,
        "flops": record(
            {
                "convention": STRING,
                "forward": _PASS,
                "backward": _PASS,
                "per_element": nullable(NUMBER),
                "fvcore": nullable(_FVCORE),
                "explained": STRING,
            }
        ),
        "backward_savings": _SAVINGS,
        "peers": PEERS,
        "memory": _MEMORY,
        "modules": _MODULES,
        "notes": array(STRING),
        "checks": _CHECKS,
        "measured": BOOLEAN,
        "ok": about(BOOLEAN, "whether all checks are"),
        **EXPECTED,
    },
    EXPECTED,
)
AUGMENTATION = document(
    "augmentation",
    "What `stones inspect` prints of an augmentation: its policy, what was drawn, whether Pillow agrees.",
    {
        "technique": TECHNIQUE,
        "input": record({"shape": SHAPE, "dtype": STRING, "device": STRING, "bytes": COUNT}),
        "output": _OUTPUT,
        "policy": array(
            array(
                record(
                    {"operation": STRING, "probability": NUMBER, "magnitude": nullable(NUMBER), "values": array(NUMBER)}
                )
            )
        ),
        "different": COUNT,
        "expected": record({"operations": NUMBER, "shares": mapping(NUMBER), "bytes": COUNT}),
        "flops": {"type": "null"},
        "flops_reason": STRING,
        "drawn": nullable(record({"operations": mapping(COUNT), "images_by_operations": mapping(COUNT)})),
        "pillow": nullable(record({"version": STRING, "images": COUNT, "equal": COUNT})),
        "checks": _CHECKS,
        "measured": BOOLEAN,
        "ok": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
DOCUMENTS: tuple[Schema, ...] = (INSPECT, AUGMENTATION)
