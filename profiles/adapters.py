"""What works on one weight as a module that is called on it, so that all that runs, counts and times modules serves it.

A penalty gives its value, a projection the new weight, an initializer a new tensor that it filled; an optimizer takes
the input for the gradient, makes one step and gives its parameter. No adapter has registered parameters or buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from profiles.target import Foreign

if TYPE_CHECKING:
    from torch import Tensor

    from layers.card import OptionValue
    from profiles.target import Target


class OnTensor(nn.Module):
    """A function of a tensor with its options, such as a penalty or projection: ``forward(tensor)`` calls it."""

    def __init__(self, function: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, dict(options)

    def forward(self, tensor: Tensor) -> Tensor:
        """Return what the function gives for ``tensor``."""
        return self.function(tensor, **self.options)


class Initializer(OnTensor):
    """An initializer: ``forward(weight)`` fills a new tensor of that shape, dtype, device and layout."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the new tensor; ``weight`` stays as it is."""
        return self.function(torch.empty_like(weight, requires_grad=False), **self.options)


class InPlace(OnTensor):
    """A function that works in place: ``forward(tensor)`` gives it a copy, others find the tensor as it was."""

    def forward(self, tensor: Tensor) -> Tensor:
        """Return what the function makes of a copy of ``tensor``."""
        return self.function(tensor.clone(), **self.options)


def on_tensor(function: Callable[..., Tensor], options: Mapping[str, Any]) -> OnTensor:
    """Return the module that calls ``function``, which works in place where its name ends as torch's do, in ``_``."""
    if getattr(function, "__module__", "") == "torch.nn.init":
        return Initializer(function, options)
    return (InPlace if getattr(function, "__name__", "").endswith("_") else OnTensor)(function, options)


class Optimizer(nn.Module):
    """An optimizer of hidden parameters, usually one: ``forward(gradient)`` is one step of it.

    The parameters, standard normal by torch's generator, are not registered. One step along them is made at once, so
    that the state exists and what happens once is no part of any later step.
    """

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer],
        options: Mapping[str, Any],
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        tensors: int = 1,
    ) -> None:
        super().__init__()
        start = torch.randn(shape if tensors == 1 else (tensors, *shape), device=device, dtype=dtype)
        self._parameters_of_it = [nn.Parameter(each.clone()) for each in _each(start, tensors)]
        self._gradient: Tensor | None = None
        self.optimizer = make(self._parameters_of_it, **options)
        self(torch.randn_like(start))

    def forward(self, gradient: Tensor) -> Tensor:
        """Make one step and return the first parameter, without graph.

        ``gradient`` has the shape of the parameter; of several (tensors, *shape).
        """
        if self._gradient is not gradient:
            self._gradient = gradient
            gradients = _each(gradient.detach(), len(self._parameters_of_it))
            for parameter, one in zip(self._parameters_of_it, gradients, strict=True):
                parameter.grad = one
        self.optimizer.step()
        return self._parameters_of_it[0].detach()

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors that the optimizer keeps for the first parameter, by name."""
        kept = self.optimizer.state[self._parameters_of_it[0]]
        return {name: value for name, value in kept.items() if isinstance(value, torch.Tensor)}


def _each(stacked: Tensor, tensors: int) -> Sequence[Tensor]:
    return [stacked] if tensors == 1 else stacked.unbind()


def adapted(
    target: Target,
    options: Mapping[str, OptionValue],
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    tensors: int = 1,
) -> nn.Module:
    """Return the module of a stone on weights of ``shape``, or a class of optimizers; raises what that raises."""
    if isinstance(target, Foreign):
        return Optimizer(target.factory, options, shape, device, dtype, tensors)
    made, role = target.load(), target.card.role
    if role == "optimizer":
        return Optimizer(made, options, shape, device, dtype, tensors)
    return (Initializer if role == "initializer" else OnTensor)(made, options)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the state tensors per parameter of an adapted optimizer; none of any other module."""
    return module.state if isinstance(module, Optimizer) else {}
