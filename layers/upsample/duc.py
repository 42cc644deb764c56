r"""Dense Upsampling Convolution: class scores at full resolution from a map d times smaller (Wang et al. 2018, WACV,
arXiv 1702.08502, section 3.1).

A convolution makes L·d² channels of the features (N, C, h, w), and they become the scores of L classes at d×d positions
$$y_{n,\,l,\,hd + i,\,wd + j} = z_{n,\,ld^2 + id + j,\,h,\,w},\qquad z = W * x + b.$$
It is `subpixel` with L output channels. With `branches`, as in the authors' network, z is a sum of so many convolutions
with dilations s, 2s, …: atrous spatial pyramid pooling, ASPP.

In training nothing need be rearranged but the labels: the softmax is over l alone, so that the cross-entropy of
`scores` (N, L, d², h, w) with `duc_labels` is that of y with the labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Layer
from layers.card import Card, Claim, Flops, Identity, Option, OptionError, Paper, Peer, Rule
from layers.convolution import options_among
from layers.moments import as_laid_out
from layers.shared import POSITIONS_NEEDED
from layers.space_depth import check_scale, depth_to_space, repeat_filters, space_to_depth
from layers.upsample.subpixel import SubPixelConv2d

card = Card(
    title="Dense Upsampling Convolution",
    paper=Paper(
        authors="Wang, Chen, Yuan, Liu, Huang, Hou, Cottrell",
        title="Understanding Convolution for Semantic Segmentation",
        year=2018,
        venue="WACV 2018",
        arxiv="1702.08502",
    ),
    impl="DUC",
    formula="z = W * x + b,  y[n, l, h·d + i, w·d + j] = z[n, l·d² + i·d + j, h, w]",
    summary="A convolution makes d² channels per class, which become the class's scores at d×d positions.",
    options=(
        Option(name="num_classes", type=int, default=19, ge=1, help="L, classes", source="Cityscapes"),
        Option(name="scale", type=int, default=8, ge=1, help="d, by which the features are smaller than the scores"),
        Option(name="kernel_size", type=int, default=3, ge=1, help="height and width of the kernels, odd"),
        Option(
            name="branches",
            type=int,
            default=None,
            optional=True,
            ge=1,
            help="dilated convolutions that are summed, 4 in the authors' network; none: one plain convolution",
        ),
        Option(
            name="branch_step",
            type=int,
            default=6,
            ge=1,
            help="s: the dilations of the branches are s, 2s, …",
            source="the authors' code",
        ),
        Option(name="bias", type=bool, default=True, help="learn a bias per channel of every convolution"),
    ),
    derived={
        "O": "num_classes",
        "R": "num_classes*scale**2",
        "I": "C*kernel_size**2",
        "B_": "1 if branches is None else branches",
        "HO": "H",
        "WO": "W",
        "Q": "N*H*W",
    },
    rules=(
        POSITIONS_NEEDED,
        Rule(
            "kernel_size % 2 == 1", "kernel_size={kernel_size} is even: the size is kept by an odd one", "kernel_size"
        ),
    ),
    params="B_*(R*I + (R if bias else 0))",
    flops=Flops(
        "B_*(2*Q*R*I + (Q*R if bias else 0)) + (B_ - 1)*Q*R", "B_*(4*Q*R*I + (Q*R - R if bias else 0)) + (B_ - 1)*E"
    ),
    explained="Convolutions, and their sums; the rearrangement moves numbers and computes none. fvcore counts a "
    "multiply-add as one and neither biases nor sums.",
    saved="4*E",
    traffic=Flops("B*(E + B_*R*I + Q*R)", "B*(2*E + 2*B_*R*I + Q*R)"),
    ranks=(4,),
    output=("N", "num_classes", "scale*H", "scale*W"),
    claims=(
        Claim(
            holds=(),
            options={"num_classes": 3, "scale": 2},
            carriers=("conv", "conv-padded"),
            why="It is affine in its input: every scale and shift goes through.",
        ),
    ),
    identities=(
        Identity(
            says="without branches it is sub-pixel convolution",
            options={"num_classes": 5, "scale": 3},
            proof="is_subpixel",
        ),
        Identity(
            says="cross-entropy of the scores with rearranged labels = that of the output, gradients too",
            options={"num_classes": 5, "scale": 2, "branches": 2},
            proof="on_labels",
        ),
        Identity(
            says="softmax over the classes before or after the rearrangement",
            options={"num_classes": 4, "scale": 2},
            proof="softmax_before",
        ),
        Identity(
            says="with equal sub-positions (ICNR): nearest-neighbour upsampling of smaller scores",
            options={"num_classes": 4, "scale": 2, "branches": 2, "branch_step": 1},
            proof="is_nearest",
        ),
    ),
    notes=(
        "The notes call it similar to sub-pixel convolution: the operator is the same, in torch's order crd. What is "
        "its own: the channels are classes, the authors sum four dilated convolutions, and they rearrange labels.",
        "The authors' network has no normalization and no activation here, and every branch has its bias.",
        "Their released configuration upsamples by 4 with 304 channels, and by 2 more with a bilinear resize after the "
        "softmax: it is not the full-resolution layer of the paper, which has 1216.",
        "Dilations of 6 to 24 exceed small maps: taps that see padding alone learn nothing.",
    ),
    examples=(
        {"num_classes": 5, "scale": 2},
        {"num_classes": 3, "scale": 3, "branches": 2, "branch_step": 1},
        {"num_classes": 2, "scale": 1, "kernel_size": 1, "bias": False},
        {"num_classes": 4, "scale": 2, "branches": 1, "branch_step": 2, "bias": False},
    ),
    peer=Peer(
        "torch.nn:ConvTranspose2d",
        {
            "in_channels": "C",
            "out_channels": "num_classes",
            "kernel_size": "kernel_size*scale",
            "stride": "scale",
            "padding": "(kernel_size - 1)//2*scale",
            "bias": "bias",
        },
        given="branches is None",
        same=False,
    ),
    draws="rearrangement",
)


class DUC(Layer):
    """Scores of classes from features: (N, C, h, w) → (N, L, d·h, d·w).

    Args: ``channels`` C of the features; ``num_classes`` L; ``scale`` d; ``kernel_size``, odd; ``branches``, how many
    convolutions with the dilations ``branch_step``, 2·``branch_step``, … are summed, None: one without dilation;
    ``bias``. ``branch`` holds the torch.nn.Conv2d, each ``weight`` (L·d², C, k, k) and ``bias`` (L·d²,); no buffers.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    num_classes: int
    scale: int

    def __init__(
        self,
        channels: int,
        num_classes: int = 19,
        scale: int = 8,
        kernel_size: int = 3,
        branches: int | None = None,
        branch_step: int = 6,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))
        rates = [1] if branches is None else [branch_step * (index + 1) for index in range(branches)]
        self.branch = nn.ModuleList(
            nn.Conv2d(
                channels,
                num_classes * scale**2,
                kernel_size,
                padding=rate * (kernel_size // 2),
                dilation=rate,
                bias=bias,
                device=device,
                dtype=dtype,
            )
            for rate in rates
        )

    def _channels(self, x: Tensor) -> Tensor:
        """The sum of the branches, (N, L·d², h, w)."""
        self.check_input(x)
        self.refuse_no_positions(x)
        z: Tensor = self.branch[0](x)
        for branch in self.branch[1:]:
            z = z + branch(x)
        return as_laid_out(z, x)

    def scores(self, x: Tensor) -> Tensor:
        """Return the scores as (N, L, d², h, w), not rearranged: for the cross-entropy with `duc_labels`."""
        z = self._channels(x)
        return z.view(z.shape[0], self.num_classes, self.scale**2, *z.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, L, d·h, d·w) for the features ``x`` (N, C, h, w)."""
        z = self._channels(x)
        return z if self.scale == 1 else depth_to_space(z, self.scale)


def duc_labels(labels: Tensor, scale: int) -> Tensor:
    """Return ``labels`` (N, d·h, d·w), of any dtype, as (N, d², h, w): the targets of `DUC.scores`.

    Raises OptionError where ``scale`` is no integer ≥ 1 that divides their positions, ValueError where they have not 3
    axes.
    """
    check_scale(scale)
    if labels.dim() != 3:
        raise ValueError(f"duc_labels takes (N, H, W), not {labels.dim()}-d")
    if labels.shape[1] % scale or labels.shape[2] % scale:
        raise OptionError(f"scale={scale} does not divide labels of {labels.shape[1]}×{labels.shape[2]}", "scale")
    return space_to_depth(labels.unsqueeze(1), scale)


def is_subpixel(layer: DUC, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside those of sub-pixel convolution with the same parameters."""
    other = SubPixelConv2d(layer.channels, layer.num_classes, layer.scale, dtype=x.dtype)
    other.conv.load_state_dict(layer.branch[0].state_dict())
    return layer(x), other(x)


def on_labels(layer: DUC, x: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the features, from the rearranged labels and from the rearranged scores."""
    x = x.detach().requires_grad_()
    y = layer(x)
    labels = (y.detach().sum(1) * 100).long() % layer.num_classes
    losses = F.cross_entropy(layer.scores(x), duc_labels(labels, layer.scale)), F.cross_entropy(y, labels)
    found = [torch.cat([torch.autograd.grad(loss, x)[0].flatten(), loss.detach().view(1)]) for loss in losses]
    return found[0], found[1]


def softmax_before(layer: DUC, x: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the output beside rearranged ones of the scores."""
    return layer(x).softmax(1), depth_to_space(layer.scores(x).softmax(1).flatten(1, 2), layer.scale)


def is_nearest(layer: DUC, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of repeated filters and biases beside the upsampled ones of one filter per class."""
    small = DUC(layer.channels, layer.num_classes, 1, branches=len(layer.branch), branch_step=1, dtype=x.dtype)
    with torch.no_grad():
        for ours, theirs in zip(layer.branch.parameters(), small.branch.parameters(), strict=True):
            theirs.copy_(ours[: layer.num_classes])
            ours.copy_(repeat_filters(theirs, layer.scale))
    return layer(x), F.interpolate(small(x), scale_factor=layer.scale, mode="nearest")
