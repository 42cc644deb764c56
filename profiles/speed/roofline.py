"""How far a case of `bench` is from its roofline: the least that it must do, and the least time of that here.

What a card states is taken from the card: its byte floor and the operations of the definition. Of a class without a
card it is input, parameters and output (backward: the gradient of the output and what was kept of the input are read,
the gradients of input and parameters written), and the operations that one run executes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layers import formula
from profiles.errors import Refusal, counted
from profiles.speed import ceilings_kept
from profiles.speed.cases import COPY
from profiles.speed.cautions import about_ceilings
from profiles.speed.ceilings import Ceilings, Work, needed
from profiles.subject import Subject

if TYPE_CHECKING:
    from layers.card import Card
    from profiles.speed.cases import Case

Record = dict[str, Any]
Tell = Callable[[float, str], None]


@dataclass
class Roofs:
    """The ceilings by number of threads, for cases on ``device`` timed by ``clock`` with an ``allocator``.

    Those that are not remembered are measured; one that a copy of a case exceeds is raised, and remembered again.
    """

    device: str
    clock: str
    allocator: str
    found: dict[int, Ceilings] = field(default_factory=dict)

    def _missing(self, wanted: Iterable[tuple[int, str]]) -> dict[int, set[str]]:
        """Return the dtypes by number of threads whose ceilings are not remembered; recalls the others."""
        from profiles.speed.ceilings_measured import where

        dtypes: dict[int, set[str]] = {1: set()}
        for threads, dtype in sorted(wanted):
            dtypes.setdefault(threads, set()).update(needed(dtype))
            dtypes[1].update(needed(dtype))
        for threads in dtypes.keys() - self.found.keys():
            known = ceilings_kept.recall(where(self.device, threads, self.clock, self.allocator))
            self.found |= {threads: known} if known else {}
        every = ((threads, names, self.found.get(threads)) for threads, names in dtypes.items())
        return {threads: names for threads, names, known in every if not known or names - known.products.keys()}

    def seconds(self, wanted: Iterable[tuple[int, str]]) -> float:
        """Return about how long `find` will take."""
        from profiles.speed.ceilings_measured import SECONDS

        return SECONDS * len(self._missing(wanted))

    def find(self, wanted: Iterable[tuple[int, str]], tell: Tell) -> None:
        """Find the ceilings of each number of threads and dtype; ``tell`` gets the fraction done and what is in hand.

        Nothing is told when nothing is measured. More threads can do at least what one can, so that one is measured
        too: on a busy machine they wait for each other.
        """
        from profiles.speed.ceilings_measured import measure, where

        missing = self._missing(wanted)
        for number, (threads, names) in enumerate(missing.items()):

            def part(fraction: float, what: str, number: int = number, threads: int = threads) -> None:
                tell((number + fraction) / len(missing), f"ceilings, {counted(threads, 'thread')}: {what}")

            place = where(self.device, threads, self.clock, self.allocator)
            found = measure(place, sorted(names), known=self.found.get(threads), tell=part)
            self.found[threads] = found if threads == 1 else found.at_least(self.found[1])
            ceilings_kept.keep(self.found[threads])

    def raise_to(self, threads: int, working_set: int, rate: float) -> Ceilings:
        """Return the ceilings, raised and remembered if a copy moved ``rate`` bytes per second, which is more."""
        known = self.found[threads]
        if (raised := known.raised(working_set, rate)) is not known:
            self.found[threads] = raised
            ceilings_kept.keep(raised)
        return raised

    def warnings(self) -> list[Record]:
        """Return the reasons to doubt the ceilings."""
        return [about_ceilings(threads).record() for threads, known in sorted(self.found.items()) if known.disturbed]

    def records(self) -> list[Record]:
        """Return all ceilings, those of the fewest threads first."""
        return [self.found[threads].record() for threads in sorted(self.found)]


def rated(made: Record, case: Case, roofs: Roofs | None, work: Work | None) -> Record:
    """Return the record of ``case`` with its roofline, and how much of it each candidate but yardsticks reaches.

    Both are None without ``roofs``. The copy's own roof is the time of its bytes; it raises ceilings that it exceeds.
    """
    if roofs is None or work is None:
        return {**made, "candidates": [{**row, "of_roofline": None} for row in made["candidates"]], "roofline": None}
    setup = case.subject.setup
    half = setup.elements * setup.itemsize
    copy = next(row for row in made["candidates"] if row["role"] == COPY)
    ceilings = roofs.raise_to(case.threads, 2 * half, 2 * half / (copy["min_ms"] / 1e3))
    floor = ceilings.floor(work, setup.dtype)
    copied = ceilings.floor(Work(2 * half, half, 0, 2 * half)).memory
    least = {"copy": copied, "yardstick": 0.0}  # of all others that of the case
    reached = [least.get(row["role"], floor.seconds) / (row["ms"] / 1e3) for row in made["candidates"]]
    rows = zip(made["candidates"], reached, strict=True)
    candidates = [{**row, "of_roofline": float(f"{part:.5g}") or None} for row, part in rows]
    return {**made, "candidates": candidates, "roofline": floor.record()}


def work_of(case: Case) -> Work:
    """Return the least that one call of ``case`` does; of a class without a card by running it once (`Refusal`)."""
    if (card := case.subject.card) is None:
        return _together(_measured(case.subject, case.direction))
    return _together([_stated(card, case.subject, name) for name in case.direction.split("+")])


def _together(parts: Sequence[Work]) -> Work:
    """Return the work of passes over the same memory."""
    return Work(
        sum(part.bytes for part in parts),
        sum(part.written for part in parts),
        sum(part.flops for part in parts),
        max(part.working_set for part in parts),
    )


def _stated(card: Card, what: Subject, direction: str) -> Work:
    """Return the work of a pass as the card has it; written and touched are tensors, no more than it moves."""
    texts = (getattr(of, direction) for of in (card.traffic, card.flops))
    moved, flops = (int(formula.evaluate(text, what.symbols)) * what.setup.tensors for text in texts)
    written, touched = _tensors(card, what, direction)
    return Work(moved, min(written, moved), flops, min(touched, moved))


def _tensors(card: Card, what: Subject, direction: str) -> tuple[int, int]:
    """Return the bytes that are written, and those of all tensors touched: input, output, parameters, state."""
    setup, symbols = what.setup, what.symbols
    size = setup.elements * setup.itemsize
    parameters = int(formula.evaluate(card.params, symbols)) * setup.itemsize
    output = size
    if card.role == "penalty":
        output = setup.itemsize
    elif card.output:
        output = math.prod(card.output_shape(setup.shape, what.options)) * setup.itemsize
    if direction == "backward":
        return size + parameters, 2 * size + output + 2 * parameters
    state = _state(card, {**symbols, "*": setup.shape}) * setup.itemsize * setup.tensors
    return output + state, size + output + parameters + state


def _state(card: Card, symbols: Mapping[str, Any]) -> int:
    """Return the numbers that an optimizer keeps for its parameter, and writes in each step."""
    return sum(math.prod(shape) for stat in card.state if (shape := stat.at(symbols)) is not None)


def _measured(what: Subject, direction: str) -> list[Work]:
    """Run a layer once and return what each pass of ``direction`` does at least.

    A forward that returns its input, or a view of it, moves and computes nothing.
    """
    from profiles.counting.backward import counted
    from profiles.counting.flops import Counting
    from profiles.counting.saved import saving

    module = what.build()
    x = what.input(requires_grad=what.setup.train or direction != "forward")
    version, parameters = x._version, sum(parameter.nbytes for parameter in module.parameters())
    with saving(module) as saved, Counting() as forward:
        y = what.run(module, x)
    size, output = x.nbytes, y.nbytes
    in_place = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    parts = list[Work]()
    if "forward" in direction.split("+"):
        moved = 0 if in_place and x._version == version else size + parameters + output
        touched = moved - (output if in_place else 0) if moved else 0
        parts.append(Work(moved, output if moved else 0, forward.count.flops, touched))
    if "backward" in direction.split("+"):
        if not y.requires_grad:
            raise Refusal(f"{what.name} has no {direction}: its output depends on its input by no gradient")
        read = output + min(saved.bytes, size) + parameters
        with what.refusing("fails in its backward"):
            flops = counted(y).flops
        parts.append(Work(read + size + parameters, size + parameters, flops, read + size + parameters))
    return parts
