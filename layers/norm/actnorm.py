r"""ActNorm: an invertible scale and shift per channel, set so that the first batch comes out standardised (Kingma &
Dhariwal 2018, Glow, arXiv 1807.03039, section 3.1).

$$y = s_c\,(x + b_c),\qquad x = y / s_c - b_c,\qquad \log|\det \partial y/\partial x| = S \sum_c \log|s_c|$$
per sample, S positions. The first training batch sets b = −μ and s = 1/(σ + ε), with μ and σ over the batch and all
positions, ε added to the standard deviation. From then on b and s are ordinary parameters: no statistic is computed,
samples do not meet, training and evaluation are the same.

Two conventions exist. The port that the notes link (rosinality/glow-pytorch) has the unbiased σ and learns ``scale``.
The authors' code (openai/glow) has the biased σ and learns ``logs``, s = exp(3·logs), so that SGD moves log s nine
times as fast; with ``batch_variance`` it has one σ for all channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Norm
from layers.card import Card, Claim, Flops, Identity, Option, OptionValue, Paper, Stat
from layers.dimensions import is_tiny
from layers.moments import Planes, planes_of, pool, widened
from layers.norm.bn import BatchNorm
from layers.observe import observe
from layers.remembered import Remembered, readable
from layers.shared import BN_ROW

card = Card(
    title="ActNorm",
    paper=Paper(
        authors="Kingma, Dhariwal",
        title="Glow: Generative Flow with Invertible 1×1 Convolutions",
        year=2018,
        venue="NeurIPS 2018",
        arxiv="1807.03039",
    ),
    impl="ActNorm",
    formula="y = s_c (x + b_c)",
    summary="One learned scale and shift per channel, set by the first training batch to standardise it.",
    options=(
        Option(
            name="eps", type=float, default=1e-6, ge=0, help="added to σ, outside the root", source="both public codes"
        ),
        Option(
            name="variance",
            type=str,
            default="unbiased",
            choices=("unbiased", "biased"),
            help="estimator of the first batch's variance",
            source="rosinality/glow-pytorch; the authors' code is biased",
        ),
        Option(
            name="parametrization",
            type=str,
            default="scale",
            choices=("scale", "log-scale"),
            help="learn s itself or its logarithm",
            source="rosinality/glow-pytorch; the authors' code learns the logarithm",
        ),
        Option(
            name="logscale_factor", type=float, default=3.0, gt=0, help="s = exp(factor · logs)", source="openai/glow"
        ),
        Option(
            name="batch_variance", type=bool, default=False, help="one σ for all channels: the mean of their variances"
        ),
        Option(name="logdet", type=bool, default=False, help="return (y, log|det|) instead of y"),
    ),
    statistics=(
        Stat("mean", ("C",), "C×1", given="train", help="of the first training batch; later batches have none"),
        Stat("std", ("1 if batch_variance else C",), "C×1", given="train", help="the same, before ε is added"),
    ),
    buffers=(Stat("initialized", (), help="whether the first batch was seen; loading it suppresses initialization"),),
    params="2*C",
    derived={"tiny": "E <= 32768"},
    flops=Flops(
        "2*E + (2*C if parametrization == 'log-scale' else 0)"
        " + ((C + 1 if parametrization == 'log-scale' else 3*C) if logdet else 0)",
        "4*E - (0 if parametrization == 'log-scale' else 2*C)",
    ),
    executed=Flops(
        "2*E + ((0 if tiny else 8) + (2*(1 + logdet) if parametrization == 'log-scale' else 3*logdet))*C",
        "4*E + (3 if parametrization == 'log-scale' else 1)*C - (3*C if tiny else 0)",
    ),
    explained="Above 2¹⁵ elements it is applied as one scale and one shift per channel; what happens on the first "
    "batch is not counted.",
    saved="B*E + (4*C if logdet or parametrization == 'log-scale' else 0) + (0 if tiny else 12*C)",
    claims=(
        Claim(
            holds=(),
            row="after initialization",
            why="It is a fixed affine map of each channel: nothing that changes its input is undone.",
        ),
        Claim(
            holds=BN_ROW,
            row="initialization re-run",
            history="follow",
            why="The first batch is standardised whatever its scale and shift: the row of batch normalization.",
        ),
    ),
    identities=(
        Identity(says="the first batch comes out as BN without affine does", proof="first_batch_is_bn"),
        Identity(says="inverse(forward(x)) = x", options={"parametrization": "log-scale"}, proof="round_trip"),
        Identity(says="the log-determinant is that of the Jacobian", proof="logdet_is_slogdet"),
    ),
    notes=(
        "The notes link a port that differs from Glow: unbiased instead of biased σ, and s instead of exp(3·logs).",
        "Both public codes initialize in evaluation mode too, and the port's inverse before initialization is the "
        "identity; here both are refused.",
        "The port asks the device on every forward whether it is initialized; here the answer is remembered.",
        "A constant channel gets s = 1/ε, a million, and adds S·log(1/ε) to the log-determinant.",
    ),
    examples=(
        {},
        {"variance": "biased", "parametrization": "log-scale", "logscale_factor": 1.0},
        {"batch_variance": True, "eps": 0.1},
        {"parametrization": "log-scale", "logscale_factor": 0.5, "batch_variance": True},
    ),
)


class ActNorm(Norm):
    """ActNorm of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``eps`` ≥ 0; ``variance``, ``batch_variance``: what σ is; ``parametrization``,
    ``logscale_factor``: what is learned; ``logdet``: return (y, logdet) and, from `inverse`, (x, −logdet), with logdet
    a scalar () that is the same for every sample, not summed over the batch.
    State: parameters ``loc`` (C,) and ``scale`` (C,), or ``logs`` (C,) for log-scale; buffer ``initialized`` (). A
    state_dict carries it, so a loaded layer keeps its parameters. `reset_parameters` makes the next batch the first.
    The first training forward writes the parameters, without a gradient, and already uses them; it needs finite data,
    more than one value per channel, and no constant channel if ``eps`` is 0. Evaluation and `inverse` before it raise
    ValueError. Under the compiler and on the meta device, where nothing can be read, they do not, and data that are
    not finite raise RuntimeError.
    In data-parallel training run one batch before wrapping: the wrapper then gives all ranks the state of rank 0.
    Raises OptionError for refused options.
    """

    eps: float
    variance: str
    parametrization: str
    logscale_factor: float
    batch_variance: bool
    logdet: bool
    initialized: Tensor

    def __init__(
        self,
        channels: int,
        eps: float = 1e-6,
        variance: str = "unbiased",
        parametrization: str = "scale",
        logscale_factor: float = 3.0,
        batch_variance: bool = False,
        logdet: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, OptionValue] = {
            "eps": eps,
            "variance": variance,
            "parametrization": parametrization,
            "logscale_factor": logscale_factor,
            "batch_variance": batch_variance,
            "logdet": logdet,
        }
        super().__init__(card, channels, options, affine=False, device=device, dtype=dtype)
        self.loc = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.register_parameter("logs" if parametrization == "log-scale" else "scale", nn.Parameter(self.loc.clone()))
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool, device=device))
        self._known = Remembered()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer the identity that waits for its first batch."""
        if "initialized" not in self._buffers:
            return  # called by the base class, before there is anything to set
        nn.init.zeros_(self.loc)
        nn.init.constant_(self._learned, 0.0 if self.parametrization == "log-scale" else 1.0)
        self.initialized.fill_(False)
        self._known.forget()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Scale and shift ``x`` (N, C, *positions); the first time in training, set the parameters by ``x`` before."""
        self.check_input(x)
        known = self._known.read(self.initialized)
        if self.training and not known:
            self._initialize(x)
        elif known is False:
            raise ValueError("ActNorm is not initialized: run one batch in training mode, or load a state_dict, first")
        scale, loc = self._scale(), widened(self.loc)
        if x.dtype == scale.dtype and (torch.compiler.is_compiling() or is_tiny(x.numel())):
            y = (x + planes_of(loc, x)) * planes_of(scale, x)
        else:
            # Centred on a constant copy of b, so that the sum of ∂L/∂y (x + b) keeps its digits; the shift is 0.
            center = loc.detach()
            y = F.batch_norm(x, -center, torch.ones_like(center), scale, scale * (loc - center), eps=0.0)
        return (y, self._logdet(x)) if self.logdet else y

    def inverse(self, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the x (N, C, *positions) that `forward` maps to ``y``; ValueError when a scale is zero."""
        self.check_input(y)
        known = self._known.read(self.initialized)
        if known is False:
            raise ValueError("ActNorm is not initialized: run one training batch forward before the inverse")
        scale = self._scale()
        if known and not scale.detach().all():
            raise ValueError(f"ActNorm has no inverse: the scale of channel {int(scale.detach().abs().argmin())} is 0")
        spread = (-1, *(1,) * (y.dim() - 2))
        x = (y / scale.view(spread) - self.loc.view(spread)).to(y.dtype)
        return (x, -self._logdet(y)) if self.logdet else x

    @property
    def _learned(self) -> nn.Parameter:
        learned: nn.Parameter = getattr(self, "logs" if self.parametrization == "log-scale" else "scale")
        return learned

    def _scale(self) -> Tensor:
        learned = widened(self._learned)
        return learned if self.parametrization == "scale" else (self.logscale_factor * learned).exp()

    def _logdet(self, x: Tensor) -> Tensor:
        learned = widened(self._learned)
        logs = learned.abs().log() if self.parametrization == "scale" else self.logscale_factor * learned
        return math.prod(x.shape[2:]) * logs.sum()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._known.forget()
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ActNorm:
        known = self._known.read(self.initialized)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if known:  # a move to the meta device loses what the buffer said
            self._known.assume(self.initialized)
        return self

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        """Set the parameters by ``x``, unless the buffer, which compiled code cannot branch on, says that they are."""
        count = x.numel() // self.channels
        if count < 2:
            raise ValueError(f"ActNorm cannot be initialized by {count} values per channel: it needs 2 or more")
        planes = Planes(x)
        mean, var = (t.squeeze(0) for t in pool(planes.mean, planes.var, 0))
        if self.variance == "unbiased":
            var = var * (count / (count - 1))
        std = (var.mean().view(1) if self.batch_variance else var).sqrt()
        observe(mean=mean, std=std)
        scale = (1 / (std + self.eps)).expand_as(mean)
        self._refuse_unusable(mean, std, scale)
        scale = scale.clamp(max=torch.finfo(self.loc.dtype).max)
        learned = scale.log() / self.logscale_factor if self.parametrization == "log-scale" else scale
        for parameter, value in ((self.loc, -mean), (self._learned, learned)):
            parameter.copy_(torch.where(self.initialized, parameter, value.to(parameter.dtype)))
        self.initialized.fill_(True)
        self._known.assume(self.initialized)

    def _refuse_unusable(self, mean: Tensor, std: Tensor, scale: Tensor) -> None:
        if not readable(scale):
            return
        usable = mean.isfinite() & scale.isfinite() & std.isfinite()
        if torch.compiler.is_compiling():
            torch._assert_async(usable.all(), "ActNorm cannot be initialized by data that are not finite or constant")
        elif not usable.all():
            channel = int(usable.int().argmin())
            constant = bool(mean.isfinite().all() and std.isfinite().all())
            reason = "is constant; give eps > 0" if constant else "holds inf or nan"
            raise ValueError(f"ActNorm cannot be initialized by this batch: channel {channel} {reason}")


def first_batch_is_bn(layer: ActNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for the first batch beside batch normalization, whose ε is inside the root: both vanishing here."""
    first = ActNorm(layer.channels, eps=0.0, variance="biased", device=x.device, dtype=x.dtype)
    return _output(first, x), BatchNorm(layer.channels, eps=1e-30, affine=False, device=x.device, dtype=x.dtype)(x)


def round_trip(layer: ActNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the output beside the input."""
    back = layer.inverse(_output(layer, x))
    return back if isinstance(back, Tensor) else back[0], x


def logdet_is_slogdet(layer: ActNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The formula beside log|det| of the Jacobian of one small sample."""
    _output(layer, x)
    sample = x[:1, :, :2, :2].detach()
    basis = torch.eye(sample.numel(), device=x.device, dtype=x.dtype).view(-1, *sample.shape[1:])
    columns = _output(layer, basis) - _output(layer, torch.zeros_like(basis))  # the map is affine
    return layer._logdet(sample), torch.linalg.slogdet(columns.flatten(1))[1]


def _output(layer: ActNorm, x: Tensor) -> Tensor:
    y = layer(x)
    return y if isinstance(y, Tensor) else y[0]
