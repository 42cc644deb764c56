"""Points in a network at which the error that comes back is rescaled, linked in the order of one forward pass.

A point is the identity. Each hands a number () of value 0 to the next point of the same forward, and what comes back
along that edge of the graph, in the place of a gradient, is the rms that the error has above. So the engine runs a
point after the one above it whatever the branches, nothing is shared between passes or threads, and a graph may be run
backward twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from layers.card import OptionError
from layers.hooked import Hooked
from layers.moments import wide_dtype


@dataclass(eq=False)
class Pass:
    """One forward pass of a chain: the edge from its last point, and whether its points act at all."""

    acts: bool = True
    link: Tensor | None = None


class Chain:
    """What links points: those that run inside ``with chain:``, in one thread, are one pass, first to last.

    A point above (later) tells its rms to the point below. Outside of a pass points are alone. Holds no state.
    """

    def __enter__(self) -> Pass:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, *, acts: bool = True) -> Pass:
        """Begin a pass, whose points do nothing unless it ``acts``; what was begun must be closed."""
        begun = Pass(acts)
        _open.set((*_open.get(), (self, begun)))
        return begun

    def close(self) -> None:
        """End the pass that was begun last, if it is of this chain."""
        if _open.get() and _open.get()[-1][0] is self:
            _open.set(_open.get()[:-1])

    def current(self) -> Pass | None:
        """Return the pass that runs now, or None."""
        return next((begun for chain, begun in reversed(_open.get()) if chain is self), None)


_open: ContextVar[tuple[tuple[Chain, Pass], ...]] = ContextVar("open", default=())


def rescaled(
    x: Tensor, within: Pass | None, target: float | None, low: float, high: float, active: Tensor | None = None
) -> Tensor:
    """Return a copy of ``x`` whose gradient is multiplied by ρ, and link it in the pass ``within``.

    ρ is ``target``, or else the rms that the point above found, over the rms of the gradient here; 1 where it lies in
    [``low``, ``high``], is not a positive finite number, ``active`` () is false, or there is nothing above.
    """
    if not (torch.is_grad_enabled() and x.requires_grad) or (within is None and target is None):
        return x.clone()
    made: tuple[Tensor, Tensor] = _Rescale.apply(  # type: ignore[no-untyped-call]
        x, None if within is None else within.link, active, target, low, high
    )
    if within is not None:
        within.link = made[1]
    return made[0]


class _Rescale(torch.autograd.Function):
    """(x, edge from below) → (x, edge to the next point)."""

    @staticmethod
    def forward(
        x: Tensor, below: Tensor | None, active: Tensor | None, target: float | None, low: float, high: float
    ) -> tuple[Tensor, Tensor]:
        return x.clone(), x.new_zeros((), dtype=wide_dtype(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        # Not saved as tensors are: checkpointing would put what a later forward says in the place of active.
        _, below, ctx.active, ctx.target, ctx.low, ctx.high = inputs
        ctx.linked = below is not None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, above = grads  # where nothing is above, zero
        wide = above.dtype
        with torch.no_grad():
            rms = torch.linalg.vector_norm(grad, dtype=wide) * max(1, grad.numel()) ** -0.5
            rho = (above if ctx.target is None else ctx.target) / rms
            acts = rho.isfinite() & (rho > 0) & ((rho < ctx.low) | (rho > ctx.high))
            acts = acts if ctx.active is None else acts & ctx.active
            rho = torch.where(acts, rho, 1.0)
        return (grad.to(wide) * rho).to(grad.dtype), _told(rho * rms, above) if ctx.linked else None, *(None,) * 4


def _told(rms: Tensor, above: Tensor) -> Tensor:
    """What a point tells the one below: the rms of its error, or where it got none that counts, what is above."""
    with torch.no_grad():
        return torch.where(rms.isfinite() & (rms > 0), rms, above)


class Modulation(Hooked):
    """The points behind the layers ``names`` of a model, and their chain. Made by `modulate`; `remove` takes them away.

    ``steps`` counts the training forwards of the model. It is the only state (`state_dict`), to be kept beside the
    model's, which stays what it was.
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Any]) -> None:
        layers = {name: m for name, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}
        if not layers:
            raise OptionError(f"{type(model).__name__} has no convolution or linear layer to modulate behind")
        hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
        if any(isinstance(getattr(hook, "__self__", None), Modulation) for hook in hooks):
            raise OptionError(f"this {type(model).__name__} is modulated already: call remove() of its handle first")
        super().__init__()
        self.names, self.options = tuple(layers), dict(options)
        self._chain = Chain()
        self._hooks = [layer.register_forward_hook(self._point) for layer in layers.values()]
        self._hooks.append(model.register_forward_pre_hook(self._begin, prepend=True))
        self._hooks.append(model.register_forward_hook(self._end, always_call=True))

    def _begin(self, model: nn.Module, inputs: object) -> None:
        every, until = self.options["every"], self.options["until_step"]
        self._chain.open(acts=self.steps % every == 0 and (until is None or self.steps < until))
        self.steps += model.training

    def _end(self, model: nn.Module, inputs: object, output: object) -> None:
        self._chain.close()

    def _point(self, layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        within = self._chain.current()
        if within is None or not within.acts or not output.requires_grad:
            return output
        return rescaled(output, within, self.options["target"], self.options["low"], self.options["high"])
