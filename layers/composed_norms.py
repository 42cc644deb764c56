r"""Batch normalization and then group normalization of small maps by torch's two kernels, for `layers.norm.bcn`.

What lies between them is not kept for backward but made again, one kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.base import widened_affine
from layers.batch_kernels import standardize, suits_kernels
from layers.blocks import spread_blocks
from layers.dimensions import is_small
from layers.moments import laid_out_as, per_plane
from layers.observe import observe

SMALL_BYTES = 1 << 19  # with the copy they fit a level-2 cache


def suits_composed(x: Tensor) -> bool:
    """Whether `composed` may take ``x``, and is the faster way: on small maps; channels_last ones are copied."""
    fits = is_small(x.numel(), x.shape[2:].numel()) and (x.is_contiguous() or x.nbytes <= SMALL_BYTES)
    return fits and x.device.type == "cpu" and suits_kernels(x)


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

    ``channel_affine`` is γ, β (C,), ``group_affine`` w, b (C,), ``moments`` μ, σ² (C,), in the dtype of statistics;
    with ``through`` these are those of ``x`` itself, and its gradient goes through them.
    """
    affine = widened_affine(x, *channel_affine)
    y: Tensor
    y, mean, var = _Composed.apply(  # type: ignore[no-untyped-call]
        x, *affine, *group_affine, *moments, eps, groups, through
    )
    observe(group_mean=mean, group_var=var)
    return y


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        u = torch.native_batch_norm(_planes(x, w), gamma, beta, mean, var, False, 0.0, eps)[0]
        # ε = 0 makes 1/rstd² the variance itself; then one scale and one shift per plane.
        _, group_mean, group_var = torch.native_group_norm(u, None, None, *_sizes(x), groups, 0.0)
        rstd = (group_var.pow_(-2) + eps).rsqrt_()
        scale, own = (spread_blocks(t, *x.shape[:2]) for t in (rstd, group_mean))
        y = per_plane(u, scale * w, own, b.expand_as(own))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(group_mean, group_var)
        ctx.save_for_backward(x, gamma, beta, w, b, mean, var, group_mean, rstd)
        ctx.eps, ctx.groups, ctx.through = eps, groups, through
        return laid_out_as(y.to(x.dtype), x), group_mean, group_var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, needed = grads[0], list(ctx.needs_input_grad[:5])
        if grad is None:
            return (None,) * 10
        x, gamma, beta, w, _, mean, var, group_mean, group_rstd = ctx.saved_tensors
        wide, grad, rest = _planes(x, w), _planes(grad, w), [None] * 5
        rstd = (var + ctx.eps).rsqrt()
        if torch.is_grad_enabled():
            return *_derivable(grad, ctx, x, needed), *rest
        u = torch.native_batch_norm(wide, gamma, beta, mean, var, False, 0.0, ctx.eps)[0]
        of_u, *of_group = torch.ops.aten.native_group_norm_backward(
            grad, u, group_mean, group_rstd, w, *_sizes(x), ctx.groups, [any(needed[:3]), *needed[3:]]
        )
        if not any(needed[:3]):
            return None, None, None, *of_group, *rest
        own = (None, None, mean, rstd, True) if ctx.through else (mean, var, None, None, False)
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
    y = torch.native_group_norm(u, w, b, *_sizes(x), ctx.groups, ctx.eps)[0]
    wanted = [t for t, asked in zip(given, needed, strict=True) if asked]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if asked else None for asked in needed]


def _planes(x: Tensor, like: Tensor) -> Tensor:
    """``x`` as torch's group normalization is accurate on it: contiguous and not narrow."""
    return x.to(like.dtype).contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()
