"""Statistics over blocks of consecutive examples × consecutive channels, from the moments of the planes in them.

A batch of N examples and C channels splits in order into N/e × G blocks of e examples and C/G channels. Batch
Normalization has blocks of N examples and one channel, Group Normalization of one example and C/G channels; ghost-bn,
bn-gn, iew and bcn take what lies between.
"""

from __future__ import annotations

from torch import Tensor

from layers.base import Norm
from layers.card import Card, OptionError, sizes
from layers.moments import pool


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


def refuse_batch(card: Card, layer: Norm, x: Tensor) -> None:
    """Raise OptionError in the card's words for the first of its rules that the shape of ``x`` breaks.

    To be called once it is known that one is broken: the rules are too slow to judge in every forward.
    """
    try:
        card.check(sizes(x.shape, train=layer.training), layer.options)
    except OptionError as error:
        raise OptionError(f"{type(layer).__name__}: {error}", error.option) from None
