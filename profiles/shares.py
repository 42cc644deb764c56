"""The share of the training time that a rule for the backward can touch, and what it bounds."""

from __future__ import annotations

from profiles.errors import Refusal

SHARE = 0.7  # what “10× fewer operations, 2.7× faster” of ReSprop's abstract implies is 0.6996


def check_share(share: float) -> None:
    """Raise `Refusal` unless ``share`` is in (0, 1]."""
    if not 0 < share <= 1:
        raise Refusal(f"--backward-share {share:g} is out of range: it must be > 0 and ≤ 1")


def bound(share: float, ratio: float) -> float:
    """Return how many times as fast all gets where a ``share`` of the time takes ``ratio`` of it (Amdahl 1967)."""
    return 1 / ((1 - share) + share * ratio)
