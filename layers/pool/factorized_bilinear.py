r"""Factorized Bilinear layer: a convolution plus a quadratic term of low rank (Li, Wang, Liu & Hou 2017, arXiv
1611.05709, equations 2–4), with DropFactor (section 3.3).

For every window u of n = C/groups × KH × KW numbers and every output o, with F_o of k rows (factors) of n weights,
$$y_o = b_o + w_o^\top u + \textstyle\sum_f m_f (F_{of} \cdot u)^2 = b_o + w_o^\top u + u^\top F_o^\top M F_o u.$$
DropFactor draws the k numbers m_f once per forward in training, for all outputs, positions and samples: a factor is
kept with probability p = 1 − drop. Training has m_f ∈ {0, 1}, evaluation m_f = p, so the two agree in expectation.

Computed as one convolution by all O·k factors, z, and Σ m z² over the k of each output. Kept for backward: x and z.
Factors that were dropped are not computed (on the CPU).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.card import Card, Claim, Flops, Identity, Option, Paper
from layers.convolution import Convolution, options_among
from layers.factorized_proofs import even, expectation, form, length, machine, quadratic, rotated, slope
from layers.moments import is_channels_last, needs_plain_operations, widened
from layers.second_order import applied
from layers.shared import CONVOLUTION, CONVOLUTION_PEER, CONVOLUTION_RULES, CONVOLUTION_SYMBOLS
from layers.weight_functions import full_precision

card = Card(
    title="Factorized Bilinear layer",
    paper=Paper(
        authors="Li, Wang, Liu, Hou",
        title="Factorized Bilinear Models for Image Recognition",
        year=2017,
        venue="ICCV 2017",
        arxiv="1611.05709",
    ),
    impl="FactorizedBilinear",
    formula="y_o = b_o + w_o·u + Σ_f m_f (F_of·u)², u the windows of x",
    summary="A convolution plus, for each output, the squares of k further ones: a quadratic form of rank k.",
    options=(
        *CONVOLUTION,
        Option(
            name="num_factors",
            type=int,
            default=20,
            ge=1,
            help="k, factors of each output",
            source="the authors: 20 on CIFAR, 50 on ImageNet",
        ),
        Option(
            name="drop",
            type=float,
            default=0.0,
            ge=0,
            lt=1,
            help="DropFactor: the share of factors that is dropped in training, 1 − p",
            source="ours: the authors train with 0.5",
        ),
        Option(
            name="self_interaction",
            type=bool,
            default=True,
            help="false takes Σ_i u_i² Σ_f F_fi² away: a factorization machine",
            source="the paper; the authors' code is as with false",
        ),
        Option(name="linear", type=bool, default=True, help="the part w_o·u; false leaves it out"),
    ),
    derived={
        **CONVOLUTION_SYMBOLS,
        "k": "num_factors",
        "convolutions": "k + linear + (not self_interaction)",
        "padded": "E if padding_mode == 'zeros' else P",
        "machine": "0 if self_interaction else 1",
    },
    rules=CONVOLUTION_RULES,
    params="O*I*(num_factors + (1 if linear else 0)) + (O if bias else 0)",
    flops=Flops(
        "2*Q*O*I*convolutions + 2*k*Q*O + Q*O*(bias + linear - 1) + machine*(Q*O + (2*k - 1)*O*I + padded) + "
        "(Q*O if drop > 0 and not train else 0)",
        "4*Q*O*I*convolutions + (k + 1)*Q*O + (Q*O - O if bias else 0) + machine*(2*k*O*I + 2*padded) + "
        "(Q*O if drop > 0 and not train else 0)",
    ),
    executed=Flops(
        "2*Q*O*I*convolutions + 2*k*Q*O + Q*O*(bias + linear - 1) + machine*(Q*O + (2*k - 1)*O*I + padded) + "
        "(Q*O if drop > 0 and not train else 0)",
        "4*Q*O*I*convolutions + (k + 1)*Q*O + (Q*O - O if bias else 0) + machine*(Q*O + 4*k*O*I + 4*padded) + "
        "linear*padded + unpad + (Q*O if drop > 0 and not train else 0)",
    ),
    explained="The definition leaves out the sum of the input's gradients, one per convolution. A training forward "
    "that drops factors does not compute them, on the CPU: its counts are those of the k that are left. fvcore counts "
    "the convolutions, by one per multiply-add.",
    saved="4*k*Q*O + 4*kept + machine*4*(O*I + padded)",
    stated="drop == 0 or not train",
    traffic=Flops("B*(E + O*I*(k + 1) + Q*O)", "B*(2*E + 2*O*I*(k + 1) + Q*O)"),
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=(Claim(holds=(), why="Nothing is normalized: a linear and a quadratic term of everything."),),
    identities=(
        Identity(says="−F has the outputs of F", proof="even"),
        Identity(says="R F_o has the outputs of F_o, R k×k and orthogonal", proof="rotated"),
        Identity(
            says="without w and b, a x has a² the outputs of x",
            options={"linear": False, "bias": False, "kernel_size": 1},
            proof="quadratic",
        ),
        Identity(
            says="k = n and F = 1 give ‖u‖²",
            options={"linear": False, "bias": False, "kernel_size": 1},
            dims={"C": 12},
            proof="length",
        ),
        Identity(
            says="the quadratic term is uᵀ(FᵀF)u, never negative",
            options={"linear": False, "bias": False, "kernel_size": 1},
            proof="form",
        ),
        Identity(
            says="without self-interaction it is 2 Σ_{i<j} ⟨F_i, F_j⟩ u_i u_j",
            options={"linear": False, "bias": False, "kernel_size": 1, "self_interaction": False},
            proof="machine",
        ),
        Identity(
            says="evaluation is the mean of training over all sets of factors, weighed by their probability",
            options={"num_factors": 3, "drop": 0.25},
            mode="eval",
            proof="expectation",
        ),
        Identity(
            says="∂L/∂x of the form is 2 FᵀF u ∂L/∂y",
            options={"linear": False, "bias": False, "kernel_size": 1},
            proof="slope",
        ),
    ),
    notes=(
        "The notes' formula is the paper's; the published code is another: it takes the self-interactions away, "
        "Σ_i u_i² Σ_f F_fi², as a factorization machine does (self_interaction=False).",
        "Its DropFactor multiplies by √(1/p) in training, twice as large a square, and by √p in evaluation: the "
        "quadratic term has the full expectation in training and p of it in evaluation. Here the two agree, as in the "
        "paper.",
        "Its gradient with respect to the data lacks the factor x in the self-interactions; that of the weights is "
        "right. Its output size with dilation d is right for d = 2 only.",
        "Only positive semi-definite forms can be represented (with self-interactions): an indefinite bilinear pooling "
        "weight cannot, whatever k.",
        "The authors start training the layer at a tenth of the learning rate for up to 3 epochs.",
        "z² of float16 overflows beyond |z| = 255: squares are float32 here, the output is not.",
    ),
    peer=CONVOLUTION_PEER,
    examples=(
        {"kernel_size": 1},
        {
            "out_channels": 8,
            "kernel_size": 2,
            "padding": 1,
            "groups": 2,
            "num_factors": 3,
            "self_interaction": False,
            "padding_mode": "reflect",
        },
        {"kernel_size": 1, "num_factors": 2, "linear": False, "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "num_factors": 5, "linear": False},
    ),
)


class FactorizedBilinear(Convolution):
    """torch.nn.Conv2d plus a quadratic term: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d; ``num_factors`` k; ``drop`` the share of factors
    dropped in training; ``self_interaction``; ``linear``. Parameters ``weight`` (O, C/groups, KH, KW) unless linear is
    false, ``bias`` (O,), ``factors`` (O, k, C/groups·KH·KW); no other state. With ``drop`` a training forward draws k
    numbers from torch's generator. Squares are float32 or wider. Raises OptionError for refused options, ValueError
    for inputs that do not fit.
    """

    num_factors: int
    drop: float
    self_interaction: bool
    linear: bool

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
        num_factors: int = 20,
        drop: float = 0.0,
        self_interaction: bool = True,
        linear: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)
        kernel = self.weight
        shape = (self.out_channels, self.num_factors, kernel[0].numel())
        self.factors = nn.Parameter(torch.empty(shape, device=kernel.device, dtype=kernel.dtype))
        if not self.linear:
            self.register_parameter("weight", None)
        self.start()

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch.nn.Conv2d does, and the factors anew."""
        if self.weight is not None:
            super().reset_parameters()
            return
        if self.bias is not None:
            bound = self.factors.shape[2] ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)
        self.start()

    def start(self) -> None:
        """Draw factors from U(−a, a), a = √(3/(n k)): of data of variance 1 the quadratic term has mean 1."""
        if hasattr(self, "factors"):  # not yet, when the constructor above draws the weight
            bound = math.sqrt(3 / (self.factors.shape[1] * self.factors.shape[2]))
            nn.init.uniform_(self.factors, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return y (N, O, HO, WO) for ``x`` (N, C, H, W)."""
        self.check_input(x)
        kept = not x.is_contiguous() and is_channels_last(x)
        factors: Tensor = self.factors
        share = 1.0
        if self.drop and self.training:
            factors = self._kept_factors()
        elif self.drop:
            share = 1 - self.drop
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode)
        quadratic, dtype = self._quadratic(x, factors)
        quadratic = quadratic if share == 1 else quadratic * share
        if self.weight is not None:
            y = quadratic + self._convolved(x, self.weight, self.bias)
        else:
            y = quadratic if self.bias is None else quadratic + self.bias.view(-1, 1, 1)
        y = y.to(dtype)
        return y.contiguous(memory_format=torch.channels_last) if kept else y

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of ``x``, padded unless that is by zeros."""
        padding = self.padding if self.padding_mode == "zeros" else 0
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _kept_factors(self) -> Tensor:
        """The factors kept; zeros for the others too where their number is not to be read: GPU, compiler, functorch."""
        mask = torch.rand(self.num_factors, device=self.factors.device) >= self.drop
        if self.factors.device.type == "cpu" and not needs_plain_operations() and mask.any():
            return self.factors.index_select(1, mask.nonzero().squeeze(1))
        return self.factors * mask.view(-1, 1)

    def _quadratic(self, x: Tensor, factors: Tensor) -> tuple[Tensor, torch.dtype]:
        """Σ_f (F_of·u)², less the self-interactions if they are not wanted, in float32 or wider, and the dtype of z."""
        outputs, k, _ = factors.shape
        window = (self.in_channels // self.groups, *self.kernel_size)
        z = self._convolved(x, factors.reshape(outputs * k, *window))
        total: Tensor = applied(_SumOfSquares, z, outputs)
        if not self.self_interaction:
            with full_precision(x):
                diagonal = widened(factors).square().sum(1).view(outputs, *window)
                total = total - self._convolved(widened(x).square(), diagonal)
        return total, z.dtype


class _SumOfSquares(torch.autograd.Function):
    """z (N, O·k, H, W) → Σ over k of z² (N, O, H, W), float32 or wider; keeps z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, outputs: int) -> Tensor:
        return _apart(widened(z), outputs).square().sum(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.outputs = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        g = (2 * grads[0]).unsqueeze(2)
        return (_apart(widened(z), ctx.outputs) * g).flatten(1, 2).to(z.dtype), None


def _apart(z: Tensor, outputs: int) -> Tensor:
    """The channels (N, O·k, H, W) of z as (N, O, k, H, W)."""
    return z.view(z.shape[0], outputs, z.shape[1] // outputs, *z.shape[2:])


__all__ = [
    "FactorizedBilinear", "card", "even", "expectation", "form", "length", "machine", "quadratic", "rotated", "slope",
]  # fmt: skip
