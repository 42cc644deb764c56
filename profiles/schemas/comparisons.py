"""The documents of `stones diff` and `stones doctor`."""

from __future__ import annotations

from profiles.schemas.inspections import INSPECT
from profiles.schemas.measurements import CEILINGS, ENVIRONMENT
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    EXPECTED,
    NUMBER,
    SHAPE,
    STRING,
    VALUE,
    Schema,
    about,
    array,
    document,
    embedded,
    nullable,
    record,
    word,
)
from profiles.speed.findings import Grade

_ANYTHING = about({}, "the value in the result, of any type")
_OF_TECHNIQUES = {
    "names": about(array(STRING, minItems=2, maxItems=2), "as they were named"),
    "input": INSPECT["properties"]["input"],
    "left": embedded(INSPECT),
    "right": embedded(INSPECT),
    "claims": about(array(nullable(STRING), minItems=2, maxItems=2), "for what the invariances are claimed"),
    "rows": array(
        record(
            {
                "section": word("technique", "option", "cost", "statistic", "buffer", "state", "invariance"),
                "name": STRING,
                "left": about(VALUE, "null where it does not have it"),
                "right": about(VALUE, "null where it does not have it"),
                "ratio": about(nullable(NUMBER), "right / left, of counters"),
                "same": BOOLEAN,
            }
        )
    ),
    "differing": about(COUNT, "how many rows are not the same"),
}
_OF_RESULTS = {
    "results": about(STRING, "the schema of both"),
    "old": about(STRING, "where it was read"),
    "new": about(STRING, "where it was read"),
    "circumstances": array(record({"name": STRING, "old": _ANYTHING, "new": _ANYTHING})),
    "changes": array(
        record(
            {
                "path": STRING,
                "change": word("changed", "added", "removed"),
                "old": _ANYTHING,
                "new": _ANYTHING,
                "binding": about(BOOLEAN, "whether --gate fails for it"),
            }
        )
    ),
    "times": array(
        record(
            {
                "case": STRING,
                "direction": STRING,
                "of": STRING,
                "vs": about(
                    nullable(STRING), "the reference in the same run that divides it, null for the time itself"
                ),
                "unit": STRING,
                "old": nullable(NUMBER),
                "new": nullable(NUMBER),
                "ratio": about(nullable(NUMBER), "new / old, null where they do not compare"),
                "ratio_ci95": nullable(array(NUMBER, minItems=2, maxItems=2)),
                "reason": about(nullable(STRING), "why they do not compare"),
            }
        )
    ),
    "binding": about(COUNT, "how many changes bind"),
}
DIFF = document(
    "diff",
    "What `stones diff` prints: two techniques on one input, or what changed between two results.",
    {"of": word("techniques", "results"), **_OF_TECHNIQUES, **_OF_RESULTS, **EXPECTED},
    {*_OF_TECHNIQUES, *_OF_RESULTS, *EXPECTED},
)
DOCTOR = document(
    "doctor",
    "What `stones doctor` prints: whether the machine is fit for measuring.",
    {
        "environment": ENVIRONMENT,
        "budget": about(NUMBER, "seconds for all of it"),
        "findings": array(
            record({"name": STRING, "what": STRING, "found": STRING, "verdict": word(*Grade), "advice": STRING})
        ),
        "noise": array(
            record(
                {
                    "name": STRING,
                    "shape": SHAPE,
                    "ms": about(NUMBER, "median time of a call"),
                    "ratio": about(NUMBER, "of the job to itself, the median of all trials"),
                    "ratio_ci95": about(array(NUMBER, minItems=2, maxItems=2), "the widest of all trials"),
                    "noise_floor": about(NUMBER, "how far it may be from 1, in the worst trial"),
                    "noise_floor_median": NUMBER,
                    "drift": about(NUMBER, "how far the times of the trials lie apart, relative to the least"),
                    "false_alarms": about(COUNT, "trials that would have failed a bar of 5 %"),
                    "trials": COUNT,
                    "rounds": COUNT,
                }
            )
        ),
        "ceilings": about(array(CEILINGS), "of one thread and of all"),
        "smallest_difference": about(nullable(NUMBER), "that a bench here can tell, relative"),
        "verdict": word("ok", "caution", "bad"),
        "summary": STRING,
        "seconds": NUMBER,
        "interrupted": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
DOCUMENTS: tuple[Schema, ...] = (DIFF, DOCTOR)
