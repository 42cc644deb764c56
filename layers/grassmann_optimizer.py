"""What SGD-G and Adam-G share: checked parameter groups, state, and a step over all rows of a kernel or of many.

A subclass says how a buffer of tangents follows the gradient and how far the rows turn (`_follow`). Parameter groups
with ``manifold=False`` are trained by Nesterov SGD, torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._nn import flatten_dense_tensors, unflatten_dense_tensors
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from layers.card import Card, OptionError
from layers.checked_optimizer import (
    FUSED,
    HALF,
    Group,
    Params,
    State,
    add_,
    evaluated,
    refuse_foreign,
    share_layout,
    trained,
)
from layers.grassmann import lengths, refuse_zero_rows, rotate_, tangent

# How many bytes of weights are worth joining: copying more takes longer on the CPU than the calls that are saved.
JOINED, JOINED_ELSEWHERE = {"cpu": 1 << 17}, 1 << 26


class GrassmannOptimizer(Optimizer):
    """Base of the optimizers on G(1, n). Rows are filters: the weights of one index of the first axis of a parameter.

    ``card`` holds the options and the names of the state of a parameter, each of the parameter's dtype and device,
    created at its first step. Not offered: differentiable, capturable, fused; sparse gradients; complex parameters.
    Raises OptionError for refused options, in the constructor and in groups, for parameters with manifold=True that
    have no rows of two or more weights, or a row of zeros.
    """

    card: ClassVar[Card]
    buffers: ClassVar[tuple[str, ...]]  # what `_start` makes for each row, in the order of `_follow`

    def __init__(self, params: Params, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            self.card.option(name).check(_number(value))
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
                _refuse_parameter(parameter, name, added)
        except OptionError:
            self.param_groups.pop()
            raise

    def _refuse_options(self, group: Group) -> None:
        for name in ("differentiable", "capturable", "fused"):
            if group.get(name):
                raise OptionError(f"{name}={group[name]!r}: {type(self).__name__} does not offer it", name)
        names = [option.name for option in self.card.options]
        self.card.check({}, {name: _number(group.get(name, self.defaults[name])) for name in names})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a loaded state_dict; options that older ones lack get those of the constructor."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name in (option.name for option in self.card.options):
                group.setdefault(name, self.defaults[name])

    @_disable_dynamo  # torch.compiler.disable would import the compiler at once
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what ``closure`` returned, run once with gradients enabled.

        Parameters without gradient keep their values and state. A group on the Grassmannian whose ``lr`` is 0 stands
        still, its momentum too. torch.compile runs it as it is. Raises RuntimeError for sparse gradients and when
        captured into a CUDA graph, OptionError where the state of a parameter is that of another optimizer.
        """
        loss = evaluated(self, closure)
        for group in self.param_groups:
            params, grads = trained(self, group)
            states = self._states(group, params)
            if not params:
                continue
            if not group["manifold"]:
                self._step_plain(group, params, grads, states)
            elif float(group["lr"]):
                self._step_rows(group, params, grads, states)
        return loss

    def _states(self, group: Group, params: list[Tensor]) -> list[State]:
        """The states of ``params``, created where there is none."""
        needed = self.buffers if group["manifold"] else PLAIN
        states: list[State] = [self.state[parameter] for parameter in params]
        for parameter, state in zip(params, states, strict=True):
            if all(map(state.__contains__, needed)):
                continue
            refuse_foreign(state, needed, "manifold was changed")
            state.update(self._start(parameter) if group["manifold"] else _start_plain(parameter))
        return states

    def _start(self, parameter: Tensor) -> State:
        """Return the state of a parameter that has not moved yet."""
        raise NotImplementedError

    def _follow(self, group: Group, h: Tensor, state: list[Tensor], age: float) -> tuple[Tensor, Tensor, Tensor]:
        """Update ``state`` by the tangents ``h`` (…, n); return buffer a, its lengths, and by what angles to turn."""
        raise NotImplementedError

    def _step_plain(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """Torch's SGD, by its kernel where the choice of ``foreach`` is left open and each tensor is as it takes it."""
        options = {name: group[name] for name in ("momentum", "weight_decay", "maximize")}
        buffers = [state["momentum_buffer"] for state in states]
        fused = group["foreach"] is None and all(map(_suits_kernel, params, grads, buffers))
        foreach = False if fused else group["foreach"]
        sgd(
            params, grads, [*buffers], **options, foreach=foreach, fused=fused, lr=float(group["lr"]), dampening=0,
            nesterov=True,
        )  # fmt: skip

    def _step_rows(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        ages = [0.0] * len(params)
        if "step" in states[0]:
            steps = [state["step"] for state in states]
            add_(steps, 1.0)
            ages = list(map(float, steps))
        columns = [params, grads, *([state[name] for state in states] for name in self.buffers)]
        found = [_Kernel(row, age, group) for row, age in zip(zip(*columns, strict=True), ages, strict=True)]
        for kernels in _batches(found, group["foreach"]):
            joined = [_join(kernels, i) for i in range(len(columns))]
            with _without_autocast(joined[P].device.type):
                self._advance(group, joined[P], joined[GRADIENT], joined[GRADIENT + 1 :], kernels[0].age)
            for i, rows in enumerate(joined):
                if i != GRADIENT:
                    _restore(kernels, i, rows)

    def _advance(self, group: Group, p: Tensor, gradient: Tensor, state: list[Tensor], age: float) -> None:
        """Turn the rows of ``p`` (k, O, n) and update their state, in place."""
        y = p / lengths(p)
        h = tangent(-gradient if group["maximize"] else gradient, y, group["omega"])
        rotate_(p, y, *self._follow(group, h, state, age))


PLAIN = ("momentum_buffer",)  # the state of a parameter that is not on the manifold
P, GRADIENT = 0, 1  # where parameter and gradient stand among the tensors of a kernel, before its state


class _Kernel:
    """One parameter, its gradient and state, as rows: (k, O, n) for k groups of O filters of n weights.

    Within a row the order of weights is that of the parameter's memory: no formula depends on it, and a channels_last
    kernel is a view then. Without penalty a row knows no other, so O is 1. ``age`` is the number of its steps, and
    ``tensors`` are parameter, gradient and state with their axes in that order, those of one number per filter as is.
    """

    def __init__(self, tensors: tuple[Tensor, ...], age: float, group: Group) -> None:
        parameter = tensors[P]
        filters, *weights = parameter.shape
        blocks = group["groups"] if group["omega"] else filters
        self.shape, self.age = (blocks, filters // blocks if blocks else 1, math.prod(weights)), age
        self.tensors: Sequence[Tensor] = tensors
        if not parameter.is_contiguous():
            order = _memory_order(parameter)
            self.tensors = [tensor if tensor.dim() == 1 else tensor.permute(order) for tensor in tensors]
        # What kernels that are stepped as one have in common.
        self.key = (*self.shape[1:], age, parameter.dtype, parameter.device)


def _memory_order(parameter: Tensor) -> tuple[int, ...]:
    """The first axis, then the others from the largest stride to the smallest."""
    strides = parameter.stride()
    return (0, *sorted(range(1, parameter.dim()), key=lambda axis: -strides[axis]))


def _join(kernels: list[_Kernel], i: int) -> Tensor:
    """Tensor ``i`` of all ``kernels`` as rows; of one kernel a view if possible. Half precision as float32."""
    laid = [kernel.tensors[i] for kernel in kernels]
    tensor: Tensor = laid[0].contiguous() if len(laid) == 1 else flatten_dense_tensors(laid)
    wide = tensor.float() if tensor.dtype in HALF else tensor
    _, outputs, weights = kernels[0].shape
    return wide.view(sum(kernel.shape[0] for kernel in kernels), outputs, 1 if laid[0].dim() == 1 else weights)


def _restore(kernels: list[_Kernel], i: int, rows: Tensor) -> None:
    """Write what became of tensor ``i`` of all ``kernels`` back, where it is not the tensor itself."""
    laid = [kernel.tensors[i] for kernel in kernels]
    if len(laid) > 1:
        torch._foreach_copy_(laid, list(unflatten_dense_tensors(rows.view(-1), laid)))
    elif laid[0].data_ptr() != rows.data_ptr():
        laid[0].copy_(rows.view(laid[0].shape))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Products of rows are not rounded because a step is taken inside torch.autocast."""
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


def _batches(kernels: list[_Kernel], foreach: bool | None) -> list[list[_Kernel]]:
    """Join kernels with rows of equal length, up to `JOINED` bytes of weights in all, unless ``foreach`` is false."""
    batches: list[list[_Kernel]] = []
    open_: dict[Any, int] = {}  # which batch has room, by key
    sizes: list[int] = []
    for kernel in kernels:
        p = kernel.tensors[P]
        size, most = p.numel() * max(4, p.element_size()), JOINED.get(p.device.type, JOINED_ELSEWHERE)
        i = open_.get(kernel.key, -1)
        if foreach is not False and i >= 0 and sizes[i] + size <= most:
            batches[i].append(kernel)
            sizes[i] += size
        else:
            open_[kernel.key] = len(batches)
            batches.append([kernel])
            sizes.append(size)
    return batches


def _suits_kernel(w: Tensor, g: Tensor, v: Tensor) -> bool:
    """Whether torch's kernel of SGD may take the step of ``w``."""
    alike = w.dtype == g.dtype == v.dtype and w.dtype not in HALF
    return alike and w.device.type in FUSED and share_layout((w, g, v))


def _start_plain(parameter: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}


def _number(value: Any) -> Any:
    """A tensor of one element, which torch admits for lr, as the number that it holds."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _refuse_parameter(parameter: Tensor, name: str, group: Group) -> None:
    if parameter.is_complex():
        raise OptionError(f"{name} is complex: give its real view, torch.view_as_real")
    if not parameter.is_floating_point():
        raise OptionError(f"{name} is {parameter.dtype}: only floating-point parameters can be trained")
    if not group["manifold"]:
        return
    if math.prod(parameter.shape[1:]) < 2:
        raise OptionError(
            f"{name} of shape {tuple(parameter.shape)} has no rows of two or more weights to turn: "
            "put it into a group with manifold=False"
        )
    if parameter.shape[0] % group["groups"]:
        raise OptionError(f"groups={group['groups']} does not divide the {parameter.shape[0]} rows of {name}", "groups")
    refuse_zero_rows(parameter, name)
