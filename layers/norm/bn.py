r"""Batch Normalization: normalize each channel over the batch and all positions (Ioffe & Szegedy 2015, algorithm 1).

$$y = \gamma_c\,(x - \mu_c) / \sqrt{\sigma^2_c + \varepsilon} + \beta_c$$
with μ and the biased σ² over N and all positions. The running variance is unbiased, m/(m − 1) σ², as in torch.
Evaluation uses the running statistics: a fixed affine map per channel, which folds into the convolution before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.base import scale_and_shift
from layers.card import AFFINE, EPS, Card, Claim, Flops, Identity, Option, Paper, Peer, Stat
from layers.moments import Planes, pool
from layers.observe import observe
from layers.running import RunningNorm

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
        Option(
            name="momentum",
            type=float,
            default=0.1,
            ge=0,
            le=1,
            optional=True,
            help="weight of the new value in the running statistics; none averages all batches",
            source="torch.nn",
        ),
        AFFINE,
        Option(name="track_running_stats", type=bool, default=True, help="keep running statistics for evaluation"),
    ),
    statistics=(Stat("mean", ("C",), "C×1"), Stat("var", ("C",), "C×1")),
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
    flops=Flops("(7 if affine else 5)*E + 2*C if train else 2*E + 5*C", "(11 if affine else 9)*E if train else 4*E"),
    claims=(
        Claim(
            holds=(
                "w-scale",
                "w-vec-scale",
                "x-scale",
                "x-recenter@linear,conv",
                "w-scale-group",
                "x-recenter-scalar@linear,conv",
                "x-recenter-image@linear",
                "pre-bias",
                "pre-bias-common",
            ),
        ),
    ),
    identities=(Identity(says="BN of one sample = IN", dims={"N": 1}, equals="in", other={"affine": True}),),
    notes=("The notes call BN a pixelwise instance normalization; BN has no per-pixel statistic (that is pono).",),
    examples=({}, {"affine": False, "momentum": None}, {"track_running_stats": False, "eps": 1e-3}),
    couples="train",
    eval_differs=True,
)


class BatchNorm(RunningNorm):
    """Batch Normalization of (N, C, *positions)."""

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"eps": eps, "momentum": momentum, "affine": affine, "track_running_stats": track_running_stats}
        super().__init__(card, channels, options, affine=affine, device=device, dtype=dtype)
        self.add_running_statistics(track_running_stats, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions) by its batch in training, by the running statistics in evaluation."""
        self.check_input(x)
        if not self.uses_batch_statistics:
            return self.normalize_by_running(x)
        count = x.numel() // self.channels
        self.refuse_single_values(count, "channel")
        planes = Planes(x)
        mean, var = (t.squeeze(0) for t in pool(planes.mean, planes.var, 0))
        observe(mean=mean, var=var)
        self.update_running(mean, var, count)
        scale, shift = scale_and_shift(var, self.eps, self.weight, self.bias)
        return planes.affine(scale, mean, shift)
