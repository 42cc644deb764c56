r"""ICNR: filters in front of a pixel shuffle start equal for all r² sub-positions (Aitken et al. 2017,
arXiv 1707.02937, section 3): initialized to convolution and nearest-neighbour resize.

With W₀ (O/r², C, KH, KW), drawn as usual,
$$W_{c(o, m)} = W_{0,o}\quad\text{for } 0 \le m < r^2,$$
c(o, m) = o·r² + m in the order crd of torch's PixelShuffle, m·O/r² + o in the order dcr. The shuffled output then is
nearest-neighbour upsampling of the convolution by W₀: no checkerboard at the start. The bias of the layer has to be
equal too (`layers.space_depth.repeat_filters`), or zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.attached import not_a_kernel
from layers.card import Card, Flops, Identity, Option, Paper, Rule
from layers.moments import widened
from layers.shared import ORDER, SCALE
from layers.space_depth import by_offset, depth_to_space, repeat_filters
from layers.weight_functions import check
from layers.weights import Weight

card = Card(
    title="ICNR, initialization to convolution and nearest-neighbour resize",
    paper=Paper(
        authors="Aitken, Ledig, Theis, Caballero, Wang, Shi",
        title="Checkerboard artifact free sub-pixel convolution: A note on sub-pixel convolution, resize convolution "
        "and convolution resize",
        year=2017,
        arxiv="1707.02937",
    ),
    impl="icnr_",
    role="initializer",
    formula="W[c(o, m)] ← W₀[o],  0 ≤ m < r²",
    summary="Draws one filter per output channel of a pixel shuffle and repeats it for its r² sub-positions.",
    options=(
        SCALE,
        ORDER,
        Option(
            name="draw",
            type=str,
            default="torch",
            choices=("torch", "he"),
            help="W₀ is U(−1/√I, 1/√I), as torch.nn.Conv2d draws it, or N(0, 2/I), He's for ReLU",
        ),
    ),
    rules=(
        Rule(
            "O % scale**2 == 0",
            "scale={scale} needs a multiple of scale² filters: {O} divide into {divisors_of_O}",
            "scale",
        ),
    ),
    flops=Flops("0", "0"),
    explained="Random numbers count nothing, and the rest is copies.",
    traffic=Flops("E*B", "0"),
    identities=(
        Identity(
            says="pixel shuffle of the convolution = nearest-neighbour upsampling", dims={"O": 12}, proof="nearest"
        ),
        Identity(says="the same in the order dcr", options={"order": "dcr"}, dims={"O": 12}, proof="nearest"),
        Identity(says="the filters of each output channel are equal", dims={"O": 12}, proof="equal", within=1e-15),
    ),
    notes=(
        "Public codes draw W₀ and repeat it by a reshape that fits one order of channels: in the order of the other "
        "shuffle that is no ICNR, and nothing fails.",
        "Gradients of the sub-positions differ, so filters part in training: it is a start, not a constraint.",
        "The bias counts: torch draws r² different ones per output channel, a checkerboard of its own.",
        "An output has the variance that W₀ gives it, repeated or not: only neighbours are no longer independent.",
    ),
    examples=({}, {"order": "dcr", "draw": "he"}, {"scale": 1}),
)


@torch.no_grad()
def icnr_(
    tensor: Tensor,
    scale: int = 2,
    order: str = "crd",
    draw: str = "torch",
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` (O, C, …), the weight before a pixel shuffle by ``scale`` in ``order``, in place and return it.

    O/scale² filters are drawn from ``generator`` (None: torch's) on the device of ``tensor``; half precision is drawn
    in float32. Keeps no graph. On the meta device nothing is drawn and nothing done. For another distribution draw
    W₀ yourself and copy `layers.space_depth.repeat_filters` of it.
    Raises OptionError, before anything is drawn, for refused options, filters that scale² does not divide, less than 2
    axes, and a tensor that is not real floating-point.
    """
    check(card, tensor, {"scale": scale, "order": order, "draw": draw})
    if tensor.is_meta or not tensor.numel():
        return tensor
    filters = widened(tensor.new_empty(tensor.shape[0] // scale**2, *tensor.shape[1:]))
    inputs = tensor.shape[1:].numel()
    if draw == "he":
        filters.normal_(0, (2 / inputs) ** 0.5, generator=generator)
    else:
        filters.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return tensor.copy_(repeat_filters(filters, scale, order))


def excludes(weight: Weight) -> str:
    """Return "" for the kernel of a convolution that is used as it is, else the reason; what follows is not known."""
    return not_a_kernel(weight) or ("" if weight.kind == "conv" else f"{weight.kind}: no convolution")


Apply = Callable[[Tensor], Tensor]


def _filled(apply: Apply, weight: Tensor) -> tuple[Tensor, str]:
    """Filters that ``apply`` has filled for a scale of 2, and the order in which four neighbours are equal, or not."""
    made = apply(weight.detach().clone())
    equal = by_offset(made, 2).flatten(1, 2)
    return made, "crd" if torch.equal(equal, equal[:, :1].expand_as(equal)) else "dcr"


def nearest(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """An image through the convolution and the shuffle beside one of the filters' outputs, upsampled."""
    made, order = _filled(apply, weight)
    x = torch.linspace(-1, 1, 3 * made.shape[1] * 30, dtype=made.dtype).sin().view(3, made.shape[1], 5, 6)
    one = F.conv2d(x, by_offset(made, 2, order)[:, 0, 0])
    return depth_to_space(F.conv2d(x, made), 2, order), F.interpolate(one, scale_factor=2, mode="nearest")


def equal(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The filters of all sub-positions beside the first's."""
    made, order = _filled(apply, weight)
    each = by_offset(made, 2, order)
    return each, each[:, :1, :1].expand_as(each)
