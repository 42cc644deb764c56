"""What the sparse backward rules share: the gradients of a convolution, and of some of its channels or samples only.

Elements that are zero save nothing on dense kernels. What saves is structure: whole output channels, whose filters are
contiguous rows, or whole samples, which make smaller dense products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.gemm_convolution import Geometry
from layers.moments import wide_dtype
from layers.underivable import underivable

Wants = tuple[bool, bool]
Gradients = tuple[Tensor | None, Tensor | None]


def is_traced() -> bool:
    """Whether torch.jit.trace is looking, which sees plain operations only and no backward."""
    traced: bool = torch._C._get_tracing_state() is not None
    return traced


def share(count: int, density: float) -> int:
    """Return how many of ``count`` are the share ``density`` in [0, 1], rounded, at least 1."""
    return max(1, int(density * count + 0.5))


def largest(magnitudes: Tensor, k: int) -> Tensor:
    """Return the indices (k,) of the k largest of ``magnitudes`` (n,), in no order; of equal ones any."""
    return magnitudes.topk(k, sorted=False).indices


def magnitudes(values: Tensor, axis: int) -> Tensor:
    """Return Σ|·| over all axes but ``axis``; half precision adds up in float32."""
    others = [other for other in range(values.dim()) if other != axis]
    return values.abs().sum(others, dtype=wide_dtype(values.dtype))


def only_largest(values: Tensor, k: int) -> Tensor:
    """Return ``values`` with all but the k largest magnitudes along axis 1 set to zero."""
    index = values.abs().topk(k, 1, sorted=False).indices
    return torch.zeros_like(values).scatter(1, index, values.gather(1, index))


def gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants: Wants) -> Gradients:
    """Return ∂L/∂x and ∂L/∂W of a convolution, where wanted, for ``grad`` = ∂L/∂y."""
    stride, padding, dilation, groups = geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (*wants, False)
    )
    return of_x if wants[0] else None, of_weight if wants[1] else None


def of_channels(grad: Tensor, index: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants: Wants) -> Gradients:
    """Return ∂L/∂x and ∂L/∂W where only the output channels ``index`` (k,) of a convolution get their ``grad``."""
    if geometry.groups > 1:  # the channels left are in no equal groups: masked, and multiplied as they are
        kept = torch.zeros_like(grad).index_copy_(1, index, grad.index_select(1, index))
        return gradients(kept, x, weight, geometry, wants)
    part = grad.index_select(1, index)
    of_x, rows = gradients(part, x, weight.index_select(0, index), geometry, wants)
    return of_x, None if rows is None else torch.zeros_like(weight).index_copy_(0, index, rows)


def kept(outputs: int, k: int | None, ratio: float | None) -> int:
    """Return how many of ``outputs`` keep their gradient."""
    if k is not None:
        return min(k, outputs) if k else outputs
    return outputs if ratio is None else share(outputs, ratio)


def refusing(found: tuple[Tensor | None, ...], *others: Tensor) -> tuple[Tensor | None, ...]:
    """Return meProp's gradients ``found`` so that deriving them again raises."""
    why = "meProp has no second derivative: what its gradient leaves out is no function's derivative"
    return tuple(None if value is None else underivable(value, *others, why=why) for value in found)
