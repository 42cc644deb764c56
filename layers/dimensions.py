"""From the shape of an input or a weight to the symbols that formulas on cards may use. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

SIZES = ("N", "C", "H", "W", "S", "E", "B", "train")
WEIGHT_SIZES = ("O", "I", "E", "B", "train")


def sizes(shape: Sequence[int], *, train: bool = True, itemsize: int = 4) -> dict[str, Any]:
    """Return the symbols that an input of ``shape`` (N, C, *positions) gives to formulas."""
    n, c, *rest = shape
    width = rest[-1] if len(rest) > 1 else 1
    height = math.prod(rest[:-1]) if len(rest) > 1 else math.prod(rest)
    positions = height * width
    counts = {"N": n, "C": c, "H": height, "W": width, "S": positions, "E": n * c * positions}
    return {**counts, "B": itemsize, "train": train}


def weight_sizes(shape: Sequence[int], *, train: bool = True, itemsize: int = 4) -> dict[str, Any]:
    """Return the symbols that a weight of ``shape`` (O, …) gives to the formulas of what works on weights."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    return {"O": outputs, "I": inputs, "E": outputs * inputs, "B": itemsize, "train": train, "*": tuple(shape)}


def divisors(number: int) -> list[int]:
    """Return the divisors of ``number`` in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]
