r"""The backward of ReSprop (layers/backward/resprop.py): Ĝ of a step, its gradients, and what the next step goes by."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.gemm_convolution import Geometry
from layers.moments import wide_dtype
from layers.sparse_backward import Gradients, Wants, gradients, largest, magnitudes, of_channels, share
from layers.underivable import underivable

LEAST, MOST = 1e-30, 1e30  # τ: in reach of float32, and of the way back
_SPREAD = 6364136223846793005  # odd: its multiples modulo 2^64 are equidistributed


class Past(NamedTuple):
    """h, the exponent of τ and the number of steps when the forward ran; whether h has the size of its output.

    ``into`` are the buffers that get the next ones, None in evaluation; of h None where it is to stay as it is.
    """

    prev_grad: Tensor
    exponent: Tensor
    steps: Tensor
    fits: bool
    into: tuple[Tensor | None, Tensor, Tensor] | None


class Schedule(NamedTuple):
    """The options of a layer as numbers: how much is kept, when, and how τ moves."""

    structure: str
    density: float
    threshold_init: float
    factor: float
    epoch: int | None
    warmup: bool
    sample_seed: int
    bounds: tuple[int, int]

    def threshold(self, exponent: Tensor, dtype: torch.dtype) -> Tensor:
        """Return τ ()."""
        threshold: Tensor = self.threshold_init * torch.pow(self.factor, exponent.to(dtype))
        return threshold

    def dense(self, steps: Tensor) -> Tensor | None:
        """Whether this step is dense, () bool, by its place in its epoch; None: no step is."""
        if self.epoch is None:
            return None
        place, epoch = steps % self.epoch, steps // self.epoch
        ends = (place == 0) | (place == self.epoch - 1)
        return ends | (epoch < 2) if self.warmup else ends

    def wanted(self, steps: Tensor) -> Tensor | float:
        """Return the density that this step is to have."""
        if not self.warmup or self.epoch is None:
            return self.density
        tenths = 10 - steps // self.epoch
        return (tenths.to(torch.float64) / 10).clamp_min(self.density)

    def chosen(self, steps: Tensor, count: int) -> Tensor:
        """Return which of ``count`` samples is remembered, (1,) long: number ``steps`` of a sequence of the seed."""
        number = (steps + 1 + self.sample_seed * 7919 % 2**31) * _SPREAD
        return ((number >> 33) & 0x7FFFFFFF).remainder(count).view(1)


def bounds(threshold_init: float, factor: float) -> tuple[int, int]:
    """Return the least and largest exponent for which τ = threshold_init · factor^exponent is in [LEAST, MOST]."""
    least, most = (math.log(bound / threshold_init) / math.log(factor) for bound in (LEAST, MOST))
    return min(0, math.ceil(least)), max(0, math.floor(most))


def reusing(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Past, geometry: Geometry, schedule: Schedule
) -> Tensor:
    """Return the convolution of ``x`` (padded, but for zeros) with ReSprop's backward."""
    into = past.into or (None, None, None)
    kept = past.prev_grad, past.exponent, past.steps, past.fits
    y: Tensor = _Reusing.apply(x, weight, bias, *kept, *into, geometry, schedule)  # type: ignore[no-untyped-call]
    return y


class _Reusing(torch.autograd.Function):
    """A convolution with the gradients of Ĝ, which writes h, τ and the step. Keeps x, W, and the old ones."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *past: Any) -> Tensor:
        geometry: Geometry = past[-2]
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, prev_grad, exponent, steps, ctx.fits, *into, ctx.geometry, ctx.schedule = inputs
        ctx.into = tuple(into)
        ctx.save_for_backward(x, weight, prev_grad, exponent, steps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight, prev_grad, exponent, steps) = grads, ctx.saved_tensors
        schedule, wants = ctx.schedule, ctx.needs_input_grad
        with torch.no_grad():
            dense = not ctx.fits or not len(grad)
            if dense:
                found, moved = gradients(grad, x, weight, ctx.geometry, wants[:2]), exponent
            elif schedule.structure == "element":
                mixed, moved = _by_elements(grad, prev_grad, exponent, steps, schedule)
                found = gradients(mixed, x, weight, ctx.geometry, wants[:2])
            else:
                by = _by_samples if schedule.structure == "sample" else _by_channels
                found, moved = by(grad, prev_grad, schedule.density, x, weight, ctx.geometry, wants[:2]), exponent
            if ctx.into[1] is not None and len(grad):
                _remember(ctx.into, grad, moved, steps, schedule)
        why = "ReSprop has no second derivative: a gradient of the step before is no function's derivative"
        of_x, of_weight = (None if value is None else underivable(value, grad, x, weight, why=why) for value in found)
        return of_x, of_weight, grad.sum((0, 2, 3)) if wants[2] else None, *[None] * 9


def _by_elements(
    grad: Tensor, prev_grad: Tensor, exponent: Tensor, steps: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """Return Ĝ, and the exponent of τ for the next step."""
    wide = wide_dtype(grad.dtype)
    change = (grad.to(wide) - prev_grad.to(wide)).abs_()
    new = ~(change <= schedule.threshold(exponent, wide))  # what is no number is new
    count, whole = new.sum().to(torch.float64), new.numel()
    dense = schedule.dense(steps)
    wanted = schedule.wanted(steps) * whole
    moved = exponent + (count > wanted).long() - (count < wanted).long()
    moved = moved.clamp(*schedule.bounds)
    if dense is not None:
        new, moved = new | dense, torch.where(dense, exponent, moved)
    return torch.where(new, grad, prev_grad.to(grad.dtype)), moved


def _by_samples(
    grad: Tensor, prev_grad: Tensor, density: float, x: Tensor, weight: Tensor, geometry: Geometry, wants: Wants
) -> Gradients:
    """The gradients where the most changed samples keep their own and the others have that of h."""
    count = len(grad)
    h = prev_grad.to(grad.dtype)[None]
    index = largest(magnitudes(grad - h, 0), share(count, density))
    of_x, of_weight = gradients(grad.index_select(0, index), x.index_select(0, index), weight, geometry, wants)
    others = torch.ones(count, dtype=x.dtype, device=x.device).index_fill_(0, index, 0)
    reused = torch.mv(x.flatten(1).t(), others).view(1, *x.shape[1:])  # Σ x over the others
    h_x, h_weight = gradients(h, reused, weight, geometry, wants)
    if of_x is not None and h_x is not None:
        of_x = h_x.expand_as(x).contiguous().index_copy_(0, index, of_x)
    return of_x, None if of_weight is None else of_weight.add_(h_weight)  # type: ignore[arg-type]


def _by_channels(
    grad: Tensor, prev_grad: Tensor, density: float, x: Tensor, weight: Tensor, geometry: Geometry, wants: Wants
) -> Gradients:
    """The gradients where the most changed output channels keep their own and the others have those of h."""
    h = prev_grad.to(grad.dtype)[None]
    index = largest(magnitudes(grad - h, 1), share(grad.shape[1], density))
    of_x, of_weight = of_channels(grad, index, x, weight, geometry, wants)
    others = h.index_fill(1, index, 0)
    h_x, h_weight = gradients(others, x.sum(0, keepdim=True), weight, geometry, wants)
    of_x = None if of_x is None else of_x.add_(h_x)  # type: ignore[arg-type]
    return of_x, None if of_weight is None else of_weight.add_(h_weight)  # type: ignore[arg-type]


def _remember(
    into: tuple[Tensor | None, Tensor, Tensor], grad: Tensor, moved: Tensor, steps: Tensor, schedule: Schedule
) -> None:
    """Write h, the exponent of τ and the number of steps; numbers that are none are no memory, but 0."""
    prev_grad, exponent, count = into
    sample = grad.index_select(0, schedule.chosen(steps, len(grad)))[0]
    if (
        prev_grad is not None and prev_grad.shape == sample.shape
    ):  # else another forward has made it the size of its own output
        prev_grad.copy_(torch.where(sample.isfinite(), sample, 0))
    exponent.copy_(moved)
    count.copy_(steps + 1)


def keep_local(model: nn.Module) -> nn.Module:
    """Let every data-parallel rank keep the h and τ of its own shard, as published, and return ``model``.

    For torch.nn.parallel.DistributedDataParallel, to be called before it wraps ``model``. Without it rank 0's are
    broadcast before each forward.
    """
    names = [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if "prev_grad" in module._buffers
        for name, _ in module.named_buffers(recurse=False)
    ]
    ignored = [*getattr(model, "_ddp_params_and_buffers_to_ignore", ()), *names]
    wrapper: Any = nn.parallel.DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(model, ignored)
    return model
