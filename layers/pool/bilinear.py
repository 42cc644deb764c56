r"""Bilinear pooling: products of channels, summed over the positions, signed root, length 1 (Lin, RoyChowdhury & Maji
2015, arXiv 1504.07889, section 3.1).

With X the C×M matrix of the features of a sample at its M positions, and Y that of a second stream or X itself,
$$G = X Y^\top\ (\text{or}/M),\qquad z = \operatorname{sign}(G)\sqrt{|G| + \varepsilon},\qquad y = z / \|z\|_2.$$
The order of positions does not matter. `vec` triu keeps one of each pair G_ij = G_ji, times √2 off the diagonal, so
that inner products of outputs stay; `sketch` d projects G to d numbers by a tensor sketch (Gao et al. 2016, arXiv
1511.06062, algorithm 2): entry (i, j) is added to number (h₁i + h₂j) mod d with sign s₁i s₂j. That is identical to the
sketch of every position, summed, at the price of one product of matrices instead of 3 Fourier transforms per position.

The derivative of z is 0 by definition where G = 0 (there it does not exist: √ is vertical, and ε makes a jump of 2√ε).
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.card import Card, Claim, Flops, Identity, Option, OptionError, Paper, Rule, Stat
from layers.covariance_proofs import unordered
from layers.moments import widened
from layers.observe import observe
from layers.second_order import (
    SecondOrder,
    covariance,
    gram,
    matrices,
    of_unit_length,
    signed_root,
    sketched,
    triangle,
    weights,
)
from layers.weight_functions import full_precision

card = Card(
    title="Bilinear pooling",
    paper=Paper(
        authors="Lin, RoyChowdhury, Maji",
        title="Bilinear CNN Models for Fine-grained Visual Recognition",
        year=2015,
        venue="ICCV 2015",
        arxiv="1504.07889",
    ),
    impl="BilinearPool",
    formula="G = X Xᵀ / M,  z = sign(G) √(|G| + ε),  y = z / ‖z‖",
    summary="Products of every two channels, averaged over positions, go through a signed root to length 1: (N, D).",
    options=(
        Option(
            name="pool", type=str, default="mean", choices=("mean", "sum"), help="of positions", source="public code"
        ),
        Option(
            name="eps",
            type=float,
            default=1e-8,
            ge=0,
            help="ε inside the root, which bounds its slope by 1/(2√ε); 0 is the paper's root",
            source="fast-MPN-COV",
        ),
        Option(
            name="vec",
            type=str,
            default="full",
            choices=("full", "triu"),
            help="all C² products, or the C(C + 1)/2 of the upper triangle, times √2 off the diagonal",
        ),
        Option(name="l2", type=bool, default=True, help="scale each output to length 1"),
        Option(
            name="sketch",
            type=int,
            default=None,
            optional=True,
            ge=1,
            help="d, the length of a tensor sketch of the products; none keeps them all",
            source="Gao et al. 2016",
        ),
    ),
    derived={
        "D": "sketch if sketch is not None else C*C if vec == 'full' else C*(C + 1)//2",
        "mean": "N*C*C if pool == 'mean' else 0",
    },
    rules=(
        Rule("S >= 1", "bilinear pooling needs at least 1 position, the input has none"),
        Rule(
            "sketch is None or vec == 'full'",
            "sketch={sketch} is of all products: use it with vec='full', or vec='triu' without it",
            "vec",
        ),
    ),
    statistics=(
        Stat("gram", ("N", "C", "C"), "N×C×C"),
        Stat("norm", ("N", "1"), "N×1", given="l2"),
    ),
    buffers=(
        Stat("hashes", ("2", "C"), "2×C", given="sketch is not None", help="h₁ and h₂"),
        Stat("signs", ("2", "C"), "2×C", given="sketch is not None", help="s₁ and s₂"),
    ),
    flops=Flops(
        "2*E*C + mean + (0 if sketch is None else 2*N*C*C) + 4*N*D + (3*N*D + N if l2 else 0)",
        "4*E*C + mean + (0 if sketch is None else N*C*C) + 2*N*D + (5*N*D if l2 else 0)",
    ),
    executed=Flops(
        "2*E*C + mean + (4 + (eps > 0))*N*D + (3*N*D + N if l2 else 0) + (N*D + D*(eps > 0) if vec == 'triu' else 0) + "
        "(0 if sketch is None else 2*N*C*C + C*C)",
        "2*E*C + mean + N*C*C + 4*N*D + (5*N*D + 3*N if l2 else 0) + (N*D if vec == 'triu' else 0) + "
        "(0 if sketch is None else N*C*C + C*C)",
    ),
    explained="The gradient of X Xᵀ is two products by definition; here the upstream gradient is symmetrized, N·C² "
    "additions, and meets X once. fvcore counts the "
    "product, by one per multiply-add, and what its handles know of the rest.",
    saved="B*E + 4*N*D + (4*N if l2 else 0)",
    traffic=Flops("B*(E + N*D)", "B*(2*E + N*D)"),
    output=("N", "D"),
    claims=(
        Claim(
            holds=("w-scale", "x-scale", "case-scale", "cases-scale", "ghost-scale"),
            why="G of a x is a² G, and lengths are 1: a scale of a whole sample goes (but for ε). Each channel's own "
            "scale stays, and so does every constant: nothing is centred (mpn-cov centres).",
        ),
        Claim(row="without l2", options={"l2": False}, holds=(), why="z of a x is |a| z."),
    ),
    identities=(
        Identity(says="‖y‖ = 1", options={"vec": "triu"}, proof="unit_length"),
        Identity(says="the order of positions does not matter", proof="unordered"),
        Identity(says="a x_n has the outputs of x_n, a ≠ 0, without ε", options={"eps": 0.0}, proof="no_scale"),
        Identity(says="mean = sum, without ε", options={"eps": 0.0}, proof="mean_or_sum"),
        Identity(says="Σ (a_s·b_t)² over positions is the inner product of two G", proof="kernel"),
        Identity(says="triu keeps every inner product of outputs", options={"vec": "triu"}, proof="same_products"),
        Identity(
            says="the sketch of G is Σ over positions of IFFT(FFT(ψ₁ x) · FFT(ψ₂ x))",
            options={"sketch": 50},
            proof="transforms",
        ),
        Identity(says="of position means, G = X Xᵀ is a covariance plus the mean's own product", proof="uncentred"),
    ),
    notes=(
        "The notes' link, sqrt(G + 1e-5) in HaoMood/bilinear-cnn, has neither sign nor absolute value: right only "
        "after a ReLU, where G ≥ 0, and NaN on signed features. The paper's is sign(G) √|G|.",
        "ε inside the root makes z jump by 2√ε where G changes sign, and moves outputs (length 1) of centred, normal "
        "features by about 1e-7 at 1e-8 and 1e-4 at 1e-5. Without it the slope 1/(2√|G|) is unbounded next to 0, and "
        "autograd of sign(G) √|G| is NaN at 0.",
        "Unlike the covariance of mpn-cov it is not invariant to a constant added to a channel.",
        "The public sketch (fast-MPN-COV, CBP.py) runs on no current torch, since torch.fft is a module now, and draws "
        "its hashes after torch.manual_seed(1), which resets the random numbers of everybody else.",
    ),
    examples=(
        {},
        {"pool": "sum", "eps": 0.0, "vec": "triu"},
        {"l2": False, "vec": "triu", "eps": 1e-3},
        {"sketch": 50, "eps": 1e-3},
    ),
)


class BilinearPool(SecondOrder):
    """Bilinear pooling (N, C, *positions) → (N, D), D = C², C(C + 1)/2 with vec triu, or d with a sketch.

    Args: ``channels`` C; ``pool`` mean or sum; ``eps`` ≥ 0 inside the root; ``vec`` full or triu; ``l2`` to scale to
    length 1 (a length below 2⁻⁴⁰ counts as that); ``sketch`` d. The output has the dtype of the input; products are
    summed in float32 or wider. No parameters. With a sketch the buffers ``hashes`` (2, C), integers below d, and
    ``signs`` (2, C), ±1, drawn by torch's generator when it is built and part of the state_dict.
    Raises OptionError for refused options and inputs without positions, ValueError for inputs that do not fit.
    """

    pool: str
    eps: float
    vec: str
    l2: bool
    sketch: int | None
    hashes: Tensor
    signs: Tensor

    def __init__(
        self,
        channels: int,
        pool: str = "mean",
        eps: float = 1e-8,
        vec: str = "full",
        l2: bool = True,
        sketch: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, {"pool": pool, "eps": eps, "vec": vec, "l2": l2, "sketch": sketch})
        if self.sketch is not None:
            self.register_buffer("hashes", torch.empty(2, channels, device=device, dtype=torch.int64))
            self.register_buffer("signs", torch.empty(2, channels, device=device, dtype=dtype))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the sketch anew, if there is one; there is nothing else to set."""
        if self.sketch is not None:
            self.hashes.random_(self.sketch)
            self.signs.random_(2).mul_(2).sub_(1)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return y (N, D) for ``x`` (N, C, *positions), or for the products of ``x`` with the channels of ``other``.

        ``other`` (N, C₂, *positions) is the second stream: D is C·C₂, and only vec full without a sketch admits it.
        """
        self.check_input(x)
        product = gram(matrices(x), self.pool == "mean") if other is None else self._across(x, other)
        rows, eps = self._rows(product)
        z = signed_root(rows, eps)
        if self.l2:
            z, norm = of_unit_length(z)
            observe(norm=norm)
        else:
            z = z.clone()  # the root keeps its output, and what follows may work in place
        observe(gram=product)
        return z.to(x.dtype)

    def _across(self, x: Tensor, other: Tensor) -> Tensor:
        """G between two streams."""
        if self.vec != "full" or self.sketch is not None:
            raise OptionError("products with a second stream need vec='full' and no sketch", "vec")
        self.check_input(other, other.shape[1] if other.dim() > 1 else 0)
        if other.shape[2:] != x.shape[2:] or other.shape[0] != x.shape[0]:
            raise ValueError(
                f"{type(self).__name__}: the two streams need the same batch and positions, not {tuple(x.shape)} and "
                f"{tuple(other.shape)}"
            )
        ours, theirs = widened(matrices(x)), widened(matrices(other))
        if ours.dtype != theirs.dtype:
            raise TypeError(f"{type(self).__name__}: streams of {x.dtype} and {other.dtype}; give both one dtype")
        with full_precision(x):
            product = torch.bmm(ours, theirs.mT)
        return product / x.shape[2:].numel() if self.pool == "mean" else product

    def _rows(self, product: Tensor) -> tuple[Tensor, float | Tensor]:
        """What the root is taken of, and its ε: 2 G and 2 ε off the diagonal of a triangle, √2 after the root."""
        if self.sketch is not None:
            return sketched(product, self.hashes, self.signs, self.sketch), self.eps
        if self.vec == "full":
            return product.flatten(1), self.eps
        return triangle(product, 2.0), self.eps * weights(product, 2.0) if self.eps else 0.0


def unit_length(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """The lengths of the outputs beside 1."""
    lengths = layer(x).norm(dim=1)
    return lengths, torch.ones_like(lengths)


def no_scale(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for −3 x beside those for x."""
    return layer(-3 * x), layer(x)


def mean_or_sum(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by sums beside those by means."""
    return BilinearPool(layer.channels, pool="sum", eps=layer.eps)(x), layer(x)


def kernel(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """The inner product of the G of each two samples beside the sum of squared products of their positions."""
    rows = x.flatten(2)
    g = gram(rows, mean=False).flatten(1)
    return g @ g.mT, torch.einsum("acs,bct->abst", rows, rows).square().sum((2, 3))


def same_products(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of the outputs of triangles beside those of whole matrices."""
    y, whole = layer(x), BilinearPool(layer.channels, eps=layer.eps)(x)
    return y @ y.mT, whole @ whole.mT


def transforms(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sketch of G beside that of each position by Fourier transforms, averaged."""
    length, rows = int(layer.sketch or 0), x.flatten(2)
    made, _ = layer._rows(gram(rows, mean=True))
    spectra = []
    for hashes, signs in zip(layer.hashes, layer.signs, strict=True):
        sketched = rows.new_zeros(len(x), length, rows.shape[2]).index_add(1, hashes, rows * signs.unsqueeze(1))
        spectra.append(torch.fft.fft(sketched, dim=1))
    return made, torch.fft.ifft(spectra[0] * spectra[1], dim=1).real.mean(2)


def uncentred(layer: BilinearPool, x: Tensor) -> tuple[Tensor, Tensor]:
    """G by means beside the covariance plus μ μᵀ."""
    rows = x.flatten(2)
    sigma, mean = covariance(rows)
    return gram(rows, mean=True), sigma + mean.unsqueeze(2) * mean.unsqueeze(1)


__all__ = [
    "BilinearPool", "card", "kernel", "mean_or_sum", "no_scale", "same_products", "transforms", "uncentred",
    "unit_length", "unordered",
]  # fmt: skip
