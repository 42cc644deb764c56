"""What a layer is invariant to, measured beside what its card claims: the table of “Layer Normalization”, extended.

A cell is one property on one carrier: the layer's output z on y = W x + b, and z' after the transformation, with the
same γ and β. The deviation max |z' − z| / max |z| is below 1e-9 for an invariance and above 1e-3 for none (float64,
eps = 1e-30), in the worst of three draws; in between it is neither. A claim that is false fails, and so does an
invariance that nobody claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from layers import catalog
from layers.card import Claim
from profiles.checks.behind import Behind
from profiles.checks.carriers import CARRIERS, Carrier
from profiles.checks.cells import BROKEN, HOLDS, Case, Cell, chosen, fill, holds, judged, worst
from profiles.checks.chain import Conditions
from profiles.checks.transformations import PROPERTIES, Property
from profiles.target import Target

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
class Row(Cell):
    """One cell of the table, with the element that changed most where the property does not hold."""

    counterexample: Counterexample | None = None


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
    columns = chosen(PROPERTIES, properties, "property")
    return fill(target, conditions, columns, chosen(CARRIERS, carriers, "carrier"), _measure, progress)


def published() -> list[Row]:
    """Measure the paper's own table, three stones on its linear layer, its six columns; ``expected`` is as printed."""
    columns = [column for column in PROPERTIES.values() if column.paper]
    rows: list[Row] = []
    for name, cells in PUBLISHED.items():
        held = tuple(column.id for column, cell in zip(columns, cells, strict=True) if cell)
        claim = Claim(holds=held, row="Ba, Kiros & Hinton 2016, table 1")
        rows += _measure(Case(catalog.stone(name), Conditions(), claim), CARRIERS["linear"], columns)
    return rows


def _measure(case: Case, carrier: Carrier, columns: Sequence[Property]) -> Iterator[Row]:
    """Yield the cells of one line on one carrier."""
    trials, verdict, reason = case.trials(carrier)
    for column in columns:
        expected = case.claim.expects(column.id, carrier.name) if case.claim and verdict != "n/a" else None
        if trials:
            yield _cell(case, trials, column, expected)
        else:
            yield Row(**case.fields(column.id, carrier.name), expected=expected, verdict=verdict, reason=reason)


def _cell(case: Case, trials: Sequence[Behind], column: Property, expected: bool | None) -> Row:
    trial, found = worst(trials, lambda trial: trial.under(column))
    within = max(HOLDS, min(trial.disturbance(), BROKEN)) if column.scales else HOLDS
    held = holds(found.deviation, within)
    words = "claimed, but the output changes", "holds, but is not claimed"
    verdict, reason = judged(expected, held, found.deviation, within, *words)
    example = None
    if not held and found.left is not None and found.right is not None:
        example = Counterexample(found.index, found.left, found.right, found.right - found.left, trial.seed)
    return Row(
        **case.fields(column.id, trial.carrier.name),
        expected=expected,
        deviation=found.deviation,
        within=within,
        holds=held,
        verdict=verdict,
        reason=reason,
        counterexample=example,
    )


__all__ = ["BROKEN", "HOLDS", "PUBLISHED", "Conditions", "Counterexample", "Row", "check", "published"]
