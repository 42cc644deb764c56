"""What the parametrizations of weights share: on which axis a layer keeps its outputs, and what they refuse."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from layers.card import Card, OptionError, OptionValue
from layers.convolution import Convolution
from layers.weights import Weight, as_matrices, from_matrices


def own_weights(weight: Weight, *, linear: bool = False) -> str:
    """Return why a technique on the weights of filters leaves ``weight`` alone by default; empty when it does not."""
    if not weight.is_kernel or (weight.kind == "linear" and not linear):
        return "not the weight of a convolution" + (" or linear layer" if linear else "")
    if isinstance(weight.module, Convolution):
        return f"{type(weight.module).__name__} has weights of its own making"
    return ""


def single_weights(weight: Weight) -> str:
    """Return why a filter of ``weight`` cannot be standardized: it has one weight; empty when it has more."""
    return "filters of 1 weight: nothing is left of them" if weight.matrices().shape[-1] < 2 else ""


class Reparametrization(nn.Module):
    """A map from the weight that is learnt to the weight that is used, row by row: one row per output channel.

    For `torch.nn.utils.parametrize.register_parametrization(layer, "weight", …)`. The layer tells where outputs are:
    on the first axis, on the second of transposed convolutions (there per group). Keeps no state of its own unless a
    subclass does. Assigning to the weight of the layer sets the weight that is learnt.
    Raises OptionError for a layer without a weight of at least two axes, for one whose weight the same technique
    parametrizes already, for refused ``options``, those of ``card`` that become attributes, and when it is registered
    on, or assigned, a tensor of another shape than the weight.
    """

    unties = False  # does registration make new parameters, so that a weight shared with other layers is no longer?

    def __init__(self, layer: nn.Module, card: Card, **options: OptionValue) -> None:
        super().__init__()
        for name, value in options.items():
            setattr(self, name, card.option(name).check(value))
        if not isinstance(layer, nn.Module):
            raise OptionError(f"{type(self).__name__} takes the layer, not its weight (a {type(layer).__name__})")
        if any(map(is_lazy, layer.parameters(recurse=False))):
            raise OptionError(f"{type(layer).__name__} has no shapes yet: run it once first")
        if any(type(known) is type(self) for known in parametrizations(layer)):
            raise OptionError(f"{type(self).__name__} parametrizes the weight of this {type(layer).__name__} already")
        plain = "weight" in layer._parameters or parametrizations(layer)
        weight = getattr(layer, "weight", None) if plain else None
        if not isinstance(weight, Tensor) or weight.dim() < 2 or not weight.numel():
            found = f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no weight"
            raise OptionError(f"{type(layer).__name__} has {found}: a weight of 2 or more axes, none empty, is needed")
        if not weight.is_floating_point():
            raise OptionError(f"{type(layer).__name__} has a weight of {weight.dtype}: it must be real floating-point")
        self.shape = weight.shape
        self.groups: int = getattr(layer, "groups", 1)
        self.transposed = isinstance(layer, _ConvTransposeNd)
        inputs = weight.shape[0] // self.groups if self.transposed else weight.shape[1]
        self.inputs = inputs * math.prod(weight.shape[2:])  # I, the weights of one output channel
        outputs = weight.shape[1] * self.groups if self.transposed else weight.shape[0]
        alone = (1,) * (weight.dim() - 2)
        self.per_output = (1, outputs, *alone) if self.transposed else (outputs, 1, *alone)  # of one number per output

    def rows(self, weight: Tensor) -> Tensor:
        """Return ``weight`` as (O, I), a row per output channel."""
        return as_matrices(weight, self.groups, transposed=self.transposed).flatten(0, 1)

    def unrows(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return ``rows`` (O, I) in the shape of ``weight``."""
        return from_matrices(rows.view(self.groups, -1, rows.shape[1]), weight, transposed=self.transposed)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what to learn when ``weight`` is assigned: the weight itself."""
        self.refuse_other_shapes(weight)
        return weight

    def refuse_other_shapes(self, weight: Tensor) -> None:
        """Raise OptionError for a tensor that is not of the shape of the weight of the layer."""
        if weight.shape != self.shape:
            shapes = f"{tuple(self.shape)}, not of {tuple(weight.shape)}"
            raise OptionError(f"{type(self).__name__} was made for a weight of shape {shapes}")

    def refuse_parametrized(self, layer: nn.Module) -> None:
        """Raise OptionError when the weight of ``layer`` has a parametrization: this one must be the first."""
        for known in parametrizations(layer):
            raise OptionError(f"the weight has a parametrization already, {type(known).__name__}: remove that first")

    def refuse_single_weights(self) -> None:
        """Raise OptionError when a filter has one weight, of which centring leaves nothing."""
        if self.inputs < 2:
            raise OptionError("a filter of 1 weight cannot be centred: use a larger kernel or fewer groups")

    def extra_repr(self) -> str:
        """Return where the outputs are."""
        return f"groups={self.groups}, transposed={self.transposed}"


def parametrizations(layer: nn.Module) -> list[nn.Module]:
    """Return the parametrizations of the weight of ``layer``, first to last; none for a plain one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"]))
