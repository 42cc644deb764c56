"""What functions of one weight share: checked options, and float32 or wider, whatever the weight and autocast are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from layers.card import Card, OptionError, OptionValue


def check(card: Card, weight: Tensor, options: Mapping[str, OptionValue]) -> None:
    """Raise OptionError for a weight that is not real floating-point or has less than two axes, and for options that
    ``card`` refuses for its sizes.

    Inside torch.compile, which cannot trace a card's rules, options are taken as they are.
    """
    if not weight.is_floating_point():
        raise OptionError(f"{card.impl} needs a real floating-point weight, not {weight.dtype}")
    if weight.dim() < 2:
        raise OptionError(f"{card.impl} needs a weight (O, …) of 2 axes or more, not {tuple(weight.shape)}")
    if not torch.compiler.is_compiling():
        card.check(card.sizes(weight.shape), options)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves products of matrices on the device of ``tensor`` as they are."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
