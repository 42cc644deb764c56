r"""Moments over the batches of all ranks of a process group: one collective forward, one backward.

Rank k has the mean μ_k and biased variance σ²_k (C,) of its m_k values per channel. Every rank gathers all three and
merges them (Chan, Golub & LeVeque 1983); with M = Σ m_k
$$\mu = \sum_k \tfrac{m_k}{M}\mu_k,\qquad \sigma^2 = \sum_k \tfrac{m_k}{M}\,(\sigma^2_k + (\mu_k - \mu)^2).$$
Backward sums the gradients of μ and σ² over the ranks, because the loss of every rank depends on them; the rest is
local: ∂μ/∂μ_k = m_k/M, ∂σ²/∂μ_k = 2 m_k/M (μ_k − μ), ∂σ²/∂σ²_k = m_k/M. Both collectives are differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def spans_ranks(group: dist.ProcessGroup | None) -> bool:
    """Tell whether there are other ranks to synchronise with: ``group`` (None: all of them) has more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def merge_over_ranks(
    mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance (C,) over all ranks, and the number of values () as a tensor of their dtype.

    ``mean`` and ``var`` are those of this rank's ``count`` values per channel; a rank without values joins with zeros
    and weighs nothing. Every rank of ``group`` must call, in the same order, forward and backward. Nothing waits for
    the device. Raises RuntimeError when the backend does not serve the device of ``mean``.
    """
    merged: tuple[Tensor, Tensor, Tensor] = _Merge.apply(mean, var, count, group)  # type: ignore[no-untyped-call]
    return merged


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        message = torch.cat([mean.new_full((1,), count), mean, var])
        gathered = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, message, group=group)
        rows = torch.stack(gathered)
        counts, (means, variances) = rows[:, :1], rows[:, 1:].chunk(2, 1)
        total = counts.sum()
        share = counts / total.clamp(min=1)
        merged = (share * means).sum(0)
        spread = (share * (variances + (means - merged).square())).sum(0)
        ctx.group = group
        ctx.mark_non_differentiable(total)
        ctx.save_for_backward(mean, merged, share[dist.get_rank(group)])
        return merged, spread, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean, merged, share = ctx.saved_tensors
        summed: Tensor = _SumOverRanks.apply(torch.stack(grads[:2]), ctx.group)  # type: ignore[no-untyped-call]
        of_mean, of_var = share * summed
        return of_mean + 2 * (mean - merged) * of_var, of_var, None, None


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks; it is its own transpose, so backward is the same sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        total: Tensor = _SumOverRanks.apply(grad, ctx.group)  # type: ignore[no-untyped-call]
        return total, None
