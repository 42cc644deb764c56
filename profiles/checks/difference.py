"""How far apart two tensors are that should be equal, and where: one relative number and the element that says it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """The largest deviation, max |right − left| / max |left|, and the element it is at.

    ``deviation`` is None when a value is not finite; ``index`` is then the first such element. ``left`` and ``right``
    are the two values there, None for one that is not finite.
    """

    deviation: float | None
    index: tuple[int, ...]
    left: float | None
    right: float | None


def difference(left: Tensor, right: Tensor) -> Difference:
    """Compare two tensors of the same shape in float64; raises ValueError when the shapes differ or nothing is there.

    When ``left`` is zero everywhere the scale is max |right|.
    """
    if left.shape != right.shape:
        raise ValueError(f"the two sides have shapes {tuple(left.shape)} and {tuple(right.shape)}")
    if not left.numel():
        raise ValueError("the two sides have no elements")
    left, right = left.detach().double(), right.detach().double()
    apart = (right - left).abs()
    finite = left.isfinite() & right.isfinite()
    every = bool(finite.all())
    place = int((apart if every else ~finite).flatten().double().argmax())
    scale = float(left.abs().max()) or float(right.abs().max()) or 1.0
    return Difference(
        deviation=float(apart.max()) / scale if every else None,
        index=_unravel(place, left.shape),
        left=_finite(float(left.flatten()[place])),
        right=_finite(float(right.flatten()[place])),
    )


def _unravel(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        place, here = divmod(place, size)
        index.append(here)
    return tuple(reversed(index))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
