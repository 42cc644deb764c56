"""Running statistics of a channel: as torch.nn.BatchNorm keeps them, and as the averages of E[x] and E[x²]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Norm


class RunningNorm(Norm):
    """A `Norm` with buffers ``running_mean``, ``running_var`` (C,) and ``num_batches_tracked`` (), under torch's names.

    ``momentum`` is the weight of the new value; None averages all batches equally. Without ``track_running_stats``
    there are no buffers and evaluation uses batch statistics.
    """

    eps: float
    momentum: float | None
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def add_running_statistics(self, track: bool, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Register the three buffers, or None in their places; call once, at the end of ``__init__``."""
        make = {"device": device, "dtype": dtype}
        self.register_buffer("running_mean", torch.zeros(self.channels, **make) if track else None)  # type: ignore[arg-type]
        self.register_buffer("running_var", torch.ones(self.channels, **make) if track else None)  # type: ignore[arg-type]
        count = torch.zeros((), dtype=torch.long, device=device) if track else None
        self.register_buffer("num_batches_tracked", count)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the counter to 0."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            nn.init.zeros_(self.running_mean)
            nn.init.ones_(self.running_var)
            self.num_batches_tracked.zero_()

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the next forward normalizes by its own batch: in training, or when nothing is tracked."""
        return self.training or self.running_mean is None

    def update_running(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Move the buffers towards batch ``mean`` and ``var`` (C,), the variance made unbiased over ``count`` values.

        An empty batch moves nothing but the counter, as in torch. A ``count`` () that only the device knows (it was
        summed over ranks) is not waited for.
        """
        running_mean, running_var = self.running_mean, self.running_var
        if not self.training or running_mean is None or running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if isinstance(count, int) and count == 0:
            return
        weight, mean, var = self.weight_of_new(), mean.detach(), var.detach()
        if isinstance(count, Tensor):
            weight = weight * (count > 0).to(running_mean.dtype)
            unbiased = var * (count / (count - 1).clamp(min=1))
        else:
            unbiased = var * (count / max(1, count - 1))
        kept = running_mean.dtype
        running_mean.lerp_(mean.to(kept), _as_weight(weight, kept))
        running_var.lerp_(unbiased.to(kept), _as_weight(weight, kept))

    def weight_of_new(self) -> Tensor | float:
        """Return what the new value weighs: ``momentum``, or 1/n for the n-th batch when that is None."""
        if self.momentum is not None:
            return self.momentum
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        wide = torch.promote_types(self.running_mean.dtype, torch.float32)
        return self.num_batches_tracked.to(wide).reciprocal()

    def normalize_by_running(self, x: Tensor) -> Tensor:
        """Apply the fixed affine map of evaluation, y = γ (x − running mean)/√(running var + ε) + β."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _as_weight(weight: Tensor | float, dtype: torch.dtype) -> Tensor | float:
    return weight.to(dtype) if isinstance(weight, Tensor) else weight


def follow(buffer: Tensor, new: Tensor, weight: Tensor | float) -> None:
    """Move ``buffer`` towards ``new`` in the dtype of that, rounded once; to be called without gradients."""
    if buffer.dtype == new.dtype:
        buffer.lerp_(new, weight)
    else:
        buffer.copy_(torch.lerp(buffer.to(new.dtype), new, weight))


class RunningMoments(RunningNorm):
    """A `RunningNorm` whose buffers follow E[x] and E[x²], as in Summers & Dinneen 2020: biased, over the whole batch.

    The variance that belongs to the averages, E[x²] − E[x]², is kept in place of E[x²], which in float32 has no digits
    left for a variance at mean ≫ std. It holds the spread of the batch means too:
    var ← (1 − a) var + a σ² + a (1 − a) (μ − mean)².
    """

    def update_running(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Move the buffers towards batch ``mean`` and biased ``var`` (C,); an empty batch moves only the counter."""
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None
        assert running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if isinstance(count, int) and count == 0:
            return
        weight, mean, var = _as_weight(self.weight_of_new(), mean.dtype), mean.detach(), var.detach()
        step = mean - running_mean
        follow(running_mean, mean, weight)
        if isinstance(weight, float):  # as `mix` does it
            var = torch.addcmul(var, step, step, value=1 - weight)
        else:
            var = torch.addcmul(var, step * (1 - weight), step)
        follow(running_var, var, weight)


def mix(mean: Tensor, var: Tensor, new_mean: Tensor, new_var: Tensor, weight: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the mixture of two populations, the second with ``weight`` in [0, 1].

    It equals weighing E[x] and E[x²], without their cancellation; every term of the variance is non-negative.
    """
    weight = _as_weight(weight, mean.dtype)
    spread = weight * (1 - weight) * (new_mean - mean).square()
    return torch.lerp(mean, new_mean, weight), torch.lerp(var, new_var, weight) + spread
