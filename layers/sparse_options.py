"""The options of a gradient that is kept in part, as the cards of sparse backward rules share them. Data."""

from __future__ import annotations

from layers.card import Option, Rule

KEPT = (
    Option(
        name="k",
        type=int,
        default=None,
        optional=True,
        ge=0,
        help="outputs whose gradient goes back; 0, or O and more: all; none: as ratio says",
    ),
    Option(
        name="ratio",
        type=float,
        default=0.0625,
        optional=True,
        gt=0,
        le=1,
        help="k/O, instead of k; none beside k = none: all",
        source="near the authors' k = 30 of 500",
    ),
    Option(
        name="unified",
        type=bool,
        default=True,
        help="one set of outputs for the batch; else each example has its own, and nothing gets faster",
    ),
)
KEPT_SYMBOLS = {
    "K": "O if k == 0 or k is None and ratio is None else min(k, O) if k is not None else max(1, (ratio*O + 0.5) // 1)",
}
KEPT_RULES = (
    Rule(
        "k is None or ratio is None or ratio == 0.0625",
        "k={k} and ratio={ratio} both say how many outputs are kept; give one",
        "k",
    ),
)
