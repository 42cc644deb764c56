"""What a layer is invariant to, measured beside what its card claims: the table of “Layer Normalization”, extended.

A cell is one property on one carrier: the layer's output z on y = W x + b, and z' after the transformation, with the
same γ and β. The deviation max |z' − z| / max |z| is below 1e-9 for an invariance and above 1e-3 for none (float64,
eps = 1e-30), in the worst of three draws; in between it is neither. A claim that is false fails, and so does an
invariance that nobody claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layers import catalog
from layers.card import Claim
from layers.catalog import Stone
from layers.shared import EPS
from profiles.behind import Behind, Conditions
from profiles.carriers import CARRIERS, Carrier, WeightNormalized
from profiles.difference import Difference
from profiles.errors import Refusal
from profiles.target import Foreign, Target
from profiles.threads import using_threads
from profiles.transformations import PROPERTIES, Property

HOLDS = 1e-9
BROKEN = 1e-3
SEEDS = (0, 1, 2)  # one draw can leave a sign pattern unchanged, all that a ghost batch of two numbers has

# Table 1 of arXiv 1607.06450, in the order of its columns.
PUBLISHED = {
    "bn": (True, False, True, True, True, False),
    "weight-norm": (True, False, True, False, False, False),
    "ln": (True, True, False, True, False, True),
}


@dataclass(frozen=True)
class Counterexample:
    """The element of the output that changed most under the transformation; ``seed`` draws the same numbers again."""

    index: tuple[int, ...]
    before: float
    after: float
    change: float
    seed: int


@dataclass(frozen=True)
class Row:
    """One cell. ``verdict`` is ok, failed, n/a or measured (nothing was expected); ``reason`` says why it is not ok.

    ``holds`` is None where the deviation lies between ``within`` and 1e-3, is not finite or was not measured.
    """

    stone: str
    row: str
    mode: str
    history: str
    property: str
    carrier: str
    expected: bool | None
    deviation: float | None
    within: float
    holds: bool | None
    verdict: str
    reason: str = ""
    counterexample: Counterexample | None = None


@dataclass(frozen=True)
class _Case:
    """One line of the table: a target under conditions, with the claim that it is held to, if there is one."""

    target: Target
    conditions: Conditions
    claim: Claim | None

    def row(self, name: str, carrier: str, verdict: str, reason: str = "") -> Row:
        """Return a row without measurement."""
        return Row(
            stone=self.target.name,
            row=self.claim.row if self.claim else "",
            mode=self.conditions.mode,
            history=self.conditions.history,
            property=name,
            carrier=carrier,
            expected=self.claim.expects(name, carrier) if self.claim and verdict != "n/a" else None,
            deviation=None,
            within=HOLDS,
            holds=None,
            verdict=verdict,
            reason=reason,
        )


def check(
    target: Target,
    conditions: Conditions | None = None,
    *,
    properties: Iterable[str] | None = None,
    carriers: Iterable[str] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure ``properties`` (all) of ``target`` on ``carriers`` (all); ``progress`` gets each row as it is made.

    Without ``conditions`` a stone is held to every claim of its card. With them, and for a class, the verdict is
    ``measured``. Raises `Refusal` (or OptionError) for unknown names, for a stone without claims, and for a layer that
    runs on none of the carriers.
    """
    columns = _chosen(PROPERTIES, properties, "property")
    places = _chosen(CARRIERS, carriers, "carrier")
    cases = _cases(target, conditions)
    rows = []
    with using_threads(1):
        for row in (row for case in cases for carrier in places for row in _measure(case, carrier, columns)):
            rows.append(row)
            if progress is not None:
                progress(row)
    if rows and not any(case.claim for case in cases) and all(row.verdict == "n/a" for row in rows):
        raise Refusal(rows[0].reason)
    return rows


def published() -> list[Row]:
    """Measure the paper's own table on its linear layer: batch, weight and layer normalization, its six columns.

    ``expected`` is what the paper printed. Batch and layer normalization are the stones; weight normalization is a
    carrier that normalizes its weight; behind it is nn.Identity, which takes an eps and ignores it.
    """
    import torch

    columns = [column for column in PROPERTIES.values() if column.paper]
    rows: list[Row] = []
    for name, cells in PUBLISHED.items():
        holds = tuple(column.id for column, cell in zip(columns, cells, strict=True) if cell)
        claim = Claim(holds=holds, row="Ba, Kiros & Hinton 2016, table 1")
        carrier = CARRIERS["linear"]
        behind: Target
        if name == "weight-norm":
            carrier, behind = WeightNormalized("linear", carrier.inputs), Foreign(name, torch.nn.Identity, (EPS,))
        else:
            behind = catalog.stone(name)
        rows += _measure(_Case(behind, Conditions(), claim), carrier, columns)
    return rows


def _chosen(known: Mapping[str, Any], names: Iterable[str] | None, what: str) -> list[Any]:
    if names is None:
        return list(known.values())
    chosen = []
    for name in names:
        if name not in known:
            near = catalog.suggest(name, known)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(known)}"
            raise Refusal(f"--{what} {name}: no such {what}{hint}")
        chosen.append(known[name])
    return chosen


def _cases(target: Target, conditions: Conditions | None) -> list[_Case]:
    if isinstance(target, Stone):
        card = target.card
        if card.role != "layer":
            raise Refusal(f"{target.name} is a {card.role} of models: it has no output whose invariance can be checked")
        if conditions is None:
            if not card.claims:
                raise Refusal(f"{target.name} claims no invariances")
            return [_Case(target, Conditions(c.options, c.mode, c.history), c) for c in card.claims]
    return [_Case(target, conditions or Conditions(), None)]


def _measure(case: _Case, carrier: Carrier, columns: Sequence[Property]) -> Iterator[Row]:
    """Yield the cells of one line on one carrier."""
    trials, reason = [], f"the card leaves {carrier.name} out"
    if case.claim is None or carrier.name in case.claim.carriers:
        try:
            trials = [Behind(case.target, case.conditions, carrier, seed) for seed in SEEDS]
        except ValueError as error:  # Refusal and OptionError, whose message is for the user
            reason = str(error)
    if trials and case.claim is None and trials[0].is_degenerate():
        trials, reason = [], f"on {carrier.name} the output of {case.target.name} does not depend on its input"
    for column in columns:
        if trials:
            yield _cell(case, trials, column)
        elif case.claim is not None and carrier.name in case.claim.carriers:
            yield case.row(column.id, carrier.name, "failed", reason)
        else:
            yield case.row(column.id, carrier.name, "n/a", reason)


def _cell(case: _Case, trials: Sequence[Behind], column: Property) -> Row:
    trial, found = _worst(trials, column)
    within = max(HOLDS, min(trial.disturbance(), BROKEN)) if column.scales else HOLDS
    holds = _holds(found.deviation, within)
    expected = case.claim.expects(column.id, trial.carrier.name) if case.claim else None
    verdict, reason = _judged(expected, holds, found.deviation, within)
    example = None
    if not holds and found.left is not None and found.right is not None:
        example = Counterexample(found.index, found.left, found.right, found.right - found.left, trial.seed)
    row = case.row(column.id, trial.carrier.name, verdict, reason)
    return replace(row, deviation=found.deviation, within=within, holds=holds, counterexample=example)


def _worst(trials: Sequence[Behind], column: Property) -> tuple[Behind, Difference]:
    """Return the trial with the largest difference, no longer looking once the property is broken."""
    seen: list[tuple[float, Behind, Difference]] = []
    for trial in trials:
        found = trial.under(column)
        deviation = math.inf if found.deviation is None else found.deviation
        seen.append((deviation, trial, found))
        if deviation > BROKEN:
            break
    _, trial, found = max(seen, key=lambda one: one[0])
    return trial, found


def _holds(deviation: float | None, within: float) -> bool | None:
    if deviation is None or within <= deviation <= BROKEN:
        return None
    return deviation < within


def _judged(expected: bool | None, holds: bool | None, deviation: float | None, within: float) -> tuple[str, str]:
    if deviation is None:
        return "failed", "the output is not finite"
    if holds is None:
        reason = f"unclear: neither below {within:.0e} nor above {BROKEN:.0e}"
        return ("measured" if expected is None else "failed"), reason
    if expected is None:
        return "measured", ""
    if holds == expected:
        return "ok", ""
    return "failed", "claimed, but the output changes" if expected else "holds, but is not claimed"


__all__ = ["PUBLISHED", "Conditions", "Counterexample", "Row", "check", "published"]
