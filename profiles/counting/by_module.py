"""What a model costs, module by module: a table whose rows add up to the whole, exactly.

Every number is that of one run, credited as it is counted to the row of one module: what runs in a module belongs to it
unless it runs in a module that it calls. What a function does between two modules is thus its caller's, and so is what
it does with the parameters of a module that it does not call. A module under several names has one row, at its first
name; a parameter shared by several counts in the first. A storage kept for backward is that of who kept it first.

In the backward an operation belongs to the module whose forward made its node of the graph, found by the node's
sequence number. The sum of the gradients of a tensor that was used more than once, which no node makes, belongs to
the innermost module in which all these uses lie.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from profiles.counting.backward import counted
from profiles.counting.flops import Args, Count, Counting, add
from profiles.counting.saved import saving
from profiles.outputs import first_tensor

NUMBERS = ("params", "flops_forward", "macs_forward", "flops_backward", "macs_backward", "saved")
PASSES = ("forward", "backward")
Record = dict[str, Any]


@dataclass
class Row:
    """What one module costs outside the modules that it calls; ``also`` are its other names."""

    name: str
    type: str
    params: int
    also: list[str] = field(default_factory=list)
    calls: int = 0
    outputs: list[list[int]] = field(default_factory=list)
    forward: Count = field(default_factory=Count)
    backward: Count = field(default_factory=Count)
    saved: int = 0

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the name, none for the model."""
        return tuple(self.name.split(".")) if self.name else ()


class Modules:
    """The rows of a ``model``, filled in by one run: `Forward`, in which `keep` is told of what is kept, `Backward`."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: dict[str, Row] = {}
        self.owners: dict[int, Row] = {}  # by the identity of a parameter
        self._by_module: dict[int, Row] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if id(module) in self._by_module:
                self._by_module[id(module)].also.append(name)
                continue
            parameters = [p for p in module.parameters(recurse=False) if id(p) not in self.owners]
            row = Row(name, type(module).__name__, sum(p.numel() for p in parameters))
            self.rows[name] = self._by_module[id(module)] = row
            self.owners |= {id(parameter): row for parameter in parameters}
        self.root = self.rows[""]
        self._running: list[tuple[nn.Module, Row]] = []
        self._since: list[tuple[int, Row]] = []  # from which sequence number on the nodes are whose

    @property
    def current(self) -> Row:
        """The row of the module that runs now."""
        return self._running[-1][1] if self._running else self.root

    def enter(self, module: nn.Module, args: object) -> None:
        """Begin a call of ``module``; one that the model does not list is part of its caller."""
        row = self._by_module.get(id(module))
        if row is not None:
            row.calls += 1
        self._running.append((module, row or self.current))
        self._turn()

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        """End the call of ``module``, and those within it that an exception ended."""
        while self._running and self._running.pop()[0] is not module:
            pass
        row = self._by_module.get(id(module))
        if row is not None:
            row.outputs = [list(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self._turn()

    def _turn(self) -> None:
        self._since.append((_next_number(), self.current))

    def keep(self, size: int) -> None:
        """Credit ``size`` bytes that are kept for backward to the module that runs."""
        self.current.saved += size

    def owner(self, node: Any) -> Row:
        """Return the row of the module that made ``node``, or that has the parameter whose gradient it takes."""
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            return self.owners.get(id(variable), self.root)
        place = bisect_right(self._since, node._sequence_nr(), key=lambda since: since[0])
        return self._since[place - 1][1] if place else self.root

    def around(self, rows: Iterable[Row]) -> Row:
        """Return the innermost module that ran and contains all ``rows``."""
        first, *others = (row.path for row in rows)
        depth = len(first)
        for path in others:
            depth = next((i for i in range(depth) if i >= len(path) or path[i] != first[i]), depth)
        names = (".".join(first[:length]) for length in range(depth, 0, -1))
        return next((self.rows[name] for name in names if name in self.rows and self.rows[name].calls), self.root)


def _next_number() -> int:
    """Return the sequence number of the next node that this thread makes."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


class Forward(Counting):
    """Count a forward, in all and by module."""

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self._modules, self._hooks = modules, ExitStack()

    def __enter__(self) -> Forward:
        self._hooks.callback(register_module_forward_pre_hook(self._modules.enter).remove)
        self._hooks.callback(register_module_forward_hook(self._modules.leave, always_call=True).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def after(self, func: Any, name: str, args: Args, kwargs: Mapping[str, Any], out: Any) -> None:
        """Count ``func`` here and for the module that runs."""
        super().after(func, name, args, kwargs, out)
        add(self._modules.current.forward, func, name, args, kwargs, out)


class Backward(Counting):
    """Count the backward of ``y``, in all and by module."""

    def __init__(self, modules: Modules, y: Tensor) -> None:
        super().__init__()
        self._modules = modules
        self._around: dict[Any, Row] = {}  # by node: whose the sum is of what it hands down with what others do
        self._last: Any = None  # the node of the forward that was evaluated last
        self._done: Any = None  # the last of `_around` whose own work is done
        users = _users(y)
        self._nodes = users.keys()
        for node in users:
            shared = [users[used] for used, _ in node.next_functions if len(users.get(used, ())) > 1]
            if shared:
                self._around[node] = modules.around(modules.owner(user) for uses in shared for user in uses)
                node.register_hook(lambda *gradients, node=node: setattr(self, "_done", node))

    def after(self, func: Any, name: str, args: Args, kwargs: Mapping[str, Any], out: Any) -> None:
        """Count ``func`` here and for the module that it belongs to."""
        super().after(func, name, args, kwargs, out)
        add(self._owner(name).backward, func, name, args, kwargs, out)

    def _owner(self, name: str) -> Row:
        node = torch._C._current_autograd_node()
        if node in self._nodes:  # another is of a graph that this one's node made while it was evaluated
            self._last = node
        if self._last is None:
            return self._modules.root
        if self._last is self._done and name in ("add", "add_"):
            return self._around[self._last]
        return self._modules.owner(self._last)


def _users(y: Tensor) -> dict[Any, list[Any]]:
    """Return every node of the graph of ``y`` with the nodes that use what it made, once for each use."""
    found: dict[Any, list[Any]] = {} if y.grad_fn is None else {y.grad_fn: []}
    left = list(found)
    while left:
        node = left.pop()
        for used, _ in node.next_functions:
            if used is None:
                continue
            if used not in found:
                found[used] = []
                left.append(used)
            found[used].append(node)
    return found


def inspect(model: nn.Module, x: Tensor, *, depth: int | None = None, seed: int = 0) -> Record:
    """Return the `table` of ``model``, in the mode that it is in, run on ``x`` forward and backward.

    A copy is run, under ``seed``: nothing of the model, of ``x`` or of the random number generators changes. Raises
    what copying and running raise, and `Refusal` where the first thing that it returns is no tensor.
    """
    made, given = copy.deepcopy(model), x.detach().clone().requires_grad_(x.is_floating_point())
    made.zero_grad(set_to_none=True)
    modules = Modules(made)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        with torch.enable_grad(), saving(made, modules.keep), Forward(modules):
            y = first_tensor(made(given), type(model).__name__)
        goes = y.requires_grad and y.numel() > 0
        if goes:
            counted(y, Backward(modules, y))
    return table(modules, depth=depth, backward=goes)


def table(modules: Modules, *, depth: int | None = None, backward: bool = True) -> Record:
    """Return the rows as a record: ``rows``, whose numbers add up to those of ``total``, and ``depth``.

    The model is at depth 0; a module at ``depth`` is ``folded``: its row stands for all that is in it too. Without
    ``backward`` (there was none) the numbers about it are None.
    """
    rows = [_numbers(row, backward) for row in modules.rows.values()]
    for row in rows:
        row["within"] = _sum(other for other in rows if _contains(row["name"], other["name"]))
    shown = [row for row in rows if depth is None or row["depth"] <= depth]
    for row in shown:
        parts = [other for other in rows if _contains(row["name"], other["name"])]
        if row["depth"] == depth and len(parts) > 1:
            uncounted = {name: _together(part["uncounted"][name] for part in parts) for name in PASSES}
            row |= {**row["within"], "folded": True, "uncounted": uncounted}
    return {"depth": depth, "rows": shown, "total": _sum(shown)}


def _numbers(row: Row, backward: bool) -> Record:
    return {
        "name": row.name,
        "type": row.type,
        "depth": len(row.path),
        "also": row.also,
        "calls": row.calls,
        "outputs": row.outputs,
        "params": row.params,
        "flops_forward": row.forward.flops,
        "macs_forward": row.forward.macs,
        "flops_backward": row.backward.flops if backward else None,
        "macs_backward": row.backward.macs if backward else None,
        "saved": row.saved,
        "uncounted": {name: dict(sorted(getattr(row, name).uncounted.items())) for name in PASSES},
        "folded": False,
    }


def _contains(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _sum(rows: Iterable[Record]) -> Record:
    rows = list(rows)
    return {name: None if rows[0][name] is None else sum(row[name] for row in rows) for name in NUMBERS}


def _together(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for count in counts:
        for name, times in count.items():
            found[name] = found.get(name, 0) + times
    return dict(sorted(found.items()))
