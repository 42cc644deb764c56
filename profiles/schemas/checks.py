"""The documents of the checks: invariances, gradients, identities, what their properties are, a report of all."""

from __future__ import annotations

from profiles.checks.carriers import CARRIERS
from profiles.checks.gradients import GRADIENT_PROPERTIES
from profiles.checks.transformations import PROPERTIES
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    EXPECTED,
    INTEGER,
    MODE,
    NUMBER,
    STRING,
    Schema,
    about,
    array,
    document,
    nullable,
    record,
    word,
)

_INDEX = about(array(INTEGER), "of an element of the output, or of a row or step")


def _cells(name: str, description: str, properties: Schema, counterexample: Schema) -> Schema:
    """Return the document of a table, a row for each of its cells."""
    row = {
        "stone": STRING,
        "row": STRING,
        "weight": about(STRING, "what reparametrizes the weight of the carrier, if anything"),
        "mode": MODE,
        "history": word("frozen", "follow"),
        "property": word(*properties),
        "carrier": word(*CARRIERS),
        "expected": nullable(BOOLEAN),
        "deviation": nullable(NUMBER),
        "within": NUMBER,
        "holds": about(nullable(BOOLEAN), "null where it is unclear or was not measured"),
        "verdict": word("ok", "failed", "n/a", "measured"),
        "reason": STRING,
        "counterexample": nullable(record({"index": _INDEX, **counterexample, "seed": INTEGER})),
    }
    return document(name, description, {"rows": array(record(row)), "ok": BOOLEAN, **EXPECTED}, EXPECTED)


def _properties(name: str, command: str, more: Schema) -> Schema:
    """Return the document that says what properties are."""
    row = {"name": STRING, "title": STRING, "definition": STRING, **more}
    description = f"What `stones {command} --list` prints: what the properties are."
    return document(name, description, {"properties": array(record(row)), **EXPECTED}, EXPECTED)


INVARIANCE = _cells(
    "invariance",
    "What `stones check-invariance` prints: the cells of the table of invariances.",
    PROPERTIES,
    dict.fromkeys(("before", "after", "change"), nullable(NUMBER)),
)
GRADIENTS = _cells(
    "gradients",
    "What `stones check-gradients` prints: the cells of the table of properties of gradients.",
    GRADIENT_PROPERTIES,
    dict.fromkeys(("wanted", "found"), nullable(NUMBER)),
)
_AT = {"deviation": nullable(NUMBER), "index": _INDEX, "left": nullable(NUMBER), "right": nullable(NUMBER)}
IDENTITIES = document(
    "identities",
    "What `stones check-identities` prints: the equations between techniques and how far their sides are apart.",
    {
        "rows": array(
            record(
                {
                    "stone": STRING,
                    "says": STRING,
                    "mode": MODE,
                    "deviation": nullable(NUMBER),
                    "within": NUMBER,
                    "verdict": word("ok", "failed"),
                    "differs": about(STRING, "what is furthest apart: output, input gradient, proof"),
                    "at": nullable(record(_AT)),
                    "reason": STRING,
                }
            )
        ),
        "ok": BOOLEAN,
        **EXPECTED,
    },
    EXPECTED,
)
REPORT = document(
    "report",
    "What `stones report --json` prints: what came of the page that it wrote.",
    {
        "file": STRING,
        "bytes": about(COUNT, "of the file"),
        "techniques": about(COUNT, "on the page, with those that were left out"),
        "benches": COUNT,
        "failed": about(array(STRING), "a sentence for each value that is not as its card says, or claim that fails"),
        "skipped": about(array(record({"name": STRING, "reason": STRING})), "what was refused, and why"),
        "ok": BOOLEAN,
    },
)
DOCUMENTS: tuple[Schema, ...] = (
    INVARIANCE,
    GRADIENTS,
    IDENTITIES,
    REPORT,
    _properties("properties", "check-invariance", {"paper": BOOLEAN}),
    _properties("gradient-properties", "check-gradients", {"invariance": STRING}),
)
