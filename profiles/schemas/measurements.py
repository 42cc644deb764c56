"""The documents of `bench`, `race` and `draw`, and of `run`, which contains others."""

from __future__ import annotations

from profiles.run import VERDICTS
from profiles.run_profiles import CHECKS
from profiles.schemas.inspections import AUGMENTATION, INSPECT
from profiles.schemas.models import TRANSFORM
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    EXPECTED,
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
    embedded,
    mapping,
    nullable,
    record,
    word,
)
from profiles.speed.cases import DIRECTIONS
from profiles.speed.ceilings import BOUNDS, PRODUCTS, WHERE

INTERVAL = about(array(NUMBER, minItems=2, maxItems=2), "95 % confidence interval")
_VERDICT = nullable(STRING)
_WARNINGS = array(record({"code": STRING, "about": STRING, "message": STRING, "advice": STRING}))
ENVIRONMENT = record(
    {
        "python": STRING,
        "torch": nullable(STRING),
        "platform": STRING,
        "cpu": nullable(STRING),
        "cores": COUNT,
        "threads": nullable(COUNT),
        "load": about(nullable(NUMBER), "mean number of running processes in the last minute"),
        "governor": nullable(STRING),
        "allocator": STRING,
        "device": STRING,
        "gpu": nullable(STRING),
    }
)
_CANDIDATE = {
    "name": STRING,
    "role": word("stone", "reference", "yardstick", "copy"),
    "ms": about(NUMBER, "median time of a call"),
    "ms_ci95": INTERVAL,
    "iqr_ms": about(NUMBER, "interquartile range"),
    "min_ms": NUMBER,
    "copies": about(NUMBER, "multiple of the copy's time"),
    "gb_per_s": about(nullable(NUMBER), "of the fewest bytes"),
    "of_copy_bandwidth": nullable(NUMBER),
    "images_per_s": nullable(NUMBER),
    "gflop_per_s": about(nullable(NUMBER), "of the definition"),
    "calls": about(COUNT, "in each sample"),
    "samples_ns": about(array(INTEGER), "per call, a sample a round"),
    "workspace_bytes": about(COUNT, "allocated at once by a call, beside what it returns and keeps"),
    "peak_bytes": about(COUNT, "allocated at once by a call"),
    "compile_s": about(nullable(NUMBER), "what torch.compile took; null where it was not asked for"),
    "spread_ms": about(
        nullable(NUMBER), "of a call, slowest rank less fastest, median over the rounds; null: one rank"
    ),
    "slowest_rank": about(nullable(COUNT), "the rank that was slowest in most rounds"),
    "communication": about(
        nullable(record({"collectives": COUNT, "bytes": COUNT, "ms": NUMBER, "share": NUMBER})),
        "what a call sends to other ranks: how often, bytes that a rank hands over, time of that alone (slowest rank) "
        "and its share of the call's",
    ),
    "of_roofline": about(nullable(NUMBER), "the least time by the time; null for yardsticks, and if that is 0"),
}
_RATIO = {
    "of": STRING,
    "vs": STRING,
    "ratio": about(NUMBER, "median over the rounds"),
    "ratio_ci95": INTERVAL,
    "noise_floor": about(NUMBER, "what the same code differs from itself"),
    "max_ratio": nullable(NUMBER),
    "advisory": nullable(BOOLEAN),
    "verdict": about(_VERDICT, "pass, fail, inconclusive; null without a bar"),
}
_ROOFLINE = {
    "bytes": about(COUNT, "the fewest moved"),
    "written_bytes": about(COUNT, "of these"),
    "flops": about(COUNT, "of the definition; executed ones of a class"),
    "working_set_bytes": about(COUNT, "of different memory that is touched"),
    "floor_ms": about(NUMBER, "the largest of the three"),
    "bound": word(*BOUNDS),
    "memory_ms": about(NUMBER, "for the bytes"),
    "arithmetic_ms": about(NUMBER, "for the operations"),
    "call_ms": about(NUMBER, "for the smallest call"),
}
_RUNG = {
    "bytes": about(COUNT, "working set"),
    "copy_gb_per_s": about(NUMBER, "2 bytes moved for each that is copied"),
    "read_gb_per_s": NUMBER,
}
_KIND_SCHEMAS = {str: STRING, int: COUNT}
CEILINGS = record(
    {
        **{name: nullable(_KIND_SCHEMAS[kind]) for name, kind in WHERE.items()},
        "measured": about(STRING, "when"),
        "disturbed": about(BOOLEAN, "whether others took the processor away meanwhile"),
        "ladder": array(record(_RUNG)),
        "gflop_per_s": about(record(dict.fromkeys(PRODUCTS, NUMBER), PRODUCTS), "products of matrices, by dtype"),
        "call_ms": about(NUMBER, "one operation on one element through a module"),
    }
)
_CASE = record(
    {
        "name": STRING,
        "stone": STRING,
        "options": OPTIONS,
        "direction": word(*DIRECTIONS),
        "mode": MODE,
        "input": record({"shape": SHAPE, "tensors": COUNT, "dtype": STRING, "memory_format": STRING}),
        "compiled": BOOLEAN,
        "cuda_graph": about(BOOLEAN, "whether calls were replayed from CUDA graphs"),
        "threads": COUNT,
        "at": about(nullable(record({"axis": STRING, "value": {}})), "the point of the sweep"),
        "candidates": array(record(_CANDIDATE)),
        "roofline": about(nullable(record(_ROOFLINE)), "the least time on this machine; null where not looked for"),
        "ratios": array(record(_RATIO)),
        "attempts": about(COUNT, "2 where a binding gate failed at first"),
        "earlier": about(array(record(_RATIO)), "what the first attempt found"),
        "warnings": _WARNINGS,
        "rounds": COUNT,
        "repeated_blocks": COUNT,
        "seconds": NUMBER,
        "settled": BOOLEAN,
    }
)
_PLAN = {
    "seconds": NUMBER,
    "rounds": COUNT,
    "block": NUMBER,
    "precision": NUMBER,
    "seed": INTEGER,
    "clock": STRING,
    "cache": nullable(STRING),
}
_BENCH = {
    "profile": nullable(STRING),
    "environment": ENVIRONMENT,
    "plan": record(_PLAN),
    "sweep": nullable(record({"axis": STRING, "values": array({})})),
    "ranks": about(
        nullable(record({"world_size": COUNT, "backend": STRING})),
        "the processes that ran together, each on a batch of its own of the shape given; times are of the slowest",
    ),
    "ceilings": about(array(CEILINGS), "of the machine, for each number of threads"),
    "cases": array(_CASE),
    "skipped": array(record({"name": STRING, "reason": STRING})),
    "warnings": _WARNINGS,
    "verdict": about(_VERDICT, "of all binding gates together"),
    "interrupted": BOOLEAN,
}
BENCH = document(
    "bench",
    "What `stones bench` prints: times beside those of references and a copy, and what gates make of the ratios.",
    {**_BENCH, **EXPECTED},
    EXPECTED,
)

_POINT = about(mapping(nullable(NUMBER)), "the step, and what was read off after it, by the name of the measure")
RACE = document(
    "race",
    "What `stones race --problem` prints: the trajectory of every entrant.",
    {
        "problem": record(
            {"name": STRING, "says": STRING, "measures": array(STRING), "settings": mapping(nullable(NUMBER))}
        ),
        "entrants": array(
            record(
                {
                    "entrant": STRING,
                    "options": mapping({}),
                    "points": array(_POINT),
                    "end": nullable(_POINT),
                    "diverged": about(nullable(COUNT), "the step at which it left the numbers"),
                }
            )
        ),
        "interrupted": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
RACES = document(
    "races",
    "What `stones race` prints: what became of the races that cards state.",
    {
        "races": array(
            record(
                {
                    "stone": STRING,
                    "says": STRING,
                    "problem": STRING,
                    "options": OPTIONS,
                    "steps": COUNT,
                    "measure": STRING,
                    "expected": NUMBER,
                    "within": NUMBER,
                    "found": nullable(NUMBER),
                    "ok": BOOLEAN,
                }
            )
        ),
        "ok": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)

RUN_RESULT = document(
    "run-result",
    "What `stones run` prints: what became of every item of a profile.",
    {
        "profile": nullable(STRING),
        "rows": array(
            record(
                {
                    "section": word("inspect", *CHECKS, "bench"),
                    "name": STRING,
                    "verdict": word(*VERDICTS),
                    "reasons": array(STRING),
                    "place": record({"file": STRING, "line": COUNT, "column": COUNT}),
                    "record": about(
                        any_of({"type": "null"}, *map(embedded, (INSPECT, TRANSFORM, AUGMENTATION)), _CASE),
                        "what `stones inspect` would print, or a case of `stones bench`",
                    ),
                }
            )
        ),
        "counts": record(dict.fromkeys(VERDICTS, COUNT)),
        "bench": nullable(
            record({"schema": {"const": "stones.bench/1"}} | {k: v for k, v in _BENCH.items() if k != "cases"})
        ),
        "ok": BOOLEAN,
        "interrupted": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
KEPT_CEILINGS = document(
    "ceilings",
    "The file ceilings.json in the cache: the ceilings of machines, the newest first.",
    {"machines": array(CEILINGS)},
)
DOCUMENTS: tuple[Schema, ...] = (BENCH, RACE, RACES, RUN_RESULT, KEPT_CEILINGS)
