"""The data path of a running layer: what its statistics, its state and its output are computed from, in which order.

One run is watched operation by operation. Statistics are those that the stone names as it computes them, state is what
it keeps in buffers. What an operation gives comes from all that it is given; where that is a statistic, a parameter or
state, the path goes there and no further back. What stands at its beginnings is then changed, one after another: where
nothing moves, an operation was given it without using it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profiles.counting.dispatch import Window
from profiles.counting.watch import KERNELS
from profiles.pictures.path_steps import INPUT, OUTPUT, PARAMETER, SOURCES, STATE, STATISTIC, UPDATE, Node, ordered
from profiles.pictures.probe_sharing import Run, nothing
from profiles.subject import Subject

_OVERWRITING, _COPYING = ("copy_", "fill_", "zero_"), ("clone", "_to_copy")
Values = dict[tuple[str, str], Tensor]


def path(subject: Subject) -> dict[str, Any]:
    """Return the panel of kind ``path``: ``steps`` in order, each with its tensors and the earlier steps it reads."""
    run = Run(subject, nothing)
    module, x = copy.deepcopy(run.module), run.input.clone()
    with _watched(subject) as seen, _Tracing(module, x, seen) as tracing:
        y = subject.run(module, x)
    nodes, reads = tracing.finished(y)
    base, names = _values(subject, run), [(node.kind, node.name) for node in nodes]
    for number, source in enumerate(nodes):
        if source.kind in SOURCES:
            found = _values(subject, run, source.name)
            still = {name for name in names if names.count(name) == 1 and not _moved(base.get(name), found.get(name))}
            for reader, name in enumerate(names):
                reads[reader] -= {number} if name in still else set()
    sizes = {"shape": list(y.shape), "source": "input", "source_shape": list(x.shape)}
    return {"kind": "path", "target": "output", **sizes, "steps": ordered(nodes, reads)}


@contextmanager
def _watched(subject: Subject) -> Iterator[dict[str, Tensor]]:
    """See the statistics of a run whose random numbers are always the same."""
    from layers.observe import observing

    with torch.no_grad(), torch.random.fork_rng(devices=[]), observing(follows=True) as seen:
        torch.manual_seed(subject.setup.seed)
        yield seen


def _values(subject: Subject, run: Run, changed: str = "") -> Values:
    """Return statistics, output and new state by kind and name after a run with the tensor ``changed`` another."""
    module, x = copy.deepcopy(run.module), run.input.clone()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if changed:
        tensor = {**state, INPUT: x}[changed].detach()
        pattern = torch.arange(1, 1 + tensor.numel(), device=tensor.device).view(tensor.shape).remainder(3)
        tensor.copy_(~tensor if tensor.dtype is torch.bool else tensor * 1.5 + pattern)
    with _watched(subject) as seen:
        y = subject.run(module, x)
    found: Values = {(STATISTIC, name): each for name, each in seen.items()}
    return {**found, **{(UPDATE, name): tensor.detach() for name, tensor in state.items()}, (OUTPUT, OUTPUT): y}


def _moved(before: Tensor | None, after: Tensor | None) -> bool:
    return before is None or after is None or not torch.equal(before, after)


class _Tracing(Window):
    """Follows where every number comes from: the memory that it stands in has a value, made of other values."""

    def __init__(self, module: nn.Module, x: Tensor, seen: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._seen, self._noted = seen, dict[str, Tensor]()
        self._made_of: list[set[int]] = []  # of each value the values that it was computed from
        self._sizes: list[int] = []  # and the number of its elements
        self._nodes: dict[int, list[Node]] = {}  # what values are on the path
        self._value: dict[int, int] = {}  # in each memory now
        self._kept: list[Tensor] = []  # alive, so that no memory is used twice
        state = [*module.named_parameters(), *module.named_buffers()]
        self._state = {_memory(tensor): (name, tensor.detach()) for name, tensor in state}
        self._before = {memory: tensor.clone() for memory, (_, tensor) in self._state.items()}
        self._group = 0
        self._new(x, set(), Node(INPUT, INPUT, tuple(x.shape)))
        for kind, named in ((PARAMETER, module.named_parameters()), (STATE, module.named_buffers())):
            for name, tensor in named:
                self._new(tensor, set(), Node(kind, name, tuple(tensor.shape)))

    def after(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note the statistics that were named before ``func``, then what it made of what."""
        self._note_statistics()
        given, written = self._arguments(func, name, args, kwargs)
        sources = {self._of(tensor) for tensor in given}
        results = [*_tensors(out)]
        if name in KERNELS:  # a normalization gives its statistics beside what it makes of them
            for each in results[1:]:
                self._new(each, sources)
            sources = sources | {self._of(each) for each in results[1:] if each.numel()}
        for tensor in results:
            if name in _COPYING and self._is_copy(tensor, args[0]):
                self._value[_memory(tensor)] = self._of(args[0])
                self._kept.append(tensor)
            elif _memory(tensor) not in self._value:
                self._new(tensor, sources)
        for tensor in written:
            self._write(tensor, sources, args[1] if name == "copy_" else None)

    def finished(self, y: Tensor) -> tuple[list[Node], list[set[int]]]:
        """Return the nodes in the order in which they were computed, and for each the numbers of those it reads."""
        self._note_statistics()
        self._new(None, {self._of(y)}, Node(OUTPUT, OUTPUT, tuple(y.shape)))
        self._forget_passing_state()
        self._move_unread_statistics()
        values = [value for value in sorted(self._nodes) for _ in self._nodes[value]]
        nodes = [node for value in sorted(self._nodes) for node in self._nodes[value]]
        reads = [{i for i, other in enumerate(values) if other in self._reads(value)} for value in values]
        return nodes, reads

    def _arguments(
        self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors whose numbers an operation was given, and those that it wrote."""
        given: list[Tensor] = []
        written: list[Tensor] = []
        for place, argument in enumerate(func._schema.arguments):
            tensors = [*_tensors(args[place] if place < len(args) else kwargs.get(argument.name))]
            writes = argument.alias_info is not None and argument.alias_info.is_write
            written += tensors if writes else []
            only = writes and (name in _OVERWRITING or argument.name == "out") and all(map(_is_whole, tensors))
            given += [] if only else tensors
        return given, written + [tensor for tensor in given if self._has_changed(tensor, written)]

    def _has_changed(self, tensor: Tensor, written: Sequence[Tensor]) -> bool:
        """Tell whether ``tensor`` is state that changed though its operation does not say that it writes it."""
        memory = _memory(tensor)
        if memory not in self._state or any(_memory(other) == memory for other in written):
            return False
        return not torch.equal(self._before[memory], self._state[memory][1])

    def _write(self, tensor: Tensor, sources: set[int], copied: Tensor | None) -> None:
        """Note a new value; of state it is a node, and so is what was ``copied`` there, which is the same value."""
        memory = _memory(tensor)
        same = copied is not None and self._is_copy(tensor, copied)
        if memory not in self._state:
            if copied is not None and same:
                self._value[memory] = self._of(copied)
            else:
                self._new(tensor, sources)
            return
        name, kept = self._state[memory]
        self._before[memory] = kept.clone()
        node = Node(UPDATE, name, tuple(kept.shape))
        if copied is not None and same and self._of(copied) not in self._nodes:
            self._value[memory] = self._of(copied)
            self._nodes[self._value[memory]] = [node]
        else:
            self._new(kept, sources, node)

    def _is_copy(self, tensor: Tensor, source: Tensor) -> bool:
        """Tell whether ``tensor``, copied from ``source``, holds all of its value in the same numbers."""
        whole = _is_whole(tensor) and self._sizes[self._of(source)] == source.numel() == tensor.numel()
        return whole and tensor.dtype == source.dtype

    def _note_statistics(self) -> None:
        new = {name: seen for name, seen in self._seen.items() if self._noted.get(name) is not seen}
        self._group += bool(new)
        for name, seen in new.items():
            node = Node(STATISTIC, name, tuple(seen.shape), self._group)
            here = self._nodes.get(self._of(seen), [])
            if all(other.group == self._group for other in here):
                self._nodes[self._of(seen)] = [*here, node]
            else:  # another name for what stands on the path already
                self._new(None, {self._of(seen)}, node)
        self._noted |= new

    def _of(self, tensor: Tensor) -> int:
        """Return the value in the memory of ``tensor``."""
        return self._value[_memory(tensor)] if _memory(tensor) in self._value else self._new(tensor, set())

    def _new(self, tensor: Tensor | None, made_of: set[int], node: Node | None = None) -> int:
        value = len(self._made_of)
        self._made_of.append(made_of)
        self._sizes.append(-1 if tensor is None else tensor.numel())
        if node is not None:
            self._nodes[value] = [node]
        if tensor is not None:
            self._value[_memory(tensor)] = value
            self._kept.append(tensor)
        return value

    def _reads(self, value: int) -> set[int]:
        """Return the values on the path from which ``value`` was computed without another in between."""
        found, open_ = set[int](), [*self._made_of[value]]
        looked = set(open_)
        while open_:
            source = open_.pop()
            if source in self._nodes:
                found.add(source)
            else:
                open_ += self._made_of[source] - looked
                looked |= self._made_of[source]
        return found

    def _forget_passing_state(self) -> None:
        """Take state off the path that only the next write to the same buffer reads."""
        for value in [v for v, (node, *_) in self._nodes.items() if node.kind == UPDATE]:
            readers = [v for v, sources in enumerate(self._made_of) if value in sources]
            if len(readers) == 1 and self._nodes.get(readers[0]) == self._nodes[value]:
                del self._nodes[value]

    def _move_unread_statistics(self) -> None:
        """Let a statistic that nothing is computed from, such as a σ made of the σ² in use, stand where that does."""
        read = set[int]().union(*self._made_of)
        for value in [v for v, (node, *_) in self._nodes.items() if node.kind == STATISTIC and v not in read]:
            source = value
            while source not in read or source == value:
                before = self._made_of[source]
                if len(before) != 1 or self._sizes[min(before)] != self._sizes[source] or min(before) in self._nodes:
                    break
                source = min(before)
                if sum(source in each for each in self._made_of) > 1:
                    self._nodes[source] = self._nodes.pop(value)
                    break


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_whole(tensor: Tensor) -> bool:
    """Tell whether nothing of its memory lies outside of ``tensor``."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
