r"""Inference example weighing: in evaluation an example's own statistics count for a share α beside the running ones.

With e₁, e₂ the means of x and x² over the channels of a group and all positions of one example, and m₁, m₂ the running
means of the same, averaged over the group (Summers & Dinneen 2020)
$$\mu = (1 - \alpha)\,m_1 + \alpha\,e_1,\qquad \sigma^2 = (1 - \alpha)\,m_2 + \alpha\,e_2 - \mu^2.$$
The variance is computed as that of a mixture, (1 − α)·v + α·v_e + α(1 − α)(e₁ − m₁)², which loses no digits.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from layers.base import scale_and_shift
from layers.batch_kernels import channel_moments, normalize, suits_kernels
from layers.blocks import normalize_blocks, pool_blocks, spread_blocks, suits_blocks
from layers.moments import Planes, plane_moments, pool
from layers.observe import is_watched, observe
from layers.running import RunningMoments, mix


class BlockNorm(RunningMoments):
    """Statistics over blocks of examples × groups of channels in training, weighed in evaluation: bn-gn and iew.

    A subclass sets ``groups`` (an integer that divides the channels) and calls one of the two methods.
    ``alpha`` may be changed after training: it is chosen on validation data.
    """

    groups: int | None
    alpha: float

    def normalize_by_blocks(self, x: Tensor, examples: int) -> Tensor:
        """Normalize ``x`` by its blocks of ``examples`` (0: all) and groups; the buffers follow the whole batch."""
        batch, channels = x.shape[:2]
        groups = self.groups or channels
        if not examples and groups == channels and suits_kernels(x):
            assert self.running_mean is not None
            assert self.running_var is not None
            y, mean, var, _ = normalize(x, self.weight, self.bias, self.eps, (self.running_mean, self.running_var))
            if is_watched():
                observe(mean=mean[None], var=var[None])
            self.update_running(mean, var, x.numel() // channels)
            return y
        if suits_blocks(x):
            y, mean = normalize_blocks(x, self.weight, self.bias, self.eps, examples or batch, groups)
            # What the kernel gives, 1/√(σ² + ε), has not the digits of a small σ²: that is for who looks.
            observe(mean=mean, var=lambda: pool_blocks(*plane_moments(x.detach()), examples, groups)[1])
            whole_mean, whole_var = channel_moments(x)
            self.update_running(whole_mean[0], whole_var[0], x.numel() // channels)
            return y
        planes = Planes(x)
        mean, var = pool_blocks(planes.mean, planes.var, examples, groups)
        observe(mean=mean, var=var)
        whole_mean, whole_var = pool(planes.mean.detach(), planes.var.detach(), 0)
        self.update_running(whole_mean.squeeze(0), whole_var.squeeze(0), batch * x.shape[2:].numel())
        scale, shift = scale_and_shift(spread_blocks(var, batch, channels), self.eps, self.weight, self.bias)
        return planes.affine(scale, spread_blocks(mean, batch, channels), shift)

    def normalize_by_weighing(self, x: Tensor) -> Tensor:
        """Normalize ``x`` by running and own statistics; with α = 0 by a fixed map per channel, which folds."""
        batch, channels = x.shape[:2]
        groups = self.groups or channels
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = pool_blocks(self.running_mean[None], self.running_var[None], 1, groups)
        if self.alpha == 0:
            mean, var = (spread_blocks(t, 1, channels).squeeze(0) for t in (mean, var))
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        if self.alpha == 1 and x[:1].numel() == groups:
            raise ValueError(f"{type(self).__name__} with alpha=1 needs more than 1 value per group of an example")
        planes = Planes(x)
        own = pool_blocks(planes.mean, planes.var, 1, groups)
        observe(example_mean=own[0], example_var=own[1])
        mean, var = mix(mean.to(own[0].dtype), var.to(own[0].dtype), *own, self.alpha)
        scale, shift = scale_and_shift(spread_blocks(var, batch, channels), self.eps, self.weight, self.bias)
        return planes.affine(scale, spread_blocks(mean, batch, channels), shift)
