r"""Normalized Convolution: every window of the input is standardized before it meets the filters (Kim et al. 2020,
arXiv 2005.05274, section 3).

With u_np the I = C/groups × KH × KW numbers that output position p of sample n sees, padding included,
$$\hat u_{np} = (u_{np} - \mu_{np}) / \sqrt{\sigma^2_{np} + \varepsilon},\qquad y_{nop} = W_o \cdot \hat u_{np} + b_o,$$
μ and the biased variance over the I numbers of one window and group. Training and evaluation are the same.

The paper unfolds the input into an im2col matrix and standardizes that, nine times the data for a 3×3 kernel. Nothing
is unfolded here: a centred window meets W as the window itself meets W − mean W, and 1/σ is a number per window, so
$$y = \big((W - \bar W) * x\big) / \sqrt{\sigma^2 + \varepsilon} + b,$$
with the moments of windows from box filters (layers/windows.py).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import Convolution, autocast, options_among
from layers.moments import is_channels_last
from layers.norm.pono import PositionalNorm
from layers.observe import observe
from layers.shared import (
    CONVOLUTION,
    CONVOLUTION_PEER,
    CONVOLUTION_RULES,
    CONVOLUTION_SYMBOLS,
    CONVOLUTION_TRAFFIC,
)
from layers.weight.weight_standardization import standardize
from layers.weight_geometry import balanced
from layers.windows import Recipe, centred, normalized_convolution

card = Card(
    title="Normalized Convolution",
    paper=Paper(
        authors="Kim, Lee, Lee, Kang, Kim",
        title="Normalized Convolutional Neural Network",
        year=2020,
        arxiv="2005.05274",
    ),
    impl="NormalizedConv2d",
    formula="y_nop = Σ_i W_oi (u_npi − μ_np) / √(σ²_np + ε) + b_o, u the windows of x",
    summary="Each window is standardized over its I = C/groups × KH × KW numbers before it meets the filters.",
    options=(
        *CONVOLUTION,
        Option(name="center", type=bool, default=True, help="take the mean of each window away"),
        Option(name="scale", type=bool, default=True, help="divide each window by its standard deviation"),
        Option(
            name="eps",
            type=float,
            default=1e-5,
            ge=0,
            help="added to the variance, inside the root",
            source="ours: the authors' 1e-14 makes gradients of 2e7 out of a constant window in float32",
        ),
    ),
    derived={
        **CONVOLUTION_SYMBOLS,
        "HP": "H + 2*axis(padding, 0)",
        "WP": "W + 2*axis(padding, 1)",
        "given": "E if padding_mode == 'zeros' else P",  # what is shifted: other padding is done before
        "border": "1 if padding_mode == 'zeros' and (HP > H or WP > W) else 0",
        "boxes": "2*N*groups*HO*WP",  # two maps, summed over the height of windows
    },
    rules=(
        *CONVOLUTION_RULES,
        Rule(
            "I > 1 or not (center or scale)",
            "a window of 1 number is nothing without its mean: use a larger kernel or fewer groups",
            "groups",
        ),
    ),
    statistics=(
        Stat("mean", ("N", "groups", "HO", "WO"), "N×G×HO×WO", given="scale"),
        Stat("var", ("N", "groups", "HO", "WO"), "N×G×HO×WO", given="scale"),
    ),
    params="O*I + (O if bias else 0)",
    flops=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + Q*groups*(5*I + 2 if scale else 2*I if center else 0)",
        "4*Q*O*I + (Q*O - O if bias else 0) + Q*groups*(7*I if scale else 2*I if center else 0)",
    ),
    executed=Flops(
        "2*Q*O*I + (Q*O if bias else 0) + (2*O*I if center else O*I - O + N*O + Q*O if scale else 0) + "
        "(Q*O + 2*given + 3*P + boxes*(KH - 1) + 2*Q*groups*KW + 6*Q*groups + N*groups*(border - 2*HP*WP) "
        "if scale else 0)",
        "4*Q*O*I + (Q*O - O if bias else 0) + (2*O*I if center else Q*O + N*O - O + O*I if scale else 0) + unpad + "
        "(3*Q*O + 4*given + (2*O*I if center else 0) + boxes*KH + 2*Q*groups*KW + 4*Q*groups + N*groups*border "
        "if scale else 0)",
    ),
    explained="The definition standardizes every window, Q×G×I numbers; here the moments come from sums over channels "
    "and a box filter on Q×G maps, and one factor per window scales the outputs. The data are shifted once, and once "
    "more backward. fvcore counts the convolution, by one per multiply-add, and what its handles know of the rest.",
    saved="4*kept + (4*Q*O + 8*Q*groups + 4*N*groups if scale else 4*O*I if center else 0)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=(
        Claim(
            holds=(
                "x-scale",
                "case-scale",
                "w-recenter-scalar",
                "w-vec-recenter",
                "x-recenter-scalar@linear,conv",
                "cases-scale",
                "ghost-scale",
            ),
            why="A standardized window sees no scale of its sample. Filters are not standardized, so theirs goes "
            "through, but their mean meets centred windows only. A constant added to the data is one to every window, "
            "except where zeros are padded.",
        ),
        Claim(
            row="not centred",
            options={"center": False},
            holds=("x-scale", "case-scale", "cases-scale", "ghost-scale"),
            why="The variance takes the mean away, the window that is divided by it keeps it.",
        ),
    ),
    identities=(
        Identity(says="y σ_u = y_WS σ_w = (W − mean W) * x: the dual of Weight Standardization", proof="dual"),
        Identity(
            says="1×1: biased Positional Normalization, then the convolution",
            options={"kernel_size": 1},
            proof="positional",
        ),
        Identity(says="scale=False is the convolution by centred weights", options={"scale": False}, equals="cen-conv"),
        Identity(says="Σ ∂L/∂W = 0 for every filter", proof="balanced"),
        Identity(says="y − b is linear in W", proof="linear"),
        Identity(says="c_o added to every weight of a filter changes nothing", options={"padding": 1}, proof="no_mean"),
        Identity(says="a_n x_n has the outputs of x_n", options={"padding": 1, "eps": 0}, proof="no_scale"),
        Identity(says="c_n + x_n has the outputs of x_n, without padding", proof="no_shift"),
        Identity(
            says="Σ ∂L/∂x_n = 0 and ⟨x_n, ∂L/∂x_n⟩ = 0, without padding", options={"eps": 0}, proof="perpendicular"
        ),
    ),
    notes=(
        "The published class cannot be constructed: it names itself wrongly in super() and misspelt scale in 2020: "
        "NameErrors both. Its bias and gain start as uninitialised memory; its forward uses neither the gain nor the "
        "switches for center, scale and bias.",
        "It unfolds the padded input, so the zeros at the border take part in mean and variance with full weight: a "
        "padded position becomes −μ/σ, not 0. That is the definition here too; a constant image has outputs ≠ 0 there.",
        "Its ε is 1e-14. In float32 a window of equal numbers then has outputs of rounding noise / 1e-7 and gradients "
        "of 2e7; the default here is 1e-5.",
        "The notes' size of the statistics, [NWH], means the output's W and H, and is that of one group: N×G×HO×WO.",
        "The notes' remark that a 1×1 kernel is Positional Normalization holds for the biased variance and an equal ε "
        "only: its published torch code is unbiased, which is √((C − 1)/C) apart.",
        "holocron's norm_conv2d centres in place, which torch now refuses in backward, and ignores groups.",
    ),
    peer=CONVOLUTION_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "eps": 1e-3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False, "center": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular"},
        {"kernel_size": 1, "groups": 2, "padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "scale": False},
    ),
)


class NormalizedConv2d(Convolution):
    """A convolution of standardized windows: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d; ``center`` and ``scale``, what each window goes through; ``eps`` ≥ 0, with 0 a
    window of equal numbers gives NaN. Padding counts as data: zeros at the border take part in mean and variance.
    Without ``scale`` it is the convolution by W, or by W − mean W with ``center``, and computes no statistics.
    Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of torch.nn.Conv2d load; no state.
    Raises OptionError for refused options and windows of one number, ValueError for inputs that do not fit.
    """

    center: bool
    scale: bool
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
        center: bool = True,
        scale: bool = True,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    def effective_weight(self) -> Tensor:
        """Return W − mean W, or W without ``center``: what the input meets before it is divided by σ."""
        return centred(self.weight) if self.center else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, O, HO, WO) for ``x`` (N, C, H, W)."""
        if not self.scale:
            return super().forward(x)
        self.check_input(x)
        kept = not x.is_contiguous() and is_channels_last(x)
        x, padding = self.padded(x)
        x, weight = autocast(x, self.weight)  # the bias is added to float32
        recipe = Recipe(self.kernel_size, self.stride, padding, self.dilation, self.groups, self.center, self.eps)
        y, mean, var = normalized_convolution(x, weight, self.bias, recipe)
        observe(mean=mean, var=var)
        return y.contiguous(memory_format=torch.channels_last) if kept else y


def _without_bias(layer: NormalizedConv2d, x: Tensor) -> Tensor:
    """The output less the bias."""
    y: Tensor = layer(x)
    return y if layer.bias is None else y - layer.bias.view(-1, 1, 1)


def _altered(layer: NormalizedConv2d, weight: Tensor) -> NormalizedConv2d:
    """A copy of ``layer`` with another weight."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.copy_(weight)
    return other


def dual(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs times the deviation of their windows beside those by standardized filters times that of the filters."""
    windows = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    y = _without_bias(layer, x)
    spread = (windows.var(1, correction=0) + layer.eps).sqrt().view(-1, 1, *y.shape[2:])
    rows = layer.weight.flatten(1)
    filters = standardize(rows, "paper", layer.eps).view(layer.weight.shape)
    deviation = (rows.var(1, correction=0) + layer.eps).sqrt().view(-1, 1, 1)
    return y * spread, F.conv2d(x, filters, None, layer.stride, 0, layer.dilation) * deviation


def positional(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside those of the plain convolution after Positional Normalization."""
    norm = PositionalNorm(layer.in_channels, layer.eps, unbiased=False)
    return layer(x), F.conv2d(norm(x), layer.weight, layer.bias)


def linear(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by −3 W + V beside −3 times those by W plus those by V, all without b."""
    other = layer.weight.flip(0)
    apart = -3 * _without_bias(layer, x) + _without_bias(_altered(layer, other), x)
    return _without_bias(_altered(layer, -3 * layer.weight + other), x), apart


def no_mean(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs by W + c beside those by W, a c for each filter."""
    added = torch.arange(layer.out_channels, dtype=x.dtype).view(-1, 1, 1, 1)
    return _altered(layer, layer.weight + added)(x), layer(x)


def no_scale(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for a_n x_n beside those for x_n."""
    return layer(x * (1 + torch.arange(len(x), dtype=x.dtype).view(-1, 1, 1, 1))), layer(x)


def no_shift(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs for x_n + c_n beside those for x_n."""
    return layer(x + torch.arange(len(x), dtype=x.dtype).view(-1, 1, 1, 1)), layer(x)


def perpendicular(layer: NormalizedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines between ∂L/∂x_n and 1, and x_n, beside 0; both plus 1."""
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(layer(x).cos().sum(), x)
    found, rows = found.flatten(1), x.detach().flatten(1)
    cosines = torch.stack([torch.cosine_similarity(found, each, 1) for each in (rows, torch.ones_like(rows))])
    return 1 + cosines, torch.ones_like(cosines)


__all__ = [
    "NormalizedConv2d", "balanced", "card", "dual", "linear", "no_mean", "no_scale", "no_shift", "perpendicular",
    "positional",
]  # fmt: skip
