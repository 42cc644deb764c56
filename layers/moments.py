r"""The engine under every normalization whose statistics reduce whole planes: moments, N×C algebra, one affine pass.

Such a layer sees x (N, C, *positions) only through the mean and variance of each (n, c) plane, and acts as
$$y = a_{nc}\,(x - c_{nc}) + b_{nc}.$$
`Planes(x)` computes the moments in one pass; the stone turns them into scale a, center c and shift b with ordinary
differentiable tensor operations on N×C numbers; `Planes.affine` applies them in a second pass. Backward is the same
pair on (∂L/∂y, x): one reduction, S₀ = Σ ∂L/∂y and S₁ = Σ ∂L/∂y (x − m), autograd through the N×C algebra, one pass
$$\partial L/\partial x = a\,\partial L/\partial y + P x + Q,\quad P = 2 g_v / S,\quad Q = g_m / S - P m.$$
Saved for backward: x and N×C numbers. Floor: 3 passes over the data forward (2 when a plane stays in cache), 5
backward.

Accuracy: variances are two-pass or Welford, never E[x²] − E[x]²; the data are centred on their own plane's mean
before the backward reduction; bf16 and fp16 are reduced in float32. Double backward goes through plain operations.
Under torch.compile, tracing and functorch everything is plain operations, which those can see through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers import channels_last
from layers.variance import variance_about

CHUNK = 1 << 17  # elements per thread and slice: in and out fit a 1 MiB level-2 cache together


class Planes:
    """The (n, c) planes of ``x``: their moments now, one affine map of them later.

    ``mean`` and ``var`` (biased) are N×C in float32 or wider and differentiable. ``x`` has shape (N, C, *positions),
    any floating dtype, any strides; `affine` may be called once, and its result has the dtype and memory format of
    ``x``.
    """

    def __init__(self, x: Tensor) -> None:
        self.positions = x[0, 0].numel() if x.numel() else 0
        self._plain = needs_plain_operations() or self.positions <= 1
        if self._plain:
            self._x = x
            self.mean, self.var = _plain_moments(x)
        else:
            self._link = _Link()
            self._x = x if is_channels_last(x) else x.contiguous()
            self._handle, self.mean, self.var = _Moments.apply(self._x, self._link)  # type: ignore[no-untyped-call]

    def affine(self, scale: Tensor, center: Tensor, shift: Tensor | None = None) -> Tensor:
        """Return ``scale * (x - center) + shift``; the three broadcast to N×C."""
        if self._plain:
            wide = self._x.to(self.mean.dtype)
            y = planes_of(scale, wide) * (wide - planes_of(center, wide))
            return (y if shift is None else y + planes_of(shift, wide)).to(self._x.dtype)
        # The kernel centres on the plane's own mean, a constant here: only N×C numbers know about `center`.
        own = self.mean.detach()
        offset = scale * (own - center)
        offset = (offset if shift is None else offset + shift).expand_as(own)
        out: Tensor = _Affine.apply(  # type: ignore[no-untyped-call]
            self._handle, self._x, scale.expand_as(own), own, offset, self._link
        )
        return out


def pool(mean: Tensor, var: Tensor, dims: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Merge the moments of equally large sets along ``dims``, kept with size 1 (Chan, Golub & LeVeque 1983).

    No set at all (an empty batch) gives zeros instead of NaN, so that nothing downstream is poisoned.
    """
    dims = (dims,) if isinstance(dims, int) else dims
    count = 1
    for dim in dims:
        count *= mean.shape[dim]
    if count == 0:
        return mean.sum(dims, keepdim=True), var.sum(dims, keepdim=True)
    center = mean.mean(dims, keepdim=True)
    return center, var.mean(dims, keepdim=True) + (mean - center).square().mean(dims, keepdim=True)


def snapshot(buffer: Tensor) -> Tensor:
    """Copy a buffer that is about to be updated, so that backward sees the value that forward saw.

    Under torch.compile an ordinary copy does not help: the partitioner recomputes it in backward, after the update
    (wrong gradients without an error; pytorch PR #197039). A reduction is never recomputed.
    """
    if torch.compiler.is_compiling():
        return buffer.expand(8, *buffer.shape).amax(0)
    return buffer.clone()


class _Link:
    """What the affine node tells the moments node of the same forward during backward: the scale it left undone."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None


class _Moments(torch.autograd.Function):
    """x → (handle on x, mean, var); its backward finishes what `_Affine` began, so that ∂L/∂x is one pass.

    The handle is x itself. Only `_Affine` ever reads it, so the gradient that arrives through it is ∂L/∂y, unscaled.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: _Link) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        mean, var = plane_moments(x)
        ctx.link = link
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        grad_y, grad_mean, grad_var = grads
        x, mean = ctx.saved_tensors
        size = x[0, 0].numel() if x.numel() else 1
        zero = torch.zeros_like(mean)
        slope = zero if grad_var is None else grad_var * (2 / size)
        offset = (zero if grad_mean is None else grad_mean / size) - slope * mean
        if grad_y is None:  # double backward, in plain operations that can be differentiated again
            return (planes_of(slope, x) * x.to(mean.dtype) + planes_of(offset, x)).to(x.dtype), None
        scale, ctx.link.scale = ctx.link.scale, None
        return combine_planes(grad_y, scale, x, slope, offset), None


class _Affine(torch.autograd.Function):
    """scale·(x − own) + offset with ``own`` a constant; ∂L/∂x is left to `_Moments`, through the handle on x."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, x: Tensor, scale: Tensor, own: Tensor, offset: Tensor, link: _Link) -> Tensor:
        ctx.link = link
        ctx.save_for_backward(x, scale, own)
        return _apply(x, scale, own, offset)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, own = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: past the handle, straight to x, in plain operations
            wide, grad = x.to(own.dtype), grad.to(own.dtype)
            product = (grad * (wide - planes_of(own, wide))).flatten(2).sum(2)
            return None, (grad * planes_of(scale, wide)).to(x.dtype), product, None, grad.flatten(2).sum(2), None
        ctx.link.scale = scale
        grad = laid_out_as(grad, x)
        total, product = plane_sums(grad, x, own)
        return grad, None, product, None, total, None


# The five passes over the data. Each has a path for planes (contiguous) and one for channels_last.


def plane_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane, N×C. On CPU the standardising kernel gives both, slice by slice."""
    wide = wide_dtype(x.dtype)
    if x.device.type != "cpu" and x.device.type != "meta":
        var, mean = torch.var_mean(x.flatten(2).to(wide), 2, correction=0)
        return mean, var
    if not x.is_contiguous():
        return channels_last.plane_moments(x, _slices(x, 4), wide)
    mean, var = (torch.empty(x.shape[:2], dtype=wide, device=x.device) for _ in range(2))
    if x.numel() <= CHUNK * torch.get_num_threads():  # one slice: on small maps the kernel alone takes half the time
        batch, channels, size = *x.shape[:2], x.shape[2:].numel()
        _, mean, rstd = torch.native_group_norm(x.to(wide), None, None, batch, channels, size, channels, 0.0)
        return mean, rstd.pow_(-2)
    planes, flat_mean, flat_var = x.flatten(0, 1).flatten(1), mean.flatten(), var.flatten()
    size = planes.shape[1]
    for rows in _slices(planes):
        part = planes[rows].to(wide)
        # torch.var_mean costs 17 copies on CPU; native_group_norm one. eps = 0 makes 1/rstd² the variance itself.
        _, center, rstd = torch.native_group_norm(part, None, None, part.shape[0], 1, size, 1, 0.0)
        flat_mean[rows] = center.flatten()
        flat_var[rows] = rstd.flatten()
    return mean, var.pow_(-2)


def _apply(x: Tensor, scale: Tensor, own: Tensor, offset: Tensor) -> Tensor:
    """scale·(x − own) + offset, in the dtype of x."""
    return per_plane(x, scale, own, offset) if x.is_contiguous() else scale_rows(x, scale, offset - scale * own)


def scale_rows(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """scale·x + offset of channels_last ``x``, numbers N×C, in its dtype."""
    scale, offset = planes_of(scale, x), planes_of(offset, x)
    if x.dtype == scale.dtype:
        return torch.addcmul(offset, x, scale)
    y = torch.empty_like(x)
    for rows in _slices(x, 2):
        y[rows] = torch.addcmul(offset[rows], x[rows].to(scale.dtype), scale[rows])
    return y


def per_plane(x: Tensor, scale: Tensor, own: Tensor, offset: Tensor) -> Tensor:
    """The same for contiguous planes: evaluation-mode batch normalization, with one channel per plane if N×C."""
    if scale.dim() == 1:
        return torch.native_batch_norm(x, scale, offset, own, torch.ones_like(own), False, 0.0, 0.0)[0]
    size = x.shape[0] * x.shape[1]
    view = x.reshape(1, size, -1)
    ones = torch.ones(size, dtype=own.dtype, device=x.device)
    args = (scale.reshape(-1), offset.reshape(-1), own.reshape(-1), ones)
    # No view: what follows a layer may work in place, which autograd refuses on a view made in a custom Function.
    flat = torch.native_batch_norm(view, *args, False, 0.0, 0.0)[0]
    out: Tensor = torch.ops.aten._unsafe_view(flat, x.shape)
    return out


def plane_sums(grad: Tensor, x: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Σ grad and Σ grad·(x − own) over each plane, N×C."""
    if not x.is_contiguous():
        return channels_last.plane_sums(grad, x, own, _slices(x, 4))
    size = own.numel()
    ones = torch.ones(size, dtype=own.dtype, device=x.device)
    views = grad.reshape(1, size, -1), x.reshape(1, size, -1)
    _, product, total = torch.ops.aten.native_batch_norm_backward(
        *views, ones, None, None, own.reshape(-1), ones, True, 0.0, [False, True, True]
    )
    return total.view(own.shape), product.view(own.shape)


def channel_sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Σ grad and Σ grad·(x − mean)·rstd over each channel: by planes if these are contiguous and leave the cache."""
    shape, large = x.shape[:2], x.is_contiguous() and x.numel() > CHUNK * torch.get_num_threads()
    if large:
        mean, rstd = (numbers.expand(shape).reshape(-1) for numbers in (mean, rstd))
        grad, x = (t.reshape(1, mean.numel(), -1) for t in (grad, x))
    _, product, total = torch.ops.aten.native_batch_norm_backward(
        grad, x, rstd, None, None, mean, rstd, True, 0.0, [False, True, True]
    )
    return (total.view(shape).sum(0), product.view(shape).sum(0)) if large else (total, product)


def combine_planes(grad: Tensor, scale: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """scale·grad + slope·x + offset, numbers N×C or C, in the dtype of x (which is grad's too)."""
    if x.dtype != scale.dtype:  # one rounding at the end, not two
        y = torch.empty_like(x)
        a, p, q = (planes_of(numbers.expand(x.shape[:2]), x) for numbers in (scale, slope, offset))
        for rows in _slices(x, 2):
            wide = torch.addcmul(q[rows], x[rows].to(scale.dtype), p[rows])
            y[rows] = wide.addcmul_(grad[rows].to(scale.dtype), a[rows])
        return y
    if x.is_contiguous():
        y = per_plane(x, slope, torch.zeros_like(slope), offset)
    else:
        y = torch.addcmul(planes_of(offset, x), x, planes_of(slope, x))
    return y.addcmul_(grad, planes_of(scale, x))


def _plain_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.flatten(2).to(wide_dtype(x.dtype)) if x.dim() > 2 else x.to(wide_dtype(x.dtype)).unsqueeze(2)
    if wide.shape[2] == 0:
        return wide.sum(2), wide.sum(2)
    mean = wide.mean(2, keepdim=True)
    return mean.squeeze(2), variance_about(mean, wide, 2).squeeze(2)


def planes_of(numbers: Tensor, x: Tensor) -> Tensor:
    """View N×C (or C) numbers so that they broadcast over the positions of ``x``."""
    return numbers.reshape(*numbers.shape, *(1,) * (x.dim() - 2))


def _slices(x: Tensor, chunks: int = 1) -> list[slice]:
    """Cut the first axis so that one slice of ``x`` and one result stay in cache."""
    step = max(1, chunks * CHUNK * torch.get_num_threads() * x.shape[0] // max(1, x.numel()))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is dense with the channels innermost."""
    return (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)) or (
        x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    )


def laid_out_as(grad: Tensor, x: Tensor) -> Tensor:
    """Return ``grad`` dense, in the memory format of ``x``, which is."""
    if x.is_contiguous():
        return grad.contiguous()
    return grad.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def as_laid_out(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` channels-last where ``x`` is: some of torch's operations, and its meta device, forget it."""
    kept = not x.is_contiguous() and is_channels_last(x)
    return laid_out_as(y, x) if kept else y


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics: float32 for anything narrower, else the dtype itself."""
    return dtype if dtype == torch.float32 else torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 when it is of half precision, else as it is."""
    return tensor.to(wide_dtype(tensor.dtype))


def needs_plain_operations() -> bool:
    """Whether the compiler, the tracer or functorch is looking, which see through plain operations only."""
    tracing: bool = torch._C._get_tracing_state() is not None
    return torch.compiler.is_compiling() or tracing or torch._C._are_functorch_transforms_active()
