r"""Region-wise convolution (layers/regions.py) by filters that are never made, for maps too small to be worth them.

The filter of region r of sample n is a mixture, $W_{nr} = \sum_j h_{nrj} E_{rj}$ for each tap k of the kernel, with the
m numbers h of G's hidden layer and, j = m, its bias with h = 1. So it can be mixed on either side of the product,
$$y_{np} = \textstyle\sum_{kc} x_{n,p+k,c} \sum_j h_{nrjk} E_{rjco} = \sum_{jc} V_{npjc}\,E_{rjco},\qquad
V_{npjc} = \textstyle\sum_k h_{nrjk}\,x_{n,p+k,c}:$$
one product per region for all samples, (m+1)·C deep in place of K·C, with what is a parameter as it is. Backward,
$$S_{tpj} = g_p E_{tj}^T,\quad T_{tpjk} = \langle S_{tpj}, x_{p+k}\rangle,\quad s_t = \langle h_{nt}, T_{tp}\rangle,$$
$$\partial L/\partial h_{nr} = \textstyle\sum_{p \in r} T_{rp},\quad
\partial L/\partial x_{p+k} = \textstyle\sum_j h_{nrjk} S_{rpj}:$$
of the m-fold product S everything is made. V and T are computed in float32 where x is of half precision, V is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layers.region_passes import Padded, Windows, through_softmax


class Maker(NamedTuple):
    """What filters are made from: ``hidden`` (N, m·m, KH, KW), ``weight`` (m·C·O, m, 1, 1) and ``bias`` (m·C·O,)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def regions(self) -> int:
        """The number m of regions."""
        return self.weight.shape[1]

    def filters(self, channels: int) -> Tensor:
        """Return the filters (m, N, K, C, O), in the dtype of ``hidden``."""
        n, m, taps = len(self.hidden), self.regions, self.hidden.shape[2:].numel()
        rows, weight = self._factors()
        bias = self.bias.to(rows.dtype).view(m, 1, -1)
        made = torch.baddbmm(bias, rows, weight.transpose(1, 2))
        return made.view(m, n, taps, channels, bias.shape[2] // channels)

    def gradients(self, grad: Tensor, wants: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias, those that ``wants`` has, from that of `filters`.

        Records no graph. Autograd would do, were it not off inside the operation that compiled graphs have.
        """
        n, m, taps = len(self.hidden), self.regions, self.hidden.shape[2:].numel()
        rows, weight = self._factors()
        made = grad.flatten(3).flatten(1, 2)
        hidden = torch.bmm(made, weight).view(m, n, taps, m).permute(1, 0, 3, 2) if wants[0] else None
        return (
            None if hidden is None else hidden.reshape(self.hidden.shape),
            torch.bmm(made.mT, rows).view(self.weight.shape).to(self.weight.dtype) if wants[1] else None,
            made.sum(1).view(self.bias.shape).to(self.bias.dtype) if wants[2] else None,
        )

    def _factors(self) -> tuple[Tensor, Tensor]:
        """What is multiplied for each region: hidden (m, N·K, m) and weight (m, C·O, m).

        So the filters of a region and sample are a matrix (K·C, O), nothing is permuted.
        """
        n, m, taps = len(self.hidden), self.regions, self.hidden.shape[2:].numel()
        rows = self.hidden.view(n, m, m, taps).permute(1, 0, 3, 2).reshape(m, n * taps, m)
        return rows, self.weight.to(rows.dtype).view(m, -1, m)

    def mixing(self) -> Tensor:
        """Return h (m, N, m + 1, K), with the ones that multiply the bias."""
        n, m, taps = len(self.hidden), self.regions, self.hidden.shape[2:].numel()
        mixing = self.hidden.new_ones(m, n, m + 1, taps)
        mixing[:, :, :m] = self.hidden.view(n, m, m, taps).transpose(0, 1)
        return mixing

    def pack(self, region: int, out: Tensor) -> Tensor:
        """Copy E of a region to ``out`` (m + 1, C, O) and return it as a matrix ((m + 1)·C, O)."""
        m, (_, channels, _) = self.regions, out.shape
        out[:m].copy_(self.weight.view(m, channels, -1, m)[region].permute(2, 0, 1))
        out[m].copy_(self.bias.view(m, channels, -1)[region])
        return out.flatten(0, 1)


def pays(m: int, positions: int, taps: int) -> bool:
    """Whether making the m·K matrices of a sample costs more than to mix what its ``positions`` see, as measured."""
    return positions <= 7 * m * taps


class _Block(NamedTuple):
    """Some samples: which, the Q positions of all of them in the ``order`` of their regions, and these and samples."""

    samples: slice
    order: Tensor
    regions: Tensor
    sample: Tensor
    bounds: list[int]

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Yield every region and the places of its positions in the order."""
        for region, (start, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            yield region, slice(start, end)


def _blocks(regions: Tensor, maker: Maker, channels: int) -> Iterator[_Block]:
    """Sort the positions of blocks of samples by their ``regions`` (N, HO, WO).

    A block sees no more numbers than there are weights, which are copied once for each, or it is one sample.
    """
    m, taps, positions = maker.regions, maker.hidden.shape[2:].numel(), max(1, regions[:1].numel())
    step = max(1, maker.weight.numel() // (positions * max(taps, m + 1) * channels))
    for start in range(0, len(regions), step):
        chosen = regions[start : start + step].flatten()
        found, order = chosen.sort(stable=True)
        counts = torch.bincount(chosen, minlength=m).cumsum(0).tolist()
        yield _Block(slice(start, start + step), order, found, order // positions, [0, *counts])


def _windows_of(padded: Padded, block: _Block) -> Tensor:
    """U (Q, K, C), what each position sees, in the order of the block."""
    rows = padded.rows[block.samples]
    index = padded.seen.repeat(len(rows), 1).index_select(0, block.order)
    index += (block.sample * rows.shape[1]).unsqueeze(1)
    return rows.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, -1)


def forward(x: Tensor, maker: Maker, regions: Tensor, windows: Windows) -> Tensor:
    """Return y (N, O, HO, WO) for ``x`` (N, C, H, W), channels innermost."""
    padded, mixing, m = Padded(x, windows), maker.mixing(), maker.regions
    channels, outputs = x.shape[1], maker.bias.numel() // (m * x.shape[1])
    shape = (len(x), outputs, *regions.shape[1:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows = y.permute(0, 2, 3, 1)
    matrix = x.new_empty(m + 1, channels, outputs)
    for block in _blocks(regions, maker, channels):
        mixed = _mixed(_windows_of(padded, block), mixing[block.regions, block.sample + block.samples.start], x.dtype)
        products = x.new_empty(len(mixed), outputs)
        for region, at in block.parts():
            if at.start < at.stop:
                torch.mm(mixed[at], maker.pack(region, matrix), out=products[at])
        rows[block.samples].view(-1, outputs).index_copy_(0, block.order, products)
    return y


def _mixed(seen: Tensor, mixing: Tensor, dtype: torch.dtype) -> Tensor:
    """V (Q, (m + 1)·C) of windows (Q, K, C) and h (Q, m + 1, K) of their positions."""
    return torch.bmm(mixing, seen.to(mixing.dtype)).to(dtype).flatten(1)


def backward(
    grad: Tensor, x: Tensor, maker: Maker, guide: Tensor, regions: Tensor, windows: Windows, wants: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, hidden, weight, bias and guide, those that ``wants`` has, from that of y."""
    padded, mixing, m = Padded(x, windows), maker.mixing(), maker.regions
    upstream = grad.permute(0, 2, 3, 1).flatten(1, 2)
    blocks = list(_blocks(regions, maker, x.shape[1]))
    dtype = maker.weight.dtype if len(blocks) == 1 else mixing.dtype  # one needs no sum that would be rounded
    sums = _Sums(
        torch.zeros_like(padded.rows, dtype=mixing.dtype) if wants[0] else None,
        torch.zeros_like(mixing) if wants[1] else None,
        (torch.empty_like if len(blocks) == 1 else torch.zeros_like)(maker.weight, dtype=dtype) if wants[2] else None,
        torch.zeros_like(maker.bias, dtype=dtype) if wants[3] else None,
        guide.new_empty(*upstream.shape[:2], m) if wants[4] and m > 1 else None,
    )
    for block in blocks:
        seen, sample = _windows_of(padded, block), block.sample + block.samples.start
        g = upstream[block.samples].flatten(0, 1).index_select(0, block.order)
        own = mixing[block.regions, sample]
        if wants[2] or wants[3]:
            add = Tensor.copy_ if len(blocks) == 1 else Tensor.add_  # memory that is new costs more than the products
            _add_filters(sums, add, block, _mixed(seen, own, x.dtype).to(mixing.dtype), g.to(mixing.dtype), m)
        if wants[0] or wants[1] or sums.slopes is not None:
            spread = _add_products(sums, maker, block, g, seen.to(mixing.dtype), mixing[:, sample])
            if sums.rows is not None:
                unfolded = torch.empty_like(seen, dtype=mixing.dtype)
                unfolded.index_copy_(0, block.order, torch.bmm(own.transpose(1, 2), spread))
                padded.fold(sums.rows[block.samples], unfolded)
    return (
        None if sums.rows is None else padded.inside(sums.rows).to(x.dtype),
        None if sums.mixing is None else sums.mixing[:, :, :m].transpose(0, 1).reshape(maker.hidden.shape),
        None if sums.weight is None else sums.weight.to(maker.weight.dtype),
        None if sums.bias is None else sums.bias.to(maker.bias.dtype),
        through_softmax(guide, sums.slopes) if wants[4] else None,
    )


class _Sums(NamedTuple):
    """What the blocks add up, where it is wanted."""

    rows: Tensor | None
    mixing: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    slopes: Tensor | None


def _add_filters(
    sums: _Sums, add: Callable[[Tensor, Tensor], Tensor], block: _Block, mixed: Tensor, g: Tensor, m: int
) -> None:
    """Add ∂L/∂E = Vᵀ g, region by region, to the gradients of weight and bias."""
    made = g.new_empty(m + 1, mixed.shape[1] // (m + 1), g.shape[1])
    for region, at in block.parts():
        torch.mm(mixed[at].t(), g[at], out=made.view(-1, g.shape[1]))
        if sums.weight is not None:
            add(sums.weight.view(m, *made.shape[1:], m)[region], made[:m].permute(1, 2, 0))
        if sums.bias is not None:
            add(sums.bias.view(m, *made.shape[1:])[region], made[m])


def _add_products(sums: _Sums, maker: Maker, block: _Block, g: Tensor, seen: Tensor, mixing: Tensor) -> Tensor:
    """Add what S says of h and of the guide; return S_r (Q, m + 1, C), with the filters of each position itself."""
    m, (count, _, channels) = maker.regions, seen.shape
    own, matrix = seen.new_empty(count, m + 1, channels), g.new_empty(m + 1, channels, g.shape[1])
    slopes = None if sums.slopes is None else seen.new_empty(m, count)
    for region, at in block.parts():
        rows, mine = (at, slice(None)) if slopes is None else (slice(None), at)
        products = torch.mm(g[rows], maker.pack(region, matrix).t()).view(-1, m + 1, channels).to(seen.dtype)
        own[at] = products[mine]
        met = torch.bmm(products, seen[rows].transpose(1, 2))
        if slopes is not None:
            slopes[region] = (met * mixing[region]).sum((1, 2))
        if sums.mixing is not None:
            sums.mixing[region].index_add_(0, block.sample[at] + block.samples.start, met[mine])
    if slopes is not None and sums.slopes is not None:
        sums.slopes[block.samples].view(-1, m).index_copy_(0, block.order, slopes.t())
    return own
