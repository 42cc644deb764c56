"""What a stone claims to be true of itself, beside its costs: invariances, equations, outcomes of races.

Standard library only, as cards are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from layers.option import OptionValue

CARRIERS = ("linear", "conv", "conv-padded")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row of the invariance table: the properties that hold; each property not listed must fail.

    ``holds`` has entries ``w-scale`` (on every carrier) or ``x-recenter@linear,conv`` (only there). ``history`` says
    what stored statistics do: ``frozen`` (they keep their values) or ``follow`` (they saw the transformed data).
    ``options`` are those of the measurement (12 channels, batch of 8); ``carriers`` those on which it makes sense.
    ``weight`` names a stone that reparametrizes the weight of the carrier: the row of the two together.
    """

    holds: tuple[str, ...]
    row: str = ""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    mode: str = "train"
    history: str = "frozen"
    carriers: tuple[str, ...] = CARRIERS
    weight: str = ""
    why: str = ""

    def expects(self, name: str, carrier: str) -> bool:
        """Tell whether property ``name`` is claimed to hold on ``carrier``."""
        for entry in self.holds:
            held, _, where = entry.partition("@")
            if held == name:
                return not where or carrier in where.split(",")
        return False


@dataclass(frozen=True, kw_only=True)
class Identity:
    """An equation with another stone (``equals``) or a function of the stone's own file (``proof``).

    With ``equals`` both stones are built on the same sizes, given the same parameters and buffers, and their outputs
    and input gradients compared. With ``proof`` the named function gets ``(layer, x)`` in float64 and returns the two
    sides as tensors. A string for a numeric option is a formula: ``{"groups": "C"}``. ``dims`` override
    N=6, C=12, H=5, W=4; ``within`` is the admitted deviation relative to the largest value.
    """

    says: str
    equals: str = ""
    proof: str = ""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    other: Mapping[str, OptionValue] = field(default_factory=dict)
    mode: str = "train"
    dims: Mapping[str, int] = field(default_factory=dict)
    within: float = 1e-9


@dataclass(frozen=True, kw_only=True)
class Race:
    """What becomes of an optimizer on a problem of `profiles.races.problems`.

    After ``steps`` steps with ``options``, beside those that the problem sets, ``measure`` is ``expected`` up to
    ``within``, relative to it (absolute where it is 0). ``says`` is the fact in words.
    """

    says: str
    problem: str
    measure: str
    expected: float
    steps: int
    within: float = 1e-6
    options: Mapping[str, OptionValue] = field(default_factory=dict)
