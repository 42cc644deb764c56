r"""Mean and variance of the rows of a weight, and what is made of them: $$y_{oi} = a_o\,(w_{oi} - \mu_o).$$

`Rows(w)` takes the moments; a stone turns them into the scale a with ordinary differentiable operations on O numbers;
`Rows.scaled` applies it. In backward one sum and one pass give ∂L/∂w, as in `layers.moments` for planes; here μ moves
with w, or is 0 without ``centred``. Half types are read as they are, their moments and gradients taken in float32.

Saved for backward: w and O numbers. Double backward goes through plain operations; so does everything under
torch.compile, tracing and functorch, and off the processor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layers.moments import CHUNK, combine_planes, needs_plain_operations, plane_sums, wide_dtype
from layers.variance import variance_about

TINY = 2.0**-100  # so that equal weights are 0 standardized; a power of 4, so that their variance is 0
LONG = 1 << 13  # weights of a row: torch's norm of more loses digits


class Rows:
    """The rows of ``rows`` (O, I), any floating dtype: ``mean`` (O,), a constant, and ``var`` (O,), biased.

    Both are float32 or wider, the variance is differentiable. Without ``centred`` the mean is 0 and the variance the
    mean square. `scaled` may be called once.
    """

    def __init__(self, rows: Tensor, *, centred: bool = True) -> None:
        self._plain = needs_plain_operations() or rows.device.type != "cpu" or rows.shape[1] < 2
        if self._plain:
            wide, self._dtype = rows.to(wide_dtype(rows.dtype)), rows.dtype
            mean = wide.mean(1, keepdim=True) if centred else wide.new_zeros(len(rows), 1)
            self._rows, self.var = wide - mean if centred else wide, variance_about(mean, wide, 1).squeeze(1)
            self.mean = mean.detach().squeeze(1)
        else:
            self._rows, self._link = rows.contiguous(), _Link(centred)
            self._handle, self.mean, self.var = _Moments.apply(self._rows, self._link)  # type: ignore[no-untyped-call]

    def scaled(self, scale: Tensor) -> Tensor:
        """Return ``scale * (rows - mean)`` for a ``scale`` (O,), in the dtype of the rows."""
        if self._plain:
            return (self._rows * scale.unsqueeze(1)).to(self._dtype)
        made: Tensor = _Scaled.apply(  # type: ignore[no-untyped-call]
            self._handle, self._rows, scale, self.mean, self._link
        )
        return made


class _Link:
    """What `_Moments` tells `_Scaled`: the rows as a kernel standardized them, and the r by which it did.

    And the other way in backward: the scale, and Σ ∂L/∂y of each row.
    """

    def __init__(self, centred: bool) -> None:
        self.centred = centred
        self.standardized: Tensor | None = None
        self.rstd: Tensor | None = None
        self.scale: Tensor | None = None
        self.total: Tensor | None = None


class _Moments(torch.autograd.Function):
    """rows → (handle on them, mean, var); its backward finishes what `_Scaled` began, so that ∂L/∂w is one pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, link: _Link) -> tuple[Tensor, Tensor, Tensor]:
        if link.centred:
            mean, rstd, standardized = _standardize(rows)
            var = rstd.pow(-2).sub_(TINY)
            if standardized.dtype == rstd.dtype:
                link.rstd, link.standardized = rstd, standardized
        else:
            var = _mean_square(rows)
            mean = torch.zeros_like(var)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean)
        ctx.link = link
        ctx.save_for_backward(rows, mean)
        return rows.view_as(rows), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        grad_y, _, grad_var = grads
        rows, mean = ctx.saved_tensors
        slope = torch.zeros_like(mean) if grad_var is None else grad_var * (2 / rows.shape[1])
        if grad_y is None:  # double backward, in plain operations that can be differentiated again
            return (_centred(rows, ctx.link.centred) * slope.unsqueeze(1)).to(rows.dtype), None
        scale, total, ctx.link.scale, ctx.link.total = ctx.link.scale, ctx.link.total, None, None
        offset = torch.addcmul(scale * total / -rows.shape[1], slope, mean, value=-1) if ctx.link.centred else mean
        return _combine(grad_y, scale, rows, slope, offset), None


class _Scaled(torch.autograd.Function):
    """scale·(rows − mean); ∂L/∂w is left to `_Moments`, through the handle on the rows."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, rows: Tensor, scale: Tensor, mean: Tensor, link: _Link) -> Tensor:
        ctx.link = link
        ctx.save_for_backward(rows, scale, mean)
        if link.standardized is not None and link.rstd is not None:
            y = link.standardized.mul_((scale / link.rstd).unsqueeze(1))
            link.standardized = link.rstd = None
        else:
            zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
            y = torch.native_batch_norm(rows.unsqueeze(0), scale, zeros, mean, ones, False, 0.0, 0.0)[0]
        made: Tensor = torch.ops.aten._unsafe_view(y, rows.shape)  # no view, which may not be worked on in place
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        rows, scale, mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # double backward: past the handle, straight to the rows, in plain operations
            product = (grad.to(scale.dtype) * _centred(rows, ctx.link.centred)).sum(1)
            grad_rows = _centred(grad, ctx.link.centred) * scale.unsqueeze(1)
            return None, grad_rows.to(rows.dtype), product, None, None
        grad = grad.contiguous()
        total, product = plane_sums(grad.unsqueeze(0), rows.unsqueeze(0), mean.unsqueeze(0))
        ctx.link.scale, ctx.link.total = scale, total.squeeze(0)
        return grad, None, product.squeeze(0), None, None


def _centred(rows: Tensor, centred: bool) -> Tensor:
    """Return ``rows``, widened, less their mean if ``centred``, in plain operations."""
    wide = rows.to(wide_dtype(rows.dtype))
    return wide - wide.mean(1, keepdim=True) if centred else wide


def _standardize(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, r = 1/√(variance + TINY), and (1, O, I) r (rows − mean), by torch's kernel of group normalization.

    Given γ and β of a wide dtype it keeps the moments of half types wide.
    """
    count, size = rows.shape
    wide = wide_dtype(rows.dtype)
    one, zero = (None, None) if rows.dtype == wide else (torch.ones(count, dtype=wide), torch.zeros(count, dtype=wide))
    y, mean, rstd = torch.native_group_norm(rows.unsqueeze(0), one, zero, 1, count, size, count, TINY)
    return mean.flatten(), rstd.flatten(), y


def _mean_square(rows: Tensor) -> Tensor:
    if rows.shape[1] <= LONG:
        length: Tensor = torch.linalg.vector_norm(rows, 2, 1, dtype=wide_dtype(rows.dtype))
        return length.square_().div_(rows.shape[1])
    mean, rstd, _ = _standardize(rows)
    return rstd.pow_(-2).sub_(TINY).addcmul_(mean, mean)


def _combine(grad: Tensor, scale: Tensor, rows: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return scale·grad + slope·rows + offset, rounded once; of half types slice by slice, which stays in cache."""
    if rows.dtype == scale.dtype:
        numbers = (t.unsqueeze(0) for t in (slope, offset))
        made: Tensor = combine_planes(grad.unsqueeze(0), scale.unsqueeze(0), rows.unsqueeze(0), *numbers).squeeze(0)
        return made
    found, step = torch.empty_like(rows), max(1, CHUNK // rows.shape[1])
    for parts in zip(*(torch.split(t, step) for t in (grad, rows, found, scale, slope, offset)), strict=True):
        g, x, out, a, p, q = (t.unsqueeze(1) if t.dim() == 1 else t for t in parts)
        out.copy_(x.to(a.dtype).mul_(p).add_(q).addcmul_(g.to(a.dtype), a))
    return found
