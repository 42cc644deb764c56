r"""Batch normalization and then group normalization of small maps by torch's two kernels, for `layers.norm.bcn`.

What lies between them is not kept for backward but made again, one kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.base import widened_affine
from layers.batch_kernels import by_moments, standardize, suits_kernels
from layers.blocks import pool_blocks
from layers.channels_last import well_conditioned
from layers.dimensions import is_small
from layers.group_norm import VECTOR
from layers.moments import laid_out_as, plane_moments
from layers.observe import is_followed, observe

SMALL_BYTES = 1 << 19  # with the copy they fit a level-2 cache


def suits_composed(x: Tensor, groups: int) -> bool:
    """Whether `composed` may take ``x``, and is the faster way: on small maps; some channels_last ones are copied."""
    stays = x.is_contiguous() or x.nbytes <= SMALL_BYTES or _in_vectors(x, groups)
    fits = stays and is_small(x.numel(), x.shape[2:].numel()) and x.device.type == "cpu"
    return fits and suits_kernels(x) and not is_followed()


def composed(
    x: Tensor,
    channel_affine: tuple[Tensor | None, Tensor | None],
    group_affine: tuple[Tensor, Tensor],
    moments: tuple[Tensor, Tensor],
    eps: float,
    groups: int,
    *,
    through: bool,
) -> Tensor:
    """Return y of ``x`` that `suits_composed`, and observe the ``group_mean`` and ``group_var`` of what lies between.

    ``channel_affine`` is γ, β (C,), ``group_affine`` w, b, (groups,) or (C,), ``moments`` μ, σ² (C,), in the dtype of
    statistics; with ``through`` these are those of ``x`` itself, and its gradient goes through them.
    """
    affine = *widened_affine(x, *channel_affine), *widened_affine(x, *group_affine)
    y: Tensor
    y, mean = _Composed.apply(x, *affine, *moments, eps, groups, through)  # type: ignore[no-untyped-call]

    def variance() -> Tensor:  # what the kernel gives, 1/√(σ² + ε), has not the digits of a small σ²
        u = by_moments(_planes(x.detach(), moments[0]), *affine[:2], *moments, eps)
        return pool_blocks(*plane_moments(u), 1, groups)[1]

    observe(group_mean=mean, group_var=variance)
    return y


def per_channel(numbers: Tensor, channels: int) -> Tensor:
    """Numbers per group, (groups,), as (C,); what is so already as it is."""
    return numbers if len(numbers) == channels else numbers.repeat_interleave(channels // len(numbers))


class _Composed(torch.autograd.Function):
    """On small maps: torch's kernels of batch and of group normalization, one after the other; u is made again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        w: Tensor,
        b: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        groups: int,
        through: bool,
    ) -> tuple[Tensor, Tensor]:
        scale, shift = (per_channel(t, x.shape[1]) for t in (w, b))
        laid = x.to(w.dtype) if _in_vectors(x, groups) else _planes(x, w)
        u = by_moments(laid, gamma, beta, mean, var, eps)
        y, group_mean, rstd = torch.native_group_norm(u, scale, shift, *_sizes(x), groups, eps)
        ctx.flat = u.is_contiguous()
        if not (ctx.flat or well_conditioned(group_mean, rstd)):
            ctx.flat = True
            y, group_mean, rstd = torch.native_group_norm(u.contiguous(), scale, shift, *_sizes(x), groups, eps)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(group_mean)
        ctx.save_for_backward(x, gamma, beta, w, b, mean, var, group_mean, rstd)
        ctx.eps, ctx.groups, ctx.through = eps, groups, through
        return laid_out_as(y.to(x.dtype), x), group_mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, needed = grads[0], list(ctx.needs_input_grad[:5])
        if grad is None:
            return (None,) * 10
        x, gamma, beta, w, _, mean, var, group_mean, group_rstd = ctx.saved_tensors
        rest = [None] * 5
        if torch.is_grad_enabled():
            return *_derivable(_planes(grad, w), ctx, x, needed), *rest
        wide, grad = (_planes(t, w) if ctx.flat else laid_out_as(t.to(w.dtype), x) for t in (x, grad))
        u = by_moments(wide, gamma, beta, mean, var, ctx.eps)
        asked = [any(needed[:3]) or not ctx.flat, *needed[3:]]  # on channels_last it crashes otherwise (torch 2.13)
        of_u, *of_group = torch.ops.aten.native_group_norm_backward(
            grad, u, group_mean, group_rstd, per_channel(w, x.shape[1]), *_sizes(x), ctx.groups, asked
        )
        of_group = [t if t is None or len(t) == len(w) else t.view(len(w), -1).sum(1) for t in of_group]
        if not any(needed[:3]):
            return None, None, None, *of_group, *rest
        own = (None, None, mean, (var + ctx.eps).rsqrt_(), True) if ctx.through else (mean, var, None, None, False)
        of_x, *of_channel = torch.ops.aten.native_batch_norm_backward(of_u, wide, gamma, *own, ctx.eps, needed[:3])
        made = (None if of_x is None else laid_out_as(of_x.to(x.dtype), x), *of_channel, *of_group)
        return *(each if wanted else None for each, wanted in zip(made, needed, strict=True)), *rest


def _derivable(grad: Tensor, ctx: Any, x: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """The gradients that `_Composed` gives, by what can be differentiated again."""
    *given, mean, var, _, _ = ctx.saved_tensors
    given = [t.view_as(t) for t in given]  # past them lies the graph of whoever made one from the other
    _, gamma, beta, w, b = given
    wide = _planes(given[0], w)
    if ctx.through:
        u = standardize(wide, gamma, beta, mean, var, (var + ctx.eps).rsqrt(), ctx.eps)
    else:
        u = F.batch_norm(wide, mean, var, gamma, beta, False, 0.0, ctx.eps)
    w, b = (per_channel(t, x.shape[1]) for t in (w, b))
    y = torch.native_group_norm(u, w, b, *_sizes(x), ctx.groups, ctx.eps)[0]
    wanted = [t for t, asked in zip(given, needed, strict=True) if asked]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if asked else None for asked in needed]


def _in_vectors(x: Tensor, groups: int) -> bool:
    """Whether torch's group normalization, in float32 or wider, is fast on channels_last ``x``."""
    return x.shape[1] // groups * max(x.itemsize, 4) >= VECTOR


def _planes(x: Tensor, like: Tensor) -> Tensor:
    """``x`` as torch's group normalization is accurate on it: contiguous and not narrow."""
    return x.to(like.dtype).contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()
