r"""What optimizers are raced on: small problems whose outcome is known, in float64, each a gradient and a judge.

An optimizer is given the parameters x, one tensor, and ∂/∂x of the loss f_t at each step t = 1, 2, …; the same ones for
everybody. Standard library only until a problem is `started`, so that a wrong name is refused before torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Measures = dict[str, float]


@dataclass(frozen=True)
class Problem:
    """A problem: where x starts, the loss and gradient of step t at x, how the learning rate goes, what is judged.

    ``settings`` are the options that optimizers get if they have them and the user does not give them; ``steps`` how
    many are made. ``measures`` names what is read off in a trajectory, the first of them is plotted.
    """

    name: str
    says: str
    start: tuple[float, ...]
    gradient: Callable[[list[float], int], tuple[float, list[float]]]
    steps: int
    settings: Mapping[str, float] = field(default_factory=dict)
    rate: Callable[[int], float] = lambda t: 1.0
    project: tuple[float, float] | None = None
    best: float = 0.0
    measures: tuple[str, ...] = ("loss",)

    def started(self) -> Tensor:
        """Return x at its start, float64."""
        import torch

        return torch.tensor(self.start, dtype=torch.float64)


def _quadratic(x: list[float], t: int) -> tuple[float, list[float]]:
    """½ Σ a_i x_i² with a from 1 to 100 in equal ratios."""
    curvatures = [100 ** (i / (len(x) - 1)) for i in range(len(x))]
    return 0.5 * sum(a * v * v for a, v in zip(curvatures, x, strict=True)), [
        a * v for a, v in zip(curvatures, x, strict=True)
    ]


def _rosenbrock(x: list[float], t: int) -> tuple[float, list[float]]:
    """(1 − x)² + 100 (y − x²)²."""
    a, b = x
    apart = b - a * a
    loss = (1 - a) * (1 - a) + 100 * apart * apart  # no powers: Python raises where these overflow
    return loss, [-2 * (1 - a) - 400 * a * apart, 200 * apart]


def _reddi(x: list[float], t: int) -> tuple[float, list[float]]:
    """4 x in every third step, −x in the others."""
    slope = 4.0 if t % 3 == 1 else -1.0
    return slope * x[0], [slope]


def _impulse(x: list[float], t: int) -> tuple[float, list[float]]:
    """One gradient of 1, then none."""
    slope = 1.0 if t == 1 else 0.0
    return slope * x[0], [slope]


DECAY = 0.9997


def _decay(x: list[float], t: int) -> tuple[float, list[float]]:
    """A gradient that vanishes as λᵗ."""
    slope = DECAY**t
    return slope * x[0], [slope]


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "quadratic",
            "½ Σ a_i x_i² in 10 dimensions, a_i from 1 to 100, from x = 1",
            (1.0,) * 10,
            _quadratic,
            1000,
            {"lr": 0.01, "weight_decay": 0.0},
        ),
        Problem(
            "rosenbrock",
            "(1 − x)² + 100 (y − x²)² from (−1.2, 1); its minimum is at (1, 1)",
            (-1.2, 1.0),
            _rosenbrock,
            5000,
            {"lr": 1e-3, "weight_decay": 0.0},
            measures=("loss", "x0", "x1"),
        ),
        Problem(
            "reddi",
            "4x in every third step, −x in the others, |x| ≤ 1, η = 0.5/√t (Reddi, Kale & Kumar 2018): −1 is best; "
            "regret is the mean loss above that of −1",
            (0.0,),
            _reddi,
            10_000,
            {"lr": 0.5, "beta1": 0.0, "weight_decay": 0.0},
            rate=lambda t: 1 / math.sqrt(t),
            project=(-1.0, 1.0),
            best=-1.0,
            measures=("x0", "regret"),
        ),
        Problem(
            "impulse",
            "a gradient of 1 in the first step, 0 ever after; travel is how far x goes, in learning rates",
            (0.0,),
            _impulse,
            500,
            {"lr": 1e-3, "weight_decay": 0.0},
            measures=("travel",),
        ),
        Problem(
            "decay",
            f"a gradient of {DECAY}ᵗ; travel is how far x goes, pace its last step, in learning rates",
            (0.0,),
            _decay,
            50_000,
            {"lr": 1e-3, "weight_decay": 0.0},
            measures=("travel", "pace"),
        ),
    )
}
DIGITS = "digits"
NAMES = (*PROBLEMS, DIGITS)
