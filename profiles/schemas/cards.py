"""The documents that tell what cards say: list, show; and the list of the schemas themselves."""

from __future__ import annotations

from layers.card import CARRIERS, ROLES
from layers.catalog import KINDS
from profiles.schemas.vocabulary import (
    BOOLEAN,
    COUNT,
    EXPECTED,
    INTEGER,
    MODE,
    NUMBER,
    OPTIONS,
    STRING,
    VALUE,
    Schema,
    about,
    array,
    document,
    mapping,
    nullable,
    record,
    word,
)

_FORMULA = about(STRING, "a formula over the sizes of the input and the options")
_FLOPS = record({"forward": _FORMULA, "backward": _FORMULA})
_ENTRY = {
    "name": STRING,
    "kind": word(*KINDS),
    "title": STRING,
    "summary": STRING,
    "year": INTEGER,
    "paper": record({"authors": STRING, "title": STRING, "venue": STRING, "arxiv": STRING}),
    "origin": about(nullable(record({"distribution": STRING, "version": STRING})), "of a plug-in; null for our own"),
}
_STATS = array(
    record({"name": STRING, "symbolic": STRING, "shape": array(_FORMULA), "given": _FORMULA, "help": STRING})
)
_OPTION = {
    "type": word("int", "float", "bool", "str"),
    "name": STRING,
    "default": VALUE,
    "help": STRING,
    **{bound: nullable(NUMBER) for bound in ("ge", "gt", "le", "lt")},
    "choices": array(STRING),
    "optional": about(BOOLEAN, "whether null is admitted"),
    "axes": about(COUNT, "how many axes have a number each, 0 for a plain value"),
    "source": STRING,
}
_CLAIM = {
    "holds": about(array(STRING), "a property, on every carrier or after @ on those named"),
    "row": STRING,
    "options": OPTIONS,
    "mode": MODE,
    "history": word("frozen", "follow"),
    "carriers": array(word(*CARRIERS)),
    "weight": STRING,
    "why": STRING,
}
_IDENTITY = {
    "says": STRING,
    "equals": STRING,
    "proof": STRING,
    "options": OPTIONS,
    "other": OPTIONS,
    "mode": MODE,
    "dims": mapping(COUNT),
    "within": NUMBER,
}
_RACE = {
    "says": STRING,
    "problem": STRING,
    "measure": STRING,
    "expected": NUMBER,
    "steps": COUNT,
    "within": NUMBER,
    "options": OPTIONS,
}

LIST = document(
    "list",
    "What `stones list --json` prints: the techniques.",
    {"techniques": array(record(_ENTRY)), **EXPECTED},
    EXPECTED,
)
SHOW = document(
    "show",
    "What `stones show NAME --json` prints: the card of a technique.",
    {
        **_ENTRY,
        "formula": STRING,
        "options": array(record(_OPTION)),
        "rules": about(array(_FORMULA), "what must be true of sizes and options"),
        "derived": mapping(_FORMULA),
        "statistics": about(_STATS, "tensors computed in a forward"),
        "buffers": about(_STATS, "tensors kept in the state_dict beside the parameters"),
        "state": about(_STATS, "tensors that an optimizer keeps per parameter"),
        "role": word(*ROLES),
        "ranks": about(array(COUNT), "how many axes an input may have"),
        "params": about(_FORMULA, "number of parameters"),
        "flops": about(_FLOPS, "operations of the definition: every one 1, a multiply-add 2"),
        "executed": about(_FLOPS, "operations that this implementation executes"),
        "explained": STRING,
        "saved": about(_FORMULA, "bytes kept for backward beside parameters and buffers"),
        "workspace": nullable(about(_FORMULA, "bytes a forward without a graph allocates beside its output")),
        "stated": about(_FORMULA, "where executed and saved are stated"),
        "traffic": about(_FLOPS, "fewest bytes moved"),
        "couples": word("never", "train", "always"),
        "eval_differs": _FORMULA,
        "exact_gradient": _FORMULA,
        "derivable": _FORMULA,
        "remembers": _FORMULA,
        "claims": array(record(_CLAIM)),
        "identities": array(record(_IDENTITY)),
        "races": array(record(_RACE)),
        "peer": nullable(STRING),
        "notes": array(STRING),
        "picture": array(STRING),
        "caution": nullable(STRING),
        **EXPECTED,
    },
    EXPECTED,
)
SCHEMAS = document(
    "schemas",
    "What `stones schema --json` prints: which schemas there are.",
    {"schemas": array(record({"name": STRING, "of": STRING, "description": STRING}))},
)
DOCUMENTS: tuple[Schema, ...] = (LIST, SHOW, SCHEMAS)
