"""Statistics per sample and group of channels: what gn, ln and in share, on torch's kernel where it is accurate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layers.base import scale_and_shift, widened_affine
from layers.channels_last import suits_torch_kernels, well_conditioned
from layers.dimensions import is_small
from layers.moments import (
    Planes,
    as_laid_out,
    combine_planes,
    is_channels_last,
    needs_plain_operations,
    plane_moments,
    plane_sums,
    planes_of,
    pool,
    scale_rows,
    wide_dtype,
)
from layers.observe import observe

# torch's kernel for channels_last is fast where a group has so many bytes at each position,
VECTOR = 32
# or, forward, where there are so many positions.
MAP = 1024
# Of contiguous data sums of so many values g x, as in ∂L/∂γ = r (Σ g x − μ Σ g), lose digits where μ ≫ σ.
LONG = 2048
Kernel = Callable[..., tuple[Tensor, Tensor, Tensor]]
LONGEST = 1 << 20  # values in a group, whose sum of float32 it takes in at least eight parts


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize (N, C, *positions) by mean and biased variance over each group of C/groups channels of each sample.

    ``weight`` and ``bias`` are (C,) or None. Contiguous data take torch's native kernel, forward and backward. That for
    channels_last on a processor loses all digits at mean ≫ std, and takes long on groups of few channels. So its result
    is taken only where it is well conditioned; else the statistics are those of `layers.moments`.
    """
    if x.is_contiguous() and x.numel():
        if _is_faster_by_planes(x, groups):
            affine = widened_affine(x, weight, bias)
            return _observed(_ByHand.apply(x, *affine, groups, eps, True))  # type: ignore[no-untyped-call]
        return _observed(normalize_planes(x, groups, weight, bias, eps))
    if x.device.type == "cpu" and x.numel() and not needs_plain_operations() and is_channels_last(x):
        return _by_rows(x, groups, weight, bias, eps)
    planes = Planes(x)
    shape = (x.shape[0], groups, x.shape[1] // groups)
    by_group = planes.mean.reshape(shape), planes.var.reshape(shape)
    mean, var = pool(*by_group, 2)
    spread = [t.expand_as(by_group[0]).flatten(1) for t in (mean, var)]
    scale, shift = scale_and_shift(spread[1], eps, weight, bias)
    observe(mean=mean.squeeze(2), rstd=(var + eps).rsqrt().squeeze(2))
    return planes.affine(scale, spread[0], shift)


def normalize_planes(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, μ and 1/√(σ² + ε) (N, groups) of contiguous ``x``, by torch's kernel.

    Its backward sums ∂L/∂y x, one float32 after the other, and takes μ Σ ∂L/∂y away: of a large map with a large mean
    that leaves few digits. Such a map is normalized again less its means. A GPU, which sums in a tree, would have to be
    waited for to know.
    """
    y, mean, rstd = _by_kernel(x, groups, weight, bias, eps)
    if not _sums_lose_digits(x, x.shape[2:].numel()) or well_conditioned(mean, rstd):
        return y, mean, rstd
    del y  # its memory is wanted
    y, left, rstd, shift = _around_zero(_by_kernel, x, groups, weight, bias, eps, mean)
    return y, left + shift, rstd


def normalize_elements(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize each sample of contiguous ``x``, not of half precision, by itself; γ and β have the shape of one.

    By torch's kernel of layer normalization, whose ∂L/∂x takes sums as in `normalize_planes`, in eight lanes at once.
    """
    shape = x.shape[1:]
    y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    if _sums_lose_digits(x, shape.numel() // 8) and not well_conditioned(mean, rstd):
        shift = mean.detach()
        y, mean, rstd = torch.native_layer_norm(x - shift, shape, weight, bias, eps)
        mean = mean + shift
    return _observed((y, mean.view(-1, 1), rstd.view(-1, 1)))


def _sums_lose_digits(x: Tensor, values: int) -> bool:
    """Whether sums of so many ``values`` of ``x`` are worth a look at its mean, and one may look.

    Not in float16, whose range ``x`` less its mean may leave.
    """
    long = values >= LONG and x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu"
    return long and suits_torch_kernels(x) and not needs_plain_operations()


def _around_zero(
    kernel: Kernel, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``kernel`` makes of ``x`` less the ``mean`` (N, groups), which y does not depend on, and what that was."""
    shift = mean.detach().to(x.dtype)
    return *kernel(x - planes_of(_spread(shift, x.shape[1]), x), groups, weight, bias, eps), shift


def _by_kernel(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = x.shape[:2]
    if x.device.type == "cpu":
        weight, bias = widened_affine(x, weight, bias)
    size = x.numel() // (batch * channels)
    return torch.native_group_norm(x, weight, bias, batch, channels, size, groups, eps)


def _is_faster_by_planes(x: Tensor, groups: int) -> bool:
    """Whether the backward of torch's batch normalization, a channel for each plane, is faster for contiguous ``x``."""
    large = groups == x.shape[1] and not is_small(x.numel(), x.shape[2:].numel())
    return large and x.dtype.itemsize >= 4 and x.device.type == "cpu" and not needs_plain_operations()


def _by_batch_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel of the one sample of ``x`` by itself."""
    weight, bias = widened_affine(x, weight, bias)
    y, mean, rstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    return y, mean.view(1, groups), rstd.view(1, groups)


def _observed(made: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    y, mean, rstd = made
    observe(mean=mean, rstd=rstd)
    return y


def _by_rows(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Channels_last ``x``: by torch's kernel alone where both of its passes are fast, else by a backward of our own."""
    suits = suits_torch_kernels(x) and x.shape[1:].numel() // groups <= LONGEST
    wide = x.shape[1] // groups * x.itemsize >= VECTOR
    single = len(x) == 1 and groups == x.shape[1]
    weight, bias = widened_affine(x, weight, bias)
    if suits and (wide or single):
        learned = torch.is_grad_enabled() and not (weight is None and bias is None)
        kernel = _by_batch_norm if single else _ByKernel.apply if learned else _by_kernel
        made = kernel(x, groups, weight, bias, eps)
        if well_conditioned(*made[1:]):
            return _observed(made)
        if x.dtype.itemsize >= 4:  # its mean has digits enough to make it again of what is around zero
            y, left, rstd, shift = _around_zero(kernel, x, groups, weight, bias, eps, made[1])
            if well_conditioned(left, rstd):
                return _observed((y, left + shift, rstd))
        suits = False
    suits = suits and (wide or x.shape[2:].numel() >= MAP)
    return _observed(_ByHand.apply(x, weight, bias, groups, eps, suits))  # type: ignore[no-untyped-call]


class _ByKernel(torch.autograd.Function):
    """`_by_kernel`; torch's backward of channels_last γ and β crashes where that of x is not asked for (torch 2.13)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        made = _by_kernel(x, groups, weight, bias, eps)
        ctx.eps, ctx.groups = eps, groups
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*made[1:])
        ctx.save_for_backward(x, weight, *made[1:])
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        grad, (of_x, _, of_weight, of_bias, _) = grads[0], ctx.needs_input_grad
        if grad is None:
            return (None,) * 5
        if torch.is_grad_enabled():  # double backward
            found = _plain_backward(grad, x, weight, ctx.groups, ctx.eps)
        else:
            sizes = *x.shape[:2], x.shape[2:].numel(), ctx.groups
            found = torch.ops.aten.native_group_norm_backward(
                as_laid_out(grad, x), x, mean, rstd, weight, *sizes, [True, of_weight, of_bias]
            )
        asked = zip(found, (of_x, of_weight, of_bias), strict=True)
        grad_x, grad_weight, grad_bias = (each if wanted else None for each, wanted in asked)
        return grad_x, None, grad_weight, grad_bias, None


class _ByHand(torch.autograd.Function):
    """Channels_last, or planes of contiguous data: what autograd would record on N×C numbers, done once by hand."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, suits: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        made = _by_kernel(x, groups, weight, bias, eps) if suits else None
        if made is None or not (x.is_contiguous() or well_conditioned(*made[1:])):
            made = _by_engine(x, groups, weight, bias, eps)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*made[1:])
        ctx.save_for_backward(x, weight, *made[1:])
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (batch, channels), groups, size = x.shape[:2], mean.shape[1], x.shape[2:].numel()
        grad, needed = grads[0], list(ctx.needs_input_grad[:3])
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled():  # double backward
            found = _plain_backward(grad, x, weight, groups, ctx.eps)
            return *(each if wanted else None for each, wanted in zip(found, needed, strict=True)), None, None, None
        if x.is_contiguous():
            return *_backward_of_planes(grad, x, weight, mean, rstd, needed), None, None, None
        grad = as_laid_out(grad, x)
        total, product = plane_sums(grad, x, _spread(mean, channels))
        # With z = (x − μ)/σ: σ ∂L/∂x = γ ∂L/∂y − mean(γ ∂L/∂y) − z mean(γ ∂L/∂y z), means over the group.
        weighted = [t if weight is None else t * weight for t in (total, product)]
        share = rstd / (-size * channels // groups)
        shift, slope = (share * (t if groups == channels else t.view(batch, groups, -1).sum(2)) for t in weighted)
        slope.mul_(rstd).mul_(rstd)
        offset = shift.addcmul_(slope, mean, value=-1)
        scale = _spread(rstd, channels)
        grad_x = combine_planes(
            grad, scale if weight is None else scale * weight, x, _spread(slope, channels), _spread(offset, channels)
        )
        grad_weight = (product * scale).sum(0) if needed[1] else None
        return grad_x, grad_weight, total.sum(0) if needed[2] else None, None, None, None


def _backward_of_planes(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, needed: list[bool]
) -> list[Tensor | None]:
    """∂L/∂x, ∂L/∂γ and ∂L/∂β where each plane of contiguous ``x`` is normalized by itself."""
    count = mean.numel()
    repeated = None if weight is None else weight.repeat(len(x))
    numbers = repeated, None, None, mean.view(-1), rstd.view(-1)
    grad_x, *found = torch.ops.aten.native_batch_norm_backward(
        grad.reshape(1, count, -1), x.view(1, count, -1), *numbers, True, 0.0, needed
    )
    sums = [None if t is None else t.view(mean.shape).sum(0) for t in found]
    return [None if grad_x is None else grad_x.view(x.shape), *sums]


def _plain_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """∂L/∂x, ∂L/∂γ and ∂L/∂β in operations that can be differentiated again."""
    rows, grad = (t.to(wide_dtype(x.dtype)) for t in (x.reshape(len(x), groups, -1), grad))
    centered = rows - rows.mean(2, keepdim=True)
    rstd = (centered.square().mean(2, keepdim=True) + eps).rsqrt()
    z = centered * rstd
    weighted = (grad if weight is None else grad * planes_of(weight, x)).reshape(rows.shape)
    grad_x = rstd * (weighted - weighted.mean(2, keepdim=True) - z * (weighted * z).mean(2, keepdim=True))
    grad_weight, grad_bias = (t.transpose(0, 1).flatten(1).sum(1) for t in (grad * z.view(x.shape), grad))
    return grad_x.view(x.shape).to(x.dtype), grad_weight, grad_bias


def _by_engine(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, μ and 1/√(σ² + ε) of channels_last ``x`` from the moments of its planes."""
    channels = x.shape[1]
    mean, var = plane_moments(x)
    if groups < channels:
        mean, var = (t.squeeze(2) for t in pool(mean.view(len(x), groups, -1), var.view(len(x), groups, -1), 2))
    rstd = (var + eps).rsqrt_()
    scale, center = _spread(rstd, channels), _spread(mean, channels)
    scale = scale if weight is None else scale * weight
    offset = scale.mul(center).neg_() if bias is None else torch.addcmul(bias, scale, center, value=-1)
    return scale_rows(x, scale, offset), mean, rstd


def _spread(numbers: Tensor, channels: int) -> Tensor:
    """N×G numbers as N×C."""
    return numbers if numbers.shape[1] == channels else numbers.repeat_interleave(channels // numbers.shape[1], 1)
