r"""Weight Normalization: every filter is a learnt length times a direction (Salimans & Kingma 2016, arXiv 1602.07868,
equations 2 and 3).

With v as O×I, a row per output channel, I = C/groups × kernel positions,
$$w_o = g_o\,v_o / \lVert v_o \rVert_2,\qquad y = w * x + b,$$
so ‖w_o‖ = |g_o| whatever v is. With G = ∂L/∂w,
$$\partial L/\partial g_o = \langle G_o, v_o \rangle / \lVert v_o \rVert,\qquad
\partial L/\partial v_o = g_o/\lVert v_o \rVert\,\bigl(G_o - v_o \langle G_o, v_o \rangle / \lVert v_o \rVert^2\bigr)$$
is orthogonal to v_o: plain gradient descent only ever lengthens v_o. Training and evaluation are the same, and `fold`
gives the plain convolution by w.

‖v_o‖ is taken in float32 for half precision. torch's own kernel
(behind torch.nn.utils.parametrizations.weight_norm) is not used: its second derivative in v is wrong, without an error.
The paper's start from the statistics of a first batch is a transform of a whole model; here g starts at ‖v‖ or at 1.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from layers.card import Card, Claim, Flops, Identity, Option, OptionError, Paper, Stat
from layers.convolution import Convolution, options_among
from layers.fused_lengths import scaled_to, suits_kernel
from layers.observe import observe
from layers.reparametrization import Reparametrization, own_weights
from layers.rows import Rows
from layers.shared import (
    CONVOLUTION,
    CONVOLUTION_PEER,
    CONVOLUTION_RULES,
    CONVOLUTION_SYMBOLS,
    CONVOLUTION_TRAFFIC,
    FILTERS,
)
from layers.weight_geometry import growth, inverse_scale, orthogonal
from layers.weight_norm_proofs import gradients, lengths, whitened
from layers.weights import Weight

card = Card(
    title="Weight Normalization",
    paper=Paper(
        authors="Salimans, Kingma",
        title="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
        year=2016,
        venue="NIPS 2016",
        arxiv="1602.07868",
    ),
    impl="WeightNormConv2d",
    formula="w_o = g_o v_o / ‖v_o‖,  y = w * x + b",
    summary="Each filter is a learnt direction v over its I = C/groups × KH × KW weights times a learnt length g.",
    options=(
        *CONVOLUTION,
        Option(
            name="norm",
            type=str,
            default="output",
            choices=("output", "tensor"),
            help="one length g per output channel, or one for the whole weight (torch's dim=None)",
        ),
        Option(
            name="init",
            type=str,
            default="keep",
            choices=("keep", "paper"),
            help="v as torch.nn.Conv2d draws it with g = ‖v‖, or the paper's v ~ N(0, 0.05²), g = 1, b = 0",
        ),
        Option(
            name="eps",
            type=float,
            default=0.0,
            ge=0,
            help="v is divided by max(‖v‖, ε); with 0 a filter of zeros gives NaN",
            source="the authors' Lasagne code and torch; their TensorFlow code takes 1e-6",
        ),
    ),
    derived={
        **CONVOLUTION_SYMBOLS,
        "T": "O if norm == 'output' else 1",
        "bounded": "1 if eps > 0 else 0",
        "long": "1 if O*I > 8192*T else 0",
        "fused": "eps == 0 and not long",
    },
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat("length", ("O",), "O×1", given="norm == 'output'", help="max(‖v‖, ε)"),
        Stat("length", (), "scalar", given="norm == 'tensor'", help="max(‖v‖, ε)"),
    ),
    params="O*I + (O if norm == 'output' else 1) + (O if bias else 0)",
    flops=Flops("2*Q*O*I + (Q*O if bias else 0) + 3*O*I + T", "4*Q*O*I + (Q*O - O if bias else 0) + 5*O*I"),
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + (3*O*I + T if fused else (4 + 3*long)*O*I + (10 + bounded + 4*long)*T)",
        "4*Q*O*I + (Q*O - O if bias else 0) + (5*O*I + 3*T if fused else 7*O*I + (12 + bounded)*T) + unpad",
    ),
    explained=FILTERS,
    saved="4*O*I + (4 if fused else 12 + 4*bounded)*T + 4*kept",
    stated="O*I > T",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=(
        Claim(
            holds=("w-scale", "w-vec-scale", "w-scale-group"),
            why="Only the length of each v is divided out, and g takes its place: every shift, and any re-scaling of "
            "the data, goes through.",
        ),
    ),
    identities=(
        Identity(says="‖w_o‖ = |g_o| for v and for 3 v", proof="lengths"),
        Identity(says="⟨v, ∂L/∂v⟩ = 0", proof="orthogonal"),
        Identity(says="∂L/∂v at a v is 1/a times that at v", proof="inverse_scale"),
        Identity(says="‖v − η ∂L/∂v‖² = ‖v‖² + η² ‖∂L/∂v‖²", proof="growth"),
        Identity(says="∂L/∂g = ⟨G, v⟩/‖v‖, ∂L/∂v = g/‖v‖ (G − v ⟨G, v⟩/‖v‖²)", proof="gradients"),
        Identity(
            says="on white data g v·x/‖v‖ = g BN(v·x)", options={"kernel_size": 1, "bias": False}, proof="whitened"
        ),
    ),
    notes=(
        "torch._weight_norm, behind torch.nn.utils.parametrizations.weight_norm, has a wrong second derivative in v: "
        "by about its own size, without an error.",
        "In torch dim=-1 is dim=None, one g for the whole tensor, and not the last axis; of a transposed convolution "
        "its default dim=0 is the input axis. Here a g is that of an output, or of the tensor.",
        "torch's own, torch._weight_norm, has a wrong second derivative (2.13, torch.autograd.gradgradcheck fails).",
        "The start from a batch needs one batch and the order of the forward, and holds on that batch alone; torch's "
        "weight_norm has none and keeps the weights, as init=keep does.",
        "“Similar intuition in STN” is a remark of the notes, not of the paper.",
    ),
    peer=CONVOLUTION_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "init": "paper", "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "norm": "tensor", "padding_mode": "circular"},
        {"kernel_size": (1, 2), "groups": 12, "eps": 1e-6},
    ),
)


def normalize(rows: Tensor, gain: Tensor, eps: float = 0.0) -> Tensor:
    """Return g v/max(‖v‖, ε) for the rows v of ``rows`` (O, I) and a ``gain`` of O numbers, in the same dtype."""
    if not eps and suits_kernel(rows, gain):
        made, length = scaled_to(rows, gain.view(-1, 1))
        observe(length=length.view(gain.shape) if gain.dim() == 0 else length.flatten())
        return made
    moments = Rows(rows, centred=False)
    length = _lengths(moments, rows.shape[1], eps)
    observe(length=length.view(gain.shape) if gain.dim() == 0 else length)
    return moments.scaled(gain.flatten().to(length.dtype) / length)


def _lengths(moments: Rows, count: int, eps: float) -> Tensor:
    """Return max(‖v‖, ε) (O,); the derivative of the root at 0 is left to those who take ε = 0."""
    squares = count * moments.var
    return (squares.clamp_min(max(eps * eps, torch.finfo(squares.dtype).tiny)) if eps else squares).sqrt()


def gain_of(rows: Tensor, eps: float = 0.0) -> Tensor:
    """Return the lengths of the rows of ``rows`` (O, I), O numbers: what g must be for w to be v.

    Raises OptionError, naming the output channels, for rows of zeros without ``eps``: they have no direction.
    """
    length = _lengths(Rows(rows.detach(), centred=False), rows.shape[1], eps)
    if not eps and not length.is_meta and not bool(length.all()):
        zeros = [str(index) for index in (length == 0).nonzero().flatten().tolist()]
        which = " of output channel " + ", ".join(zeros[:8]) + (", …" if len(zeros) > 8 else "")
        which = which if len(length) > 1 else ""
        raise OptionError(f"the weights{which} are all 0 and have no direction: give eps > 0", "eps")
    return length


class WeightNormConv2d(Convolution):
    """torch.nn.Conv2d with w = g v/‖v‖: (N, C, H, W) → (N, O, HO, WO).

    ``weight`` (O, C/groups, KH, KW) is v, ``gain`` (O, 1, 1, 1), or () with ``norm`` tensor, is g.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    norm: str
    init: str
    eps: float

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        norm: str = "output",
        init: str = "keep",
        eps: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)
        shape = (self.out_channels, 1, 1, 1) if norm == "output" else ()
        self.gain = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.start()

    def start(self) -> None:
        """Set g to ‖v‖, or v, g and b as the paper does."""
        with torch.no_grad():
            if self.init == "keep":
                self.gain.copy_(gain_of(self._rows(), self.eps).view(self.gain.shape))
                return
            nn.init.normal_(self.weight, std=PAPER_STD)
            nn.init.ones_(self.gain)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def effective_weight(self) -> Tensor:
        """Return w (O, C/groups, KH, KW)."""
        return normalize(self._rows(), self.gain, self.eps).view(self.weight.shape)

    def _rows(self) -> Tensor:
        return self.weight.flatten(1) if self.norm == "output" else self.weight.reshape(1, -1)


class WeightNorm(Reparametrization):
    """The parametrization (g, v) → w of any linear layer or convolution, over outputs of transposed ones too.

    State: ``original0`` is g (one per output, axes of the weight, or () with ``norm`` tensor) and ``original1`` is v,
    under the names of torch.nn.utils.parametrizations.weight_norm; of a transposed convolution the shapes are those of
    its dim=1 (torch's default there is a length per input channel).
    Assigning to the weight, and registration with ``init`` keep, sets v to the weight and g to ‖v‖; with ``init`` paper
    registration draws v anew and sets g to 1, and leaves the bias as it is.
    Raises OptionError for a filter of zeros without ``eps``, a weight with another parametrization, refused options.
    """

    unties = True
    norm: str
    init: str
    eps: float

    def __init__(self, layer: nn.Module, norm: str = "output", init: str = "keep", eps: float = 0.0) -> None:
        self.refuse_parametrized(layer)
        super().__init__(layer, card, norm=norm, init=init, eps=eps)
        if init == "keep":
            gain_of(self._rows(cast(Tensor, layer.weight)), eps)
        self._draw = init == "paper"

    def forward(self, gain: Tensor, direction: Tensor) -> Tensor:
        """Return w for g and v, of the shape and dtype of v."""
        rows = normalize(self._rows(direction), gain, self.eps)
        return rows.view(direction.shape) if self.norm == "tensor" else self.unrows(rows, direction)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return (g, v) that give ``weight``, or at registration what ``init`` says."""
        self.refuse_other_shapes(weight)
        drawn, self._draw = self._draw, False
        direction = PAPER_STD * torch.randn_like(weight) if drawn else weight
        rows = self._rows(direction)
        length = torch.ones_like(rows[:, 0]) if drawn else gain_of(rows, self.eps).to(weight.dtype)
        return length.view(() if self.norm == "tensor" else self.per_output), direction

    def _rows(self, weight: Tensor) -> Tensor:
        return self.rows(weight) if self.norm == "output" else weight.reshape(1, -1)


PAPER_STD = 0.05
parametrization = WeightNorm


def excludes(weight: Weight) -> str:
    """Return why ``weight`` is not normalized by default: kernels of convolutions and linear layers are."""
    return own_weights(weight, linear=True)


__all__ = [
    "WeightNorm", "WeightNormConv2d", "card", "gradients", "growth", "inverse_scale", "lengths", "orthogonal",
    "parametrization", "whitened",
]  # fmt: skip
