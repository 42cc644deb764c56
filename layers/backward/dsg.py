r"""Dynamic Sparse Graph: of every sample only the largest outputs of a convolution are kept, forward and backward (Liu
et al. 2019, arXiv 1810.00859: dimension-reduction search, double-mask selection).

A search guesses the outputs of a convolution, V, and the mask M keeps the largest; the block applies it twice,
$$y = M \odot \mathrm{BN}(\mathrm{ReLU}(M \odot (W * x))),\qquad M = [V > \theta],$$
θ the ⌊(1 − γ) n⌋-th largest V among the n = O × HO × WO outputs of sample 0, for all samples alike ("inter-sample
threshold sharing"). M is a constant to backward and acts in evaluation too. Without the second mask batch normalization
would make β − γ μ/σ out of every 0 of the first.

V is what ``selection`` says: the outputs themselves (oracle), random numbers, or dimension-reduction search (drs),
$$V = f(X) f(W)^\top,\qquad f(v) = R^\top v / \sqrt k,$$
X the windows, R (I, k) fixed, its entries ±√s with probability 1/(2s) each and else 0, with f(W) taken from the weight
of every ``project_every``-th training step. That is one convolution more,
$$V = \tfrac1k\,(W R R^\top) * x,$$
as large as the layer's own, and this is how it is computed. So on dense kernels the oracle is never dearer than the
search, and neither is cheaper than the dense block: what is masked is computed, then thrown away.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Layer
from layers.card import Card, Claim, Flops, Identity, OptionError, Paper, Rule, Stat
from layers.convolution import admitted, options_among, refuse_windows
from layers.moments import widened
from layers.norm.bn import BatchNorm
from layers.observe import observe
from layers.pooling import convolve, like
from layers.search import Search, kept, thresholds
from layers.search_proofs import (
    counted,
    doubled,
    fed_back,
    plain,
    projected_windows,
    rescaled_projection,
    rescaled_weight,
    zeros,
)
from layers.shared import SPARSE_GRAPH, WINDOWED, WINDOWED_PEER, WINDOWED_RULES, WINDOWED_SYMBOLS
from layers.weight_functions import full_precision

card = Card(
    title="Dynamic Sparse Graph",
    paper=Paper(
        authors="Liu, Deng, Hu, Zhu, Li, Ding, Xie",
        title="Dynamic Sparse Graph for Efficient Deep Learning",
        year=2019,
        venue="ICLR 2019",
        arxiv="1810.00859",
    ),
    impl="DSGConv2d",
    formula="y = M ⊙ BN(ReLU(M ⊙ (W * x))),  M = [V > θ]",
    summary="Convolution, ReLU and BN that keep the outputs which a search finds largest, forward and backward.",
    options=(*WINDOWED, *SPARSE_GRAPH),
    derived={
        **WINDOWED_SYMBOLS,
        "I": "C*KH*KW",
        "K": "min(I, max(1, 4*log(O) // (eps_jl**2/2 - eps_jl**3/3)) if k is None else k)",
        "n": "O*HO*WO",
        "searched": "(1 if threshold == 'first' else N)*n if sparsity > 0 else 0",  # outputs among which θ is sought
        "compared": "Q*O if sparsity > 0 else 0",
        "drs": "selection == 'drs' and sparsity > 0",
    },
    rules=(
        *WINDOWED_RULES,
        Rule(
            "((1 - sparsity)*n + 1e-6) // 1 >= 1",
            "sparsity={sparsity} keeps none of the {n} outputs of a sample; give less, or a larger input",
            "sparsity",
        ),
        Rule("not train or Q != 1", "one value per channel cannot be normalized; give a larger batch"),
    ),
    statistics=(
        Stat("mask", ("N", "O", "HO", "WO"), "N×O×HO×WO", given="sparsity > 0", help="whether an output is kept"),
        Stat(
            "theta",
            ("1 if threshold == 'first' else N",),
            "1 or N",
            given="sparsity > 0",
            help="what is kept is larger",
        ),
        Stat("mean", ("O",), given="train", help="of the batch normalization"),
        Stat("rstd", ("O",), given="train", help="of the batch normalization"),
    ),
    buffers=(
        Stat("search.projection", ("I", "K"), "I×k", given="selection == 'drs'", help="R"),
        Stat("search.reduced", ("O", "K"), "O×k", given="selection == 'drs'", help="f(W)"),
        Stat("norm.running_mean", ("O",)),
        Stat("norm.running_var", ("O",)),
        Stat("norm.num_batches_tracked", ()),
    ),
    params="O*I + 2*O",
    flops=Flops(
        "2*Q*O*I + searched + compared + Q*O + (7*Q*O + 2*O if train else 2*Q*O + 5*O) + "
        "(Q*I*K // s + 2*Q*O*K if drs else 0)",
        "4*Q*O*I + Q*O + (11*Q*O - 2*O if train else 4*Q*O - 2*O)",
    ),
    executed=Flops(
        "2*Q*O*I + searched + compared + Q*O + (batch_norm(N, O, HO*WO) if train else 2*Q*O + 5*O) + "
        "(2*Q*O*I + 2*O*I*K + O*I + train*(2*O*I*K + O*K) if drs else 0)",
        "4*Q*O*I + Q*O + (batch_norm_backward(N, O, HO*WO) if train else 4*Q*O - 2*O)",
    ),
    explained="The definition searches in k numbers, projecting every window; here the search is one dense convolution "
    "by W R Rᵀ, so drs executes two. Masked outputs are counted, since they are computed: no operation is saved. "
    "fvcore counts convolutions, by one per multiply-add, and what its handles know of the rest.",
    saved="4*E + 4*Q*O + compared + (8*O if train else 0)",
    stated="HO*WO > 1",
    traffic=Flops("B*(E + O*I + Q*O)", "B*(2*E + 2*O*I + Q*O)"),
    caution="no speed is promised: masked outputs are computed as all others are, then thrown away, and the search of "
    "drs is one more convolution",
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    couples="always",
    eval_differs="True",
    remembers="selection == 'drs' and project_every > 1 and sparsity > 0",
    claims=(
        Claim(
            row="γ = 0",
            options={"sparsity": 0.0},
            holds=("w-scale", "w-vec-scale", "x-scale", "w-scale-group"),
            carriers=("conv", "conv-padded"),
            why="BN forgets the scale of a filter, which ReLU lets through. A mask does not: other outputs would be "
            "among the largest.",
        ),
    ),
    identities=(
        Identity(says="γ = 0, which is θ = −∞, is convolution, ReLU and BN", options={"sparsity": 0.0}, proof="plain"),
        Identity(says="where the mask is 0 the output is 0", options={"sparsity": 0.8}, proof="zeros"),
        Identity(says="without the second mask BN gives β − γ μ/σ there", proof="doubled"),
        Identity(
            says="V = f(X) f(W)ᵀ = W R Rᵀ * x / k", options={"selection": "drs", "k": 20}, proof="projected_windows"
        ),
        Identity(says="M sees no scale of R", options={"selection": "drs", "k": 20}, proof="rescaled_projection"),
        Identity(says="M sees no scale of W, R fixed", options={"selection": "drs", "k": 20}, proof="rescaled_weight"),
        Identity(says="M sees no scale of W: oracle", proof="rescaled_weight"),
        Identity(says="sample 0 keeps ⌊(1 − γ) n⌋ − 1 outputs", options={"sparsity": 0.7}, proof="counted"),
        Identity(says="the gradient of W is that of kept positions alone", mode="eval", proof="fed_back"),
    ),
    notes=(
        "No speed comes of it on dense kernels. The paper's own CPU times are 2.0, 5.0 and 8.5 times those of a "
        "vector-matrix product at 50, 80 and 90 %, but 0.6, 1.6 and 2.7 times those of GEMM; the gradient of W is not "
        "counted as accelerated.",
        "Its operation counts leave out the projection of the windows, k/s additions per element: at n_K = 64, k = 199 "
        "that is 1.04 times the layer's own multiply-adds.",
        "Since V is a convolution by W R Rᵀ, searching the outputs themselves is exact and no dearer. For data without "
        "structure V correlates with them by √(k/(k + I)), 0.31 at k = 128 and I = 1152, where it finds 22 % of the "
        "largest tenth.",
        "Equation (4) bounds |⟨f(x), f(w)⟩ − ⟨x, w⟩| by ε without the norms: it must be ε ‖x‖ ‖w‖.",
        "The 4.5× memory and 2.3× compute of the conclusion are the upper ends of the abstract's ranges.",
        "θ itself is dropped, so that sample 0 keeps one less than asked, and how much other samples keep varies: "
        "between 16 and 31 % at γ = 0.8. The order of the batch matters, in evaluation too; threshold=each ends that.",
        "Public code drops outputs of exactly 0 even where θ < 0: they are 0 after the ReLU anyway, but not after BN. "
        "Here M = [V > θ], with θ = −∞ for γ = 0.",
        "ReLU comes before BN: the paper swaps the usual order. First layers and shortcuts stay dense in public code.",
        "Its memory, 1.7, 3.2 and 4.2 times less at 50, 80 and 90 %, is that of compressed activations. Here they are "
        "kept whole, and a byte of mask beside each.",
        "Public code needs square outputs, and a k larger than I is possible in it; here k is at most I. Across ranks "
        "each has the θ of its own sample 0.",
    ),
    peer=WINDOWED_PEER,
    examples=(
        {"padding": 1},
        {"out_channels": 8, "padding": 1, "sparsity": 0.25, "selection": "drs", "eps_jl": 0.9, "project_every": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "sparsity": 0.25, "threshold": "each"},
        {"kernel_size": 2, "padding": 1, "sparsity": 0.25, "selection": "drs", "k": 20, "threshold": "each"},
        {"kernel_size": 1, "sparsity": 0.0, "eps": 1e-5},
    ),
)


class DSGConv2d(Layer):
    """A sparse block of convolution, ReLU and batch normalization: (N, C, H, W) → (N, O, HO, WO).

    Args: ``in_channels`` C, ``out_channels`` O (none: C), ``kernel_size``, ``stride``, ``padding``, ``dilation`` as
    those of torch.nn.Conv2d; ``sparsity`` γ in [0, 1), ``selection`` and ``threshold`` of the mask; ``k`` or
    ``eps_jl``, ``s`` and ``project_every`` of the search; ``eps`` of the batch normalization.
    State: ``conv`` (no bias) and ``norm``, whose counter says when W is projected; with ``selection="drs"`` also
    ``search``, the buffers ``projection`` R (I, k) and ``reduced`` f(W) (O, k). In evaluation f(W) is that of the last
    projection: call ``layer.search.refresh(layer.conv.weight)`` after changing the weight by hand.
    ``selection="random"`` draws from torch's generator at each call.
    Inputs of half precision are convolved, searched and normalized in float32: a mask must not hang on rounding.
    Raises OptionError for refused options and a sparsity that keeps nothing, ValueError for inputs that do not fit,
    RuntimeError for an input of another dtype than the weights.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    sparsity: float
    selection: str
    threshold: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        sparsity: float = 0.5,
        selection: str = "oracle",
        threshold: str = "first",
        k: int | None = None,
        eps_jl: float = 0.5,
        s: float = 3.0,
        project_every: int = 50,
        eps: float = 1e-3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()))
        self.in_channels = in_channels
        self.out_channels = outputs = in_channels if out_channels is None else out_channels
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        geometry = self.kernel_size, self.stride, self.padding, self.dilation
        self.conv = nn.Conv2d(in_channels, outputs, *geometry, bias=False, **factory)
        self.norm = BatchNorm(outputs, eps, **factory)
        self.search = Search(self.conv.weight, k, eps_jl, s, project_every) if selection == "drs" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, O, HO, WO) for ``x`` (N, C, H, W), in its dtype (that of autocast under autocast)."""
        self.check_input(x)
        data = admitted(type(self).__name__, x, self.conv.weight)
        with full_precision(data):
            wide = widened(data)
            y = convolve(self.conv, wide)
            if self.sparsity == 0:
                return like(self._normalized(y.relu_()), data)
            dropped = self._dropped(self.scores(wide, y))
            y = self._normalized(y.masked_fill_(dropped, 0).relu_())
            return like(y.masked_fill_(dropped, 0), data)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is (N, C, H, W), floating, with this layer's channels, and windows fit.

        Also where the sparsity would keep no output of a sample and, in training, for one value per channel.
        """
        super().check_input(x)
        self.refuse_no_positions(x)
        name = type(self).__name__
        refuse_windows(name, x, self.kernel_size, self.dilation, self.padding)
        each = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        high, wide = ((size + 2 * p - d * (kernel - 1) - 1) // step + 1 for size, kernel, step, p, d in each)
        if kept(self.sparsity, count := self.out_channels * high * wide) < 1:
            raise OptionError(
                f"{name}: sparsity={self.sparsity} keeps none of the {count} outputs of a sample; give less, or a "
                "larger input",
                "sparsity",
            )
        if self.training:
            self.norm.refuse_single_values(x.shape[0] * high * wide, "channel")

    @torch.no_grad()
    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Return V (N, O, HO, WO) for the input ``x`` (N, C, H, W) and the outputs ``y`` of the convolution.

        In training the weight is projected first where that is due.
        """
        if self.search is None:
            return torch.rand(y.shape, dtype=y.dtype, device=y.device) if self.selection == "random" else y.detach()
        step = self.norm.num_batches_tracked if self.training and x.shape[0] else None
        filters = self.search.filters(self.conv.weight, step).to(x.dtype)
        return F.conv2d(x.detach(), filters, None, self.stride, self.padding, self.dilation)

    @torch.no_grad()
    def _dropped(self, scores: Tensor) -> Tensor:
        """Where the mask is 0. What is not a number is kept, so that it does not vanish."""
        theta = thresholds(scores, self.sparsity, each=self.threshold == "each")
        dropped = scores <= theta.view(-1, 1, 1, 1)
        observe(mask=~dropped, theta=theta)
        return dropped

    def _normalized(self, z: Tensor) -> Tensor:
        """Batch normalization of ``z``, whose dtype decides."""
        norm = self.norm
        if norm.uses_batch_statistics:
            return cast("Tensor", norm(z))
        values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, var, weight, bias = (cast("Tensor", t).to(z.dtype) for t in values)
        return F.batch_norm(z, mean, var, weight, bias, False, 0.0, norm.eps)


__all__ = [
    "DSGConv2d", "card", "counted", "doubled", "fed_back", "plain", "projected_windows", "rescaled_projection",
    "rescaled_weight", "zeros",
]  # fmt: skip
