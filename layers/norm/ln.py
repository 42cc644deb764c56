r"""Layer Normalization: normalize each sample, or each position of it, by itself (Ba, Kiros & Hinton 2016, section 3).

$$y = g\,(x - \mu) / \sqrt{\sigma^2 + \varepsilon} + b$$
with μ and the biased σ² over C and all positions of a sample (``axes="chw"``: N×1 statistics, as the paper's on a fully
connected layer), or over the C channels at each position (``axes="channel"``: N×H×W statistics, as in Transformers).
The paper has no ε. Training and evaluation are the same.

``affine="none"`` is LN-simple (Xu et al. 2019, arXiv 1911.07013); with ``detach`` backward treats μ, σ or both as
constants, as their gradient studies do. The repository of that paper computes (x − μ)/(s + ε) with the unbiased s:
``unbiased=True, eps_mode="std"``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.base import Norm
from layers.blocks import refuse_batch
from layers.card import Card, Claim, Flops, Identity, Option, OptionValue, Paper, Peer, Rule, Stat
from layers.group_norm import group_norm, normalize_elements
from layers.moments import Planes, pool
from layers.observe import observe
from layers.positions import Recipe, channels_innermost, grid, standardize
from layers.shared import EPS, POSITION_ROW, POSITION_SYMBOLS

card = Card(
    title="Layer Normalization",
    paper=Paper(authors="Ba, Kiros, Hinton", title="Layer Normalization", year=2016, arxiv="1607.06450"),
    impl="LayerNorm",
    formula="y = g (x − μ) / √(σ² + ε) + b",
    summary="Each sample has one mean and biased variance over C×H×W values; or each of its positions, over C values.",
    options=(
        Option(name="axes", type=str, default="chw", choices=("chw", "channel"), help="over what a statistic is taken"),
        Option(
            name="affine",
            type=str,
            default="channel",
            choices=("channel", "elementwise", "none"),
            help="learn g and b per channel, per element (torch.nn.LayerNorm; needs height and width), or not",
        ),
        EPS,
        Option(name="unbiased", type=bool, default=False, help="divide the variance by m − 1, not m"),
        Option(name="eps_mode", type=str, default="var", choices=("var", "std"), help="to what eps is added: σ², or σ"),
        Option(
            name="detach",
            type=str,
            default="none",
            choices=("none", "mean", "std", "both"),
            help="which statistics are constants in backward; the gradient is then no derivative",
            source="Xu et al. 2019",
        ),
        Option(name="height", type=int, default=None, optional=True, ge=1, help="H for elementwise (L, or D·H in 5-d)"),
        Option(name="width", type=int, default=None, optional=True, ge=1, help="W for elementwise (none for L)"),
    ),
    derived={
        **POSITION_SYMBOLS,
        "detached": "0 if detach == 'none' else 2 if detach == 'mean' else 4 if detach == 'std' else 6",
        "by_passes": "1 if axes == 'channel' and not rows else 0",
        "look": "3*N - 1 if E > 0 and axes == 'chw' and S*(C/8 if affine == 'elementwise' else 1) >= 2048 else 0",
    },
    rules=(
        Rule("axes == 'chw' or C > 1", "axes=channel needs more than 1 channel: of one value nothing is left", "axes"),
        Rule(
            "affine != 'elementwise' or axes == 'chw'",
            "affine=elementwise is for axes=chw; the C values that axes=channel normalizes have affine=channel",
            "affine",
        ),
        Rule(
            "affine != 'elementwise' or height == H and (1 if width is None else width) == W",
            "affine=elementwise on this input needs height={H} and width={W}, not height={height} and width={width}",
            "height",
        ),
        Rule(
            "(affine == 'elementwise') == (height is not None) and (width is None or height is not None)",
            "affine=elementwise needs the height and width of the input, and nothing else takes them; "
            "given are affine={affine}, height={height}, width={width}",
            "height",
        ),
    ),
    statistics=(
        Stat("mean", ("N", "1"), "N×1", given="axes == 'chw'"),
        Stat("rstd", ("N", "1"), "N×1", given="axes == 'chw'"),
        Stat("mean", ("N", "H", "W"), "N×H×W", given="axes == 'channel'"),
        Stat("rstd", ("N", "H", "W"), "N×H×W", given="axes == 'channel'"),
    ),
    params="2*C if affine == 'channel' else 2*C*S if affine == 'elementwise' else 0",
    flops=Flops(
        "(5 if affine == 'none' else 7)*E + 2*N*(1 if axes == 'chw' else S)",
        "(7*E if affine == 'none' else 11*E - 2*C*(1 if affine == 'channel' else S)) - detached*E",
    ),
    executed=Flops(
        "(8 if affine == 'channel' else 6)*E + 3*N*S if by_passes"
        " else (5 if affine == 'none' else 7)*E + 2*N*(S if axes == 'channel' else 1) + look",
        "(14 if affine == 'channel' else 9)*E + 4*N*S if by_passes"
        " else 7*E if affine == 'none' else 11*E - 2*C*(1 if affine == 'channel' else S)",
    ),
    explained="Over (C, H, W), and of rows, torch's kernel does the definition; of large maps 3 operations per sample "
    "tell whether to do it again less the mean. Else the data of a position are first shifted by their own first "
    "channel, so that a large mean costs no digits; backward standardizes again.",
    saved="B*E + 8*N*(S if axes == 'channel' else 1)",
    stated="not unbiased and eps_mode == 'var' and detach == 'none'",
    claims=(
        Claim(
            row="axes=chw, statistics N×1",
            holds=(
                "w-scale",
                "w-recenter@linear",
                "x-scale",
                "case-scale",
                "w-recenter-scalar@linear",
                "cases-scale",
                "ghost-scale",
                "pre-bias-common",
            ),
            why="Why is LN invariant to weight re-centering? (W + 1γᵀ)x = Wx + (γᵀx)·1: adding one vector γ to the "
            "incoming weights of every neuron adds one number s = γᵀx to every pre-activation of a sample. LN "
            "subtracts the mean over the neurons of the sample, so s leaves a − μ and σ as they were, whatever x, ε "
            "and a bias per neuron are. BN subtracts the mean of one neuron over the batch; s differs from sample to "
            "sample and stays. Where it is not: a different shift per neuron or per group of neurons; the scaling "
            "half of W' = δW + 1γᵀ when the layer has a bias; and every convolution under N×1 statistics. There the "
            "shift is a map, s[n,h,w] = (x ⋆ Γ)[n,h,w], common to the channels but not to the positions; LN removes "
            "its spatial mean only, and the variance becomes var(y) + var_hw(s) + 2 cov_hw(mean_c y, s). It holds "
            "again where s is constant in space (a 1×1 map, a constant image without padding), and on every "
            "convolution with axes=channel.",
        ),
        Claim(
            row="axes=channel, statistics N×H×W",
            options={"axes": "channel"},
            holds=POSITION_ROW,
            why="The shift (x ⋆ Γ)[n,h,w] of a re-centered kernel is common to all channels at a position, and the "
            "mean is taken there: any padding, stride and dilation, but not a grouped convolution, whose shift is "
            "common only within one of its groups.",
        ),
    ),
    identities=(
        Identity(says="LN over (C, H, W) = GN(1)", equals="gn", other={"groups": 1}),
        Identity(says="on a 1×1 map the axes agree", dims={"H": 1, "W": 1}, equals="ln", other={"axes": "channel"}),
        Identity(
            says="the gradient is re-centered: σ ∂L/∂x = ∂L/∂y − mean(∂L/∂y) − z mean(z ∂L/∂y)",
            options={"axes": "channel", "affine": "none", "eps": 1e-30},
            proof="gradient_in_closed_form",
        ),
        Identity(
            says="and shrunk: σ² var(∂L/∂x) = var(∂L/∂y) − mean(z ∂L/∂y)²",
            options={"axes": "channel", "affine": "none", "eps": 1e-30},
            proof="gradient_variance",
        ),
        Identity(
            says="not re-centered with μ detached: σ ∂L/∂x = ∂L/∂y − z mean(z ∂L/∂y)",
            options={"axes": "channel", "affine": "none", "eps": 1e-30, "detach": "mean"},
            proof="gradient_in_closed_form",
        ),
        Identity(
            says="not shrunk with σ detached: σ ∂L/∂x = ∂L/∂y − mean(∂L/∂y)",
            options={"axes": "channel", "affine": "none", "eps": 1e-30, "detach": "std"},
            proof="gradient_in_closed_form",
        ),
        Identity(
            says="neither with both detached: σ ∂L/∂x = ∂L/∂y",
            options={"axes": "channel", "affine": "none", "eps": 1e-30, "detach": "both"},
            proof="gradient_in_closed_form",
        ),
    ),
    notes=(
        "The notes say that LN has no trainable parameters; as published it has a gain and a bias, LN-simple has none.",
        "The notes' N×1 is that of a fully connected layer, or of (C, H, W); Transformers normalize N×L positions.",
        "The code of Xu et al. divides by the unbiased s + ε, and keeps a weight and bias that LN-simple never uses.",
        "torch.nn.LayerNorm((C, H, W)) learns C·H·W gains, GroupNorm(1, C) learns C; both are LN over (C, H, W).",
        "The text says that all methods forget the scale of the data set; table 1, with No for weight norm, is right.",
    ),
    examples=(
        {},
        {"axes": "channel", "eps": 1e-3},
        {"affine": "none", "unbiased": True, "eps_mode": "std"},
        {"affine": "elementwise", "height": 3, "width": 4},
    ),
    exact_gradient="detach == 'none'",
    peer=Peer(
        "torch.nn:GroupNorm",
        {"num_groups": "1", "num_channels": "C", "eps": "eps", "affine": "affine != 'none'"},
        given="axes == 'chw' and affine != 'elementwise' and not unbiased and eps_mode == 'var' and detach == 'none'",
    ),
)


class LayerNorm(Norm):
    """Layer Normalization of (N, C, *positions); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C; ``axes`` chw or channel; ``affine`` channel (g and b of shape (C,)), elementwise (shape
    (C, height, width), or (C, height) without ``width``; the input's positions must be those) or none; ``eps`` > 0;
    ``unbiased``, ``eps_mode`` and ``detach`` as in the studies of LN-simple.
    State: parameters ``weight`` and ``bias``, under torch's names; no buffers. Raises OptionError for refused options
    and ValueError when a statistic would be taken over a single value.
    """

    axes: str
    affine: str
    eps: float
    height: int | None
    width: int | None

    def __init__(
        self,
        channels: int,
        axes: str = "chw",
        affine: str = "channel",
        eps: float = 1e-5,
        unbiased: bool = False,
        eps_mode: str = "var",
        detach: str = "none",
        height: int | None = None,
        width: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, OptionValue] = {
            "axes": axes, "affine": affine, "eps": eps, "unbiased": unbiased, "eps_mode": eps_mode, "detach": detach,
            "height": height, "width": width,
        }  # fmt: skip
        super().__init__(card, channels, options, affine=affine == "channel", device=device, dtype=dtype)
        self.recipe = Recipe(self.eps, eps_mode, unbiased, detach)
        if affine == "elementwise":
            shape = [channels, *(size for size in (height, width) if size is not None)]
            for name in ("weight", "bias"):
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *positions)."""
        self.check_input(x)
        if self.axes == "channel":
            return self._normalize_positions(x)
        self.refuse_single_values(x.numel() // (x.shape[0] or 1), "sample")
        if self.affine == "elementwise":
            return self._normalize_elementwise(x)
        return self._normalize_samples(x, self.weight, self.bias)

    def _normalize_elementwise(self, x: Tensor) -> Tensor:
        if grid(x)[1:] != (self.height, self.width or 1):
            refuse_batch(card, self, x)
        shape = x.shape[1:]
        weight, bias = (p.reshape(shape) for p in (self.weight, self.bias) if p is not None)
        if self._suits_kernel(x) and x.is_contiguous():
            return normalize_elements(x, weight, bias, self.eps)
        return (self._normalize_samples(x, None, None) * weight + bias).to(x.dtype)

    def _normalize_samples(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.recipe == Recipe(self.eps):
            return group_norm(x, 1, weight, bias, self.eps)
        planes = Planes(x)
        mean, var = pool(planes.mean, planes.var, 1)
        values = x[:1].numel()
        rstd = self.recipe.rstd(var * (values / max(1, self.recipe.count(values))))
        observe(mean=mean, rstd=rstd)
        center = mean if self.recipe.mean_lives else mean.detach()
        scale = rstd if self.recipe.std_lives else rstd.detach()
        if weight is not None and bias is not None:
            return planes.affine(scale * weight.to(scale.dtype), center, bias.to(scale.dtype))
        return planes.affine(scale, center)

    def _normalize_positions(self, x: Tensor) -> Tensor:
        if self._suits_kernel(x) and channels_innermost(x):
            rows, size = x.movedim(1, -1), (self.channels,)
            y, mean, rstd = torch.native_layer_norm(rows, size, self.weight, self.bias, self.eps)
            y = y.reshape(x.shape) if x.is_contiguous() else y.movedim(-1, 1)
        else:
            y, mean, rstd = standardize(x, self.weight, self.bias, self.recipe)
        observe(mean=mean.reshape(grid(x)), rstd=rstd.reshape(grid(x)))
        return y

    def _suits_kernel(self, x: Tensor) -> bool:
        """Whether torch's kernel may do it, fast. It keeps the statistics of half types for backward as narrow."""
        same = self.weight is None or self.weight.dtype == x.dtype
        return same and x.dtype.itemsize >= 4 and x.numel() > 0 and self.recipe == Recipe(self.eps)


def gradient_in_closed_form(layer: LayerNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return σ ∂L/∂x and ∂L/∂y less the two terms that come through μ and σ, where those are not detached."""
    grad, upstream, z = _gradient(layer, x)
    through_mean = upstream.mean(1, keepdim=True) if layer.recipe.mean_lives else 0
    through_std = z * (upstream * z).mean(1, keepdim=True) if layer.recipe.std_lives else 0
    return grad, upstream - through_mean - through_std


def gradient_variance(layer: LayerNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return σ² var(∂L/∂x) and var(∂L/∂y) − mean(z ∂L/∂y)²: never more than var(∂L/∂y)."""
    grad, upstream, z = _gradient(layer, x)
    return grad.var(1, correction=0), upstream.var(1, correction=0) - (upstream * z).mean(1).square()


def _gradient(layer: LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return σ ∂L/∂x, ∂L/∂y (of nonzero mean) and z."""
    x = x.detach().requires_grad_()
    z = layer(x)
    upstream = (3 * x.detach()).cos() + 0.5
    (grad,) = torch.autograd.grad(z, x, upstream)
    return grad * x.detach().std(1, correction=0, keepdim=True), upstream, z.detach()
