"""The geometry of the gradient of a normalized weight, measured beside what the claims of the card imply.

Where the output does not change with the scale of W, Euler's theorem says ⟨W, ∂L/∂W⟩ = 0 and ∂L/∂(aW) = (∂L/∂W)/a:
gradient descent lengthens the weight and so lowers its own effective learning rate (“Weight Normalization”, arXiv
1602.07868, section 2.1). Where it does not change with a shift, the gradient sums to zero along it. For a random loss
the converse holds as well: what no claim implies must fail. L = Σ r z with random r; float64, eps = 1e-30.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from layers import formula
from layers.card import Claim
from layers.catalog import Stone
from profiles.checks.behind import Behind
from profiles.checks.carriers import CARRIERS, Carrier
from profiles.checks.cells import HOLDS, Case, Cell, chosen, fill, holds, judged, worst
from profiles.checks.chain import Conditions
from profiles.checks.gradients import GRADIENT_PROPERTIES, GradientProperty
from profiles.target import Target


@dataclass(frozen=True)
class Counterexample:
    """Where a property does not hold: the index, what should be there and what is; ``seed`` draws it again."""

    index: tuple[int, ...]
    wanted: float
    found: float
    seed: int


@dataclass(frozen=True)
class Row(Cell):
    """One cell of the table, with a place where the property does not hold, unless it does."""

    counterexample: Counterexample | None = None


def check(
    target: Target,
    conditions: Conditions | None = None,
    *,
    properties: Iterable[str] | None = None,
    carriers: Iterable[str] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure ``properties`` (all) of the gradient of the weight of ``target``, or of the carrier before it.

    As in `invariance.check`: a stone is held to what every claim of its card implies, or, with ``conditions`` and for a
    class, only measured. Nothing is implied where the published backward is not the derivative.
    Raises `Refusal` (or OptionError) as that does.
    """
    columns = chosen(GRADIENT_PROPERTIES, properties, "property")
    return fill(target, conditions, columns, chosen(CARRIERS, carriers, "carrier"), _measure, progress)


def _measure(case: Case, carrier: Carrier, columns: Sequence[GradientProperty]) -> Iterator[Row]:
    """Yield the cells of one line on one carrier."""
    trials, verdict, reason = case.trials(carrier)
    if trials and trials[0].is_flat():
        trials, verdict = [], "n/a"
        reason = f"on {carrier.name} the output of {case.target.name} does not change with the weight"
    for column in columns:
        expected = _expected(case, column, carrier.name) if verdict != "n/a" else None
        if trials:
            yield _cell(case, trials, column, expected)
        else:
            yield Row(**case.fields(column.id, carrier.name), expected=expected, verdict=verdict, reason=reason)


def _expected(case: Case, column: GradientProperty, carrier: str) -> bool | None:
    """Return what the claim implies: for the gradient, stored statistics are constants even where they follow."""
    claim = case.claim
    if claim is None or not isinstance(case.target, Stone):
        return None
    card = case.target.card
    if not formula.evaluate(card.exact_gradient, card.check({}, claim.options)):
        return None
    if claim.history == "follow" and column.id != "inverse-scale":
        claim = _frozen(card.claims, claim)
    if claim is None:
        return None
    return column.claimed if claim.expects(column.invariance, carrier) else column.unclaimed


def _frozen(claims: Iterable[Claim], like: Claim) -> Claim | None:
    """Return the claim about the same layer whose statistics do not follow."""
    same = (c for c in claims if (c.history, c.mode, c.weight) == ("frozen", like.mode, like.weight))
    return next(same, None)


def _cell(case: Case, trials: Sequence[Behind], column: GradientProperty, expected: bool | None) -> Row:
    trial, found = worst(trials[: column.draws], column.measure, column.broken)
    disturbed = column.gain * trial.disturbance() if column.scales else 0.0
    within = max(HOLDS, min(disturbed, column.broken))
    held = holds(found.deviation, within, column.broken)
    words = "follows from the claims, but does not hold", "holds, but no claim implies it"
    verdict, reason = judged(expected, held, found.deviation, within, *words)
    example = None
    if not held and found.deviation is not None:
        example = Counterexample(found.index, found.wanted, found.found, trial.seed)
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


__all__ = ["GRADIENT_PROPERTIES", "Conditions", "Counterexample", "Row", "check"]
