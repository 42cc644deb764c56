"""What the gradient of a weight may have to do with the weight: the columns of `geometry`, and the measure of each.

A measure gets one trial, a layer behind a carrier with its data, and says how far it is from the property. A cosine is
compared with 0; the descents take 20 steps, each on a batch and a loss of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from profiles.checks.behind import Behind
from profiles.checks.cells import BROKEN, HOLDS, SEEDS
from profiles.checks.transformations import DELTA

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 20
STRIDE = 0.01  # ‖first step‖/‖W‖: short, so that what is not orthogonal shows before the step's own length does
BETA, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Found:
    """How far a trial is from a property, and the worst place: what should be there and what is.

    ``deviation`` is None when something is not finite.
    """

    deviation: float | None
    index: tuple[int, ...]
    wanted: float
    found: float


@dataclass(frozen=True)
class GradientProperty:
    """One column: ``id``, ``title``, ``definition``, the ``invariance`` that decides about it, and its ``measure``.

    ``claimed`` is expected where the card claims that invariance, ``unclaimed`` elsewhere; None expects nothing.
    ``scales`` tells what an eps beside a variance disturbs, ``gain`` times as much as orthogonality itself. Above a
    deviation of ``broken`` the property does not hold. ``place`` is what the index of a counterexample counts,
    ``value`` the number there, ``instead`` the words before what it should be. One of the ``draws`` is enough where
    each of many steps has data of its own.
    """

    id: str
    title: str
    definition: str
    invariance: str
    measure: Callable[[Behind], Found]
    claimed: bool | None = True
    unclaimed: bool | None = False
    scales: bool = True
    gain: float = 1.0
    broken: float = BROKEN
    place: str = ""
    value: str = ""
    instead: str = "instead of"
    draws: int = len(SEEDS)


def _cosines(products: Tensor, bounds: Tensor) -> Found:
    """Return the largest |product|/bound, the cosine of the angle between two vectors."""
    import torch

    shares = torch.where(bounds > 0, products / bounds, products).abs()
    if not bool(shares.isfinite().all()):
        return Found(None, (), 0.0, math.nan)
    place = int(shares.argmax())
    index = tuple(int(axis) for axis in torch.unravel_index(torch.tensor(place), shares.shape))
    return Found(float(shares.max()), index, 0.0, float(products.flatten()[place]))


def _orthogonal(trial: Behind) -> Found:
    """⟨w_o, ∂L/∂w_o⟩ for every row."""
    weight = trial.scenes[0].weight.flatten(1)
    slope = trial.gradient(trial.scenes[0].weight).flatten(1)
    return _cosines((weight * slope).sum(1), weight.norm(dim=1) * slope.norm(dim=1))


def _orthogonal_total(trial: Behind) -> Found:
    """⟨W, ∂L/∂W⟩."""
    weight = trial.scenes[0].weight
    slope = trial.gradient(weight)
    return _cosines((weight * slope).sum(), weight.norm() * slope.norm())


def _zero_mean(trial: Behind) -> Found:
    """Σ_k ∂L/∂w_ok for every row."""
    slope = trial.gradient(trial.scenes[0].weight).flatten(1)
    return _cosines(slope.sum(1), math.sqrt(slope.shape[1]) * slope.norm(dim=1))


def _common_mode(trial: Behind) -> Found:
    """Σ_o ∂L/∂W_ok for every column."""
    slope = trial.gradient(trial.scenes[0].weight)
    return _cosines(slope.sum(0), math.sqrt(slope.shape[0]) * slope.norm(dim=0))


def _inverse_scale(trial: Behind) -> Found:
    """a ∂L/∂(aW) beside ∂L/∂W, element by element; the norms are what is shown."""
    weight = trial.scenes[0].weight
    before, after = trial.gradient(weight), trial.gradient(DELTA * weight, follow=True)
    apart = float((DELTA * after - before).norm() / before.norm())
    finite = math.isfinite(apart)
    return Found(apart if finite else None, (), float(before.norm()) / DELTA, float(after.norm()))


Rule = Callable[["Tensor", list["Tensor"], float], "Tensor"]


def descent(trial: Behind, rule: Rule) -> tuple[list[Tensor], list[Tensor], float]:
    """Return the weights, the gradients and the learning rate of STEPS steps, each on a batch and a loss of its own.

    ``rule`` gets the weight, all gradients so far and η, chosen so that a first step of −η ∂L/∂W is short.
    """
    weights, slopes = [trial.scenes[0].weight], [trial.gradient(trial.scenes[0].weight)]
    rate = STRIDE * float(weights[0].norm() / slopes[0].norm())
    for step in range(1, STEPS + 1):
        weights.append(rule(weights[-1], slopes, rate))
        if step < STEPS:
            slopes.append(trial.gradient(weights[-1], step))
    return weights, slopes, rate


def _sgd(weight: Tensor, slopes: list[Tensor], rate: float) -> Tensor:
    return weight - rate * slopes[-1]


def _decayed(weight: Tensor, slopes: list[Tensor], rate: float) -> Tensor:
    """Weight decay of STRIDE² a step: it takes twice what an orthogonal first step adds."""
    return (1 - STRIDE**2) * weight - rate * slopes[-1]


def _momentum(weight: Tensor, slopes: list[Tensor], rate: float) -> Tensor:
    buffer = sum((BETA**age * slope for age, slope in enumerate(reversed(slopes))), 0 * weight)
    return weight - rate * buffer


def _adam(weight: Tensor, slopes: list[Tensor], rate: float) -> Tensor:
    """Adam with its usual β and a learning rate that makes the first step as long as that of the others."""
    mean, square = 0 * weight, 0 * weight
    for slope in slopes:
        mean, square = BETA * mean + (1 - BETA) * slope, BETA2 * square + (1 - BETA2) * slope.square()
    taken = len(slopes)
    mean, square = mean / (1 - BETA**taken), square / (1 - BETA2**taken)
    rate *= float(slopes[0].norm()) / math.sqrt(weight.numel())
    return weight - rate * mean / (square.sqrt() + ADAM_EPS)


RULES: dict[str, Rule] = {"sgd": _sgd, "momentum": _momentum, "decay": _decayed, "adam": _adam}


def _growth(trial: Behind) -> Found:
    """‖W'‖² − ‖W‖² beside η²‖∂L/∂W‖² at every step of plain gradient descent."""
    weights, slopes, rate = descent(trial, RULES["sgd"])
    squares = [float(weight.square().sum()) for weight in weights]
    grown = [after - before for before, after in pairwise(squares)]
    wanted = [rate**2 * float(slope.square().sum()) for slope in slopes]
    apart = [abs(found - due) / due if due else abs(found) for found, due in zip(grown, wanted, strict=True)]
    if not all(map(math.isfinite, apart)):
        return Found(None, (), 0.0, math.nan)
    step = max(range(STEPS), key=apart.__getitem__)
    return Found(apart[step], (step + 1,), wanted[step], grown[step])


def _monotone(rule: Rule) -> Callable[[Behind], Found]:
    """Return the measure of the largest relative decrease of ‖W‖ in a step of ``rule``."""

    def measure(trial: Behind) -> Found:
        norms = [float(weight.norm()) for weight in descent(trial, rule)[0]]
        lost = [1 - after / before for before, after in pairwise(norms)]
        if not all(map(math.isfinite, lost)):
            return Found(None, (), 0.0, math.nan)
        step = max(range(STEPS), key=lost.__getitem__)
        return Found(max(0.0, lost[step]), (step + 1,), norms[step], norms[step + 1])

    return measure


GRADIENT_PROPERTIES = {
    column.id: column
    for column in (
        GradientProperty(
            "orthogonal",
            "Every row is orthogonal to its gradient",
            "⟨w_o, ∂L/∂w_o⟩ = 0 for every neuron o, relative to ‖w_o‖ ‖∂L/∂w_o‖",
            "w-vec-scale",
            _orthogonal,
            place="row",
            value="⟨w_o, ∂L/∂w_o⟩",
        ),
        GradientProperty(
            "orthogonal-total",
            "The weight is orthogonal to its gradient",
            "⟨W, ∂L/∂W⟩ = 0, relative to ‖W‖ ‖∂L/∂W‖",
            "w-scale",
            _orthogonal_total,
            value="⟨W, ∂L/∂W⟩",
        ),
        GradientProperty(
            "inverse-scale",
            "The gradient is inverse to the scale",
            "∂L/∂(aW) = (∂L/∂W)/a, a > 0; where the output is proportional to W, the gradient stays what it was",
            "w-scale",
            _inverse_scale,
            value="‖∂L/∂(aW)‖",
        ),
        GradientProperty(
            "zero-mean",
            "The gradient of every row sums to zero",
            "Σ_k ∂L/∂w_ok = 0 for every neuron o, relative to √I ‖∂L/∂w_o‖",
            "w-vec-recenter",
            _zero_mean,
            scales=False,
            place="row",
            value="Σ_k ∂L/∂w_ok",
        ),
        GradientProperty(
            "common-mode",
            "The gradient sums to zero over neurons",
            "Σ_o ∂L/∂w_ok = 0 for every input k, relative to √O ‖∂L/∂w_·k‖",
            "w-recenter",
            _common_mode,
            scales=False,
            place="input",
            value="Σ_o ∂L/∂w_ok",
        ),
        GradientProperty(
            "sgd-growth",
            "Gradient descent lengthens the weight by its step",
            f"‖W − ηg‖² = ‖W‖² + η²‖g‖² at each of {STEPS} steps, relative to η²‖g‖²",
            "w-scale",
            _growth,
            gain=2 / STRIDE,
            place="step",
            value="‖W'‖² − ‖W‖²",
            draws=1,
        ),
        GradientProperty(
            "momentum-growth",
            "Heavy-ball momentum never shortens the weight",
            f"‖W‖ does not shrink in {STEPS} steps with β = {BETA}, from a buffer of zeros; ⟨W, m⟩ ≤ 0 by induction",
            "w-scale",
            _monotone(RULES["momentum"]),
            broken=HOLDS,
            unclaimed=None,
            place="step",
            value="‖W‖",
            instead="down from",
            draws=1,
        ),
        GradientProperty(
            "adam-growth",
            "Adam never shortens the weight",
            f"‖W‖ does not shrink in {STEPS} steps of Adam; nothing implies it: its step is not along the gradient",
            "w-scale",
            _monotone(RULES["adam"]),
            broken=HOLDS,
            claimed=None,
            unclaimed=None,
            place="step",
            value="‖W‖",
            instead="down from",
        ),
        GradientProperty(
            "decay-growth",
            "Weight decay does not keep the weight from growing",
            f"‖W‖ does not shrink in {STEPS} steps with ηλ = {STRIDE**2:g}, twice what an orthogonal step balances",
            "w-scale",
            _monotone(RULES["decay"]),
            broken=HOLDS,
            claimed=False,
            unclaimed=None,
            place="step",
            value="‖W‖",
            instead="down from",
        ),
    )
}
