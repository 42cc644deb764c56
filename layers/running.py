"""Running statistics of a channel, as torch.nn.BatchNorm keeps them: what bn, ghost-bn and bcn share."""

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

    @torch.no_grad()
    def update_running(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Move the buffers towards batch ``mean`` and ``var`` (C,), the variance made unbiased over ``count`` values.

        An empty batch moves nothing but the counter, as in torch.
        """
        if not self.training or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if isinstance(count, int) and count == 0:
            return
        weight = self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
        unbiased = var * (count / (count - 1)) if not isinstance(count, int) or count > 1 else var
        kept = self.running_mean.dtype
        self.running_mean.lerp_(mean.to(kept), _as_weight(weight, kept))
        self.running_var.lerp_(unbiased.to(kept), _as_weight(weight, kept))

    def normalize_by_running(self, x: Tensor) -> Tensor:
        """Apply the fixed affine map of evaluation, y = γ (x − running mean)/√(running var + ε) + β."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _as_weight(weight: Tensor | float, dtype: torch.dtype) -> Tensor | float:
    return weight.to(dtype) if isinstance(weight, Tensor) else weight
