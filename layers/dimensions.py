"""From the shape of an input or a weight to the symbols that formulas on cards may use. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

SIZES = ("N", "C", "H", "W", "S", "E", "B", "train", "nhwc")
WEIGHT_SIZES = ("O", "I", "E", "B", "train", "nhwc")

SMALL, TINY = 1 << 18, 1 << 15  # elements


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

    Those are the pairs of a tap t and an output u with u·stride + t·dilation − padding inside; counted tap by tap, or,
    for a kernel that is larger than the input, position by position.
    """
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if kernel > size:
        return sum(_seeing(place + padding, outputs, kernel, stride, dilation) for place in range(size))
    shifts = [tap * dilation - padding for tap in range(kernel)]
    firsts = [max(0, -(shift // stride)) for shift in shifts]
    lasts = [min(outputs - 1, (size - 1 - shift) // stride) for shift in shifts]
    return sum(max(0, last - first + 1) for first, last in zip(firsts, lasts, strict=True))


def _seeing(place: int, outputs: int, kernel: int, stride: int, dilation: int) -> int:
    """The number of taps t by which some output u sees the padded ``place`` = u·stride + t·dilation."""
    common = math.gcd(stride, dilation)
    if place % common:
        return 0
    step = stride // common  # from one such t to the next
    some = place // common * pow(dilation // common, -1, step) % step
    first, last = max(0, -(((outputs - 1) * stride - place) // dilation)), min(kernel - 1, place // dilation)
    return max(0, (last - some) // step - (first - 1 - some) // step)


def meeting(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many taps of a kernel meet the input along an axis of ``size``; the others see padding alone."""
    if stride > size:  # no tap meets it twice
        return inside(size, kernel, stride, padding, dilation)
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    first, last = -(((outputs - 1) * stride - padding) // dilation), (padding + size - 1) // dilation
    return max(0, min(kernel - 1, last) - max(0, first) + 1)


def batch_norm(samples: int, channels: int, positions: int) -> int:
    """Return the operations of a training forward of `layers.norm.bn` with γ, β and running statistics."""
    elements = samples * channels * positions
    if elements == 0 or is_small(elements, positions):
        return 7 * elements + 10 * channels * (elements > 0)
    return 7 * elements + 8 * samples * channels + 14 * channels


def batch_norm_backward(samples: int, channels: int, positions: int) -> int:
    """Return the operations of the backward of `batch_norm`."""
    elements = samples * channels * positions
    if elements == 0 or is_small(elements, positions):
        return 11 * elements - 2 * channels * (elements > 0)
    return 7 * elements + 11 * channels


def is_small(elements: int, positions: int) -> bool:
    """Whether torch's kernel of batch normalization is fast on contiguous float32 maps of these sizes."""
    return positions <= 1 or elements <= SMALL


def is_tiny(elements: int) -> bool:
    """Whether a few plain operations on so many elements take less time than a custom Function around fewer."""
    return elements <= TINY


def divisors(number: int) -> list[int]:
    """Return the divisors of ``number`` in ascending order."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]
