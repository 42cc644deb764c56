"""The image operations of AutoAugment on batches of uint8, each as Pillow computes it, bit for bit.

Every function takes contiguous ``images`` (N, 3, H, W) uint8, any H and W, and a value for each image; it returns new
images and leaves those given as they are. Pillow's arithmetic is integer but for three: the scale of autocontrast is in
double precision, blending in single, and so is its smoothing filter, which rounds as integers do. What lies outside the
picture is ``fill``, its red, green and blue. Sides are below 32,768, where Pillow leaves fixed-point coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = Sequence[float]
Fill = Sequence[int]
Matrix = tuple[float, float, float, float, float, float]
FRACTION = 65536  # coordinates in the source have 16 bits behind the point
LUMA = (19595 / FRACTION, 38470 / FRACTION, 7471 / FRACTION)  # red, green and blue in the gray value (ITU-R 601-2)
MOST_CACHED = 2**17  # positions of a map that is kept: 1 MiB
LEVELS = np.arange(256)
LARGE = 8192  # positions of a plane


def invert(images: Tensor, values: Values, fill: Fill) -> Tensor:
    """255 − v."""
    return images.bitwise_not()


def posterize(images: Tensor, bits: Values, fill: Fill) -> Tensor:
    """Keep the highest ``bits``, 1 to 8, of each value."""
    return images & _column([256 - 2 ** (8 - int(b)) for b in bits], images, torch.uint8)


def solarize(images: Tensor, thresholds: Values, fill: Fill) -> Tensor:
    """V below its threshold, of 0 to 256, else 255 − v."""
    # max(v, t − 1) − (t − 1) is 0 below t, and its negative, cut to 1, 255 from there: comparing is no vector operation
    under = _column([max(0, math.ceil(t) - 1) for t in thresholds], images, torch.uint8)
    turned = torch.maximum(images, under).sub_(under).clamp_(max=1).neg_().bitwise_xor_(images)
    for image in (image for image, t in enumerate(thresholds) if t <= 0):
        turned[image] = ~images[image]
    return turned


def autocontrast(images: Tensor, values: Values, fill: Fill) -> Tensor:
    """Stretch each channel from its least and greatest value to 0 and 255; a constant channel stays."""
    planes = _planes(images)
    low, high = (found.cpu().numpy().astype(np.float64)[:, None] for found in (planes.amin(1), planes.amax(1)))
    span = high - low
    scale = 255.0 / np.maximum(span, 1.0)
    stretched = np.minimum(np.maximum(LEVELS * scale - low * scale, 0), 255)  # and truncated, as an integer
    return _look_up(planes, np.where(span > 0, stretched, LEVELS), _numbered(planes)).view(images.shape)


def equalize(images: Tensor, values: Values, fill: Fill) -> Tensor:
    """Make the histogram of each channel flat: v becomes (step//2 + count below v) // step, if step is not 0.

    The step is a 255th of the pixels that are below the greatest value.
    """
    planes = _planes(images)
    index = _numbered(planes)
    counts = _histograms(planes, index)
    below = counts.cumsum(1) - counts
    step = (below * (below < planes.shape[1])).max(1, keepdims=True) // 255  # all are below values beyond the greatest
    flat = np.minimum(np.floor((step // 2 + below) / np.maximum(step, 1)), 255)
    return _look_up(planes, np.where(step > 0, flat, LEVELS), index).view(images.shape)


def brightness(images: Tensor, factors: Values, fill: Fill) -> Tensor:
    """Blend with black."""
    return _blended(images.float(), 0.0, factors)


def contrast(images: Tensor, factors: Values, fill: Fill) -> Tensor:
    """Blend with the mean of the gray picture, rounded."""
    values = images.float()
    pixels = images.shape[2] * images.shape[3]
    total = _gray(values).sum((1, 2, 3), keepdim=True, dtype=torch.float64)
    mean = total.mul_(2).add_(pixels).div_(2 * pixels).floor_()  # exact: half a pixel's share is far above the rounding
    return _blended(values, mean.float(), factors)


def color(images: Tensor, factors: Values, fill: Fill) -> Tensor:
    """Blend with the gray picture."""
    values = images.float()
    return _blended(values, _gray(values), factors)


def sharpness(images: Tensor, factors: Values, fill: Fill) -> Tensor:
    """Blend with the mean over 3×3 pixels, the middle one counted five times; the outermost pixels stay."""
    if min(images.shape[2:]) < 3:
        return images.clone()
    wide, (height, width) = images.to(torch.int16), (side - 2 for side in images.shape[2:])
    across = wide.narrow(3, 0, width) + wide.narrow(3, 1, width)
    across += wide.narrow(3, 2, width)
    total = across.narrow(2, 0, height) + across.narrow(2, 1, height)
    total += across.narrow(2, 2, height)
    inner = wide.narrow(2, 1, height).narrow(3, 1, width)
    total.add_(inner, alpha=4)
    # ⌊S/13 + 1/2⌋ is at least 1/26 from the next integer, further than single precision is wrong
    smooth = total.float().mul_(1 / 13).add_(0.5).floor_()
    sharp = images.clone()
    sharp.narrow(2, 1, height).narrow(3, 1, width).copy_(_blended(inner.float(), smooth, factors))
    return sharp


def shear_x(images: Tensor, slopes: Values, fill: Fill) -> Tensor:
    """Row y shows what was ``slope``·y to its right."""
    if images.shape[2] * images.shape[3] > LARGE and images.device.type == "cpu":
        return _rows_shifted(images, slopes, fill)
    return _from_where(images, [(1.0, slope, 0.0, 0.0, 1.0, 0.0) for slope in slopes], fill)


def shear_y(images: Tensor, slopes: Values, fill: Fill) -> Tensor:
    """Column x shows what was ``slope``·x below."""
    return _from_where(images, [(1.0, 0.0, 0.0, slope, 1.0, 0.0) for slope in slopes], fill)


def rotate(images: Tensor, degrees: Values, fill: Fill) -> Tensor:
    """Turn about the centre, counter-clockwise, and show the nearest pixel."""
    height, width = images.shape[2:]
    return _from_where(images, [_rotation(angle, height, width) for angle in degrees], fill)


def translate_x(images: Tensor, pixels: Values, fill: Fill) -> Tensor:
    """Show what was so many whole ``pixels`` to the right."""
    return translate_y(images.mT, pixels, fill).mT


def translate_y(images: Tensor, pixels: Values, fill: Fill) -> Tensor:
    """Show what was so many whole ``pixels`` below."""
    moved = torch.empty_like(images).copy_(_filled(fill, images))
    height, start = images.shape[2], 0
    for shift, alike in groupby(map(int, pixels)):
        stop = start + len(list(alike))
        first, last = max(0, -shift), min(height, height - shift)
        if first < last:
            moved[start:stop, :, first:last] = images[start:stop, :, first + shift : last + shift]
        start = stop
    return moved


def _filled(fill: Fill, images: Tensor) -> Tensor:
    """A pixel of ``fill``, (3, 1, 1)."""
    return _pixel(tuple(fill), images.device)


@lru_cache(maxsize=64)
def _pixel(fill: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(fill, dtype=torch.uint8, device=device).view(3, 1, 1)


def _column(values: Values, images: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=images.device).view(-1, 1, 1, 1)


def _planes(images: Tensor) -> Tensor:
    """The channels of all images, (N·3, H·W)."""
    return images.view(-1, images.shape[2] * images.shape[3])


def _numbered(planes: Tensor) -> Tensor | None:
    """Every value plus 256 times the number of its plane, flat; None where a call for each plane costs less."""
    if (planes.shape[1] > LARGE or planes.shape[0] <= 3) and planes.device.type == "cpu":
        return None
    start = torch.arange(0, 256 * planes.shape[0], 256, dtype=torch.int32, device=planes.device)
    return planes.to(torch.int32).add_(start.unsqueeze(1)).view(-1)


def _look_up(planes: Tensor, tables: NDArray[Any], index: Tensor | None) -> Tensor:
    """Replace every value by what the table (256 of N·3) of its plane says, an integer or cut to one."""
    tables = tables.astype(np.uint8)
    if index is not None:
        return torch.from_numpy(tables).to(planes.device).view(-1).index_select(0, index)
    found = torch.empty_like(planes)
    for plane, table, result in zip(planes.numpy(), tables, found.numpy(), strict=True):
        result[:] = np.frombuffer(bytearray(plane).translate(table.tobytes()), np.uint8)  # a byte in, a byte out
    return found


def _histograms(planes: Tensor, index: Tensor | None) -> NDArray[np.int64]:
    """How often each value occurs, (N·3, 256)."""
    if index is None and planes.shape[1] <= LARGE:
        return np.stack([np.bincount(plane, minlength=256) for plane in planes.numpy()])
    if index is None:
        counts = torch.stack([torch.bincount(plane, minlength=256) for plane in planes])
    else:
        counts = torch.bincount(index, minlength=256 * planes.shape[0])
    found: NDArray[np.int64] = counts.view(-1, 256).cpu().numpy()
    return found


def _gray(values: Tensor) -> Tensor:
    """The gray picture (N, 1, H, W) of images in single precision, where all these sums are exact: 24 bits."""
    red, green, blue = values.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).add_(0.5).floor_().unsqueeze_(1)


def _blended(values: Tensor, other: Tensor | float, factors: Values) -> Tensor:
    """``other + factor (values − other)`` in single precision, in place of ``values``; cut to 0 … 255, truncated.

    Each operation rounds by itself: a fused multiply-add would give other bits.
    """
    alike = min(factors) == max(factors)
    values.sub_(other).mul_(factors[0] if alike else _column(factors, values, torch.float32)).add_(other)
    if not 0 <= min(factors) <= max(factors) <= 1:
        values.clamp_(0, 255)
    return values.to(torch.int16).to(torch.uint8)  # from float to uint8 is no vector operation


def _from_where(images: Tensor, matrices: Sequence[Matrix], fill: Fill) -> Tensor:
    """Show at (x, y) the pixel at (a x + b y + c, d x + e y + f), for a matrix (a, b, c, d, e, f) per image."""
    n, channels, height, width = images.shape
    make = _cached_map if height * width <= MOST_CACHED else _map
    maps = [make(matrix, height, width, images.device) for matrix in matrices]
    where = torch.stack(maps).unsqueeze(1) if n > 1 else maps[0]
    outside = _filled(fill, images).view(1, channels, 1).expand(n, channels, 1)
    source = torch.cat((images.view(n, channels, -1), outside), 2)
    return source.gather(2, where.expand(n, channels, -1)).view(images.shape)


def _rows_shifted(images: Tensor, slopes: Values, fill: Fill) -> Tensor:
    """What `_from_where` does for `shear_x`, where a row moves as a whole: rows that move alike are copied at once."""
    moved = torch.empty_like(images).copy_(_filled(fill, images))
    height, width = images.shape[2:]
    for before, after, slope in zip(images.numpy(), moved.numpy(), slopes, strict=True):
        for top, bottom, shift in _runs(slope, height):
            first, last = max(0, -shift), min(width, width - shift)
            if first < last:
                after[:, top:bottom, first:last] = before[:, top:bottom, first + shift : last + shift]
    return moved


@lru_cache(maxsize=64)
def _runs(slope: float, height: int) -> list[tuple[int, int, int]]:
    """The runs of rows that are sheared by as many whole pixels: first row, the row after the last, pixels."""
    start = _fixed((1.0 + slope) * 0.5)
    runs, top = [], 0
    for shift, alike in groupby((start + _fixed(slope) * row) >> 16 for row in range(height)):
        bottom = top + len(list(alike))
        runs.append((top, bottom, shift))
        top = bottom
    return runs


def _rotation(degrees: float, height: int, width: int) -> Matrix:
    """The matrix of a rotation about the centre, its entries rounded to 15 digits before the centre enters."""
    radians = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    x, y = width / 2, height / 2
    return (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


def _map(matrix: Matrix, height: int, width: int, device: torch.device) -> Tensor:
    """Where each pixel (H·W) comes from; H·W where that is outside. In fixed point, from pixel centre to centre."""
    a, b, c, d, e, f = matrix
    across = torch.arange(width, device=device)
    down = torch.arange(height, device=device).unsqueeze(1)
    column = (_fixed(c + a * 0.5 + b * 0.5) + _fixed(b) * down + _fixed(a) * across) >> 16
    row = (_fixed(f + d * 0.5 + e * 0.5) + _fixed(e) * down + _fixed(d) * across) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, height * width).flatten()


_cached_map = lru_cache(maxsize=64)(_map)


def _fixed(number: float) -> int:
    return math.floor(number * FRACTION + 0.5)


Operation = Callable[[Tensor, Values, Fill], Tensor]
BY_PLANE = ("AutoContrast", "Equalize")  # large images are worked on plane by plane, however many are given
OPERATIONS: dict[str, Operation] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "AutoContrast": autocontrast,
    "Invert": invert,
    "Equalize": equalize,
    "Solarize": solarize,
    "Posterize": posterize,
    "Contrast": contrast,
    "Color": color,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
