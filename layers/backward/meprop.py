r"""meProp, minimal effort back propagation: only the k largest gradients of a product go back (Sun, Ren, Ma & Wang
2017, arXiv 1706.06197, sections 2 and 3.3).

The forward is the linear layer y = x Wᵀ + b, with x (N, C), W (O, C). Backward, with G = ∂L/∂y (N, O), Ĝ is G, set to
zero outside the k columns of largest Σ_n |G_nj| (*simple unified top-k*: one set for the batch), or outside the k
entries of largest |G_nj| of each row (per example), and
$$\partial L/\partial x = \hat G W,\qquad \partial L/\partial W = \hat G^\top x,\qquad
\partial L/\partial b = \sum_n G_n.$$
The bias gets the whole gradient. k ≥ O, and k = 0 as in the authors' code, is the dense gradient.

Unified, the k columns of G and rows of W are gathered and two products of k/O the size are left; a row of W lies in one
piece, which the authors' (in, out) layout has not. Per example the zeros are multiplied like other numbers: dense
kernels gain nothing. A convolution is the product of its patches with W: rows are positions of all samples, columns its
output channels (our extension).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Peer
from layers.convolution import autocast, options_among
from layers.meprop_convolution import MePropConv2d
from layers.meprop_proofs import (
    any_order,
    dense_gradient,
    loss_scale,
    masked,
    one_example,
    pointwise,
    projection,
    whole_bias,
)
from layers.shared import KEPT, KEPT_RULES, KEPT_SYMBOLS
from layers.sparse_backward import is_traced, kept, largest, magnitudes, only_largest, refusing

card = Card(
    title="meProp, minimal effort back propagation",
    paper=Paper(
        authors="Sun, Ren, Ma, Wang",
        title="meProp: Sparsified Back Propagation for Accelerated Deep Learning with Reduced Overfitting",
        year=2017,
        venue="ICML 2017",
        arxiv="1706.06197",
    ),
    impl="MePropLinear",
    formula="y = x Wᵀ + b,  ∂L/∂x = Ĝ W,  ∂L/∂W = Ĝᵀ x,  ∂L/∂b = Σ_n G_n,  Ĝ = top-k of G",
    summary="A linear layer whose backward keeps the k outputs of largest gradient, of the batch or of each example.",
    options=(
        Option(name="out_channels", type=int, default=None, optional=True, ge=1, help="O; none: as many as in"),
        *KEPT,
        Option(name="bias", type=bool, default=True, help="learn a bias per output", source="torch.nn"),
    ),
    derived={
        "O": "C if out_channels is None else out_channels",
        **KEPT_SYMBOLS,
        "dense": "1 if K == O else 0",
        "whole": "2*N*O*C",  # one of the two products of a dense backward
    },
    rules=KEPT_RULES,
    params="O*C + (O if bias else 0)",
    flops=Flops(
        "2*N*O*C + (N*O if bias else 0)",
        "(2*whole if dense else 4*N*K*C + 2*N*O) + (N*O - O if bias else 0)",
    ),
    executed=Flops(
        "2*N*O*C + (N*O if bias else 0)",
        "(2*whole if dense else 4*N*K*C + 2*N*O if unified else 2*whole + 2*N*O) + (N*O - O if bias else 0)",
    ),
    explained="The definition does what its zeros leave over, 4·N·K·C; per example these lie where no dense kernel can "
    "skip them, so that as much is executed as in the dense backward. Selecting the k largest counts 1 per number. "
    "fvcore counts the forward, a multiply-add as 1.",
    saved="4*N*C",
    traffic=Flops("B*(N*C + O*C + N*O)", "B*(2*N*C + N*O + K*C + O*C)"),
    ranks=(2,),
    output=("N", "O"),
    claims=(
        Claim(
            holds=(),
            carriers=("linear",),
            why="The forward is a linear layer: no scale and no shift goes unseen.",
        ),
    ),
    identities=(
        Identity(says="k ≥ O is the dense gradient", options={"k": "C"}, proof="dense_gradient"),
        Identity(says="it is the dense gradient of G outside the k columns set to 0", proof="masked"),
        Identity(
            says="per example: that of G outside the k entries of each row set to 0",
            options={"unified": False, "k": 3},
            proof="masked",
        ),
        Identity(says="of one example, unified is per example", options={"k": 3}, dims={"N": 1}, proof="one_example"),
        Identity(says="∂L/∂b is the whole gradient's", options={"k": 1}, proof="whole_bias"),
        Identity(says="c times the loss has c times the gradients", options={"k": 3}, proof="loss_scale"),
        Identity(says="the order of the batch is that of ∂L/∂x and nothing else", options={"k": 3}, proof="any_order"),
        Identity(says="‖Ĝ‖ = ‖G‖ cos(angle between the two) ≤ ‖G‖", options={"k": 3}, proof="projection"),
        Identity(says="a 1×1 convolution is the linear layer of its positions", options={"k": 3}, proof="pointwise"),
    ),
    notes=(
        "The notes describe the per-example form. All speed on a GPU, and all of it here, is that of the unified one; "
        "element masks on dense kernels take 1.2 to 2 times as long as the dense backward.",
        "The paper says that unified averages values over the batch; its code sums magnitudes, as this does.",
        "The paper's GEMM at n/k = 1024 gains 36.8×, the whole training 11.8×: the rest is not the product. At h = 500 "
        "it finds no gain on the GPU.",
        "In the authors' torch code `isinstance(m, type(Linear))` is always false, so reset_parameters of the net does "
        "nothing; the uniform bound is 1/√out, not 1/√in. Here the start is torch.nn.Linear's.",
        "Their torch code leaves the last layer dense, the paper applies k there too: convert(…, only=…) chooses.",
        "∂L/∂W is dense, zeros but for k rows: writing 64 MiB of zeros for a 4096×4096 weight is the wall at 4×.",
        "Of equal magnitudes torch.topk keeps any, the authors' C# the first.",
        "Each data-parallel rank selects its own k; the mean of their gradients has up to ranks × k rows.",
        "That fewer gradients generalize better did not show in a small run of ours: 79.6 % dense, 74.7 % unified at "
        "k = 30 of 500, 70.3 % for 30 random ones.",
    ),
    peer=Peer("torch.nn:Linear", {"in_features": "C", "out_features": "O", "bias": "bias"}),
    examples=(
        {},
        {"k": 5, "out_channels": 8},
        {"k": 3, "unified": False, "bias": False},
        {"ratio": 0.5, "out_channels": 20},
        {"k": 0},
        {"k": 30, "out_channels": 30, "ratio": None},
    ),
    exact_gradient="(ratio is None or ratio == 1) if k is None else "
    "k == 0 or out_channels is not None and k >= out_channels",
    derivable="(ratio is None or ratio == 1) if k is None else "
    "k == 0 or out_channels is not None and k >= out_channels",
)


class MePropLinear(nn.Linear):
    """A linear layer (N, C) → (N, O) with meProp's backward; further axes between N and C are rows as well.

    Args: ``in_channels`` C; ``out_channels`` O; ``k`` ≥ 0 or ``ratio`` in (0, 1]; ``unified``; ``bias``.
    Parameters ``weight`` (O, C) and ``bias`` (O,) start as torch.nn.Linear's and load its checkpoints; no state. The
    rule holds in training and evaluation. Half precision is selected by sums in float32.
    Raises OptionError for refused options, ValueError for inputs that do not fit, RuntimeError in double backward
    unless all is kept: the published gradient is no function's derivative.
    """

    k: int | None
    ratio: float | None
    unified: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        k: int | None = None,
        ratio: float | None = 0.0625,
        unified: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = card.check({"C": in_channels}, options_among(card, locals()))
        outputs = in_channels if out_channels is None else out_channels
        super().__init__(in_channels, outputs, bias, device=device, dtype=dtype)
        self.options, self.out_channels = options, outputs
        self.k, self.ratio, self.unified = k, ratio, unified

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b (N, …, O) for ``x`` (N, …, C)."""
        name = type(self).__name__
        if x.dim() < 2:
            raise ValueError(f"{name} takes (N, C) or (N, …, C), not {x.dim()}-d")
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"{name} was built for {self.in_features} channels, the input, {x.dim()}-d, has {x.shape[-1]}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} takes floating-point input, not {x.dtype}")
        k = kept(self.out_features, self.k, self.ratio)
        if k == self.out_features or is_traced():
            return super().forward(x)
        x, weight, bias = autocast(x, self.weight, self.bias)
        rows = x.flatten(0, -2)
        y: Tensor = _Linear.apply(rows, weight, bias, k, self.unified)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)

    def fold(self) -> nn.Linear:
        """Return a torch.nn.Linear with the same parameters, whose backward is dense."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Return the input channels and every option."""
        return ", ".join([str(self.in_features), *(f"{name}={value!r}" for name, value in self.options.items())])


class _Linear(torch.autograd.Function):
    """x Wᵀ + b of rows, with the gradients of Ĝ. Keeps x and W."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, unified: bool) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.k, ctx.unified = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        wants, index, rows = ctx.needs_input_grad, None, weight
        with torch.no_grad():
            if ctx.unified:
                index = largest(magnitudes(grad, 1), ctx.k)
                part, rows = grad.index_select(1, index), weight.index_select(0, index)
            else:
                part = only_largest(grad, ctx.k)
            of_x = part @ rows if wants[0] else None
            of_weight = part.t() @ x if wants[1] else None
            if of_weight is not None and index is not None:
                of_weight = torch.zeros_like(weight).index_copy_(0, index, of_weight)
        return *refusing((of_x, of_weight), grad, x, weight), grad.sum(0) if wants[2] else None, None, None


REPLACES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: MePropLinear, nn.Conv2d: MePropConv2d}

__all__ = [
    "REPLACES", "MePropConv2d", "MePropLinear", "any_order", "card", "dense_gradient", "loss_scale", "masked",
    "one_example", "pointwise", "projection", "whole_bias",
]  # fmt: skip
