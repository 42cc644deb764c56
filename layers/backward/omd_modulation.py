r"""Backward error modulation: x is brought to one size (Xie, Xiong & Pu 2017,
arXiv 1703.01827).

The forward is the identity. With δ the error ∂L/∂x that arrives at a point l and rms the root of its mean square over
the whole tensor, batch included,
$$\delta_l \leftarrow \rho_l\,\delta_l,\qquad \rho_l = \mathrm{rms}(\delta_{l+1}) / \mathrm{rms}(\delta_l),$$
l + 1 the point above, whose error is taken as it was passed on; ρ is a constant, no gradient flows through it.

OUR OWN DEFINITION. The paper equalizes the second moments of the errors of successive parametric layers, but under
which conditions (a threshold, a period, the early iterations) could not be recovered, and no code of the authors was
found. Here ρ acts in every ``every``-th training forward until ``until_step``, where it lies outside [low, high];
``target`` is a fixed rms in the place of that of the point above, so that a point alone does something.

Linear-BN-ReLU stacks need it, orthonormal weights or not: per block the rms of the error grows by √(π/(π − 1)) = 1.21.
With modulation it is constant over depth, and the weight gradient of each layer is the plain one times the product of
the ρ above it: an adaptive learning rate per layer, the direction is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Option, OptionValue, Paper, Stat
from layers.error_chain import Chain, Modulation, rescaled
from layers.moments import snapshot

card = Card(
    title="Backward error modulation",
    paper=Paper(
        authors="Xie, Xiong, Pu",
        title="All You Need is Beyond a Good Init: Exploring Better Solution for Training Extremely Deep Convolutional "
        "Neural Networks with Orthonormality and Modulation",
        year=2017,
        venue="CVPR 2017",
        arxiv="1703.01827",
    ),
    impl="ErrorModulation",
    formula="y = x,  ∂L/∂x = ρ ∂L/∂y,  ρ = rms above / rms(∂L/∂y)",
    summary="The identity; its backward gives the error the size that it has at the point above, or a fixed one.",
    options=(
        Option(
            name="target",
            type=float,
            default=None,
            optional=True,
            gt=0,
            help="a fixed rms of the error (scaled as the loss is) in the place of that of the point above",
            source="our own",
        ),
        Option(
            name="every",
            type=int,
            default=1,
            ge=1,
            help="training forwards from one that acts to the next; the first acts",
        ),
        Option(
            name="until_step",
            type=int,
            default=None,
            optional=True,
            ge=0,
            help="training forwards after which it acts no more; none: it always does",
        ),
        Option(name="low", type=float, default=1.0, gt=0, le=1, help="ρ in [low, high] is left alone"),
        Option(name="high", type=float, default=1.0, ge=1, help="ρ in [low, high] is left alone"),
    ),
    buffers=(Stat("steps", (), help="training forwards, which every and until_step count"),),
    flops=Flops("0", "3*E + 2 if target is not None else 0"),
    executed=Flops("0", "3*E + 9 if target is not None else 0"),
    explained="A point alone without target passes the error on as it is; in a chain it counts as one with target. The "
    "executed operations have those that find out whether ρ is to act; with every or until_step one byte is kept for "
    "that, not as a saved tensor.",
    traffic=Flops("2*E*B", "3*E*B if target is not None else 0"),
    claims=(Claim(holds=(), why="The forward is the identity: nothing that changes its input is undone."),),
    identities=(
        Identity(says="the error leaves with rms target", proof="reaches_target", options={"target": 0.5}),
        Identity(says="its direction is kept", proof="direction", options={"target": 0.5}),
        Identity(says="alone and without target it is the identity both ways", proof="alone"),
        Identity(says="in a chain the rms of the error is constant over depth", proof="constant_over_depth"),
        Identity(says="each weight gradient is Π ρ times the unmodulated one", proof="adaptive_rates"),
        Identity(says="two points in a chain are one that has the rms above as its target", proof="as_target"),
    ),
    notes=(
        "Our own definition: when the paper's modulation acts could not be recovered; see the docstring.",
        "Orthonormal weights alone do not keep the size of errors: per Linear-BN-ReLU block they grow by "
        "√(π/(π − 1)) = 1.2112, 4.6e3 over 44 blocks and 1.4e9 over 110.",
        "It is no derivative of any function: second derivatives treat ρ as a constant.",
    ),
    examples=(
        {},
        {"target": 1.0},
        {"target": 2.5, "every": 2, "until_step": 100},
        {"target": 0.25, "low": 0.5, "high": 2.0},
    ),
    exact_gradient="target is None",
)


class ErrorModulation(Norm):
    """The identity on (N, C, *positions), as a copy in the same memory format, that rescales the error on its way back.

    Args: ``channels`` C; ``target`` > 0 or None; ``every`` ≥ 1; ``until_step`` ≥ 0 or None; ``low`` ≤ 1 ≤ ``high``;
    ``chain``: the `Chain` that links this point to others during a forward inside ``with chain:`` (`modulate` does
    that by hooks). Alone and without target the error passes as it is.
    State: buffer ``steps`` (), training forwards. Evaluation rescales as the next training forward would, and does not
    count. Nothing waits for the device. An error that is zero, infinite or NaN passes unchanged.
    Each data-parallel rank takes the rms of its own errors. Activation checkpointing counts a forward twice and may
    not contain a part of a chain: points that are computed again are alone. A chain needs eager execution.
    Raises OptionError for refused options.
    """

    target: float | None
    every: int
    until_step: int | None
    low: float
    high: float
    steps: Tensor

    def __init__(
        self,
        channels: int,
        target: float | None = None,
        every: int = 1,
        until_step: int | None = None,
        low: float = 1.0,
        high: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        chain: Chain | None = None,
    ) -> None:
        options: dict[str, OptionValue] = {
            "target": target,
            "every": every,
            "until_step": until_step,
            "low": low,
            "high": high,
        }
        super().__init__(card, channels, options, affine=False, device=device, dtype=dtype)
        self.chain = chain
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of ``x`` (N, C, *positions)."""
        self.check_input(x)
        steps = snapshot(self.steps)
        if self.training:
            self.steps.copy_(steps + 1)  # from the copy, which makes the compiler take it before the backward
        within = None if self.chain is None else self.chain.current()
        return rescaled(x, within, self.target, self.low, self.high, self._active(steps))

    def _active(self, steps: Tensor) -> Tensor | None:
        """Whether the forward after ``steps`` others is one of those that act, as a boolean (); None: all do."""
        if self.every == 1 and self.until_step is None:
            return None
        due = steps % self.every == 0
        return due if self.until_step is None else due & (steps < self.until_step)


def modulate(
    model: nn.Module,
    target: float | None = None,
    every: int = 1,
    until_step: int | None = None,
    low: float = 1.0,
    high: float = 1.0,
) -> Modulation:
    """Put a point behind every convolution and linear layer of ``model``, in one chain, and return the handle.

    The order is that of each forward of ``model``: a layer used twice is two points, and threads do not meet. The
    error at the last layer is the measure of all others (with ``target``: that number is). Parts of the model that are
    called by themselves are not modulated. What `ErrorModulation` says of data-parallel ranks, checkpointing and the
    compiler holds. Raises OptionError for refused options, a model without such layers, and one modulated already.
    """
    options = {"target": target, "every": every, "until_step": until_step, "low": low, "high": high}
    return Modulation(model, card.check({}, options))


def _rms(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()


def _upstream(x: Tensor) -> Tensor:
    """An upstream gradient for ``x``, the same at every call, of rms other than 1."""
    return 3 * torch.linspace(-1, 2, x.numel(), device=x.device, dtype=x.dtype).view(x.shape).sin()


def _error(layer: nn.Module, x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(layer(leaf), leaf, _upstream(x))[0]


def reaches_target(layer: ErrorModulation, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rms of the error below a point beside its target."""
    found = _rms(_error(layer, x))
    return found, torch.full_like(found, layer.target or 0.0)


def direction(layer: ErrorModulation, x: Tensor) -> tuple[Tensor, Tensor]:
    """The error below a point beside the one above, each divided by its rms."""
    below, above = _error(layer, x), _upstream(x)
    return below / _rms(below), above / _rms(above)


def alone(layer: ErrorModulation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and error beside input and upstream gradient."""
    return torch.stack([layer(x), _error(layer, x)]), torch.stack([x, _upstream(x)])


def _stack(x: Tensor) -> nn.Sequential:
    """Four blocks of convolution, batch normalization and ReLU, in the dtype of ``x``."""
    blocks: list[nn.Module] = []
    for _ in range(4):
        blocks += [nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1), nn.BatchNorm2d(x.shape[1]), nn.ReLU()]
    return nn.Sequential(*blocks).to(x)


def _errors(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The rms of the error at the output of every convolution, and the gradients of their weights."""
    found: dict[int, Tensor] = {}

    def watch(layer: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda error: found.update({id(layer): _rms(error)}))  # type: ignore[no-untyped-call]

    layers = [module for module in model if isinstance(module, nn.Conv2d)]
    hooks = [layer.register_forward_hook(watch, prepend=True) for layer in layers]
    y = model(x.detach())
    gradients = torch.autograd.grad(y, [layer.weight for layer in layers], _upstream(y))
    for hook in hooks:
        hook.remove()
    return torch.stack([found[id(layer)] for layer in layers]), list(gradients)


def constant_over_depth(layer: ErrorModulation, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rms of the error at every layer of a modulated stack beside that at the last of the plain one."""
    model = _stack(x)
    last = _errors(model, x)[0][-1]
    modulate(model)
    found = _errors(model, x)[0]
    return found, last.expand_as(found)


def adaptive_rates(layer: ErrorModulation, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weight gradients of a modulated stack beside the plain ones times rms(last error)/rms(own error) = Π ρ."""
    model = _stack(x)
    rms, plain = _errors(model, x)
    modulate(model)
    _, found = _errors(model, x)
    wanted = [gradient * rms[-1] / own for gradient, own in zip(plain, rms, strict=True)]
    return torch.stack(found), torch.stack(wanted)


def as_target(layer: ErrorModulation, x: Tensor) -> tuple[Tensor, Tensor]:
    """x → point → 5·(…) → point of one chain, beside x → 5·(…) → point of target rms(upstream)."""
    chain = Chain()
    first, second = (ErrorModulation(x.shape[1], chain=chain, device=x.device) for _ in range(2))
    leaf = x.detach().requires_grad_()
    with chain:
        y = second(5 * first(leaf))
    (found,) = torch.autograd.grad(y, leaf, _upstream(x))
    fixed = ErrorModulation(x.shape[1], float(_rms(_upstream(x))), device=x.device)
    return found, _error(nn.Sequential(fixed), x)
