"""What a layer, or a step on a weight, costs: parameters, state, operations, bytes; the card beside the measurement.

`inspect` returns one JSON-able record. With a card every number is stated by a formula first and measured second; a
difference is listed in ``checks`` and makes ``ok`` false. Nothing of the measured layer's state is changed: it is built
here, and the random number generators are restored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layers import formula
from layers.card import Card, Flops, Stat
from profiles.errors import Refusal
from profiles.subject import Setup, Subject, check_environment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from profiles.flops import Count

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


def inspect(subject: Subject, *, measure: bool = True, fvcore: bool = True) -> Record:
    """Return everything known about ``subject``; with ``measure`` false from the card's formulas alone, without torch.

    Raises `Refusal` when the layer refuses the input and `Unavailable` when device or memory are missing.
    """
    record = _stated(subject)
    if measure:
        check_environment(subject.setup)
        _measure(record, subject, fvcore)
    _total(record)
    if subject.on_weight:
        total, elements = record["flops"]["forward"]["total"], subject.setup.elements
        record["flops"]["per_element"] = None if total is None else round(total / elements, 4)
    record["ok"] = all(check["ok"] for check in record["checks"])
    return record


def _stated(subject: Subject) -> Record:
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
        "notes": [] if card is None or _is_stated(subject) else [UNSTATED],
        "checks": [],
        "measured": False,
    }


def _params(card: Card | None, subject: Subject) -> Record:
    stated = {"formula": card.params, "card": int(formula.evaluate(card.params, subject.symbols))} if card else {}
    return {"total": stated.get("card"), "trainable": None, "bytes": None, **stated, "tensors": []}


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


def _is_stated(subject: Subject) -> bool:
    """Whether the card states executed operations and saved bytes for this setup and these options."""
    setup, symbols = subject.setup, subject.symbols
    usual = (setup.dtype, setup.memory_format, setup.device) == ("float32", "contiguous", "cpu")
    if subject.card is None or not usual:
        return False
    if not subject.on_weight and (symbols["N"] == 0 or symbols["S"] < 2):
        return False
    return bool(formula.evaluate(subject.card.stated, symbols))


def _flops(card: Card | None, subject: Subject) -> Record:
    passes: Record = {}
    for name in ("forward", "backward"):
        stated = getattr(card.flops, name) if card else None
        ours = (getattr(card.executed, name) or stated) if card and _is_stated(subject) else None
        passes[name] = {
            "total": None,
            "formula": stated,
            "card": _evaluate(stated, subject),
            "executed_formula": ours,
            "executed_card": _evaluate(ours, subject),
            "executed": None,
            "macs": None,
            "status": "stated" if card else "unavailable",
            "by_op": {},
            "free": {},
            "uncounted": {},
        }
    explained = card.explained if card else ""
    convention = f"{CONVENTION}; {NOMINAL}" if subject.on_weight else CONVENTION
    return {"convention": convention, **passes, "per_element": None, "fvcore": None, "explained": explained}


def _memory(card: Card | None, subject: Subject) -> Record:
    saved = card.saved if card and _is_stated(subject) else None
    traffic = card.traffic if card else Flops("", "")
    floor = {name: _evaluate(getattr(traffic, name) or None, subject) for name in ("forward", "backward")}
    return {
        "saved": {"formula": saved, "card": _evaluate(saved, subject), "measured": None, "holds_input": None},
        "floor": {"formula": {"forward": traffic.forward, "backward": traffic.backward}, **floor},
        "intensity": {"forward": None, "backward": None},
    }


def _evaluate(text: str | None, subject: Subject) -> int | None:
    return None if text is None else max(0, int(formula.evaluate(text, subject.symbols)))


def _measure(record: Record, subject: Subject, fvcore: bool) -> None:
    """Build the layer, run it forward and backward under observation, and fill in what was seen."""
    import torch

    from profiles.flops import Counting
    from profiles.saved import saving

    module, x = subject.build(), subject.input()
    _parameters(record, module)
    seen = _first_batch(subject, module, x)
    if fvcore and not subject.on_weight:
        from profiles import peers

        record["flops"]["fvcore"] = dict(vars(peers.fvcore(module, x)))
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(subject.setup.seed)
        with _observing(subject) as observed, saving(module) as saved, Counting() as forward:
            y = subject.run(module, x)
        record["output"] = {"shape": list(y.shape), "dtype": str(y.dtype).removeprefix("torch."), "bytes": y.nbytes}
        with subject.refusing("fails in its backward"):
            backward = _backward(y) if y.requires_grad and y.numel() else None
    holds = saved.holds(x)
    kept = saved.bytes - (x.nbytes if subject.on_weight and holds else 0)  # the weight is a parameter, there anyway
    record["memory"]["saved"] |= {"measured": kept, "holds_input": holds}
    _counted(record["flops"]["forward"], forward.count)
    if backward is not None:
        _counted(record["flops"]["backward"], backward)
    _observed(record, {**seen, **observed}, module)
    record["measured"] = True
    _check(record, subject)


def _first_batch(subject: Subject, module: nn.Module, x: Tensor) -> Mapping[str, Tensor]:
    """Let a layer that remembers see one training batch, so that what happens once is not counted as every step.

    Returns the statistics that only this batch shows; none in evaluation.
    """
    import torch

    if not any(True for _ in module.buffers()):
        return {}
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.no_grad():
        torch.manual_seed(subject.setup.seed)
        with _observing(subject) as seen, contextlib.suppress(Refusal):
            subject.run(module.train(), x)
    module.train(subject.setup.train)
    return seen if subject.setup.train else {}


def _backward(y: Tensor) -> Count:
    """Count the backward of ``y`` for a fixed upstream gradient."""
    import torch

    from profiles.backward import loss
    from profiles.flops import Counting

    scalar = loss(y, torch.ones_like(y))
    with Counting() as counting:
        scalar.backward()  # type: ignore[no-untyped-call]
    count: Count = counting.count
    return count


def _observing(subject: Subject) -> Any:
    from layers.observe import observing
    from profiles.watch import watching

    return observing() if subject.card else watching()


def _parameters(record: Record, module: nn.Module) -> None:
    tensors: list[Record] = [
        {"name": name, "shape": list(p.shape), "elements": p.numel(), "bytes": p.nbytes, "trainable": p.requires_grad}
        for name, p in module.named_parameters()
    ]
    record["params"] |= {
        "total": sum(t["elements"] for t in tensors),
        "trainable": sum(t["elements"] for t in tensors if t["trainable"]),
        "bytes": sum(t["bytes"] for t in tensors),
        "tensors": tensors,
    }


def _counted(row: Record, count: Count) -> None:
    row["executed"], row["macs"], row["status"] = count.flops, count.macs, count.status
    for name in ("by_op", "free", "uncounted"):
        row[name] = dict(sorted(getattr(count, name).items()))


def _observed(record: Record, seen: Mapping[str, Tensor], module: nn.Module) -> None:
    """Put the shapes seen beside the shapes stated; what the card does not name is added without a card shape."""
    from profiles.adapters import state_of

    kept = module.state_dict()
    buffers = {name: tensor for name, tensor in module.named_buffers() if name in kept}
    state = state_of(module)
    kept = kept | state
    for rows, tensors in ((record["stats"], seen), (record["buffers"]["tensors"], buffers), (record["state"], state)):
        stated = {row["name"] for row in rows}
        for name in tensors:
            if name not in stated:
                rows.append({"name": name, "symbolic": None, "formula": None, "card": None, "help": ""})
        for row in rows:
            tensor = tensors.get(row["name"])
            row["observed"] = None if tensor is None else list(tensor.shape)
            row["shape"] = row["observed"] or row["card"] or []
            row["bytes"] = None if tensor is None else tensor.nbytes
            row["kept"] = row["name"] in kept
    record["buffers"] |= {
        "total": sum(t.numel() for t in buffers.values()),
        "bytes": sum(t.nbytes for t in buffers.values()),
    }


def _check(record: Record, subject: Subject) -> None:
    """Compare every stated number with the measured one."""
    if subject.card is None:
        return
    checks = record["checks"]

    def compare(what: str, card: Any, measured: Any) -> None:
        checks.append({"what": what, "card": card, "measured": measured, "ok": card == measured})

    compare("params", record["params"]["card"], record["params"]["total"])
    tensors = (("stats", record["stats"]), ("buffers", record["buffers"]["tensors"]), ("state", record["state"]))
    for where, rows in tensors:
        for row in rows:
            compare(f"{where}.{row['name']}.shape", row["card"], row["observed"])
    if not _is_stated(subject):
        return
    for name in ("forward", "backward") if subject.has_backward else ("forward",):
        row = record["flops"][name]
        compare(f"flops.{name}.executed", row["executed_card"], row["executed"])
    if subject.setup.train:
        compare("memory.saved", record["memory"]["saved"]["card"], record["memory"]["saved"]["measured"])


def _total(record: Record) -> None:
    """Settle the headline numbers: operations of the definition where a card states them, else those executed."""
    for name in ("forward", "backward"):
        row = record["flops"][name]
        row["total"] = row["card"] if row["card"] is not None else row["executed"]
        floor = record["memory"]["floor"][name]
        if row["total"] is not None and floor:
            record["memory"]["intensity"][name] = round(row["total"] / floor, 4)


__all__ = ["CONVENTION", "SCHEMA", "Record", "Setup", "inspect"]
