"""Optimizers side by side on one problem: where each comes, step by step, and what the cards say becomes of them.

A race is reproducible: float64 and no random numbers on the small problems, a seed on digits. One that leaves the
numbers (inf or NaN) is stopped and said to have diverged; the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from layers.card import OptionError
from layers.catalog import Stone, stones
from layers.claims import Race
from profiles.errors import Refusal, first_line
from profiles.races.entrants import Entrant, Part
from profiles.races.problems import PROBLEMS, Problem

SCHEMA = "stones.race/1"
MOST_STEPS = 10_000_000
POINTS_PER_DECADE = 8
Record = dict[str, Any]
Progress = Callable[[float, str], None]


def race(
    problem: Problem, entrants: Sequence[Entrant], *, steps: int | None = None, progress: Progress | None = None
) -> Record:
    """Return one JSON-able record: the trajectory of every entrant at steps in equal ratios, and its end.

    KeyboardInterrupt ends it early: those that came to their end are returned, ``interrupted`` true.
    Raises `Refusal` for an entrant that is no optimizer alone, or whose options are refused, before anything runs.
    """
    steps = problem.steps if steps is None else steps
    if not 1 <= steps <= MOST_STEPS:
        raise Refusal(f"--steps {steps} is out of range: it must be ≥ 1 and ≤ {MOST_STEPS}")
    for each in entrants:
        if each.trainer is None or each.changes:
            raise Refusal(f"{each.label}: on {problem.name} only optimizers race; networks do on digits")
        _try(problem, each)

    def runs() -> Iterator[Record]:
        for i, each in enumerate(entrants):

            def note(fraction: float, i: int = i, label: str = each.label) -> None:
                if progress is not None:
                    progress((i + fraction) / len(entrants), label)

            yield {"entrant": each.label, **run(problem, each.trainer, steps, note)}  # type: ignore[arg-type]

    finished, interrupted = until_interrupted(runs())
    settings = {"steps": steps, **problem.settings}
    about = {"name": problem.name, "says": problem.says, "measures": list(problem.measures), "settings": settings}
    return {"schema": SCHEMA, "problem": about, "entrants": finished, "interrupted": interrupted}


def _try(problem: Problem, each: Entrant) -> None:
    """Make one step with ``each``: an optimizer that cannot is refused before anybody runs."""
    x = problem.started().requires_grad_()
    optimizer = each.trainer.optimizer([x], problem.settings)  # type: ignore[union-attr]
    x.grad = x.detach().clone()
    try:
        optimizer.step(lambda: 1.0)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise Refusal(f"{each.label}: {first_line(error)}") from error


def until_interrupted(runs: Iterator[Record]) -> tuple[list[Record], bool]:
    """Return the records of ``runs`` that are finished when KeyboardInterrupt comes, or all, and whether it came."""
    finished: list[Record] = []
    try:
        for each in runs:
            finished.append(each)
    except KeyboardInterrupt:
        return finished, True
    return finished, False


def run(problem: Problem, part: Part, steps: int, progress: Callable[[float], None] | None = None) -> Record:
    """Return the trajectory of one optimizer: options, points, the last point, the step at which it diverged."""
    import torch

    x = problem.started().requires_grad_()
    x.grad = torch.zeros_like(x)
    optimizer = part.optimizer([x], problem.settings)
    options = _plain(optimizer.param_groups[0])
    rates = [group["lr"] for group in optimizer.param_groups]
    judge, wanted = _Judge(problem, rates[0]), set(_steps_to_show(steps))
    points: list[Record] = []
    for t in range(1, steps + 1):
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * problem.rate(t)
        before = x.tolist()

        def closure(t: int = t) -> float:
            loss, gradient = problem.gradient(x.tolist(), t)
            x.grad.copy_(torch.tensor(gradient, dtype=x.dtype))  # type: ignore[union-attr]
            return loss

        loss = problem.gradient(before, t)[0]
        optimizer.step(closure)
        if problem.project is not None:
            with torch.no_grad():
                x.clamp_(*problem.project)
        judge.see(before, x.tolist(), loss, t)
        if not all(map(math.isfinite, x.tolist())):
            return {"options": options, "points": points, "end": None, "diverged": t}
        if t in wanted:
            points.append({"step": t, **judge.measures(x.tolist(), t)})
            if progress is not None:
                progress(t / steps)
    return {"options": options, "points": points, "end": points[-1], "diverged": None}


class _Judge:
    """What is read off a trajectory: the measures of the problem."""

    def __init__(self, problem: Problem, lr: float) -> None:
        self._problem, self._lr = problem, lr
        self._start = problem.started().tolist()
        self._regret = self._pace = 0.0

    def see(self, before: Sequence[float], after: Sequence[float], loss: float, t: int) -> None:
        """Take note of step ``t``, which had ``loss`` at ``before``."""
        if "regret" in self._problem.measures:
            self._regret += loss - self._problem.gradient([self._problem.best] * len(before), t)[0]
        self._pace = self._in_rates(math.dist(before, after))

    def measures(self, x: list[float], t: int) -> dict[str, float]:
        """Return every measure of the problem after step ``t``."""
        found = {
            "loss": self._problem.gradient(x, t)[0],
            "regret": self._regret / t,
            "travel": self._in_rates(math.dist(x, self._start)),
            "pace": self._pace,
            **{f"x{i}": value for i, value in enumerate(x)},
        }
        return {name: found[name] for name in self._problem.measures}

    def _in_rates(self, distance: float) -> float:
        return distance / self._lr if self._lr else distance  # at a rate of 0 nothing moves


def _steps_to_show(steps: int) -> list[int]:
    """Steps in equal ratios, the first and the last among them."""
    count = math.ceil(POINTS_PER_DECADE * math.log10(steps)) if steps > 1 else 0
    return sorted({steps, *(round(10 ** (i / POINTS_PER_DECADE)) for i in range(count))})


def _plain(group: dict[str, Any]) -> Record:
    """The options of a parameter group that are numbers or words."""
    kinds = (bool, int, float, str, tuple, type(None))
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params" and isinstance(v, kinds)
    }


@dataclass(frozen=True)
class Outcome:
    """What became of one race that a card states."""

    stone: str
    race: Race
    found: float | None

    @property
    def ok(self) -> bool:
        """Whether it came out as the card says."""
        if self.found is None:
            return False
        return abs(self.found - self.race.expected) <= self.race.within * (abs(self.race.expected) or 1)

    def record(self) -> Record:
        """Return it for the JSON document."""
        race = self.race
        return {
            "stone": self.stone, "says": race.says, "problem": race.problem, "options": dict(race.options),
            "steps": race.steps, "measure": race.measure, "expected": race.expected, "within": race.within,
            "found": self.found, "ok": self.ok,
        }  # fmt: skip


def stated(names: Sequence[str] = (), progress: Progress | None = None) -> list[Outcome]:
    """Run the races on the cards of ``names``, without names of all that state some, and return what became of them.

    Raises `Refusal` for a stone that states none.
    """
    found = stones()
    chosen = [found[name] for name in names] if names else [s for s in found.values() if s.card.races]
    for stone in chosen:
        if not stone.card.races:
            having = ", ".join(s.name for s in found.values() if s.card.races) or "none"
            raise Refusal(f"the card of {stone.name} states no race (stated by: {having}); give --problem")
    todo = [(stone, each) for stone in chosen for each in stone.card.races]
    outcomes = []
    for i, (stone, each) in enumerate(todo):
        if progress is not None:
            progress(i / len(todo), f"{stone.name} on {each.problem}")
        outcomes.append(_outcome(stone, each))
    return outcomes


def _outcome(stone: Stone, race: Race) -> Outcome:
    if race.problem not in PROBLEMS:
        raise OptionError(f"{stone.name}: there is no problem {race.problem!r}")
    end = run(PROBLEMS[race.problem], Part(stone, race.options), race.steps)["end"]
    return Outcome(stone.name, race, None if end is None else end[race.measure])
