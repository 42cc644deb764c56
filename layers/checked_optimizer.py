"""What the optimizers share: options checked in the constructor and in every group, state by the card, and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from layers.card import SAME, Card, OptionError
from layers.formula import evaluate
from layers.weights import Weight

HALF = (torch.float16, torch.bfloat16)
FUSED = ("cpu", "cuda")  # devices of torch's fused kernels of Adam and SGD
Group = dict[str, Any]
Params = Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]]
State = dict[str, Tensor]
Tensors = list[Tensor] | tuple[Tensor, ...]


class CheckedOptimizer(Optimizer):
    """An optimizer whose options and state are those of its ``card``; a subclass says what a step is (`_step`).

    The state of a parameter is made at its first step: ``step``, a float32 number on the CPU that counts them, and
    tensors of zeros with the shape, device and layout of the parameter, in its dtype or, where that is half precision,
    in float32: 8 bits forget a small update of a mean. Which tensors a group needs may depend on its options (`given`).
    Not offered: differentiable, capturable; sparse gradients; complex parameters.
    Raises OptionError for refused options, in the constructor and in groups, and for parameters that are not real
    floating-point numbers.
    """

    card: ClassVar[Card]

    def __init__(self, params: Params, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            self.card.option(name).check(number(value))
        super().__init__(params, dict(options))

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; options that it lacks are those of the constructor. Raises OptionError as the constructor."""
        if isinstance(param_group, dict):
            self._refuse_options(param_group)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        names = added.get("param_names") or [f"parameter {i}" for i in range(len(added["params"]))]
        try:
            for name, parameter in zip(names, added["params"], strict=True):
                self._refuse_parameter(parameter, name, added)
        except OptionError:
            self.param_groups.pop()
            raise

    def _refuse_options(self, group: Group) -> None:
        offered = [option.name for option in self.card.options]
        for name in ("differentiable", "capturable", "fused"):
            if group.get(name) and name not in offered:
                raise OptionError(f"{name}={group[name]!r}: {type(self).__name__} does not offer it", name)
        self.card.check({}, {name: number(group.get(name, self.defaults[name])) for name in offered})

    def _refuse_parameter(self, parameter: Tensor, name: str, group: Group) -> None:
        if reason := excludes_numbers(parameter):
            raise OptionError(f"{name} is {reason}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a loaded state_dict; options that older ones lack get those of the constructor."""
        super().__setstate__(state)
        for group in self.param_groups:
            for option in self.card.options:
                group.setdefault(option.name, self.defaults[option.name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, bit for bit: torch would round the state of half-precision parameters.

        Raises ValueError when the groups are of other sizes, OptionError when they have ``betas``: they are Adam's, or
        those of another optimizer whose second moment means something else under the same name.
        """
        if any("betas" in group for group in state_dict["param_groups"]):
            raise OptionError(
                f"the state is of another optimizer: its groups have betas, which {type(self).__name__} lacks"
            )
        super().load_state_dict(state_dict)
        places = [place for group in state_dict["param_groups"] for place in group["params"]]
        params = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter, place in zip(params, places, strict=True):
            for name, value in state_dict["state"].get(place, {}).items():
                if name == "step":
                    self.state[parameter][name] = torch.as_tensor(value, dtype=torch.float32, device="cpu").clone()
                elif parameter.dtype in HALF and isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, torch.float32, copy=True)

    @_disable_dynamo  # torch.compiler.disable would import the compiler at once
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what ``closure`` returned, run once with gradients enabled.

        Parameters without gradient keep their values and state. torch.compile runs it as it is. Raises RuntimeError for
        sparse gradients and when captured into a CUDA graph, OptionError where the state of a parameter is that of
        another optimizer.
        """
        loss = evaluated(self, closure)
        for group in self.param_groups:
            params, grads = trained(self, group)
            if params:
                self._step(group, params, grads, self._states(group, params))
        return loss

    def given(self, group: Group) -> dict[str, tuple[str, ...]]:
        """Return which tensors the state of a parameter of ``group`` has, and their shapes as the card writes them."""
        return {s.name: s.shape for s in self.card.state if s.given == "True" or evaluate(s.given, group)}

    def _states(self, group: Group, params: list[Tensor]) -> list[State]:
        """The states of ``params``, made where there is none."""
        needed = self.given(group)
        states: list[State] = [self.state[parameter] for parameter in params]
        for parameter, state in zip(params, states, strict=True):
            if state.keys() >= needed.keys():
                continue
            refuse_foreign(state, needed, "of other options")
            state.update((name, _zeros(parameter, shape)) for name, shape in needed.items())
        return states

    def _step(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Move ``params`` by ``grads`` and update their ``states``, in place."""
        raise NotImplementedError


def evaluated(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    """Return what ``closure`` returns, run with gradients; raises RuntimeError in the capture of a CUDA graph."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        raise RuntimeError(f"{type(optimizer).__name__} is not capturable: step outside the CUDA graph")
    return loss


def trained(optimizer: Optimizer, group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of ``group`` that have a gradient, and these; raises RuntimeError for sparse ones."""
    params = [parameter for parameter in group["params"] if parameter.grad is not None]
    grads = [parameter.grad for parameter in params]
    if any(gradient.is_sparse for gradient in grads):
        raise RuntimeError(f"{type(optimizer).__name__} does not take sparse gradients: use dense ones")
    return params, grads


def refuse_foreign(state: State, needed: Iterable[str], otherwise: str) -> None:
    """Raise OptionError where the ``state`` of a parameter, if it has any, lacks some of what is ``needed``."""
    if state:
        lacks = next(name for name in needed if name not in state)
        raise OptionError(
            f"the state of a parameter has no {lacks}: it is of another optimizer, or {otherwise}; "
            "build the optimizer anew without it"
        )


def share_layout(tensors: Tensors) -> bool:
    """Whether the same place in memory of each of ``tensors``, of one shape, is the same number, and no place is none.

    A kernel may then go by addresses, as torch's fused ones do.
    """
    if all(map(Tensor.is_contiguous, tensors)):
        return True
    strides = tensors[0].stride()
    return all(tensor.stride() == strides for tensor in tensors) and _is_dense(tensors[0].shape, strides)


@lru_cache
def _is_dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    """Whether numbers fill a piece of memory, in whatever order of axes."""
    length = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != length:
            return False
        length *= size
    return True


def add_(tensors: Tensors, value: float) -> None:
    """Add ``value`` to all of ``tensors``, which are of one dtype and device."""
    if tensors[0].device.type == "cpu":
        torch._foreach_add_(tensors, _as_tensor(value, tensors[0]), alpha=1)  # without alpha it would become a number
    else:
        torch._foreach_add_(tensors, value)


def multiply_(tensors: Tensors, value: float) -> None:
    """Multiply all of ``tensors``, which are of one dtype and device, by ``value``."""
    on_cpu = tensors[0].device.type == "cpu"
    torch._foreach_mul_(tensors, _as_tensor(value, tensors[0]) if on_cpu else value)


def _as_tensor(value: float, like: Tensor) -> Tensor:
    """What torch makes of a number on the CPU, for each tensor of a list anew: twice as long as to add a short one."""
    return torch.tensor(value, dtype=like.dtype, device="cpu")


def _zeros(parameter: Tensor, shape: tuple[str, ...]) -> Tensor:
    if shape != SAME:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    dtype = torch.float32 if parameter.dtype in HALF else parameter.dtype
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def number(value: Any) -> Any:
    """Return a tensor of one element, which torch admits for lr, as the number that it holds; else ``value``."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def excludes_numbers(parameter: Tensor) -> str:
    """Return why the numbers of ``parameter`` cannot be trained; empty when they can."""
    if parameter.is_complex():
        return "complex: give its real view, torch.view_as_real"
    return "" if parameter.is_floating_point() else f"{parameter.dtype}: only floating-point parameters can be trained"


def excludes(weight: Weight) -> str:
    """Return why a parameter of a model is left out; empty for every real floating-point one."""
    return excludes_numbers(weight.parameter)
