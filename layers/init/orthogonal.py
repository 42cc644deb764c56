r"""Orthogonal initialization: a random matrix with orthonormal rows or columns, drawn uniformly (Saxe, McClelland &
Ganguli 2014, arXiv 1312.6120, section 3; the start of arXiv 1611.06013 and 1703.01827).

With the kernel as a matrix W (O/groups, I) of each group by itself, a row per output channel, I = inputs of a group ×
positions of the kernel: A is a matrix of standard normal numbers of that shape, the higher way round, and
$$A = Q R,\quad W = \mathrm{gain} \cdot Q\,\mathrm{diag}(\mathrm{sign}(R_{ii})),$$
transposed back. Rows are orthonormal, times the gain, where O/groups ≤ I, else columns. Without the signs the result
would depend on the conventions of the decomposition; with them it has the uniform (Haar) distribution (Mezzadri 2007,
arXiv math-ph/0609050), that of the polar factor A (AᵀA)^{-1/2}, which the authors of arXiv 1611.06013 take.

Errors keep their length on the way back through a layer with orthonormal rows, activations on the way forward through
one with orthonormal columns. That is of the matrix of one window, not of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layers.attached import not_a_kernel
from layers.card import Card, Flops, Identity, Option, Paper, Rule
from layers.moments import widened
from layers.weight_functions import check
from layers.weights import Weight, as_matrices, from_matrices

card = Card(
    title="Orthogonal initialization",
    paper=Paper(
        authors="Saxe, McClelland, Ganguli",
        title="Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        year=2014,
        venue="ICLR 2014",
        arxiv="1312.6120",
    ),
    impl="orthogonal_",
    role="initializer",
    formula="A = Q R,  W ← gain · Q diag(sign R_ii),  A_ij ~ N(0, 1)",
    summary="Fills a kernel, seen as a matrix, with a uniformly drawn one of orthonormal rows or columns.",
    options=(
        Option(
            name="gain",
            type=float,
            default=1.0,
            gt=0,
            help="every singular value; √2 before ReLU keeps the mean square of activations",
        ),
        Option(name="groups", type=int, default=1, ge=1, help="groups of the convolution, each a matrix by itself"),
    ),
    rules=(
        Rule(
            "O % groups == 0",
            "groups={groups} does not divide {O} output channels; its divisors are {divisors_of_O}",
            "groups",
        ),
    ),
    derived={"R": "min(O // groups, I)", "L": "max(O // groups, I)"},
    flops=Flops("groups*(4*L*R**2 - 4*R**3//3 + 2*L*R)", "0"),
    executed=Flops("groups*(4*L*R**2 - 4*R**3//3 + L*R + 2*R)", "0"),
    explained="Householder's decomposition and the making of Q count 2 R² (L − R/3) each (Golub & Van Loan), random "
    "numbers nothing; signs and gain are one factor per row.",
    traffic=Flops("E*B", "0"),
    identities=(
        Identity(says="rows are orthonormal, O ≤ I: W Wᵀ = 1", proof="orthonormal_rows"),
        Identity(says="columns are, O > I: Wᵀ W = 1", proof="orthonormal_columns"),
        Identity(says="W Wᵀ = gain² · 1", proof="gained", options={"gain": 1.7}),
        Identity(says="each group is orthonormal by itself", proof="grouped", options={"groups": 2}),
        Identity(says="so is each of a transposed convolution", proof="transposed_groups"),
        Identity(says="for one group it draws what torch.nn.init.orthogonal_ does", proof="as_torch", within=1e-12),
    ),
    notes=(
        "torch.nn.init.orthogonal_ flattens grouped kernels and those of transposed convolutions as if they were one "
        "matrix, so that neither the rows nor the columns of a group are orthonormal; and it refuses half precision.",
        "The reading notes give the title only.",
        "The matrix of one window is orthonormal, the convolution is not: see svb.",
    ),
    examples=({}, {"gain": 1.5, "groups": 2}, {"groups": 6}),
)


@torch.no_grad()
def orthogonal_(
    tensor: Tensor,
    gain: float = 1.0,
    groups: int = 1,
    *,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` (O, C/groups, …), of a ``transposed`` convolution (C, O/groups, …), in place and return it.

    Drawn from ``generator`` (None: torch's) on the device of ``tensor``; half precision is computed in float32. Keeps
    no graph. On the meta device nothing is drawn and nothing done.
    Raises OptionError, before anything is drawn, for refused options, groups that do not divide the channels, less than
    2 axes, and a tensor that is not real floating-point.
    """
    check(card, tensor, {"gain": gain, "groups": groups})
    if tensor.is_meta or not tensor.numel():
        return tensor
    matrices = as_matrices(widened(tensor), groups, transposed=transposed)
    drawn = torch.empty_like(matrices, memory_format=torch.contiguous_format).normal_(generator=generator)
    wide = drawn.shape[1] < drawn.shape[2]
    q, r = torch.linalg.qr(drawn.mT if wide else drawn)
    q = q * (r.diagonal(dim1=1, dim2=2).sign() * gain).unsqueeze(1)
    return tensor.copy_(from_matrices(q.mT if wide else q, tensor, transposed=transposed))


def excludes(weight: Weight) -> str:
    """Return "" for a kernel of a linear layer or convolution that is used as it is, else the reason."""
    return not_a_kernel(weight)


Apply = Callable[[Tensor], Tensor]


def _eye(rows: Tensor, scale: float = 1.0) -> Tensor:
    """``scale`` times the unit matrix of as many rows as each of ``rows`` (…, O, I) has."""
    return (scale * torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)).expand(*rows.shape[:-2], -1, -1)


def orthonormal_rows(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W Wᵀ of fewer filters than inputs beside 1."""
    rows = apply(weight.detach().clone()).flatten(1)
    return rows @ rows.mT, _eye(rows)


def orthonormal_columns(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Wᵀ W of more filters than inputs beside 1."""
    columns = apply(weight.detach().flatten(1).mT.clone()).mT
    return columns @ columns.mT, _eye(columns)


def gained(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W Wᵀ beside gain², for a gain of 1.7."""
    rows = apply(weight.detach().clone()).flatten(1)
    return rows @ rows.mT, _eye(rows, 1.7**2)


def grouped(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W Wᵀ of each of two groups beside 1."""
    rows = as_matrices(apply(weight.detach().clone()), 2)
    return rows @ rows.mT, _eye(rows)


def transposed_groups(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W Wᵀ of each of two groups of a transposed convolution beside 1."""
    rows = as_matrices(orthogonal_(weight.detach().clone(), groups=2, transposed=True), 2, transposed=True)
    return rows @ rows.mT, _eye(rows)


def as_torch(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fewer filters than inputs, and more, beside torch.nn.init.orthogonal_ with the same random numbers."""
    found = []
    for initialize in (apply, nn.init.orthogonal_):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tensors = [weight.detach().clone(), weight.detach().flatten(1).mT.clone()]
            found.append(torch.cat([initialize(each).flatten() for each in tensors]))
    return found[0], found[1]
