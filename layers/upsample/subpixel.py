r"""Sub-pixel convolution (ESPCN): a convolution makes r² channels for each output channel, and they become its r×r
sub-positions (Shi et al. 2016, CVPR, arXiv 1609.05158, section 3.2).

With scale r and O output channels, z = W * x + b has O·r² channels, and for 0 ≤ i, j < r
$$y_{n,\,o,\,hr + i,\,wr + j} = z_{n,\,c(o, ir + j),\,h,\,w}.$$
Order crd: c = o·r² + i·r + j, torch's PixelShuffle; order dcr: c = (i·r + j)·O + o, the default of ONNX and TensorFlow.

It is a transposed convolution of stride r with a kernel of k·r, whose taps are sorted by sub-position:
$$W^T_{c,\,o,\,(k-1-a)r + i,\,(k-1-e)r + j} = W_{c(o, ir + j),\,c,\,a,\,e},\quad \pi = (k - 1 - p)\,r$$
(`to_transposed` and `from_transposed`; the other way for every kernel, which is filled up with zeros). Each of the r²
sub-positions has filters of its own: where they start different, the output starts with a checkerboard. `icnr` starts
them equal (arXiv 1707.02937), so that the layer starts as a convolution and nearest-neighbour upsampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.base import Layer
from layers.card import Card, Claim, Flops, Identity, Option, OptionError, Paper, Peer, Rule
from layers.convolution import options_among
from layers.init.icnr import icnr_
from layers.moments import as_laid_out
from layers.shared import ORDER, POSITIONS_NEEDED, SCALE
from layers.space_depth import by_offset, depth_to_space, repeat_filters, space_to_depth
from layers.transposed import from_transposed, sizes_of, to_transposed, to_transposed_bias

card = Card(
    title="Sub-pixel convolution",
    paper=Paper(
        authors="Shi, Caballero, Huszár, Totz, Aitken, Bishop, Rueckert, Wang",
        title="Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural "
        "Network",
        year=2016,
        venue="CVPR 2016",
        arxiv="1609.05158",
    ),
    impl="SubPixelConv2d",
    formula="z = W * x + b,  y[n, o, h·r + i, w·r + j] = z[n, c(o, i·r + j), h, w]",
    summary="A convolution makes r² channels per output channel, which become its r×r sub-positions.",
    options=(
        Option(name="out_channels", type=int, default=None, optional=True, ge=1, help="O; none: as many as in"),
        SCALE,
        Option(name="kernel_size", type=int, default=3, ge=1, help="height and width of the kernel"),
        Option(
            name="padding",
            type=int,
            default=None,
            optional=True,
            ge=0,
            help="zeros on each side; none: kernel_size // 2, which keeps the size where the kernel is odd",
        ),
        Option(name="bias", type=bool, default=True, help="learn a bias per channel before the rearrangement"),
        ORDER,
        Option(
            name="icnr",
            type=bool,
            default=False,
            help="start the sub-positions equal, bias too",
            source="Aitken et al. 2017",
        ),
    ),
    derived={
        "O": "C if out_channels is None else out_channels",
        "R": "O*scale**2",
        "I": "C*kernel_size**2",
        "pad": "kernel_size // 2 if padding is None else padding",
        "HO": "H + 2*pad - kernel_size + 1",
        "WO": "W + 2*pad - kernel_size + 1",
        "Q": "N*HO*WO",
    },
    rules=(
        POSITIONS_NEEDED,
        Rule(
            "HO >= 1 and WO >= 1",
            "kernel_size={kernel_size} is larger than the input of {H}×{W} with a padding of {pad}",
            "kernel_size",
        ),
    ),
    params="R*I + (R if bias else 0)",
    flops=Flops("2*Q*R*I + (Q*R if bias else 0)", "4*Q*R*I + (Q*R - R if bias else 0)"),
    explained="It is a convolution; the rearrangement moves numbers and computes none. fvcore counts a multiply-add as "
    "one and no bias.",
    saved="4*E",
    traffic=Flops("B*(E + R*I + Q*R)", "B*(2*E + 2*R*I + Q*R)"),
    ranks=(4,),
    output=("N", "O", "scale*HO", "scale*WO"),
    claims=(
        Claim(
            holds=(),
            options={"scale": 1},
            why="It is a convolution, through which every scale and shift goes; the rearrangement, which is none at "
            "scale 1, loses no number.",
        ),
    ),
    identities=(
        Identity(says="the rearrangement undone is z, bit for bit", proof="undone", within=1e-15),
        Identity(says="the same in the order dcr", options={"order": "dcr", "scale": 3}, proof="undone", within=1e-15),
        Identity(says="it keeps the norm, and its gradient is its inverse", proof="gradient_is_inverse"),
        Identity(
            says="y = conv_transpose(x, Wᵀ, stride r), without a bias", options={"bias": False}, proof="transposed"
        ),
        Identity(
            says="so at scale 3 in the order dcr",
            options={"bias": False, "order": "dcr", "scale": 3, "padding": 0},
            proof="transposed",
        ),
        Identity(
            says="a transposed convolution (kernel 4, stride 2, padding 1) is one of kernel 3", proof="from_4_2_1"
        ),
        Identity(says="order dcr is order crd with its filters sorted", options={"order": "dcr"}, proof="other_order"),
        Identity(says="with equal sub-positions: nearest-neighbour upsampling of a convolution", proof="is_nearest"),
        Identity(says="the same in the order dcr", options={"order": "dcr", "scale": 3}, proof="is_nearest"),
        Identity(says="an input moved by 1 moves the output by r, away from the border", proof="moves_by_scale"),
    ),
    notes=(
        "Pixel shuffle is not one permutation. Equation 4 of the paper has one letter for a channel and for their "
        "number; as it is read, it is dcr, offset before channel. torch's PixelShuffle is crd. A checkpoint in the "
        "other order runs without an error and mixes channels: `order` says which it is.",
        "i-RevNet does not use the same thing: it goes the other way, from positions to channels, in the order dcr.",
        "The last layer alone saves nothing over a convolution behind nearest-neighbour upsampling, O·C·k²·r²·H·W "
        "multiply-adds both; what is saved is in the layers before it, which work at the low resolution.",
        "It computes what a transposed convolution of kernel k·r and stride r does, with as many multiply-adds and "
        "weights, but a bias of r² values per output channel where that has one.",
        "ICNR has to repeat filters in the order of the rearrangement, biases too; nothing fails where it does not.",
    ),
    examples=(
        {},
        {"out_channels": 3, "scale": 3, "kernel_size": 2, "padding": 1, "order": "dcr"},
        {"out_channels": 4, "kernel_size": 3, "padding": 0, "bias": False},
        {"out_channels": 2, "scale": 1, "kernel_size": 1},
        {"out_channels": 5, "kernel_size": 3, "order": "dcr", "icnr": True},
    ),
    peer=Peer(
        "torch.nn:ConvTranspose2d",
        {
            "in_channels": "C",
            "out_channels": "O",
            "kernel_size": "kernel_size*scale",
            "stride": "scale",
            "padding": "(kernel_size - 1 - pad)*scale",
            "bias": "bias",
        },
        given="pad < kernel_size",
        same=False,
    ),
    draws="rearrangement",
)


class SubPixelConv2d(Layer):
    """A convolution whose channels become positions: (N, C, H, W) → (N, O, r·HO, r·WO), HO = H + 2·padding − k + 1.

    Args: ``channels`` C; ``out_channels`` O, None: C; ``scale`` r; ``kernel_size`` k; ``padding``, None: k // 2;
    ``bias``; ``order`` of the channels of ``conv``; ``icnr``, start all sub-positions of an output channel equal.
    ``conv`` is a torch.nn.Conv2d with ``weight`` (O·r², C, k, k) and ``bias`` (O·r²,); no buffers. The output has the
    dtype and memory format of the input. Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    scale: int
    kernel_size: int
    order: str
    icnr: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        scale: int = 2,
        kernel_size: int = 3,
        padding: int | None = None,
        bias: bool = True,
        order: str = "crd",
        icnr: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()))
        filters = (in_channels if out_channels is None else out_channels) * scale**2
        around = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, filters, kernel_size, padding=around, bias=bias, device=device, dtype=dtype)
        if icnr:
            self._start_equal()

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch.nn.Conv2d does, with ``icnr`` one per output channel."""
        self.conv.reset_parameters()
        if self.icnr:
            self._start_equal()

    @torch.no_grad()
    def _start_equal(self) -> None:
        icnr_(self.conv.weight, self.scale, self.order)
        if self.conv.bias is not None:
            one = by_offset(self.conv.bias, self.scale, self.order)[:, 0, 0]
            self.conv.bias.copy_(repeat_filters(one, self.scale, self.order))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, O, r·HO, r·WO) for ``x`` (N, C, H, W)."""
        self.check_input(x)
        self.refuse_no_positions(x, self.kernel_size, int(self.conv.padding[0]))
        z = as_laid_out(self.conv(x), x)
        return z if self.scale == 1 else depth_to_space(z, self.scale, self.order)

    def to_transposed(self) -> nn.ConvTranspose2d:
        """Return the transposed convolution of the same outputs: kernel k·r, stride r, padding (k − 1 − p)·r.

        Raises OptionError where the padding is larger than k − 1, which it cannot be there, and where the r² biases
        of an output channel differ: it has one.
        """
        k, p, r = self.kernel_size, int(self.conv.padding[0]), self.scale
        if p > k - 1:
            raise OptionError(f"padding={p} is more than kernel_size - 1 = {k - 1}: no transposed convolution has it")
        weight = to_transposed(self.conv.weight.detach(), r, self.order)
        bias = None if self.conv.bias is None else to_transposed_bias(self.conv.bias.detach(), r, self.order)
        made = nn.ConvTranspose2d(
            weight.shape[0], weight.shape[1], k * r, r, (k - 1 - p) * r, bias=bias is not None, device="meta"
        )
        _fill(made, weight, bias)
        return made.train(self.training)

    @classmethod
    def from_transposed(cls, layer: nn.ConvTranspose2d, order: str = "crd") -> SubPixelConv2d:
        """Return the sub-pixel convolution of the same outputs, channels in ``order``; every bias is repeated r² times.

        Any kernel, padding and output_padding will do, as long as the output is r times a number of positions: zeros
        fill the kernel up to a multiple of r. Raises OptionError where it is not, and for groups, dilations, strides,
        kernels and paddings that differ between the axes.
        """
        r, k, padding, front, back = sizes_of(layer)
        weight = from_transposed(F.pad(layer.weight.detach(), [front, back] * 2), r, order)
        bias = None if layer.bias is None else repeat_filters(layer.bias.detach(), r, order)
        made = cls(layer.in_channels, layer.out_channels, r, k, padding, bias is not None, order, device="meta")
        _fill(made.conv, weight, bias)
        return made.train(layer.training)


def _fill(made: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor | None) -> None:
    """Give ``made``, which is on the meta device, this weight and bias, on their device and in their dtype."""
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)


def undone(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """z, rearranged back, beside z."""
    return space_to_depth(layer(x), layer.scale, layer.order), layer.conv(x)


def gradient_is_inverse(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the rearrangement, and its squares' sum, beside the upstream rearranged back."""
    z = layer.conv(x).detach().requires_grad_()
    upstream = depth_to_space(z, layer.scale, layer.order).detach().cos()
    (found,) = torch.autograd.grad(depth_to_space(z, layer.scale, layer.order), z, upstream)
    wanted = space_to_depth(upstream, layer.scale, layer.order)
    sums = [each.square().sum().view(1) for each in (found, upstream)]
    return torch.cat([found.flatten(), sums[0]]), torch.cat([wanted.flatten(), sums[1]])


def transposed(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside those of the transposed convolution, and of the sub-pixel convolution made from that."""
    other = layer.to_transposed()
    again = SubPixelConv2d.from_transposed(other, layer.order)
    return layer(x).repeat(2, 1, 1, 1), torch.cat([other(x), again(x)])


def from_4_2_1(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """A transposed convolution of 4 taps, stride 2 and padding 1 beside what is made from it."""
    weight = layer.conv.weight.detach()[:8].reshape(layer.channels, -1)[:, :64].reshape(layer.channels, 4, 4, 4)
    other = nn.ConvTranspose2d(layer.channels, 4, 4, 2, 1, device="meta")
    _fill(other, weight, weight[0, :, 0, 0])
    return other(x), SubPixelConv2d.from_transposed(other, layer.order)(x)


def other_order(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs beside torch's PixelShuffle of the convolution with its filters in the order crd."""
    sorted_by_channel = [by_offset(p, layer.scale, layer.order).flatten(0, 2) for p in layer.conv.parameters()]
    z = F.conv2d(x, sorted_by_channel[0], sorted_by_channel[1], padding=layer.kernel_size // 2)
    return layer(x), F.pixel_shuffle(z, layer.scale)


def is_nearest(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of filters and biases that are equal for all sub-positions beside upsampled ones of one of them."""
    with torch.no_grad():
        small = SubPixelConv2d(layer.channels, layer.channels, 1, dtype=x.dtype)
        for ours, theirs in zip(layer.conv.parameters(), small.conv.parameters(), strict=True):
            theirs.copy_(by_offset(ours, layer.scale, layer.order)[:, 0, 0])
            ours.copy_(repeat_filters(theirs, layer.scale, layer.order))
    return layer(x), F.interpolate(small(x), scale_factor=layer.scale, mode="nearest")


def moves_by_scale(layer: SubPixelConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of an image moved down by 1 beside outputs moved down by r; two rows at either border left out."""
    r, edge = layer.scale, 2 * layer.scale
    return layer(x.roll(1, 2))[:, :, edge:-edge], layer(x).roll(r, 2)[:, :, edge:-edge]
