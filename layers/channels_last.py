"""The passes of `layers.moments` over channels_last data, and when torch's own kernels are accurate there.

On a processor torch's normalizations of channels_last take E[x²] − E[x]², or sum float32 one value after the other.
That costs all digits where a mean is far above the spread, and none where it is not; their results tell which it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALONE = 1 << 15  # elements of a sample from which calling a kernel for each costs less than passes over many
FAR = 4.0  # deviations of a mean from zero, at which E[x²] − E[x]² loses four of its 24 bits


def suits_torch_kernels(x: Tensor) -> bool:
    """Whether torch's kernels may be tried on ``x`` and looked at, which needs data: no subclass that may have none."""
    return type(x) is Tensor


def well_conditioned(mean: Tensor, rstd: Tensor) -> bool:
    """Whether ``mean`` (μ) and ``rstd`` (1/√(σ² + ε)) of torch's channels_last kernels have their digits.

    The error of E[x²] − E[x]² is some ulps of μ²; where μ² ≤ 16 (σ² + ε) as found, it was as small beside the truth.
    """
    return (mean.data * rstd.data).abs_().max().item() <= FAR


def well_found(near: Tensor, mean: Tensor, var: Tensor) -> bool:
    """The same by μ of what the kernel took, ``near``, and μ and σ² of the data before they were shifted.

    Of a σ that is no smaller than the last digits of μ: equal values have none.
    """
    room = torch.addcmul(var, near, near, value=-(FAR**-2)).addcmul_(mean, mean, value=2.0**-40)
    return room.min().item() >= 0


def plane_moments(x: Tensor, slices: list[slice], wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane, N×C in ``wide``, of one of the slices of samples after the other."""
    if is_alone(x):
        first = (x[..., 0, 0] if x.dim() == 4 else x[..., 0, 0, 0]).to(wide)
        mean, var = _moments_around(x, first)
        if suits_torch_kernels(x) and not well_found(mean - first, mean, var):
            return _moments_around(x, mean)  # the first value was far from the others
        return mean, var
    means, variances = [], []
    for rows in slices:
        part = _rows_last(x[rows]).to(wide)
        means.append(part.mean(1))
        variances.append((part - means[-1].unsqueeze(1)).square_().mean(1))
    return joined(means), joined(variances)


def _moments_around(x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """By torch's kernel, sample by sample; it sums one value after the other, so these are shifted, N×C."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    found = [
        torch.batch_norm_update_stats(part.to(shift.dtype) - own.view(shape), None, None, 0.0)
        for part, own in zip(torch.split(x, 1), shift, strict=True)
    ]
    return torch.stack([mean for mean, _ in found]).add_(shift), torch.stack([var for _, var in found])


def plane_sums(grad: Tensor, x: Tensor, own: Tensor, slices: list[slice]) -> tuple[Tensor, Tensor]:
    """Σ grad and Σ grad·(x − own) over each plane, N×C."""
    if is_alone(x):
        ones, wanted = torch.ones_like(own[0]), [False, True, True]
        backward = torch.ops.aten.native_batch_norm_backward
        each = zip(torch.split(grad, 1), torch.split(x, 1), own.unbind(), strict=True)
        found = [backward(g, part, ones, None, None, mean, ones, True, 0.0, wanted)[1:] for g, part, mean in each]
        return torch.stack([total for _, total in found]), torch.stack([product for product, _ in found])
    totals, products = [], []
    for rows in slices:
        g, part = (_rows_last(t[rows]).to(own.dtype) for t in (grad, x))
        totals.append(g.sum(1))
        products.append((part - own[rows].unsqueeze(1)).mul_(g).sum(1))
    return joined(totals), joined(products)


def is_alone(x: Tensor) -> bool:
    """Whether a call of a kernel for each sample of ``x`` is faster than passes over all of them."""
    return x.device.type == "cpu" and (len(x) == 1 or x.numel() >= ALONE * len(x))


def joined(parts: list[Tensor]) -> Tensor:
    """The parts along the first axis."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows_last(x: Tensor) -> Tensor:
    """View channels_last (n, C, *positions) as (n, positions, C)."""
    return x.movedim(1, -1).flatten(1, -2)
