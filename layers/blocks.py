"""Statistics over blocks of consecutive examples × consecutive channels, from the moments of the planes in them.

A batch of N examples and C channels splits in order into N/e × G blocks of e examples and C/G channels. Batch
Normalization has blocks of N examples and one channel, Group Normalization of one example and C/G channels; ghost-bn,
bn-gn, iew and bcn take what lies between.
"""

from __future__ import annotations

from torch import Tensor

from layers.base import Norm, widened_affine
from layers.card import Card, OptionError, sizes
from layers.dimensions import is_small
from layers.group_norm import normalize_planes
from layers.moments import needs_plain_operations, pool
from layers.observe import is_followed


def pool_blocks(mean: Tensor, var: Tensor, examples: int, groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each block, (N/examples, groups), from those of its planes, (N, C).

    ``examples`` divides N; 0 means one block of all examples, an empty batch included.
    """
    batch, channels = mean.shape
    shape = (batch // examples if examples else 1, examples or batch, groups, channels // groups)
    mean, var = pool(mean.reshape(shape), var.reshape(shape), (1, 3))
    return mean.flatten(1), var.flatten(1)


def spread_blocks(statistic: Tensor, batch: int, channels: int) -> Tensor:
    """Give each plane the statistic (blocks, groups) of its block: N×C, contiguous."""
    blocks, groups = statistic.shape
    shape = (blocks, batch // blocks if blocks else 0, groups, channels // groups)
    # One number for all is a view of stride 0, whose backward through batch normalization reads beyond it (torch 2.13).
    return statistic.view(blocks, 1, groups, 1).expand(shape).reshape(batch, channels).contiguous()


def suits_blocks(x: Tensor) -> bool:
    """Whether `normalize_blocks` may take ``x``, and is the faster way."""
    small = x.numel() > 0 and is_small(x.numel(), x.shape[2:].numel())
    plain = needs_plain_operations() or is_followed()
    return x.device.type == "cpu" and x.is_contiguous() and small and not plain


def normalize_blocks(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, examples: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Return y and μ (N/examples, groups) of ``x`` that `suits_blocks`, by torch's group normalization.

    In a copy each block is one sample's group: (N/e, e, G, K, S) becomes (N/e, G, e, K, S), and y goes back.
    """
    batch, channels = x.shape[:2]
    inside = (examples, groups, channels // groups)
    split = x.view(batch // examples, *inside, -1).transpose(1, 2)
    count = examples * channels
    weight, bias = (
        None if t is None else t.view(groups, 1, -1).expand(groups, examples, -1).reshape(count)
        for t in widened_affine(x, weight, bias)
    )
    rows = split.reshape(batch // examples, count, -1).contiguous()
    y, mean, _ = normalize_planes(rows, groups, weight, bias, eps)
    return y.view(split.shape).transpose(1, 2).reshape(x.shape), mean


def refuse_batch(card: Card, layer: Norm, x: Tensor) -> None:
    """Raise OptionError in the card's words for the first of its rules that the shape of ``x`` breaks.

    To be called once it is known that one is broken: the rules are too slow to judge in every forward.
    """
    try:
        card.check(sizes(x.shape, train=layer.training), layer.options)
    except OptionError as error:
        raise OptionError(f"{type(layer).__name__}: {error}", error.option) from None
