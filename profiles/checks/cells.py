"""What the tables of `invariance` and `geometry` share: what a line is, what a cell says, how it is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from layers import catalog
from layers.card import Claim, OptionValue
from layers.catalog import Stone
from profiles.checks.behind import Behind
from profiles.checks.carriers import Carrier
from profiles.checks.chain import Conditions
from profiles.errors import Refusal, with_article
from profiles.target import Target
from profiles.threads import using_threads

HOLDS = 1e-9
BROKEN = 1e-3
SEEDS = (0, 1, 2)  # one draw can leave a sign pattern unchanged, all that a ghost batch of two numbers has


@dataclass(frozen=True)
class Cell:
    """One cell. ``verdict`` is ok, failed, n/a or measured (nothing was expected); ``reason`` says why it is not ok.

    ``weight`` is the stone of the carrier, if it is not a plain one. ``holds`` is None where the deviation lies between
    ``within`` and 1e-3, is not finite or was not measured.
    """

    stone: str
    row: str
    weight: str
    mode: str
    history: str
    property: str
    carrier: str
    expected: bool | None = None
    deviation: float | None = None
    within: float = HOLDS
    holds: bool | None = None
    verdict: str = "n/a"
    reason: str = ""

    def under(self) -> str:
        """Return under what it was measured, in words."""
        mode = self.mode if self.mode == "train" else f"{self.mode}, {self.history} statistics"
        weight = f"weights of {self.weight}" if self.weight else ""
        return "; ".join(part for part in (weight, self.row, "" if self.mode in self.row else mode) if part)


class Deviating(Protocol):
    """What a measure returns."""

    @property
    def deviation(self) -> float | None:
        """How far the trial is from the property; None when something is not finite."""


Column = TypeVar("Column")
Row = TypeVar("Row", bound=Cell)
Found = TypeVar("Found", bound=Deviating)


@dataclass(frozen=True)
class Case:
    """One line of the table: a target under conditions, with the claim that it is held to, if there is one."""

    target: Target
    conditions: Conditions
    claim: Claim | None

    def fields(self, name: str, carrier: str) -> dict[str, Any]:
        """Return the fields of a cell that say which it is."""
        return {
            "stone": self.target.name,
            "row": self.claim.row if self.claim else "",
            "weight": self.conditions.weight,
            "mode": self.conditions.mode,
            "history": self.conditions.history,
            "property": name,
            "carrier": carrier,
        }

    def trials(self, carrier: Carrier) -> tuple[list[Behind], str, str]:
        """Return what is measured on ``carrier``, one per seed; or nothing, with the verdict and the reason."""
        if self.claim is not None and carrier.name not in self.claim.carriers:
            return [], "n/a", f"the card leaves {carrier.name} out"
        try:
            found = [Behind(self.target, self.conditions, carrier, seed) for seed in SEEDS]
        except ValueError as error:  # Refusal and OptionError, whose message is for the user
            return [], "failed" if self.claim else "n/a", str(error)
        if self.claim is None and found[0].is_degenerate():
            return [], "n/a", f"on {carrier.name} the output of {self.target.name} does not depend on its input"
        return found, "", ""


def chosen(known: Mapping[str, Any], names: Iterable[str] | None, what: str) -> list[Any]:
    """Return those of ``known`` that are called ``names`` (all); raises `Refusal` for an unknown one."""
    if names is None:
        return list(known.values())
    found = []
    for name in names:
        if name not in known:
            near = catalog.suggest(name, known)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(known)}"
            raise Refusal(f"--{what} {name}: no such {what}{hint}")
        found.append(known[name])
    return found


def claiming() -> list[Stone]:
    """Return the layers whose cards claim something, those that a check without names is about."""
    return [stone for stone in catalog.stones().values() if stone.card.claims and stone.card.role == "layer"]


def failures(rows: Iterable[Cell]) -> list[str]:
    """Return one sentence for each cell that is not as it was claimed."""
    failed = (row for row in rows if row.verdict == "failed")
    return [f"{r.stone} {r.weight or r.row} {r.property} {r.carrier}: {r.reason}" for r in failed]


def cases(target: Target, conditions: Conditions | None) -> list[Case]:
    """Return a case per claim of a stone's card; one without a claim for ``conditions`` and for a class.

    Raises `Refusal` for what is no layer and for a stone without claims.
    """
    if isinstance(target, Stone):
        card = target.card
        if card.role != "layer":
            raise Refusal(
                f"{target.name} is no layer but {with_article(card.role)}: it has no output that could be checked"
            )
        if conditions is None:
            if not card.claims:
                raise Refusal(f"{target.name} claims no invariances")
            return [Case(target, Conditions(c.options, c.mode, c.history, c.weight), c) for c in card.claims]
    return [Case(target, conditions or Conditions(), None)]


def fill(
    target: Target,
    conditions: Conditions | None,
    columns: Sequence[Column],
    carriers: Sequence[Carrier],
    measure: Callable[[Case, Carrier, Sequence[Column]], Iterator[Row]],
    progress: Callable[[Row], None] | None,
) -> list[Row]:
    """Return the cells that ``measure`` makes of every case on every carrier; ``progress`` gets each as it is made.

    Raises `Refusal` as `cases` does, and when nothing was claimed and nothing could be measured. Raises OptionError for
    options that a stone refuses whatever the sizes.
    """
    made, rows = cases(target, conditions), []
    if isinstance(target, Stone) and conditions is not None:
        target.card.check({}, conditions.options)
    with using_threads(1):
        for row in (row for case in made for carrier in carriers for row in measure(case, carrier, columns)):
            rows.append(row)
            if progress is not None:
                progress(row)
    if rows and not any(case.claim for case in made) and all(row.verdict == "n/a" for row in rows):
        measured = made[0].conditions
        if isinstance(target, Stone) and not measured.weight:
            raise Refusal(_unfitting(target, measured.options, carriers[-1], rows[-1]))
        raise Refusal(rows[0].reason)
    return rows


def _unfitting(target: Stone, given: Mapping[str, OptionValue], carrier: Carrier, cell: Cell) -> str:
    """Say that ``target`` fits no carrier, why not the last (by a cell of it), and what would fit it after the card."""
    options = f" with {_written(given)}" if given else ""
    fitting = (claim.options for claim in target.card.claims if claim.options and carrier.name in claim.carriers)
    remedy = "".join(f"; it fits with {_written(claimed)}" for claimed in [*fitting][:1])
    why = f"on {carrier.name} ({carrier.sizes}) {cell.reason}{remedy}"
    return f"{target.name}{options} does not fit the carriers, whose sizes are fixed: {why}"


def _written(options: Mapping[str, OptionValue]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def worst(trials: Sequence[Behind], measure: Callable[[Behind], Found], broken: float = BROKEN) -> tuple[Behind, Found]:
    """Return the trial with the largest deviation and what was found, no longer looking once it is ``broken``."""
    seen: list[tuple[float, Behind, Found]] = []
    for trial in trials:
        found = measure(trial)
        deviation = math.inf if found.deviation is None else found.deviation
        seen.append((deviation, trial, found))
        if deviation > broken:
            break
    _, trial, found = max(seen, key=lambda one: one[0])
    return trial, found


def holds(deviation: float | None, within: float, broken: float = BROKEN) -> bool | None:
    """Tell whether a deviation is none, or None for one between the two thresholds."""
    if deviation is None or within <= deviation <= broken:
        return None
    return deviation < within


def judged(
    expected: bool | None, held: bool | None, deviation: float | None, within: float, broken: str, unclaimed: str
) -> tuple[str, str]:
    """Return the verdict of a cell and the reason: ``broken`` for an expected yes, ``unclaimed`` for an expected no."""
    if deviation is None:
        return "failed", "not everything is finite"
    if held is None:
        reason = f"unclear: neither below {within:.0e} nor above {BROKEN:.0e}"
        return ("measured" if expected is None else "failed"), reason
    if expected is None:
        return "measured", ""
    if held == expected:
        return "ok", ""
    return "failed", broken if expected else unclaimed
