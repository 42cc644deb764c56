"""What a layer, or a step on a weight, costs: parameters, state, operations, bytes; the card beside the measurement.

`inspect` returns one JSON-able record. With a card every number is stated by a formula first and measured second; a
difference is listed in ``checks`` and makes ``ok`` false. Nothing of the measured layer's state is changed: it is built
here, and the random number generators are restored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from profiles.counting.decompositions import NOMINAL as DECOMPOSITIONS
from profiles.counting.stated import CONVENTION, NOMINAL, SCHEMA, is_stated, stated
from profiles.errors import Refusal, with_article
from profiles.subject import Setup, Subject, check_environment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from profiles.counting.flops import Count

MOST_OPERATIONS, MOST_ON_WEIGHT = 10**13, 10**12  # on the CPU: minutes; decompositions are slower than products
Record = dict[str, Any]


def inspect(
    subject: Subject,
    *,
    measure: bool = True,
    fvcore: bool = True,
    peers: bool = False,
    backward_share: float | None = None,
    modules: bool = False,
    depth: int | None = None,
) -> Record:
    """Return everything known about ``subject``; with ``measure`` false from the card's formulas alone, without torch.

    With ``backward_share``, of the training time, what a rule for the backward saves is timed too (`savings`).
    With ``peers`` other tools count the same layer (`peer_table`), which needs it to be a layer, measured.
    With ``modules`` the record has the costs by module too, to the ``depth`` given (`by_module`).
    Raises `Refusal` when the layer refuses the input or the CPU would need many minutes for it, and `Unavailable` when
    device or memory are missing.
    """
    record = stated(subject)
    if peers:
        check_peers(subject, measure=measure)
    if measure:
        check_environment(subject)
        _check_time(record, subject)
        _measure(record, subject, fvcore, modules, depth)
        record["measured"] = True
        _check(record, subject)
        if peers:
            record["peers"] = _peers(record, subject)
        if backward_share is not None:
            record["backward_savings"] = _savings(record, subject, backward_share)
    _total(record)
    if subject.on_weight:
        total, elements = record["flops"]["forward"]["total"], subject.setup.elements
        record["flops"]["per_element"] = None if total is None else round(total / elements, 4)
    record["ok"] = all(check["ok"] for check in record["checks"])
    return record


def check_peers(subject: Subject, *, measure: bool) -> None:
    """Refuse to ask other tools about what they cannot count: what is no layer, or is not to run."""
    if subject.role != "layer":
        raise Refusal(f"--peers is for layers; {subject.name} is {with_article(subject.role)}")
    if not measure:
        raise Refusal("--peers has no meaning beside --no-measure: other tools run the layer")


def _check_time(record: Record, subject: Subject) -> None:
    """Refuse what the CPU, which cannot be interrupted within an operation, would work on for many minutes."""
    needed = sum(record["flops"][name]["card"] or 0 for name in ("forward", "backward"))
    if subject.setup.device == "cpu" and needed > (MOST_ON_WEIGHT if subject.on_weight else MOST_OPERATIONS):
        shape = "x".join(map(str, subject.setup.shape))
        raise Refusal(
            f"--input {shape}: {subject.name} would take {needed:.1e} operations; give smaller sizes, or --no-measure "
            "for what the card says at once"
        )


def _measure(record: Record, subject: Subject, fvcore: bool, modules: bool, depth: int | None) -> None:
    """Build the layer, run it forward and backward under observation, and fill in what was seen."""
    import torch

    from profiles.counting import by_module
    from profiles.counting.backward import counted
    from profiles.counting.flops import Counting
    from profiles.counting.saved import saving

    module, x = subject.build(), subject.input()
    _parameters(record, module)
    seen = _first_batch(subject, module, x)
    if fvcore and not subject.on_weight:
        from profiles.counting import peers

        record["flops"]["fvcore"] = dict(vars(peers.fvcore(module, x)))
    rows = by_module.Modules(module) if modules else None
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(subject.setup.seed)
        counting = by_module.Forward(rows) if rows else Counting()
        with _observing(subject) as observed, saving(module, rows.keep if rows else None) as saved, counting as forward:
            y = subject.run(module, x)
        record["output"] = {"shape": list(y.shape), "dtype": str(y.dtype).removeprefix("torch."), "bytes": y.nbytes}
        with subject.refusing("fails in its backward"):
            back = by_module.Backward(rows, y) if rows else None
            backward = counted(y, back) if y.requires_grad and y.numel() else None
        if rows:
            record["modules"] = by_module.table(rows, depth=depth, backward=backward is not None)
    holds = saved.holds(x)
    kept = saved.bytes - (x.nbytes if subject.on_weight and holds else 0)  # the weight is a parameter, there anyway
    record["memory"]["saved"] |= {"measured": kept, "holds_input": holds}
    _counted(record["flops"]["forward"], forward.count)
    if backward is not None:
        _counted(record["flops"]["backward"], backward)
    executed = {*record["flops"]["forward"]["by_op"], *record["flops"]["backward"]["by_op"]}
    if not subject.on_weight and executed & DECOMPOSITIONS.keys():  # of those on weights it is stated
        record["flops"]["convention"] += f"; {NOMINAL}"
    _observed(record, {**seen, **observed}, module)
    _workspace(record["memory"]["workspace"], subject, module, x)


def _peers(record: Record, subject: Subject) -> list[Record]:
    """Return what other tools count, each on a layer of its own that has seen the same first batch."""
    from profiles.counting.peer_table import rows

    def build() -> nn.Module:
        module = subject.build()
        _first_batch(subject, module, subject.input())
        return module

    return rows(subject, build, record)


def _savings(record: Record, subject: Subject, share: float) -> Record | None:
    """Return what a rule for the backward saves; None for anything else, and where there is nothing to go back."""
    from profiles.counting.savings import saves, savings

    row = record["flops"]["backward"]
    if not saves(subject) or not row["executed"]:
        return None
    return savings(subject, row["card"], row["executed"], share)


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
            if getattr(subject.target, "kind", "") == "backward":
                _go_back(subject, module, x)
    module.train(subject.setup.train)
    return seen if subject.setup.train else {}


def _go_back(subject: Subject, module: nn.Module, x: Tensor) -> None:
    """Take a step back, which is where a rule for the backward remembers, and leave no gradient behind."""
    import torch

    with torch.enable_grad():
        y = subject.run(module, x)
        torch.autograd.grad(y, [t for t in (x, *module.parameters()) if t.requires_grad], torch.ones_like(y))


def _workspace(row: Record, subject: Subject, module: nn.Module, x: Tensor) -> None:
    """Measure the bytes allocated beside the output, in a forward without a graph, and beside the gradients."""
    import torch

    from profiles.counting.backward import gradients
    from profiles.counting.workspace import workspace

    device = subject.setup.device
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(subject.setup.seed)
        with torch.set_grad_enabled(subject.on_weight):  # an optimizer's step looks at the gradients that it was given
            row["measured"] = workspace(lambda: subject.run(module, x), device)
        if not subject.has_backward:
            return
        y = subject.run(module, x)
    if y.requires_grad and y.numel():
        wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
        upstream = torch.ones_like(y)

        def backward() -> object:  # the graph stays: freeing what is older than the measurement makes torch warn
            return gradients(y, wanted, upstream)

        row["backward"] = workspace(backward, device)


def _observing(subject: Subject) -> Any:
    from layers.observe import observing
    from profiles.counting.watch import watching

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
    row["kernels"] = count.kernels
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
    workspace = record["memory"]["workspace"]
    if workspace["card"] is not None:
        compare("memory.workspace", workspace["card"], workspace["measured"])
    if not is_stated(subject):
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
