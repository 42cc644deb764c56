"""What a card says of a layer, or of a step on a weight, under a setup: the record of `facts` before it is measured."""

from __future__ import annotations

from typing import Any

from layers import formula
from layers.card import Card, Flops, Stat
from profiles.subject import Subject

SCHEMA = "stones.inspect/1"
CONVENTION = (
    "add = sub = mul = div = cmp = root = 1, multiply-add = 2; normalizations two-pass: 7 per element, 2 per rstd"
)
UNSTATED = (
    "the card states executed operations and saved bytes for float32, contiguous, CPU, 1 sample and 2 positions or "
    "more, and the usual options"
)
NOMINAL = "decompositions nominal: eigenvectors 9n³, thin SVD 6mn² + 20n³, thin QR 4mn² − 4n³/3 (Golub & Van Loan)"
Record = dict[str, Any]


def stated(subject: Subject) -> Record:
    """The record as far as the card tells it; the measured fields are None."""
    card, setup = subject.card, subject.setup
    return {
        "schema": SCHEMA,
        "technique": {
            "name": subject.name,
            "title": card.title if card else subject.name,
            "kind": getattr(subject.target, "kind", "class"),
            "role": subject.role,
            "options": dict(subject.options),
            "mode": "train" if setup.train else "eval",
        },
        "input": {
            "shape": list(setup.shape),
            "dtype": setup.dtype,
            "device": setup.device,
            "memory_format": setup.memory_format,
            "elements": setup.elements,
            "bytes": setup.elements * setup.itemsize,
        },
        "output": None,
        "params": _params(card, subject),
        "buffers": {"total": None, "bytes": None, "tensors": _tensors(card.buffers if card else (), subject)},
        "state": _tensors(card.state if card else (), subject),
        "stats": _tensors(card.statistics if card else (), subject),
        "flops": _flops(card, subject),
        "memory": _memory(card, subject),
        "backward_savings": None,
        "peers": None,
        "modules": None,
        "notes": [] if card is None or is_stated(subject) else [UNSTATED],
        "checks": [],
        "measured": False,
    }


def _params(card: Card | None, subject: Subject) -> Record:
    said = {"formula": card.params, "card": int(formula.evaluate(card.params, subject.symbols))} if card else {}
    return {"total": said.get("card"), "trainable": None, "bytes": None, **said, "tensors": []}


def _tensors(stats: tuple[Stat, ...], subject: Subject) -> list[Record]:
    """One row per statistic or buffer that exists under the setup: symbolic and concrete, not yet observed."""
    rows = []
    for stat in stats:
        shape = stat.at(subject.symbols)
        if shape is not None:
            where = "×".join(formula.pretty(size) for size in stat.shape) or "scalar"
            row = {"name": stat.name, "symbolic": stat.symbolic(), "formula": where, "card": list(shape)}
            rows.append({**row, "shape": list(shape), "observed": None, "bytes": None, "help": stat.help})
    return rows


def is_stated(subject: Subject) -> bool:
    """Whether the card states executed operations and saved bytes for this setup and these options."""
    setup, symbols = subject.setup, subject.symbols
    usual = (setup.dtype, setup.memory_format, setup.device) == ("float32", "contiguous", "cpu")
    if subject.card is None or not usual:
        return False
    positions = 1 if subject.card.ranks == (2,) else 2
    if not subject.on_weight and (symbols["N"] == 0 or symbols["S"] < positions):
        return False
    return bool(formula.evaluate(subject.card.stated, symbols))


def _flops(card: Card | None, subject: Subject) -> Record:
    passes: Record = {}
    for name in ("forward", "backward"):
        definition = getattr(card.flops, name) if card else None
        ours = (getattr(card.executed, name) or definition) if card and is_stated(subject) else None
        passes[name] = {
            "total": None,
            "formula": definition,
            "card": _evaluate(definition, subject),
            "executed_formula": ours,
            "executed_card": _evaluate(ours, subject),
            "executed": None,
            "macs": None,
            "status": "stated" if card else "unavailable",
            "kernels": None,
            "by_op": {},
            "free": {},
            "uncounted": {},
        }
    explained = card.explained if card else ""
    convention = f"{CONVENTION}; {NOMINAL}" if subject.on_weight else CONVENTION
    return {"convention": convention, **passes, "per_element": None, "fvcore": None, "explained": explained}


def _memory(card: Card | None, subject: Subject) -> Record:
    saved = card.saved if card and is_stated(subject) else None
    traffic = card.traffic if card else Flops("", "")
    floor = {name: _evaluate(getattr(traffic, name) or None, subject) for name in ("forward", "backward")}
    return {
        "saved": {"formula": saved, "card": _evaluate(saved, subject), "measured": None, "holds_input": None},
        "workspace": _workspace(card, subject),
        "floor": {"formula": {"forward": traffic.forward, "backward": traffic.backward}, **floor},
        "intensity": {"forward": None, "backward": None},
    }


def _workspace(card: Card | None, subject: Subject) -> Record:
    """The bytes that a forward allocates beside its output, where the card states them: on the CPU, not half."""
    setup = subject.setup
    usual = setup.device == "cpu" and setup.dtype in ("float32", "float64") and setup.elements > 0
    text = card.workspace if card and usual and card.workspace else None
    return {"formula": text, "card": _evaluate(text, subject), "measured": None, "backward": None}


def _evaluate(text: str | None, subject: Subject) -> int | None:
    found = None if text is None else formula.evaluate(text, subject.symbols)
    return None if found is None else max(0, int(found))
