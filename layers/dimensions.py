"""From the shape of an input or a weight to the symbols that formulas on cards may use. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

SIZES = ("N", "C", "H", "W", "S", "E", "B", "train", "nhwc")
WEIGHT_SIZES = ("O", "I", "E", "B", "train", "nhwc")


def sizes(shape: Sequence[int], *, train: bool = True, itemsize: int = 4, nhwc: bool = False) -> dict[str, Any]:
    """Return the symbols that an input of ``shape`` (N, C, *positions), channels-last or not, gives to formulas.

    Of one channel or one position it is both, and counts as channels-first.
    """
    n, c, *rest = shape
    width = rest[-1] if len(rest) > 1 else 1
    height = math.prod(rest[:-1]) if len(rest) > 1 else math.prod(rest)
    positions = height * width
    counts = {"N": n, "C": c, "H": height, "W": width, "S": positions, "E": n * c * positions}
    return {**counts, "B": itemsize, "train": train, "nhwc": nhwc and c > 1 and positions > 1}


def weight_sizes(shape: Sequence[int], *, train: bool = True, itemsize: int = 4, nhwc: bool = False) -> dict[str, Any]:
    """Return the symbols that a weight of ``shape`` (O, …) gives to the formulas of what works on weights."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    counts = {"O": outputs, "I": inputs, "E": outputs * inputs}
    return {**counts, "B": itemsize, "train": train, "nhwc": nhwc, "*": tuple(shape)}


def inside(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many elements all windows along an axis of ``size`` have in the input, those of the padding left out.

    Summed over the taps of the kernel, the outputs whose element at that tap lies inside.
    """
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    shifts = [tap * dilation - padding for tap in range(kernel)]
    firsts = [max(0, -(shift // stride)) for shift in shifts]
    lasts = [min(outputs - 1, (size - 1 - shift) // stride) for shift in shifts]
    return sum(max(0, last - first + 1) for first, last in zip(firsts, lasts, strict=True))


def divisors(number: int) -> list[int]:
    """Return the divisors of ``number`` in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]
