r"""Mean-only Batch Normalization: subtract each channel's batch mean, leave its variance alone (Salimans & Kingma 2016,
arXiv 1602.07868, section 4).

$$y = t - \mu_c + b_c,\qquad \mu_c = \text{mean of } t \text{ over } N \text{ and all positions}$$
with t = w·x the output of a weight-normalized layer, whose variance weight normalization already controls. There is no
variance and no ε. Evaluation subtracts the running mean. Backward centres the gradient: ∂L/∂t = ∂L/∂y − mean ∂L/∂y.

Forward and backward are each one reduction and one shift per channel; nothing is saved for backward but the count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Stat
from layers.centring import center, shifted
from layers.moments import wide_dtype
from layers.norm.bn import BatchNorm
from layers.observe import observe

card = Card(
    title="Mean-only Batch Normalization",
    paper=Paper(
        authors="Salimans, Kingma",
        title="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
        year=2016,
        venue="NIPS 2016",
        arxiv="1602.07868",
    ),
    impl="MeanOnlyBatchNorm",
    formula="y = t − μ_c + b_c",
    summary="Each channel is centred by its mean over the whole batch; weight normalization keeps the variance.",
    options=(
        Option(
            name="momentum",
            type=float,
            default=0.1,
            ge=0,
            le=1,
            help="weight of the new value in the running mean",
            source="the authors' code, which keeps 0.9 of the old value",
        ),
        Option(name="affine", type=bool, default=True, help="learn b (bias) per channel; there is no γ"),
        Option(name="track_running_stats", type=bool, default=True, help="keep the running mean for evaluation"),
    ),
    derived={"tiny": "E <= 32768", "small": "E <= 262144"},
    statistics=(Stat("mean", ("C",), "C×1", given="train or not track_running_stats"),),
    buffers=(Stat("running_mean", ("C",), "C×1", given="track_running_stats"),),
    params="C if affine else 0",
    flops=Flops(
        "(3 if affine else 2)*E if train or not track_running_stats else E + (C if affine else 0)",
        "2*E if train or not track_running_stats else (E - C if affine else 0)",
    ),
    executed=Flops(
        "((2*E + (C if affine or tiny else 0) if small else 3*E + 4*C) + (3*C if track_running_stats else 0))"
        " if train or not track_running_stats else E + C",
        "(2*E + (C if affine or tiny else 0) if small else 3*E + (5 if affine else 4)*C)"
        " if train or not track_running_stats else (E - C if affine else 0)",
    ),
    explained="Mean and bias are one shift per channel; the shift is added in float32 and rounded once. Above 2¹⁸ "
    "elements a kernel does it that multiplies, by one.",
    saved="0",
    traffic=Flops(
        "(3 if train or not track_running_stats else 2)*E*B", "(3 if train or not track_running_stats else 1)*E*B"
    ),
    claims=(
        Claim(
            holds=(
                "x-recenter@linear,conv",
                "x-recenter-scalar@linear,conv",
                "x-recenter-image@linear",
                "pre-bias",
                "pre-bias-common",
            ),
            why="A shift of the data shifts each pre-activation by the same amount in every sample, unless zero "
            "padding leaves the border where it was; every scale passes through.",
        ),
        Claim(
            row="eval, frozen statistics",
            mode="eval",
            holds=(),
            why="With a stored mean evaluation adds a fixed number to each channel.",
        ),
        Claim(
            holds=(
                "x-recenter@linear,conv",
                "x-recenter-scalar@linear,conv",
                "x-recenter-image@linear",
                "pre-bias",
                "pre-bias-common",
            ),
            row="eval, statistics follow",
            mode="eval",
            history="follow",
            options={"momentum": 1.0},
            why="Once the running mean has seen the change, it is the row of training.",
        ),
        Claim(
            weight="weight-norm",
            holds=(
                "w-scale",
                "w-vec-scale",
                "x-recenter@linear,conv",
                "w-scale-group",
                "x-recenter-scalar@linear,conv",
                "x-recenter-image@linear",
                "pre-bias",
                "pre-bias-common",
            ),
            why="Weight normalization forgets the scale of a weight vector, this layer a shift of the data; the scale "
            "of the data, which BN forgets, stays.",
        ),
    ),
    identities=(
        Identity(says="y = BN(t)·√(σ² + ε) + b: batch normalization with the variance put back", proof="bn_undone"),
        Identity(says="∂L/∂t = ∂L/∂y − mean ∂L/∂y", proof="gradient_is_centred"),
        Identity(
            says="one value per channel gives b, whatever it is", proof="bias_alone", dims={"N": 1, "H": 1, "W": 1}
        ),
    ),
    notes=(
        "Nothing is divided by a variance: the scale of the output is what weight normalization, ‖w‖ = g, made of it.",
        "The data-dependent initialization of weight normalization sets g alone before this layer, and leaves b.",
    ),
    examples=({}, {"affine": False, "momentum": 0.5}, {"track_running_stats": False}),
    couples="train",
    eval_differs="track_running_stats",
)


class MeanOnlyBatchNorm(Norm):
    """Mean-only Batch Normalization of (N, C, *positions); the output has the shape, dtype and format of the input.

    Args: ``channels`` C; ``momentum`` in [0, 1]; ``affine`` for b; ``track_running_stats`` for the running mean,
    without which evaluation uses the batch mean.
    State: parameter ``bias`` (C,), zeros; buffer ``running_mean`` (C,), zeros. ``weight`` is None. An empty batch
    moves nothing; a single value per channel gives b, since nothing is divided by a variance.
    Raises OptionError for refused options.
    """

    momentum: float
    running_mean: Tensor | None

    def __init__(
        self,
        channels: int,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"momentum": momentum, "affine": affine, "track_running_stats": track_running_stats}
        super().__init__(card, channels, options, affine=False, device=device, dtype=dtype)
        if affine:
            self.bias = torch.nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        zeros = torch.zeros(channels, device=device, dtype=dtype) if track_running_stats else None
        self.register_buffer("running_mean", zeros)

    def forward(self, x: Tensor) -> Tensor:
        """Centre ``x`` (N, C, *positions) by its batch in training, by the running mean in evaluation."""
        self.check_input(x)
        wide = wide_dtype(x.dtype)
        bias = self.bias
        shift = None if bias is None else bias.to(wide)
        running = self.running_mean
        if not self.training and running is not None:
            mean = running.to(wide)
            return shifted(x, -mean if shift is None else shift - mean)
        y, mean = center(x, shift)
        observe(mean=mean)
        if self.training and running is not None and x.numel():
            running.lerp_(mean.detach().to(running.dtype), self.momentum)
        return y


def bn_undone(layer: MeanOnlyBatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean-only BN beside BN times the standard deviation that it divided by, plus b."""
    plain = BatchNorm(layer.channels, affine=False, device=x.device, dtype=x.dtype)
    deviation = (x.transpose(0, 1).flatten(1).var(1, correction=0) + plain.eps).sqrt()
    spread = (-1, *(1,) * (x.dim() - 2))
    bias = torch.zeros_like(deviation) if layer.bias is None else layer.bias
    return layer(x), plain(x) * deviation.view(spread) + bias.view(spread)


def gradient_is_centred(layer: MeanOnlyBatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that autograd gives beside the upstream gradient minus its mean per channel."""
    x = x.detach().requires_grad_()
    y = layer(x)
    upstream = torch.linspace(-1, 2, y.numel(), device=x.device, dtype=x.dtype).view(y.shape).sin()
    (gradient,) = torch.autograd.grad(y, x, upstream)
    return gradient, upstream - upstream.mean((0, *range(2, x.dim())), keepdim=True)


def bias_alone(layer: MeanOnlyBatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for one value per channel beside b."""
    assert layer.bias is not None
    return layer(x).flatten(), layer.bias
