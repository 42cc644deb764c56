"""Counting pooling, padding and bilinear interpolation: every element of every window counts.

Window i of n over a size H spans ⌊iH/n⌋ … ⌈(i + 1)H/n⌉, so all n of them together have H + n − gcd(H, n) elements.
An interpolated value is 4 products and 3 sums, backward 4 products and 4 sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Args = Sequence[Any]


def _windowed(large: Tensor, small: Tensor) -> int:
    """The elements of all windows that pool ``large`` to the size of ``small``."""
    planes = math.prod(small.shape[:-2])
    sizes = zip(large.shape[-2:], small.shape[-2:], strict=True)
    return planes * math.prod(size + count - math.gcd(size, count) for size, count in sizes)


def _mean(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """A sum over each window and a division."""
    return _windowed(args[0], out)


def _mean_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """A division per window and an addition per element of it."""
    return int(args[0].numel()) + _windowed(out, args[0])


def _max(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """One comparison less than each window has elements."""
    return _windowed(args[0], out[0]) - int(out[0].numel())


def _max_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return int(args[0].numel())


def _pooled(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """The sum over a window and the division by its size."""
    return int(out.numel()) * math.prod(_pair(args[1]))


def _pooled_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """One division per window, one addition per element of it."""
    return int(args[0].numel() * (1 + math.prod(_pair(args[2]))))


def _pair(size: Any) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * 2 if len(sizes) == 1 else sizes


def _pad_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """Each added element's gradient is added to that of the element it repeats."""
    return int(args[0].numel() - out.numel())


RESAMPLING: dict[str, Callable[[Args, Mapping[str, Any], Any], int]] = {
    "_adaptive_avg_pool2d": _mean,
    "_adaptive_avg_pool2d_backward": _mean_backward,
    "avg_pool2d": _pooled,
    "avg_pool2d_backward": _pooled_backward,
    "reflection_pad2d_backward": _pad_backward,
    "replication_pad2d_backward": _pad_backward,
    "adaptive_max_pool2d": _max,
    "adaptive_max_pool2d_backward": _max_backward,
    "upsample_bilinear2d": lambda args, kwargs, out: 7 * int(out.numel()),
    "upsample_bilinear2d_backward": lambda args, kwargs, out: 8 * int(args[0].numel()),
}
