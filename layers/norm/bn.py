r"""Batch Normalization: normalize each channel over the batch and all positions (Ioffe & Szegedy 2015, algorithm 1).

$$y = \gamma_c\,(x - \mu_c) / \sqrt{\sigma^2_c + \varepsilon} + \beta_c$$
with μ and the biased σ² over N and all positions. The running variance is unbiased, m/(m − 1) σ², as in torch.
Evaluation uses the running statistics: a fixed affine map per channel, which folds into the convolution before it.

With ``sync`` the batch is that of all ranks of a process group (Peng et al. 2018, MegDet): one gather of
(m, μ, σ²) forward, one sum of two C-vectors backward. The gradients of γ and β stay sums over the rank's own batch,
which data-parallel wrappers reduce. torch.nn.SyncBatchNorm refuses CPU tensors; this one takes any backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.base import scale_and_shift
from layers.batch_kernels import normalize, normalize_by_torch, suits_kernels, suits_torch
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Peer, Rule, Stat
from layers.moments import Planes, pool
from layers.observe import observe
from layers.running import RunningNorm
from layers.shared import AFFINE, BN_ROW, EPS, MOMENTUM
from layers.synchronise import merge_over_ranks, spans_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

card = Card(
    title="Batch Normalization",
    paper=Paper(
        authors="Ioffe, Szegedy",
        title="Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
        year=2015,
        venue="ICML 2015",
        arxiv="1502.03167",
    ),
    impl="BatchNorm",
    formula="y = γ_c (x − μ_c) / √(σ²_c + ε) + β_c",
    summary="Each channel has one mean and one biased variance over N×H×W values of the whole batch.",
    options=(
        EPS,
        MOMENTUM,
        AFFINE,
        Option(name="track_running_stats", type=bool, default=True, help="keep running statistics for evaluation"),
        Option(
            name="sync",
            type=bool,
            default=False,
            help="in training, take the statistics over the batches of all ranks of torch.distributed",
        ),
    ),
    rules=(
        Rule(
            "N*S != 1 or not train and track_running_stats",
            "one value per channel cannot be normalized; give a larger batch or more positions",
        ),
    ),
    statistics=(
        Stat("mean", ("C",), "C×1", given="train or not track_running_stats"),
        Stat("rstd", ("C",), "C×1", given="train or not track_running_stats"),
    ),
    buffers=(
        Stat("running_mean", ("C",), "C×1", given="track_running_stats"),
        Stat("running_var", ("C",), "C×1", given="track_running_stats"),
        Stat("num_batches_tracked", (), given="track_running_stats"),
    ),
    params="2*C if affine else 0",
    peer=Peer(
        "torch.nn:BatchNorm{d}d",
        {"num_features": "C", "eps": "eps", "momentum": "momentum", "affine": "affine"},
    ),
    flops=Flops(
        "(7 if affine else 5)*E + 2*C if train or not track_running_stats else 2*E + (5 if affine else 4)*C",
        "(11*E - 2*C if affine else 7*E) if train or not track_running_stats else (4*E - 2*C if affine else E)",
    ),
    executed=Flops(
        "2*E + (5 if affine else 4)*C if not train and track_running_stats"
        " else (7 if affine else 5)*E + (10 if track_running_stats else 2)*C if S == 1 or E <= 262144"
        " else 7*E + 8*N*C + (7 if affine else 6)*C + (7*C + (momentum is None) if track_running_stats else 0)",
        "(4*E - 2*C if affine else E) if not train and track_running_stats"
        " else (11*E - 2*C if affine else 7*E) if S == 1 or E <= 262144 else 7*E + (11 if affine else 10)*C",
    ),
    explained="Up to 2¹⁸ elements, and for one position, torch's kernel does the definition. Above, centring, scaling "
    "and shifting are folded into one scale and one shift per channel, so that forward and backward take 7 operations "
    "per element, plus those on N×C numbers.",
    saved="B*E + 8*C",
    traffic=Flops("(3 if train else 2)*E*B", "(5 if train else 3)*E*B"),
    claims=(
        Claim(
            holds=BN_ROW,
            why="Each channel is standardized over the batch: its scale and its shift vanish, those of one sample "
            "stay; a zero-padded border does not move with the data.",
        ),
        Claim(
            row="eval, frozen statistics",
            mode="eval",
            holds=(),
            why="With stored statistics evaluation is a fixed affine map per channel.",
        ),
        Claim(
            row="eval, statistics follow",
            mode="eval",
            history="follow",
            options={"momentum": 1.0},
            holds=BN_ROW,
            why="Once the statistics have seen the change, it is the row of training.",
        ),
        Claim(
            weight="weight-standardization",
            holds=(*BN_ROW, "w-recenter-scalar", "w-vec-recenter"),
            why="Standardized filters forget their mean, which BN alone does not; their scale BN forgets anyway.",
        ),
        Claim(
            weight="cen-conv",
            holds=(*BN_ROW, "w-recenter-scalar", "w-vec-recenter"),
            why="It is the row of weight-standardization: centring is all that it adds before BN.",
        ),
    ),
    identities=(
        Identity(says="BN of one sample = IN", dims={"N": 1}, equals="in", other={"affine": True}),
        Identity(says="without other ranks, synchronised BN = BN", options={"sync": True}, equals="bn"),
        Identity(
            says="Σ ∂L/∂x = 0 and Σ x̂ ∂L/∂x = γ ε/(σ² + ε)^(3/2) Σ x̂ ∂L/∂y in each channel",
            options={"eps": 0.1},
            proof="gradient_sums",
        ),
        Identity(
            says="two values per channel give ±γ + β as ε vanishes: |x̂| ≤ √(m − 1) for m values",
            options={"eps": 1e-30},
            dims={"N": 2, "H": 1, "W": 1},
            proof="two_values",
        ),
        Identity(says="evaluation after a convolution = the convolution by γ W/√(σ² + ε)", mode="eval", proof="folded"),
    ),
    notes=(
        "The notes call BN a pixelwise instance normalization; BN has no per-pixel statistic (that is pono).",
        "Momentum is the weight of the new value here and in torch (0.1), that of the old one in Keras (0.99).",
        "torch.nn.BatchNorm2d takes a momentum outside [0, 1] without a word; this refuses it.",
    ),
    examples=({}, {"affine": False, "momentum": None}, {"track_running_stats": False, "eps": 1e-3, "sync": True}),
    couples="train",
    eval_differs="track_running_stats",
)


class BatchNorm(RunningNorm):
    """Batch Normalization of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``eps`` > 0; ``momentum`` in [0, 1] or None; ``affine`` for γ and β (C,);
    ``track_running_stats`` for the buffers; ``sync`` for statistics over all ranks of ``process_group`` (None: the
    default group). Without an initialised process group, with one rank, and in evaluation ``sync`` changes nothing.
    With it, every rank must run every training forward and backward, if need be on an empty batch; a layer with a
    ``process_group`` of its own can be neither copied nor pickled, because the group cannot.
    State: parameters ``weight``, ``bias``; buffers ``running_mean``, ``running_var``, ``num_batches_tracked``.
    Raises OptionError for refused options and ValueError when a channel holds a single value in training (unless
    other ranks may hold more).
    """

    sync: bool

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        sync: bool = False,
        *,
        process_group: ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {
            "eps": eps,
            "momentum": momentum,
            "affine": affine,
            "track_running_stats": track_running_stats,
            "sync": sync,
        }
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.process_group = process_group
        self.add_running_statistics(track_running_stats, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by its batch in training, by the running statistics in evaluation."""
        self.check_input(x)
        if not self.uses_batch_statistics:
            return self.normalize_by_running(x)
        sync = self.sync and self.training and spans_ranks(self.process_group)
        count = x.numel() // self.channels
        if not sync:
            self.refuse_single_values(count, "channel")
            if suits_torch(x):
                return self._normalize_by_torch(x)
            if suits_kernels(x):
                return self._normalize_by_kernels(x, count)
        planes = Planes(x)
        mean, var = (t.squeeze(0) for t in pool(planes.mean, planes.var, 0))
        total: int | Tensor = count
        if sync:
            mean, var, total = merge_over_ranks(mean, var, count, self.process_group)
        observe(mean=mean, rstd=(var + self.eps).rsqrt())
        self.update_running(mean, var, total)
        scale, shift = scale_and_shift(var, self.eps, self.weight, self.bias)
        return planes.affine(scale, mean, shift)

    def _normalize_by_torch(self, x: Tensor) -> Tensor:
        momentum = 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        y, mean, rstd = normalize_by_torch(
            x, self.weight, self.bias, self.running_mean, self.running_var, momentum, self.eps
        )
        observe(mean=mean, rstd=rstd)
        return y

    def _normalize_by_kernels(self, x: Tensor, count: int) -> Tensor:
        y, mean, var, rstd = normalize(x, self.weight, self.bias, self.eps)
        observe(mean=mean, rstd=rstd)
        self.update_running(mean, var, count)
        return y


def gradient_sums(layer: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ ∂L/∂x and Σ x̂ ∂L/∂x of each channel, and 0 and what ε leaves of the second sum."""
    x = x.detach().requires_grad_()
    upstream = (3 * x.detach()).cos() + 0.5
    (grad,) = torch.autograd.grad(layer(x), x, upstream)
    values, grad, upstream = (t.detach().transpose(0, 1).flatten(1) for t in (x, grad, upstream))
    var = values.var(1, correction=0) + layer.eps
    z = (values - values.mean(1, keepdim=True)) / var.sqrt().unsqueeze(1)
    gamma = torch.ones_like(var) if layer.weight is None else layer.weight.detach()
    left = gamma * layer.eps / var**1.5 * (z * upstream).sum(1)
    return torch.cat([grad.sum(1), (z * grad).sum(1)]), torch.cat([torch.zeros_like(left), left])


def two_values(layer: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output for two samples of one position, and β plus γ times the sign of their difference."""
    first, second = x.detach().flatten(1)
    signs = torch.stack([(first - second).sign(), (second - first).sign()])
    assert layer.weight is not None
    assert layer.bias is not None
    return layer(x).flatten(1), signs * layer.weight + layer.bias


def folded(layer: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the layer makes of a 3×3 convolution of x, and the convolution with the layer in its weights."""
    size = layer.channels
    kernel = torch.linspace(-1, 1, size * size * 9, dtype=x.dtype, device=x.device).sin().view(size, size, 3, 3)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale, shift = scale_and_shift(layer.running_var, layer.eps, layer.weight, layer.bias)
    offset = -scale * layer.running_mean if shift is None else shift - scale * layer.running_mean
    return layer(F.conv2d(x, kernel)), F.conv2d(x, scale.view(-1, 1, 1, 1) * kernel, offset)
