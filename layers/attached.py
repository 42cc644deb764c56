"""Regularizers and projections that an optimizer applies by itself at each of its steps, by its step hooks.

`Projected` puts new values in the place of weights after a step; `Penalized` takes the gradient of a penalty into it.
Both work with every optimizer that keeps the hooks of `torch.optim.Optimizer`, touch only parameters that it holds and
that are being trained, and count steps, so that training resumes where it stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from layers.convolution import Convolution
from layers.hooked import Hooked
from layers.option import Option, OptionError
from layers.weights import Weight, weights

EVERY = Option(name="every", type=int, default=1, ge=1, help="steps of the optimizer from one application to the next")
Closure = Callable[[], Any]
Group = dict[str, Any]
Change = tuple[tuple[Any, ...], dict[str, Any]]


class Attached(Hooked):
    """What a technique does to the parameters of one optimizer. Made by the ``attach`` of a technique.

    ``names`` are the parameters that it touches, ``skipped`` says of each other parameter of the model why not. What
    the optimizer is given later is touched from then on; frozen parameters (``requires_grad`` False) are left alone as
    long as they are. ``steps`` counts the optimizer's steps: the technique is applied at every ``every``-th. The
    counter is the only state (`state_dict`).
    Raises OptionError for ``every`` < 1, for a model of which the optimizer holds nothing, and where nothing is left
    to touch.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, excludes: Callable[[Weight], str], every: int
    ) -> None:
        EVERY.check(every)
        super().__init__()
        self.every, self.optimizer = every, optimizer
        self._owned = [(weight, excludes(weight)) for weight in weights(model)]
        self._chosen = {weight.parameter: weight for weight, reason in self._owned if not reason}
        if self._held().isdisjoint(weight.parameter for weight, _ in self._owned):
            raise OptionError(f"the optimizer holds no parameter of this {type(model).__name__}: give it its own")
        if not self.names:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.skipped.items())[:3])
            raise OptionError(f"no parameter of this {type(model).__name__} is to be touched ({reasons})")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters that are touched, in the order of the model."""
        held = self._held()
        return tuple(weight.name for weight in self._chosen.values() if weight.parameter in held)

    @property
    def skipped(self) -> dict[str, str]:
        """Why each of the other parameters is not, by name."""
        held, why = self._held(), "the optimizer does not hold it"
        return {w.name: reason or why for w, reason in self._owned if reason or w.parameter not in held}

    def _held(self) -> set[nn.Parameter]:
        return {parameter for group in self.optimizer.param_groups for parameter in group["params"]}

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        """Copy, attached to the copy of the optimizer; `torch.optim.Optimizer` copies none of its hooks itself."""
        made: Attached = object.__new__(type(self))
        memo[id(self)] = made
        vars(made).update(copy.deepcopy({name: value for name, value in vars(self).items() if name != "_hooks"}, memo))
        made._hooks = made._register() if self._hooks else []
        return made

    def _register(self) -> list[Any]:
        """Hook into the optimizer's steps and return the handles."""
        raise NotImplementedError

    def _due(self) -> bool:
        """Count a step and tell whether it is one of those that matter."""
        self.steps += 1
        return self.steps % self.every == 0

    def _trained(self) -> Iterator[tuple[Weight, Group]]:
        """Each parameter to touch now, with its group, whose options a scheduler may have changed."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._chosen and parameter.requires_grad:
                    yield self._chosen[parameter], group


class Projected(Attached):
    """After every ``every``-th step, ``project`` each weight: a function that changes its parameter in place.

    The same weights give the same projection, bit by bit, on the same hardware with the same software, so that data-
    parallel ranks stay equal there. Where they differ, ``broadcast`` makes rank 0 project and sends its weights to the
    others, provided that torch.distributed is initialized.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        excludes: Callable[[Weight], str],
        project: Callable[[Weight], object],
        *,
        every: int = 1,
        broadcast: bool = False,
    ) -> None:
        super().__init__(optimizer, model, excludes, every)
        self.broadcast = broadcast
        self._project = project
        self._hooks = self._register()

    def _register(self) -> list[Any]:
        return [self.optimizer.register_step_post_hook(self._after)]

    @torch.no_grad()
    def apply(self) -> None:
        """Project all weights now, whatever the number of steps: at the end of an epoch, before a checkpoint."""
        sends = self.broadcast and distributed.is_available() and distributed.is_initialized()
        for weight, _ in self._trained():
            if not sends or distributed.get_rank() == 0:
                self._project(weight)
            if sends:
                values = weight.parameter.detach().contiguous()
                distributed.broadcast(values, src=0)
                weight.parameter.copy_(values)

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._due():
            self.apply()


class Penalized(Attached):
    """At every ``every``-th step, minimize a penalty R of each weight beside the loss. ``gradient`` gives ∂R/∂w.

    ``decoupled``: w ← w − lr·∂R/∂w before the optimizer's own update and outside its momenta, as in AdamW; lr is that
    of the parameter's group at this step. Otherwise ∂R/∂w is added to the gradient for the step alone: afterwards
    ``grad`` is what it was. Parameters without a gradient are left alone, as by torch's weight decay. A closure is
    evaluated first; if not decoupled, it then returns the loss with R (``value``), which a line search needs.
    Skipped steps are not made up for.

    Raises OptionError, when made and at each step, for lr·lam ≥ ``limit``, where steps on R alone would overshoot for
    ever, and with ``replaces_decay`` for a parameter whose group has a weight_decay; at a step, if not decoupled, for
    gradients that a GradScaler has not unscaled.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        excludes: Callable[[Weight], str],
        value: Callable[[Weight], Tensor],
        gradient: Callable[[Weight], Tensor],
        *,
        lam: float,
        limit: float,
        every: int = 1,
        decoupled: bool = True,
        replaces_decay: bool = False,
    ) -> None:
        super().__init__(optimizer, model, excludes, every)
        self.decoupled, self.lam, self.limit, self.replaces_decay = decoupled, lam, limit, replaces_decay
        self._value, self._gradient = value, gradient
        self._lent: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # parameter, its gradient, that of the step
        self._refuse()
        self._hooks = self._register()

    def _register(self) -> list[Any]:
        optimizer = self.optimizer
        return [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def remove(self) -> None:
        """Detach from the optimizer; gradients are given back."""
        self._give_back()
        super().remove()

    def _refuse(self) -> None:
        for weight, group in self._trained():
            if self.replaces_decay and group.get("weight_decay", 0):
                decay = f"weight_decay={group['weight_decay']:g}"
                raise OptionError(
                    f"{weight.name} would decay twice: its group has {decay}; put it into a group with weight_decay=0",
                    "weight_decay",
                )
            if "lr" not in group:
                raise OptionError(f"the group of {weight.name} has no lr, which the decay is multiplied by", "lr")
            lr = group["lr"]
            on_device = isinstance(lr, Tensor) and lr.device.type != "cpu"  # looking at it would make the device wait
            if not on_device and float(lr) * self.lam >= self.limit:
                raise OptionError(
                    f"lr={float(lr):g} × lam={self.lam:g} is not below {self.limit:g}: {weight.name} would overshoot; "
                    "lower one of them",
                    "lam",
                )

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Change | None:
        self._give_back()  # what a step that failed has left
        if not self._due():
            return None
        self._refuse()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._decay() if self.decoupled else self._lend()
            return None
        wrapped = self._decaying(closure) if self.decoupled else self._penalizing(closure)
        rest = {name: value for name, value in kwargs.items() if name != "closure"}
        return (args[0], wrapped, *args[2:]), rest

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._give_back()

    @torch.no_grad()
    def _decay(self) -> None:
        """w ← w − lr·∂R/∂w."""
        for weight, group in self._trained():
            if weight.parameter.grad is not None:
                weight.parameter.sub_(self._gradient(weight).mul_(group["lr"]))

    @torch.no_grad()
    def _lend(self) -> None:
        """Put ∂L/∂w + ∂R/∂w in the place of ∂L/∂w until `_give_back`."""
        if getattr(self.optimizer, "grad_scale", None) is not None:
            raise OptionError("the gradients are still scaled: call scaler.unscale_(optimizer) before", "decoupled")
        for weight, group in self._trained():
            parameter, own = weight.parameter, weight.parameter.grad
            if own is not None:
                parameter.grad = torch.add(own, self._gradient(weight), alpha=_sign(group))
                self._lent.append((parameter, own, parameter.grad))

    def _give_back(self) -> None:
        for parameter, own, lent in reversed(self._lent):
            if parameter.grad is lent:
                parameter.grad = own
        self._lent.clear()

    def _decaying(self, closure: Closure) -> Closure:
        """``closure``, after whose first call the weights decay."""
        calls = 0

        def wrapped() -> Any:
            nonlocal calls
            loss = closure()
            calls += 1
            if calls == 1:
                self._decay()
            return loss

        return wrapped

    def _penalizing(self, closure: Closure) -> Closure:
        """``closure`` of L, made one of L + R."""

        def wrapped() -> Any:
            self._give_back()
            loss = closure()
            with torch.no_grad():
                penalties = [_sign(group) * self._value(weight) for weight, group in self._trained()]
            self._lend()
            return loss + sum(penalties)

        return wrapped


def _sign(group: Group) -> int:
    """The sign with which a penalty, which is always minimized, enters what the group's optimizer goes down."""
    return -1 if group.get("maximize") else 1


def not_a_kernel(weight: Weight) -> str:
    """Return why ``weight`` is no kernel that its module uses as it is; "" when it is one."""
    if not weight.is_kernel:
        return {"norm": "γ of a normalization", "bias": "a bias"}.get(weight.kind, "no kernel")
    if not weight.parameter.is_floating_point():
        return f"{weight.parameter.dtype}: real floating-point weights alone"
    if ".parametrizations." in f".{weight.name}":
        return "parametrized: what the layer uses is computed from it"
    effective = getattr(type(weight.module), "effective_weight", Convolution.effective_weight)
    if effective is not Convolution.effective_weight:
        return f"{type(weight.module).__name__} computes what it uses from it"
    return ""
