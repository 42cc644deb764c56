r"""Singular Value Bounding: after some steps, the singular values of each kernel are put back into a band around 1
(Jia, Tao, Gao & Xu 2017, arXiv 1611.06013).

With the kernel as a matrix W (O, I), a row per output channel, of each group by itself,
$$W = U S V^\top,\quad s_i \leftarrow \min(\max(s_i, 1/f), f),\quad W \leftarrow U S' V^\top,\quad f = 1 + \epsilon .$$
The result is the nearest matrix in the band in the Frobenius norm, and W itself when it lies there. f = 1 gives the
orthonormal factor of W. Biases are left alone.

Two ways (``method``). svd: the thin singular value decomposition. gram: with W no higher than wide, by the eigenvectors
of the smaller Gram matrix, W Wᵀ = Q S² Qᵀ and W' = Q (S'/S) Qᵀ W, several times as fast; but squaring costs digits: a
singular value comes out with a relative error of about the machine's precision × (s_max/s_min)². auto takes gram where
s_min/s_max is at least 1/32 in float32 and 1/1000 in float64 (errors below 3e-4 and 2e-10), else svd.

The authors project after each epoch, and every 391 steps (an epoch of CIFAR-10) where at least 100 steps of the epoch
remain, but never in the last epoch: ``attach(…, every=391)`` and ``handle.apply()`` at the end of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layers.attached import Attached, Projected, not_a_kernel
from layers.card import Card, Flops, Identity, Option, OptionError, Paper, Rule
from layers.moments import needs_plain_operations, widened
from layers.weight_functions import check, full_precision
from layers.weights import Weight, as_matrices, from_matrices

card = Card(
    title="Singular Value Bounding",
    paper=Paper(
        authors="Jia, Tao, Gao, Xu",
        title="Improving Training of Deep Neural Networks via Singular Value Bounding",
        year=2017,
        venue="CVPR 2017",
        arxiv="1611.06013",
    ),
    impl="svb",
    role="projection",
    formula="W = U S Vᵀ,  W ← U min(max(S, 1/f), f) Vᵀ",
    summary="Puts the singular values of a kernel, seen as a matrix, back into the band [1/f, f].",
    options=(
        Option(
            name="factor",
            type=float,
            default=1.5,
            ge=1,
            help="f = 1 + ε, the end of the band; 1 makes the rows (or columns) orthonormal",
            source="the authors' code",
        ),
        Option(name="groups", type=int, default=1, ge=1, help="groups of the convolution, each a matrix by itself"),
        Option(
            name="method",
            type=str,
            default="auto",
            choices=("auto", "gram", "svd"),
            help="by the eigenvectors of the smaller Gram matrix, by the SVD, or the former where it is accurate",
        ),
    ),
    rules=(
        Rule(
            "O % groups == 0",
            "groups={groups} does not divide {O} output channels; its divisors are {divisors_of_O}",
            "groups",
        ),
    ),
    derived={"R": "min(O // groups, I)", "L": "max(O // groups, I)"},
    flops=Flops("groups*(6*L*R**2 + 20*R**3 + 2*R + R**2 + 2*L*R**2)", "0"),
    executed=Flops(
        "groups*(6*L*R**2 + 20*R**3 + 2*L*R**2 + L*R + R**2 + 3*R) if method == 'svd' else "
        "groups*(4*L*R**2 + 11*R**3 + L*R + R**2 + 6*R) + (2*groups if method == 'auto' else 0)",
        "0",
    ),
    stated="method != 'auto' or L >= 4*R",
    explained=(
        "A decomposition has no exact count: the thin SVD of R×L counts 6 L R² + 20 R³, the eigenvectors of R×R 9 R³ "
        "(Golub & Van Loan). The definition is the SVD; auto takes the Gram matrix for random weights at least 4 times "
        "as wide as high (or as high as wide), and what decides elsewhere are their values. A transposed convolution "
        "counts as the convolution with the same matrices."
    ),
    traffic=Flops("2*E*B", "0"),
    identities=(
        Identity(says="the singular values are those of W, clamped to [1/f, f]", proof="clamped"),
        Identity(says="a second projection changes nothing", proof="idempotent"),
        Identity(says="inside the band W stays what it is", proof="inside", within=0.0),
        Identity(says="SVB(Q W R) = Q SVB(W) R for orthogonal Q, R", proof="rotated"),
        Identity(says="SVB(Wᵀ) = SVB(W)ᵀ", proof="transposed_alike"),
        Identity(says="the Gram matrix gives what the SVD gives", proof="methods_agree"),
        Identity(says="f = 1 makes the rows orthonormal", proof="orthonormal", options={"factor": 1.0}),
        Identity(
            says="groups are the blocks of one block-diagonal matrix", proof="block_diagonal", options={"groups": 2}
        ),
    ),
    notes=(
        "The notes give the title only.",
        "The bound is on the matrix of one window, not on the convolution: with an exactly orthonormal kernel matrix a "
        "circular 3×3 convolution had singular values from 0.22 to 2.01; the upper limit is √(KH·KW) f.",
        "The authors' code reshapes grouped kernels wrongly and fails; flattening them mixes the groups.",
        "The authors' code never projects in the last epoch, so that the final weights are an epoch out of the band.",
        "Without full rank the nearest matrix is not unique: here it is the one of LAPACK's singular vectors.",
    ),
    examples=({}, {"factor": 1.05, "groups": 2}, {"factor": 1.0, "method": "gram"}, {"method": "svd"}),
)

# The least s_min/s_max with which the Gram matrix is accurate enough.
WELL_CONDITIONED = {torch.float32: 1 / 32, torch.float64: 1e-3}


@torch.no_grad()
def svb(
    weight: Tensor, factor: float = 1.5, groups: int = 1, method: str = "auto", *, transposed: bool = False
) -> Tensor:
    """Return ``weight`` (O, C/groups, …), ``transposed`` (C, O/groups, …), with its singular values bounded.

    A new tensor without graph, in the dtype of ``weight``; half precision is computed in float32. auto waits for a
    device, and takes svd in torch.compile and for tensors without values. gram is wrong where W is far from well
    conditioned (rank-deficient at worst).
    Raises OptionError for refused options, groups that do not divide the channels, a weight that is not real
    floating-point or has less than 2 axes, and for values that are not finite (where LAPACK tells).
    """
    check(card, weight, {"factor": factor, "groups": groups, "method": method})
    if not weight.numel():
        return weight.detach().clone()
    matrices = as_matrices(widened(weight), groups, transposed=transposed)
    flat = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    try:
        with full_precision(weight):
            bounded = _bounded(flat, factor, method)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise OptionError(f"svb: the decomposition of a weight {tuple(weight.shape)} failed: is it finite?") from error
    bounded = bounded if matrices.shape[1] <= matrices.shape[2] else bounded.mT
    return from_matrices(bounded, weight, transposed=transposed).to(weight.dtype)


@torch.no_grad()
def svb_(
    weight: Tensor, factor: float = 1.5, groups: int = 1, method: str = "auto", *, transposed: bool = False
) -> Tensor:
    """Put the result of `svb` in the place of ``weight`` and return it. Raises OptionError as `svb` does."""
    return weight.copy_(svb(weight, factor, groups, method, transposed=transposed))


def _bounded(flat: Tensor, factor: float, method: str) -> Tensor:
    """Bound the singular values of ``flat`` (groups, R, L), R ≤ L; what lies in the band adds exactly 0."""
    concrete = type(flat) is Tensor and flat.device.type != "meta" and not needs_plain_operations()
    if method == "gram" or (method == "auto" and concrete):
        squares, vectors = torch.linalg.eigh(flat @ flat.mT)
        if method == "gram" or _is_well_conditioned(squares):
            # W + Q (s'/s − 1) Qᵀ W
            values = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
            moved = values.clamp(1 / factor, factor) / values - 1
            return torch.baddbmm(flat, (vectors * moved.unsqueeze(1)) @ vectors.mT, flat)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    moved = values.clamp(1 / factor, factor) - values
    return torch.baddbmm(flat, left * moved.unsqueeze(1), right)


def _is_well_conditioned(squares: Tensor) -> bool:
    """Whether all groups are, by the eigenvalues (groups, R) of their Gram matrices, in ascending order."""
    least = WELL_CONDITIONED[squares.dtype] ** 2
    return bool((squares[:, 0] > least * squares[:, -1]).all())  # not so for zeros and NaN


def excludes(weight: Weight) -> str:
    """Return "" for a kernel of a linear layer or convolution that is used as it is, else the reason."""
    return not_a_kernel(weight)


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    every: int = 1,
    factor: float = 1.5,
    method: str = "auto",
    broadcast: bool = False,
) -> Attached:
    """Bound the kernels of ``model`` that `excludes` admits after every ``every``-th step of ``optimizer``.

    Each group of a convolution is bounded by itself. ``broadcast`` makes data-parallel ranks take the result of rank 0
    (`Projected`). Raises OptionError for refused options and as `Attached` does.
    """
    card.check({}, {"factor": factor, "method": method})

    def project(weight: Weight) -> None:
        svb_(weight.parameter, factor, weight.groups, method, transposed=weight.kind == "transposed")

    return Projected(optimizer, model, excludes, project, every=every, broadcast=broadcast)


Apply = Callable[[Tensor], Tensor]


def _spread(weight: Tensor, most: float = 3.0, least: float = 0.2) -> Tensor:
    """``weight`` with singular values from ``most`` to ``least``: above, inside and below the band."""
    left, values, right = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
    rows: Tensor = (left * torch.linspace(most, least, len(values)).to(values)) @ right
    return rows.view_as(weight)


def clamped(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values after and before, the latter clamped to [1/1.5, 1.5]."""
    spread = _spread(weight)
    found, before = (torch.linalg.svdvals(made.flatten(1)) for made in (apply(spread), spread))
    return found, before.clamp(1 / 1.5, 1.5)


def idempotent(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The second projection beside the first."""
    once = apply(_spread(weight))
    return apply(once), once


def inside(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The projection of a matrix with singular values from 0.9 to 1.1 beside itself."""
    calm = _spread(weight, 1.1, 0.9)
    return apply(calm), calm


def rotated(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """SVB(Q W R) beside Q SVB(W) R."""
    spread = _spread(weight).flatten(1)
    left, right = (torch.linalg.qr(_waves(size, spread))[0] for size in spread.shape)
    return apply(left @ spread @ right), left @ apply(spread) @ right


def _waves(size: int, like: Tensor) -> Tensor:
    """A square matrix of full rank, the same at every call."""
    grid = torch.arange(size * size, dtype=like.dtype, device=like.device)
    return (grid * grid).sin().view(size, size)


def transposed_alike(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """SVB(Wᵀ) beside SVB(W)ᵀ."""
    spread = _spread(weight).flatten(1)
    return apply(spread.mT.contiguous()), apply(spread).mT


def methods_agree(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The result of the Gram matrix beside that of the SVD."""
    spread = _spread(weight)
    return svb(spread, method="gram"), svb(spread, method="svd")


def orthonormal(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W'W'ᵀ beside 1."""
    rows = apply(weight).flatten(1)
    return rows @ rows.mT, torch.eye(len(rows), dtype=rows.dtype, device=rows.device)


def block_diagonal(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two groups projected beside the projection of the block-diagonal matrix of their rows."""
    blocks = _spread(weight).flatten(1).chunk(2)
    bounded = apply(torch.cat(blocks)).chunk(2)
    return _block_diagonal(*bounded), svb(_block_diagonal(*blocks))


def _block_diagonal(*blocks: Tensor) -> Tensor:
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole
