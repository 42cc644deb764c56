r"""Sub-pixel convolutions as transposed convolutions and back: the same numbers of weights, in another order.

Output position h·r + i of a transposed convolution of stride r and padding π meets input u through tap
t = h·r + i + π − u·r. With t = (k − 1 − a)·r + i and π = (k − 1 − p)·r that is u = h − p + a: tap a of a convolution
with padding p, of which every sub-position i has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.option import OptionError
from layers.space_depth import by_offset, check_scale


def sizes_of(layer: nn.ConvTranspose2d) -> tuple[int, int, int, int, int]:
    """Return scale, kernel and padding of the sub-pixel convolution that ``layer`` is, and the zeros around its taps.

    f zeros before them move the output by f, so that the padding π + f has to be a multiple of the stride r; as many
    behind, and output_padding more, then give the size of the output. Raises OptionError where there is none, TypeError
    for a module of another kind.
    """
    if not isinstance(layer, nn.ConvTranspose2d):
        raise TypeError(f"a torch.nn.ConvTranspose2d is made a sub-pixel convolution, not {type(layer).__name__}")
    what = f"{layer}"
    if layer.groups != 1 or any(rate != 1 for rate in layer.dilation):
        raise OptionError(f"{what} is no sub-pixel convolution: it needs groups=1 and dilation=1")
    each = [layer.kernel_size, layer.stride, layer.padding, layer.output_padding]
    if any(len(set(sides)) > 1 for sides in each):
        raise OptionError(f"{what} differs between the axes: a sub-pixel convolution has one scale and one kernel_size")
    taps, r, around, more = (int(sides[0]) for sides in each)
    if (taps + more - 2 * around) % r:
        raise OptionError(f"{what} has no multiple of stride={r} positions: take another padding or output_padding")
    front = -around % r
    back = front + more
    k = (taps + front + back) // r
    padding = k - 1 - (around + front) // r
    if padding < 0:
        raise OptionError(f"{what} crops more than a sub-pixel convolution without padding does: crop its output")
    return r, k, padding, front, back


def to_transposed(weight: Tensor, scale: int, order: str = "crd") -> Tensor:
    """Return the weight (O·r², C, KH, KW) of a sub-pixel convolution as (C, O, KH·r, KW·r), that of a transposed one.

    The transposed convolution has stride r and the padding (K − 1 − p)·r. Raises OptionError where r² does not divide
    the filters, ValueError where the weight has not 4 axes.
    """
    _four(weight)
    sorted_by_offset = by_offset(weight, scale, order)  # (O, i, j, C, a, e)
    o, _, _, c, high, wide = sorted_by_offset.shape
    taps = sorted_by_offset.flip(4, 5).permute(3, 0, 4, 1, 5, 2)  # (C, O, a, i, e, j)
    return taps.reshape(c, o, high * scale, wide * scale)


def from_transposed(weight: Tensor, scale: int, order: str = "crd") -> Tensor:
    """Return the weight (C, O, TH, TW) of a transposed convolution of stride r as (O·r², C, ⌈TH/r⌉, ⌈TW/r⌉).

    The inverse of `to_transposed`; a kernel that is no multiple of r is filled up with zeros behind its taps. Raises
    OptionError for a scale or an order that there is not, ValueError where the weight has not 4 axes.
    """
    check_scale(scale, order)
    _four(weight)
    c, o, high, wide = weight.shape
    filled = F.pad(weight, [0, -wide % scale, 0, -high % scale])
    taps = filled.view(c, o, filled.shape[2] // scale, scale, filled.shape[3] // scale, scale)
    sorted_by_offset = taps.permute(1, 3, 5, 0, 2, 4).flip(4, 5)  # (O, i, j, C, a, e)
    if order == "dcr":
        sorted_by_offset = sorted_by_offset.movedim(0, 2)
    return sorted_by_offset.reshape(o * scale**2, c, *sorted_by_offset.shape[4:])


def _four(weight: Tensor) -> None:
    if weight.dim() != 4:
        raise ValueError(f"the weight of a convolution of images has 4 axes, not {weight.dim()}")


def to_transposed_bias(bias: Tensor, scale: int, order: str = "crd") -> Tensor:
    """Return the bias (O·r²,) of a sub-pixel convolution as (O,).

    Raises OptionError where the r² of an output channel differ.
    """
    each = by_offset(bias, scale, order).flatten(1)
    if not torch.equal(each, each[:, :1].expand_as(each)):
        raise OptionError(
            f"the bias differs between the {scale**2} sub-positions of an output channel, a transposed convolution has "
            "one for all: set them equal or take the bias out"
        )
    return each[:, 0].clone()
