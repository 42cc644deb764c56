r"""Orthonormal filters by a penalty (Xie, Xiong & Pu 2017, "All You Need is Beyond a Good Init", arXiv 1703.01827).

With the filters as the columns of W (I, O), the rows of A = Wᵀ (O, I), summed over the groups of a convolution,
$$R = \tfrac{\lambda}{2} \lVert W^\top W - 1 \rVert_F^2,\qquad \partial R/\partial A = 2\lambda\,(A A^\top - 1)\,A .$$
It takes the place of L2 decay. More filters than inputs cannot be orthonormal: then R ≥ λ/2 (O − I), with equality
where all singular values are 1. Because ‖WᵀW − 1‖² = ‖WWᵀ − 1‖² + (O − I), the smaller of the two Gram matrices is
enough.

The paper's other half, which scales errors on their way back, is the stone omd-modulation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from layers.attached import Attached, Penalized, not_a_kernel
from layers.card import Card, Flops, Identity, Option, Paper, Rule
from layers.moments import widened
from layers.weight_functions import check, full_precision
from layers.weights import Weight, as_matrices, from_matrices

card = Card(
    title="Orthonormality penalty",
    paper=Paper(
        authors="Xie, Xiong, Pu",
        title="All You Need is Beyond a Good Init: Exploring Better Solution for Training Extremely Deep "
        "Convolutional Neural Networks with Orthonormality and Modulation",
        year=2017,
        venue="CVPR 2017",
        arxiv="1703.01827",
    ),
    impl="omd",
    role="penalty",
    formula="R = λ/2 ‖WᵀW − 1‖²,  W (I, O): a column per filter",
    summary="Pulls the filters of each group towards length 1 and right angles.",
    options=(
        Option(name="lam", type=float, default=1e-4, ge=0, help="λ; the penalty replaces L2 decay"),
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
    flops=Flops("groups*(2*R**2*L + 2*R**2 + R)", "groups*(2*R**2*L + 2*R*L)"),
    executed=Flops("groups*(2*R**2*L + 3*R**2) + 1", "groups*(4*R**2*L + R*L + 3*R**2) + 1"),
    explained=(
        "The gradient 2λ(AAᵀ − 1)A takes one product of matrices; autograd makes two, one for each A in AAᵀ. `attach` "
        "takes the closed form. A transposed convolution counts as the convolution with the same matrices."
    ),
    saved="groups*R**2*B",
    traffic=Flops("E*B", "2*E*B"),
    identities=(
        Identity(says="∂R/∂A = 2λ(AAᵀ − 1)A", proof="gradient"),
        Identity(says="the same in closed form, more filters than inputs too", proof="closed_form"),
        Identity(says="‖WᵀW − 1‖² = ‖WWᵀ − 1‖² + (O − I)", proof="either_gram"),
        Identity(
            says="at the nearest matrix with singular values 1, R = λ/2 max(0, O − I)",
            proof="least",
            options={"lam": 2.0},
        ),
        Identity(says="λ/2 Σ(s² − 1)² over the singular values, O ≤ I", proof="of_singular_values"),
        Identity(
            says="groups are the blocks of one block-diagonal matrix", proof="block_diagonal", options={"groups": 2}
        ),
    ),
    notes=(
        "The notes give the title only. A public implementation takes the norm without its square.",
        "Orthonormal filters keep the length of an error on its way back through the convolution, but not through "
        "batch normalization and ReLU: those make it grow by √(π/(π − 1)) = 1.21 a layer, orthonormal or not.",
        "The penalty is on the matrix of one window, not on the convolution, and is not scale invariant: it pins the "
        "length of each filter to 1.",
    ),
    examples=({}, {"lam": 0.3, "groups": 2}, {"lam": 1.0, "groups": 6}),
)


def omd(weight: Tensor, lam: float = 1e-4, groups: int = 1, *, transposed: bool = False) -> Tensor:
    """Return R () of ``weight`` (O, C/groups, …), of a ``transposed`` convolution (C, O/groups, …); differentiable.

    In the dtype of ``weight``, computed in float32 or wider under autocast too. Add it to the loss, or see `attach`.
    Raises OptionError for refused options, groups that do not divide the channels, and a weight that is not real
    floating-point or has less than 2 axes.
    """
    rows = _matrices(weight, lam, groups, transposed)
    outputs, inputs = rows.shape[1:]
    flat = rows if outputs <= inputs else rows.mT
    with full_precision(weight):
        eye = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
        distance = torch.baddbmm(eye, flat, flat.mT, beta=-1).square().sum()
    return ((distance + groups * max(0, outputs - inputs)) * (lam / 2)).to(weight.dtype)


@torch.no_grad()
def omd_gradient(weight: Tensor, lam: float = 1e-4, groups: int = 1, *, transposed: bool = False) -> Tensor:
    """Return ∂R/∂w in the shape and dtype of ``weight``, in closed form, without a graph. Raises as `omd` does."""
    rows = _matrices(weight, lam, groups, transposed)
    flat = rows if rows.shape[1] <= rows.shape[2] else rows.mT
    with full_precision(weight):
        slope = torch.baddbmm(flat, flat @ flat.mT, flat, beta=-2 * lam, alpha=2 * lam)
    slope = slope if rows.shape[1] <= rows.shape[2] else slope.mT
    return from_matrices(slope, weight, transposed=transposed).to(weight.dtype)


def _matrices(weight: Tensor, lam: float, groups: int, transposed: bool) -> Tensor:
    """Check the options and return A of each group (groups, O/groups, I), in float32 or wider."""
    check(card, weight, {"lam": lam, "groups": groups})
    return as_matrices(widened(weight), groups, transposed=transposed)


def excludes(weight: Weight) -> str:
    """Return "" for a kernel of a linear layer or convolution that is used as it is, else the reason."""
    return not_a_kernel(weight)


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    every: int = 1,
    lam: float = 1e-4,
    decoupled: bool = True,
) -> Attached:
    """Penalize the kernels of ``model`` that `excludes` admits, at every ``every``-th step of ``optimizer``.

    Decoupled: w ← w − lr·∂R/∂w before the update; else ∂R/∂w is added to the gradient for the step (`Penalized`).
    Raises OptionError for refused options, for lr·lam ≥ 1/2, where singular values near 1 would jump across it (the
    curvature there is 4λ), and as `Attached` does.
    """
    card.check({}, {"lam": lam})
    return Penalized(
        optimizer,
        model,
        excludes,
        lambda weight: omd(weight.parameter, lam, weight.groups, transposed=weight.kind == "transposed"),
        lambda weight: omd_gradient(weight.parameter, lam, weight.groups, transposed=weight.kind == "transposed"),
        lam=lam,
        limit=0.5,
        every=every,
        decoupled=decoupled,
    )


Apply = Callable[[Tensor], Tensor]


def _slope(penalty: Apply, weight: Tensor) -> Tensor:
    leaf = weight.detach().clone().requires_grad_()
    return torch.autograd.grad(penalty(leaf), leaf)[0]


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)


def gradient(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """∂R/∂A by autograd beside 2λ(AAᵀ − 1)A, for the default λ."""
    rows = weight.detach().flatten(1)
    return _slope(apply, rows), 2e-4 * _gram(rows) @ rows


def closed_form(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`omd_gradient` beside autograd, of fewer and of more filters than inputs."""
    wide = weight.detach().flatten(1)
    both = [wide, wide.mT.contiguous()]
    found = torch.cat([omd_gradient(rows).flatten() for rows in both])
    return found, torch.cat([_slope(apply, rows).flatten() for rows in both])


def either_gram(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R of O > I filters, taken from the smaller Gram matrix, beside λ/2 ‖AAᵀ − 1‖² of the larger."""
    tall = weight.flatten(1).mT
    return apply(tall), 0.5e-4 * _gram(tall).square().sum()


def least(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R at the polar factor of O > I filters beside λ/2 (O − I), for λ = 2."""
    left, _, right = torch.linalg.svd(weight.detach().flatten(1).mT, full_matrices=False)
    outputs, inputs = left.shape[0], right.shape[1]
    return apply(left @ right), torch.tensor(float(outputs - inputs), dtype=weight.dtype)


def of_singular_values(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R beside the sum over the singular values, for the default λ."""
    values = torch.linalg.svdvals(weight.detach().flatten(1))
    return apply(weight), 0.5e-4 * (values.square() - 1).square().sum()


def block_diagonal(apply: Apply, weight: Tensor) -> tuple[Tensor, Tensor]:
    """R of two groups beside that of the block-diagonal matrix of their rows."""
    whole: Tensor = torch.block_diag(*weight.flatten(1).chunk(2))  # type: ignore[no-untyped-call]
    return apply(weight), omd(whole)
