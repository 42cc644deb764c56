r"""The search of a dynamic sparse graph: outputs of a convolution guessed by random projection, and the largest kept.

$$V = f(X) f(W)^\top = \tfrac1k\,(W R R^\top) * x,\qquad f(v) = R^\top v / \sqrt k,$$
X the windows of x, R (I, k) ternary. θ is the ⌊(1 − γ) n⌋-th largest V of a sample, and what is larger is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from layers.moments import snapshot, widened
from layers.weight_functions import full_precision


class Search(nn.Module):
    """Buffers ``projection`` R (I, k), drawn here, and ``reduced`` f(W) (O, k), for a ``weight`` (O, …), as it is.

    ``k`` None is what ``eps`` asks for, 4 ln O / (ε²/2 − ε³/3); more than I columns are I. ``s`` ≥ 1: a share of 1/s of
    R is not 0. W is projected in every ``every``-th training step.
    """

    projection: Tensor
    reduced: Tensor

    def __init__(self, weight: Tensor, k: int | None, eps: float, s: float, every: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        wanted = max(1, int(4 * math.log(outputs) // (eps**2 / 2 - eps**3 / 3))) if k is None else k
        columns = min(inputs, wanted)
        self.every = every
        self.register_buffer("projection", weight.new_empty(inputs, columns))
        self.register_buffer("reduced", weight.new_empty(outputs, columns))
        draw_projection(self.projection, s)
        self.refresh(weight)

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Project ``weight`` (O, …) now."""
        self.reduced.copy_(self.projected(weight))

    @torch.no_grad()
    def projected(self, weight: Tensor) -> Tensor:
        """Return f(W) = W R/√k (O, k), in float32 or wider."""
        rows, projection = widened(weight.detach().flatten(1)), widened(self.projection)
        with full_precision(rows):
            return torch.mm(rows, projection) * float(projection.shape[1] ** -0.5)

    @torch.no_grad()
    def filters(self, weight: Tensor, step: Tensor | None) -> Tensor:
        """Return f(W) Rᵀ/√k, which convolves the input to V, in the shape of ``weight`` and in float32 or wider.

        With the number ``step`` () of a training step W is projected first where that is due.
        """
        reduced, projection = widened(self.reduced), widened(self.projection)
        if step is not None:
            reduced = torch.where(snapshot(step) % self.every == 0, self.projected(weight), reduced)
            self.reduced.copy_(reduced)
        with full_precision(reduced):
            return (torch.mm(reduced, projection.mT) * float(projection.shape[1] ** -0.5)).view(weight.shape)


@torch.no_grad()
def draw_projection(projection: Tensor, s: float) -> Tensor:
    """Fill ``projection`` in place with ±√s, with probability 1/(2s) each, and else 0; return it."""
    u = torch.rand(projection.shape, device=projection.device, dtype=torch.float32)  # half precision would be coarse
    share = 0.5 / s
    sign = (u < share).to(u.dtype) - (u >= 1 - share).to(u.dtype)
    return projection.copy_(sign).mul_(math.sqrt(s))


def kept(sparsity: float, count: int) -> int:
    """Return ⌊(1 − γ) count⌋ for γ as decimals write it: 0.9 of 10 leaves 1, though 1 − 0.9 is less than 0.1."""
    return int((1 - sparsity) * count + 1e-6)


def thresholds(scores: Tensor, sparsity: float, *, each: bool) -> Tensor:
    """Return θ, the ⌊(1 − γ) n⌋-th largest of the n scores of a sample: of ``each`` (N,), or of the first (1,).

    An empty batch, which has no first sample, has a θ of 0.
    """
    rows = scores.flatten(1)
    if rows.shape[0] == 0:
        return rows.new_zeros(0 if each else 1)
    rows = rows if each else rows[:1]
    return rows.kthvalue(rows.shape[1] - kept(sparsity, rows.shape[1]) + 1, 1).values
