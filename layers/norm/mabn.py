r"""Moving Average Batch Normalization: statistics averaged over the last batches, forward and backward (Yan, Wan,
Zhang, Zhang, Wei & Sun 2020, arXiv 2001.06838, section 4).

With χ_t = mean x² over the batch and all positions, V the mean of the last m of them, R their exponential average,
$$z = x / \sqrt{V + \varepsilon},\quad r = \sqrt{V + \varepsilon} / \sqrt{R + \varepsilon},$$
$$y = \gamma_c\,r\,z + \beta_c,\quad g = \gamma_c\,r\,\partial L/\partial y,\quad \Psi_t = \mathrm{mean}\,g z,\quad
\partial L/\partial x = (g - z\,\Psi) / \sqrt{V + \varepsilon}$$
where Ψ is the mean of the last m Ψ_t. Nothing is centred (cen-conv centres the weights instead), so there are two batch
statistics, χ and Ψ, where BN has four. m = real_batch/batch. V = χ_t and Ψ = Ψ_t until t > m and t ≥ warmup: this is
the exact gradient, later it is not the derivative, by design. r is a constant of the step: 1 until
t > max(renorm_after, warmup), then clipped to [1/clip, clip]. Evaluation divides by √(R + ε): no more than BN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.averaged_gradient import averaged_rstd, scale
from layers.base import Norm
from layers.batch_kernels import channel_moments, suits_kernels
from layers.blocks import refuse_batch
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.moments import Planes, snapshot
from layers.observe import observe
from layers.shared import EPS, FOLDED

card = Card(
    title="Moving Average Batch Normalization",
    paper=Paper(
        authors="Yan, Wan, Zhang, Zhang, Wei, Sun",
        title="Towards Stabilizing Batch Statistics in Backward Propagation of Batch Normalization",
        year=2020,
        venue="ICLR 2020",
        arxiv="2001.06838",
    ),
    impl="MovingAverageBatchNorm",
    formula="y = γ_c r x / √(V + ε) + β_c,  V = mean of the last m χ = mean x²",
    summary="Each channel has one mean square over N×H×W values, averaged over m batches; so has its gradient.",
    options=(
        Option(name="batch", type=int, default=8, ge=1, help="B, samples per training batch; no other is taken"),
        Option(
            name="real_batch",
            type=int,
            default=32,
            ge=1,
            help="samples to average over, a multiple of batch: m = real_batch/batch",
            source="ours: the batch with which BN trains well",
        ),
        EPS,
        Option(
            name="momentum",
            type=float,
            default=0.02,
            gt=0,
            le=1,
            help="weight of the new value in R",
            source="the authors' code, which keeps 0.98 of the old value",
        ),
        Option(name="warmup", type=int, default=100, ge=0, help="steps on their own batch", source="the authors' code"),
        Option(name="renorm_after", type=int, default=1000, ge=0, help="steps with r = 1", source="the authors' code"),
        Option(name="clip", type=float, default=5.0, ge=1, help="1/clip ≤ r ≤ clip", source="the authors' code"),
    ),
    derived={"m": "max(1, real_batch // batch)"},
    rules=(
        Rule(
            "real_batch % batch == 0",
            "real_batch={real_batch} is not a multiple of batch={batch}; give m × {batch}",
            "real_batch",
        ),
        Rule(
            "not train or N == 0 or N == batch",
            "batch={batch}, but the input has a batch of {N}: give batch={N}, or {batch} samples",
            "batch",
        ),
    ),
    statistics=(Stat("chi", ("C",), "C×1", given="train"), Stat("r", ("C",), "C×1", given="train")),
    buffers=(
        Stat("running_square", ("C",), "C×1", help="R"),
        Stat("ring_chi", ("m", "C"), help="the last m χ"),
        Stat("ring_psi", ("m", "C"), help="the last m Ψ"),
        Stat("num_batches_tracked", (), help="t"),
    ),
    params="2*C",
    flops=Flops("6*E + 5*C if train else 2*E + 3*C", "10*E - 2*C if train else 4*E - 2*C"),
    executed=Flops(
        "7*E + (20 + m)*C + (3*C if S == 1 or E <= 262144 else 8*N*C) if train else 2*E + 5*C",
        "7*E + (11 + m)*C if train else 4*E - 2*C",
    ),
    explained=FOLDED,
    saved="B*E + 8*C + 9",
    traffic=Flops("(3 if train else 2)*E*B", "(5 if train else 3)*E*B"),
    claims=(
        Claim(
            row="warm-up",
            options={"real_batch": 16},
            holds=("w-scale", "w-vec-scale", "x-scale", "w-scale-group"),
            why="This is BN without centring: it forgets the scale of a channel (if no bias was added), never a shift.",
        ),
        Claim(
            row="frozen statistics",
            options={"real_batch": 16, "warmup": 0, "renorm_after": 0},
            holds=(),
            why="What is not clipped divides by the stored R.",
        ),
        Claim(
            row="statistics follow",
            options={"real_batch": 16, "warmup": 0, "renorm_after": 0, "momentum": 1.0},
            history="follow",
            holds=("w-scale", "w-vec-scale", "x-scale", "w-scale-group"),
            why="Once ring and R have seen the change, it is the row of the warm-up.",
        ),
        Claim(
            row="warm-up",
            weight="cen-conv",
            options={"real_batch": 16},
            holds=(
                "w-scale",
                "w-vec-scale",
                "x-scale",
                "w-recenter-scalar",
                "w-vec-recenter",
                "w-scale-group",
                "x-recenter-scalar@linear,conv",
            ),
            why="Centred weights, for which it is made, forget their own mean and do not see a constant added to all "
            "inputs; every other shift of the data stays, which BN would take away.",
        ),
    ),
    identities=(
        Identity(
            says="with m = 1 it is x/√(mean x² + ε) with its exact gradient",
            options={"batch": "N", "real_batch": "N"},
            proof="root_mean_square",
        ),
        Identity(
            says="without clipping, training = evaluation by R before the step",
            options={"batch": "N", "real_batch": 12, "warmup": 0, "renorm_after": 0, "clip": 1e9},
            proof="training_and_evaluation",
        ),
    ),
    notes=(
        "The review in the notes says that BRN uses moving averages in forward and backward; BRN's backward uses batch "
        "statistics. MABN averages the last m batches in both, and an exponential average enters through r only.",
        "The authors' code does not check the batch size, on which m and the weight of each χ depend; this refuses.",
        "It waits for the device in every step (iters.item()) and reads ctx.saved_variables, which torch removed.",
        "A training step without backward leaves an old Ψ in its slot, and every forward is a step of its own when "
        "gradients are accumulated, here as in the authors' code.",
        "Their classification file simulates pairs of samples in a large batch, and lets r act from step 100 on; this "
        "is their formal one.",
    ),
    examples=(
        {"batch": 4, "real_batch": 8, "warmup": 0, "renorm_after": 0, "clip": 1.1},
        {"batch": 4, "real_batch": 4},
        {"batch": 4, "real_batch": 16, "eps": 1e-3, "momentum": 0.5},
    ),
    couples="train",
    eval_differs="True",
    exact_gradient="False",
    remembers="True",
)


class MovingAverageBatchNorm(Norm):
    """Moving Average Batch Normalization of (N, C, *positions); shape, dtype and memory format are kept.

    Args: ``channels`` C; ``batch`` B = N in training; ``real_batch``, a multiple of B; ``eps`` > 0; ``momentum`` in
    (0, 1]; ``warmup`` and ``renorm_after``, steps ≥ 0; ``clip`` ≥ 1.
    State: parameters ``weight``, ``bias`` (C,); buffers ``running_square`` (C,), ``ring_chi`` and ``ring_psi`` (m, C),
    ``num_batches_tracked`` (). Forward moves all but ``ring_psi``, which backward writes; nothing waits for the device.
    Raises OptionError for refused options and a training batch of other than B samples (none at all is admitted),
    RuntimeError in double backward: the published gradient is no function's derivative.
    """

    batch: int
    real_batch: int
    eps: float
    momentum: float
    warmup: int
    renorm_after: int
    clip: float
    running_square: Tensor
    ring_chi: Tensor
    ring_psi: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        batch: int = 8,
        real_batch: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.02,
        warmup: int = 100,
        renorm_after: int = 1000,
        clip: float = 5.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {
            "batch": batch,
            "real_batch": real_batch,
            "eps": eps,
            "momentum": momentum,
            "warmup": warmup,
            "renorm_after": renorm_after,
            "clip": clip,
        }
        super().__init__(card, channels, options, device=device, dtype=dtype)
        self.register_buffer("running_square", torch.ones(channels, device=device, dtype=dtype))
        for name in ("ring_chi", "ring_psi"):
            self.register_buffer(name, torch.zeros(real_batch // batch, channels, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def reset_running_stats(self) -> None:
        """Set R to 1, the rings and the counter to 0."""
        nn.init.ones_(self.running_square)
        for buffer in (self.ring_chi, self.ring_psi, self.num_batches_tracked):
            buffer.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Divide ``x`` (N, C, *positions) by its averaged root mean square in training, by √(R + ε) in evaluation."""
        self.check_input(x)
        if not self.training:
            center = torch.zeros_like(self.running_square)
            return F.batch_norm(x, center, self.running_square, self.weight, self.bias, False, 0.0, self.eps)
        if x.shape[0] not in (0, self.batch):
            refuse_batch(card, self, x)
        assert self.weight is not None
        assert self.bias is not None
        count = x.numel() // self.channels
        if suits_kernels(x):
            mean, var = (t[0] for t in channel_moments(x))
            chi = var.addcmul_(mean, mean)
            rstd, r, place = self._smooth(chi, count)
            observe(chi=chi, r=r)
            return scale(x, self.weight, self.bias, rstd, r, place)
        planes = Planes(x)
        chi = (planes.var + planes.mean.square()).sum(0) / self.batch
        rstd, r, place = self._smooth(chi, count)
        observe(chi=chi, r=r)
        rstd = averaged_rstd(chi, rstd, place, count, self.weight)
        gain = self.weight.to(chi.dtype) * r * rstd
        return planes.affine(gain, torch.zeros_like(chi), self.bias.to(chi.dtype))

    @torch.no_grad()
    def _smooth(self, chi: Tensor, count: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return 1/√(V + ε), r, (C,), and the place of Ψ; move the buffers unless ``count`` is 0."""
        window = self.ring_chi.shape[0]
        step = snapshot(self.num_batches_tracked) + 1
        slot, averaged = (step % window).view(1), (step > window) & (step >= self.warmup)
        ring = snapshot(self.ring_chi).index_copy_(0, slot, chi.to(self.ring_chi.dtype)[None])
        level = snapshot(torch.where(averaged, ring.to(chi.dtype).mean(0), chi))
        square = snapshot(self.running_square).to(chi.dtype)
        r = ((level + self.eps) / (square + self.eps)).sqrt().clamp(1 / self.clip, self.clip)
        r = torch.where(step > max(self.renorm_after, self.warmup), r, 1)
        if count:
            self.num_batches_tracked.copy_(step)
            self.ring_chi.copy_(ring)
            self.running_square.copy_(torch.lerp(square, level, self.momentum))
        return (level + self.eps).rsqrt(), r, (self.ring_psi, slot, averaged)


def root_mean_square(layer: MovingAverageBatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and ∂L/∂x of the layer, and what autograd makes of the formula without averages."""
    axes = [0, *range(2, x.dim())]
    upstream = x.detach().roll(1, 0).sin()
    square = x.square().mean(axes, keepdim=True)
    gamma, beta = (t.view(-1, *[1] * (x.dim() - 2)) for t in (layer.weight, layer.bias) if t is not None)
    sides = layer(x), gamma * x / (square + layer.eps).sqrt() + beta
    found, wanted = (torch.cat([y, *torch.autograd.grad(y, x, upstream)]) for y in sides)
    return found, wanted


def training_and_evaluation(layer: MovingAverageBatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output in evaluation and, by the same R, in training."""
    with torch.no_grad():
        evaluated = layer.eval()(x)
        return evaluated, layer.train()(x)
