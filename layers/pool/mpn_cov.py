r"""Matrix power normalized covariance pooling: MPN-COV (Li, Xie, Wang & Zuo 2017, arXiv 1703.08050) and its fast form
iSQRT-COV (Li, Xie, Wang & Gao 2018, arXiv 1712.01034).

With X the C×M matrix of a sample and Ī = (1 − 11ᵀ/M)/M,
$$\Sigma = X \bar I X^\top,\qquad Q = \Sigma^\alpha = U \Lambda^\alpha U^\top,\qquad y = \text{upper triangle of } Q.$$
method eig takes the eigenvectors, any 0 < α ≤ 1, and may divide by λ₁^α (norm l2) or ‖λ^α‖ (fro). Method isqrt
approximates α = ½ by k coupled Newton–Schulz steps, products of matrices only: A = Σ/tr Σ, Y₀ = A, Z₀ = 1,
$$T = \tfrac12(3 - Z Y),\quad Y \leftarrow Y T,\quad Z \leftarrow T Z,\qquad Q = \sqrt{\operatorname{tr}\Sigma}\,Y_k.$$
Channels that are constant have Σ = 0 and Q = 0 with gradient 0, where the published code has NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import options_among
from layers.covariance_proofs import homogeneous, lyapunov, no_shift, repeated, root, rotated, spectral, unordered
from layers.matrix_power import newton_schulz, power
from layers.moments import widened
from layers.observe import observe
from layers.pooling import ConvNorm
from layers.second_order import SecondOrder, covariance, matrices, triangle
from layers.weight_functions import full_precision

card = Card(
    title="Matrix power normalized covariance pooling",
    paper=Paper(
        authors="Li, Xie, Wang, Gao",
        title="Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root "
        "Normalization",
        year=2018,
        venue="CVPR 2018",
        arxiv="1712.01034",
    ),
    impl="MPNCOV",
    formula="Σ = X Ī Xᵀ,  y = triu(Σ^α)",
    summary="The covariance of the channels over positions, to the power ½, as a vector (N, D).",
    options=(
        Option(
            name="method",
            type=str,
            default="isqrt",
            choices=("isqrt", "eig"),
            help="Newton–Schulz steps towards the root, or eigenvectors",
        ),
        Option(
            name="iters",
            type=int,
            default=5,
            ge=1,
            le=16,
            help="k, steps of isqrt; beyond 16 rounding errors of a covariance without full rank may explode",
            source="the networks of the paper; the published class has 3",
        ),
        Option(name="alpha", type=float, default=0.5, gt=0, le=1, help="α, of eig", source="the paper"),
        Option(
            name="norm",
            type=str,
            default="none",
            choices=("none", "l2", "fro"),
            help="divide Q of eig by its largest eigenvalue (l2) or its Frobenius norm (fro)",
        ),
        Option(
            name="vec",
            type=str,
            default="triu",
            choices=("triu", "full"),
            help="the upper triangle without a factor, or all of Q",
        ),
        Option(
            name="dim_reduction",
            type=int,
            default=None,
            optional=True,
            ge=1,
            help="first a 1×1 convolution to so many channels, batch normalization and ReLU",
            source="the paper has 256 channels",
        ),
    ),
    derived={
        "R": "C if dim_reduction is None else dim_reduction",
        "D": "R*R if vec == 'full' else R*(R + 1)//2",
        "T": "N*R*S",
        "products": "max(1, 3*(iters - 1))",
        "reduced": "0 if dim_reduction is None else 1",
    },
    rules=(
        Rule("S >= 2", "the covariance over 1 position is 0 whatever the input: use a larger input"),
        Rule(
            "method == 'eig' or alpha == 0.5",
            "alpha={alpha}: the iteration of isqrt is towards the square root only; use method='eig'",
            "alpha",
        ),
        Rule(
            "method == 'eig' or norm == 'none'",
            "norm={norm} needs the eigenvalues of method='eig'; isqrt is scaled by its trace",
            "norm",
        ),
    ),
    statistics=(
        Stat("mean", ("N", "R"), "N×C"),
        Stat("covariance", ("N", "R", "R"), "N×C×C"),
        Stat("trace", ("N",), "N", given="method == 'isqrt'"),
        Stat("eigenvalues", ("N", "R"), "N×C", given="method == 'eig'"),
        Stat("rstd", ("R",), "C", given="dim_reduction is not None and train", help="of the batch normalization"),
    ),
    buffers=(
        Stat("reduction.norm.running_mean", ("R",), given="dim_reduction is not None"),
        Stat("reduction.norm.running_var", ("R",), given="dim_reduction is not None"),
        Stat("reduction.norm.num_batches_tracked", (), given="dim_reduction is not None"),
    ),
    params="0 if dim_reduction is None else C*R + 2*R",
    flops=Flops(
        "reduced*(2*E*R + 8*T) + 2*T*R + 2*T + N*R*R + (N*R**3*2*products + (2*iters + 2)*N*R*R + N*R "
        "if method == 'isqrt' else 11*N*R**3 + N*R*R + N*R)",
        "reduced*(4*E*R + 8*T) + 4*T*R + 2*T + N*R*R + (N*R**3*4*products + (4*iters + 7)*N*R*R "
        "if method == 'isqrt' else 8*N*R**3 + 4*N*R*R)",
    ),
    executed=Flops(
        "reduced*(2*E*R + (T + batch_norm(N, R, S) if train else 2*T + R*C + 5*R)) + 2*T*R + 3*T + N*R*R + N*R + "
        "(N*R**3*2*products + (iters + 3)*N*R*R + 2*N*R + R*R if method == 'isqrt' else "
        "11*N*R**3 + 4*N*R*R + 2*N*R + N + (N*R*R + N if norm == 'l2' else 3*N*R*R + N if norm == 'fro' else 0))",
        "reduced*(4*E*R + (T + batch_norm_backward(N, R, S) if train else 2*T + 3*R*C + 2*R)) + 2*T*R + 3*T + "
        "2*N*R*R + (N*R**3*(6 if iters == 1 else 18*(iters - 1)) + (4*iters + 9)*N*R*R + N*R + 3*N + R*R "
        "if method == 'isqrt' else "
        "8*N*R**3 + 14*N*R*R + (7*N*R*R + 3*N if norm == 'l2' else 9*N*R*R if norm == 'fro' else 0))",
    ),
    explained="Backward repeats the centring and, for isqrt, the steps instead of keeping them: 9(k − 1) products of "
    "C×C matrices where the published code has 10k − 12 and keeps 2k + 3 of them per sample. The gradient of the "
    "covariance is one product. The published code centres by an M×M matrix: N·C·M² multiply-adds more. Eigenvectors "
    "count 9 C³ nominally, in the column of fvcore too, which counts products by one per multiply-add.",
    saved="4*T + 4*N*R*R + reduced*(4*E + (4*T + 8*R if train else 4*R*C + 8*R)) + "
    "(0 if method == 'isqrt' else "
    "4*N*R + (4*N*R*R + 5*N if norm == 'l2' else 4*N*R*R + 9*N if norm == 'fro' else 0))",
    traffic=Flops("B*(E + N*D)", "B*(2*E + N*D)"),
    ranks=(3, 4, 5),
    output=("N", "D"),
    claims=(
        Claim(
            holds=("x-recenter@conv", "x-recenter-scalar@conv", "case-recenter@conv", "pre-bias", "pre-bias-common"),
            carriers=("conv", "conv-padded"),
            why="What is constant over the positions of a sample is centred away; zero padding makes the border "
            "differ. Scales go through: Q of a x is |a| Q.",
        ),
        Claim(
            row="divided by its largest eigenvalue",
            options={"method": "eig", "norm": "l2"},
            holds=(
                "w-scale",
                "x-scale",
                "case-scale",
                "cases-scale",
                "ghost-scale",
                "x-recenter@conv",
                "x-recenter-scalar@conv",
                "case-recenter@conv",
                "pre-bias",
                "pre-bias-common",
            ),
            carriers=("conv", "conv-padded"),
            why="Dividing by λ₁^α takes a scale common to all channels of a sample away.",
        ),
    ),
    identities=(
        Identity(says="the order of positions does not matter", proof="unordered"),
        Identity(says="a constant added to a channel changes nothing", proof="no_shift"),
        Identity(says="a x has outputs |a| y(x), isqrt too", proof="homogeneous"),
        Identity(says="a x has outputs |a|^2α y(x)", options={"method": "eig", "alpha": 0.3}, proof="homogeneous"),
        Identity(says="R x has outputs R Q Rᵀ, R orthogonal", options={"vec": "full"}, proof="rotated"),
        Identity(
            says="R x has outputs R Q Rᵀ, R orthogonal",
            options={"vec": "full", "method": "eig"},
            proof="rotated",
        ),
        Identity(
            says="isqrt is √tr U f_k(Λ/tr) Uᵀ, f_k the steps on numbers", options={"vec": "full"}, proof="spectral"
        ),
        Identity(says="Q Q = Σ", options={"vec": "full", "method": "eig"}, proof="root"),
        Identity(
            says="after 16 steps Q Q = Σ, eigenvalues at least 1/50 of the trace",
            options={"vec": "full", "iters": 16},
            dims={"C": 3, "H": 8, "W": 8},
            proof="root",
        ),
        Identity(
            says="∂L/∂Σ solves √Σ Z + Z √Σ = ∂L/∂√Σ (Lyapunov)",
            options={"vec": "full", "method": "eig"},
            proof="lyapunov",
        ),
        Identity(
            says="the gradient by eigenvectors is that of many steps, repeated eigenvalues",
            options={"vec": "full", "method": "eig"},
            proof="repeated",
        ),
    ),
    notes=(
        "The notes give a link only.",
        "isqrt is not the root: with tr A = 1 over C channels the mean eigenvalue is 1/C, and k = 5 steps give 0.97 of "
        "the root at 0.05, 0.82 at 0.02, 0.66 at 0.01, 0.24 at 0.001. Small eigenvalues grow by 1.5 per step.",
        "The steps converge for eigenvalues in (0, 3), and A has them in [0, 1]: no input is outside. But where Σ "
        "lacks full rank (M ≤ C), Z grows by 1.5 per step on what is missing and rounding errors by 2.25: from 20 "
        "steps on in float32 they show, 30 steps give NaN; 60 in float64. iters beyond 16 is refused.",
        "The published code divides by the trace of a constant input: NaN. Here Q and its gradient are 0.",
        "It keeps the Y and Z of each step (2k + 3 C×C matrices per sample in all) and centres by an M×M matrix.",
        "Its backward of the steps alone is the transpose of the gradient; harmless, as that of the covariance is "
        "symmetrized. Its output has a trailing axis of 1.",
        "Off-diagonal entries of the triangle carry no √2, as in the published code: inner products of outputs are not "
        "those of matrices (bilinear's are).",
        "Autograd through the eigenvectors divides by differences of eigenvalues, NaN where two are equal.",
    ),
    examples=(
        {},
        {"iters": 1, "vec": "full"},
        {"method": "eig"},
        {"method": "eig", "alpha": 0.3, "norm": "l2"},
        {"method": "eig", "norm": "fro", "vec": "full"},
        {"dim_reduction": 5, "iters": 3},
    ),
    derivable="method == 'isqrt'",
    eval_differs="dim_reduction is not None",
    couples="train",
)


class MPNCOV(SecondOrder):
    """Covariance pooling (N, C, *positions) → (N, D) with D = C(C + 1)/2, or C² with vec full; C reduced first if told.

    Args: ``channels`` C; ``method`` isqrt or eig; ``iters`` k; ``alpha`` and ``norm`` of eig; ``vec``;
    ``dim_reduction`` R for a ``reduction``, a 1×1 convolution without bias, batch normalization and ReLU before
    the covariance, which are then the only state. Everything is float32 or wider inside; the output has the dtype of
    the input. isqrt is differentiable as often as wanted; the gradient of eig is closed and finite for repeated
    eigenvalues, and its derivative is refused with a RuntimeError.
    Raises OptionError for refused options and inputs of one position, ValueError for inputs that do not fit.
    """

    method: str
    iters: int
    alpha: float
    norm: str
    vec: str
    dim_reduction: int | None

    def __init__(
        self,
        channels: int,
        method: str = "isqrt",
        iters: int = 5,
        alpha: float = 0.5,
        norm: str = "none",
        vec: str = "triu",
        dim_reduction: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()), least=2)
        if self.dim_reduction is not None:
            self.reduction = ConvNorm(channels, self.dim_reduction, device=device, dtype=dtype)
            nn.init.kaiming_normal_(self.reduction.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return y (N, D) for ``x`` (N, C, *positions) of at least 2 positions."""
        self.check_input(x)
        features = matrices(x)
        if self.dim_reduction is not None:
            features = self._reduced(features)
        sigma, mean = covariance(features)
        observe(mean=mean, covariance=sigma)
        if self.method == "isqrt":
            q, trace = newton_schulz(sigma, self.iters)
            observe(trace=trace)
        else:
            q, eigenvalues = power(sigma, self.alpha, self.norm)
            observe(eigenvalues=eigenvalues)
        return (triangle(q) if self.vec == "triu" else q.flatten(1)).to(x.dtype)

    def _reduced(self, x: Tensor) -> Tensor:
        """ReLU(BN(conv(x))) in float32 or wider: what half precision would round is what the covariance is of."""
        with full_precision(x):
            y: Tensor = self.reduction(widened(x).unsqueeze(3))
            return F.relu(y).squeeze(3)


__all__ = [
    "MPNCOV", "card", "homogeneous", "lyapunov", "no_shift", "repeated", "root", "rotated", "spectral", "unordered",
]  # fmt: skip
