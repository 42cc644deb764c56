"""Which elements of a tensor each statistic of a running layer is made of, found by changing one element at a time.

Nothing is read off the card: what moves when an element does depends on it. Parameters and input are made positive
first, so that no ReLU, maximum or cancellation hides a dependence; where numbers stand does not depend on their values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiles.errors import Refusal
from profiles.subject import Subject

STEP = 8.0  # more than any element of the input, so that it becomes the maximum wherever it takes part
SLACK = 1e-9  # relative: float64 rounds a sum of other numbers by less
Look = Callable[[Subject, nn.Module, Tensor], Any]
Step = Callable[[float], None]


@dataclass(frozen=True)
class Sharing:
    """``sets`` of the elements (row-major indices) of ``source`` of which each element of ``target`` is made.

    ``target`` names the tensors that share alike, of ``shape``; ``of`` gives the set of each of its elements.
    """

    target: str
    shape: tuple[int, ...]
    source: str
    source_shape: tuple[int, ...]
    sets: tuple[tuple[int, ...], ...]
    of: tuple[int, ...]

    @property
    def disjoint(self) -> bool:
        """Whether no element stands in two sets."""
        members = [*itertools.chain.from_iterable(self.sets)]
        return len(members) == len(set(members))

    def record(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        return {
            "kind": "sharing",
            "target": self.target,
            "shape": list(self.shape),
            "source": self.source,
            "source_shape": list(self.source_shape),
            "sets": [list(each) for each in self.sets],
            "of": list(self.of),
            "disjoint": self.disjoint,
        }


class Run:
    """A layer that runs again and again as if for the first time, with what ``look`` sees in it.

    ``tensors`` may be changed in between: the input and the parameters of two or more axes, by name.
    """

    def __init__(self, subject: Subject, look: Look) -> None:
        self._subject, self._look = subject, look
        self.module = subject.build()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.abs_().add_(0.1)
        self.input = subject.input(requires_grad=False).abs_().add_(0.1)
        self._state = [
            (part, name, buffer.clone())
            for part in self.module.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The input and the weights, sharing their memory."""
        weights = {name: p.detach() for name, p in self.module.named_parameters() if p.dim() > 1}
        return {"input": self.input, **weights}

    def __call__(self) -> dict[str, Tensor]:
        """Return what is seen in one run; state and random numbers are those of the first one."""
        for part, name, buffer in self._state:
            part._buffers[name] = buffer.clone()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._subject.setup.seed)
            with self._look(self._subject, self.module, self.input) as seen:
                y = self._subject.run(self.module, self.input.clone())
            return {name: tensor.clone() for name, tensor in {**seen, "output": y}.items()}


def sharings(subject: Subject, look: Look, step: Step = lambda done: None) -> list[Sharing]:
    """Return a `Sharing` for all that ``look`` sees: of the input, or of a weight for what the input does not move.

    What depends on neither, as a constant does, is left out, and so are whole numbers, which may depend on what no
    change by itself shows. Calls ``step`` with the share of the work that is done.
    """
    run = Run(subject, look)
    base = {name: seen for name, seen in run().items() if name != "output" and seen.is_floating_point()}
    kept, run.input = run.input, run.input * 2 + torch.arange(run.input.numel()).view(run.input.shape).remainder(3)
    other = run()
    run.input = kept
    by_input = {name: seen for name, seen in base.items() if bool(_moved(seen, other.get(name)).any())}
    made = _merged(_dependence(run, "input", by_input, step), base, "input", tuple(run.input.shape))
    left = {name: base[name] for name in base if name not in by_input}
    for name, weight in run.tensors.items():
        if name != "input" and left:
            made += _merged(_dependence(run, name, left, step), base, name, tuple(weight.shape))
    return made


def dependence(subject: Subject, step: Step = lambda done: None) -> list[tuple[int, ...]]:
    """Return for every element of the output, row by row, which elements of the input it depends on."""
    run = Run(subject, nothing)
    depends = _dependence(run, "input", {"output": run()["output"]}, step)["output"]
    return [_members(row) for row in depends]


def _dependence(run: Run, source: str, base: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
    """Return (elements of the seen tensor, elements of ``source``), true where the second moves the first."""
    if not base:
        return {}
    flat = run.tensors[source].view(-1)
    columns: dict[str, list[Tensor]] = {name: [] for name in base}
    for index in range(flat.numel()):
        before = flat[index].item()
        flat[index] = before + STEP
        now = run()
        flat[index] = before
        for name, column in columns.items():
            column.append(_moved(base[name], now.get(name)).flatten())
        step((index + 1) / flat.numel())
    return {name: torch.stack(column, 1) for name, column in columns.items()}


def _moved(base: Tensor, now: Tensor | None) -> Tensor:
    if now is None or now.shape != base.shape:
        raise Refusal("the shapes of what is computed depend on the numbers of the input: there is no picture of that")
    return (now - base).abs() > SLACK * base.abs().max().clamp(min=1.0)


def _members(row: Tensor) -> tuple[int, ...]:
    return tuple(row.nonzero().flatten().tolist())


def _merged(
    found: Mapping[str, Tensor], base: Mapping[str, Tensor], source: str, source_shape: tuple[int, ...]
) -> list[Sharing]:
    """Return one `Sharing` for each way to share, named by all tensors that share so."""
    ways: dict[tuple[Any, ...], list[str]] = {}
    for name, depends in found.items():
        if bool(depends.any()):
            rows = tuple(_members(row) for row in depends)
            ways.setdefault((tuple(base[name].shape), rows), []).append(name)
    made = []
    for (shape, rows), names in ways.items():
        sets = tuple(dict.fromkeys(rows))
        number = {members: index for index, members in enumerate(sets)}
        of = tuple(number[row] for row in rows)
        made.append(Sharing(", ".join(names), shape, source, source_shape, sets, of))
    return made


# What is seen in a run, beside the output.


@contextmanager
def nothing(subject: Subject, module: nn.Module, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """See nothing but the output."""
    yield {}


@contextmanager
def statistics(subject: Subject, module: nn.Module, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """See the statistics that a stone computes, or those of torch's normalization kernels in a class."""
    from layers.observe import observing
    from profiles.counting.watch import watching

    with observing() if subject.card else watching() as seen:
        yield seen


@contextmanager
def pooled(subject: Subject, module: nn.Module, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """See the statistics, and the maps of another size than ``x`` that go into the parts of a module."""
    maps: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        def note(part: nn.Module, arguments: Any) -> None:
            given = arguments[0] if arguments else None
            if isinstance(given, Tensor) and given.dim() == x.dim() and given.shape[2:] != x.shape[2:]:
                maps[f"into {name}"] = given.detach()

        return note

    parts = [part for part in module.named_modules() if part[0] and _is_outermost(part[0], module)]
    handles = [part.register_forward_pre_hook(hook(name)) for name, part in parts]
    try:
        with statistics(subject, module, x) as seen:
            yield seen
    finally:
        seen.update({name: each for name, each in maps.items() if not _is_among(each, seen)})
        for handle in handles:
            handle.remove()


def _is_outermost(name: str, module: nn.Module) -> bool:
    """Whether the part is in no other part but in a list of parts."""
    above = name.rpartition(".")[0]
    return not above or isinstance(module.get_submodule(above), nn.ModuleList)


def _is_among(given: Tensor, seen: Mapping[str, Tensor]) -> bool:
    return any(given.shape == each.shape and bool((given == each).all()) for each in seen.values())


@contextmanager
def levels(subject: Subject, module: nn.Module, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """See the grids of a pyramid in its output (N, C·Σn²), by their names."""
    seen: dict[str, Tensor] = {}
    sides: Any = subject.options["levels"]

    def note(part: nn.Module, arguments: Any, y: Tensor) -> None:
        start, (n, c) = 0, x.shape[:2]
        for side in filter(None, sides):
            grid = y.detach()[:, start : start + c * side**2]
            seen[f"level {side}"] = grid.reshape(n, c, side, side)
            start += c * side**2

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
