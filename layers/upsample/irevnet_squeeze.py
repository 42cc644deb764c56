r"""The invertible downsampling ψ of i-RevNet: blocks of positions become channels, and back (Jacobsen, Smeulders &
Oyallon 2018, ICLR, arXiv 1802.07088, section 3.1).

With blocks of r_h×r_w positions, m = i·r_w + j for 0 ≤ i < r_h, 0 ≤ j < r_w,
$$z_{n,\,mC + c,\,h,\,w} = x_{n,\,c,\,h r_h + i,\,w r_w + j}\quad(\text{order dcr}),$$
offset before channel, as ONNX and TensorFlow have it; order crd is torch's PixelUnshuffle, c·r_h·r_w + m. `inverse`
undoes it bit for bit in every dtype: it moves numbers, so volume and norm are kept, and its gradient is its inverse.

The order matters because a reversible block splits the channels in two halves: dcr gives the halves of every block of
positions (upper rows and lower rows), crd the first and the last channels of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.base import Layer
from layers.card import Card, Claim, Flops, Identity, Option, Paper, Peer, Rule
from layers.convolution import options_among
from layers.option import OptionError
from layers.space_depth import depth_to_space, space_to_depth

card = Card(
    title="Invertible downsampling of i-RevNet",
    paper=Paper(
        authors="Jacobsen, Smeulders, Oyallon",
        title="i-RevNet: Deep Invertible Networks",
        year=2018,
        venue="ICLR 2018",
        arxiv="1802.07088",
    ),
    impl="Squeeze",
    formula="z[n, m·C + c, h, w] = x[n, c, h·r_h + i, w·r_w + j],  m = i·r_w + j",
    summary="Blocks of positions become channels, offset before channel; `inverse` makes positions of them again.",
    options=(
        Option(
            name="block_size",
            type=int,
            default=2,
            axes=2,
            ge=1,
            help="r_h and r_w: height and width of a block of positions",
        ),
        Option(
            name="order",
            type=str,
            default="dcr",
            choices=("crd", "dcr"),
            help="channels of one offset together (dcr), or of one channel, as torch.nn.PixelUnshuffle (crd)",
            source="the authors' code",
        ),
    ),
    derived={"RH": "axis(block_size, 0)", "RW": "axis(block_size, 1)"},
    rules=(
        Rule(
            "H % RH == 0 and W % RW == 0",
            "block_size={block_size} does not divide the input of {H}×{W}: pad or crop it",
            "block_size",
        ),
    ),
    flops=Flops("0", "0"),
    explained="It moves numbers and computes none.",
    traffic=Flops("2*E*B", "2*E*B"),
    ranks=(4,),
    output=("N", "C*RH*RW", "H // RH", "W // RW"),
    claims=(
        Claim(
            holds=(),
            options={"block_size": (1, 2)},
            carriers=("conv", "conv-padded"),
            why="It moves the numbers and keeps every one: nothing that is done to its input is undone.",
        ),
    ),
    identities=(
        Identity(
            says="inverse(ψ(x)) = x, bit for bit",
            options={"block_size": (5, 2)},
            proof="inverse_is_exact",
            within=1e-15,
        ),
        Identity(
            says="ψ(inverse(z)) = z, bit for bit",
            options={"block_size": (3, 2)},
            dims={"H": 6},
            proof="is_inverse_of",
            within=1e-15,
        ),
        Identity(
            says="‖ψ(x)‖ = ‖x‖, and ∂L/∂x = inverse(∂L/∂z)", options={"block_size": (5, 4)}, proof="gradient_is_inverse"
        ),
        Identity(
            says="PixelUnshuffle(x) = ψ(x)[:, p], p = (m·C + c at c·r² + m)",
            options={"block_size": 2},
            dims={"H": 6, "W": 4},
            proof="as_pixel_unshuffle",
            within=1e-15,
        ),
        Identity(
            says="order crd is PixelUnshuffle",
            options={"block_size": 3, "order": "crd"},
            dims={"H": 6, "W": 9},
            proof="as_pixel_unshuffle",
            within=1e-15,
        ),
        Identity(
            says="the first half of ψ(x) are the first rows of every block",
            options={"block_size": 2},
            dims={"H": 6},
            proof="first_half",
            within=1e-15,
        ),
    ),
    notes=(
        "The notes have i-RevNet use sub-pixel convolution too: it has no convolution, goes the other way, and has the "
        "channels in the other order than torch's PixelShuffle.",
        "A block of i-RevNet is invertible up to rounding only, (F(x₂) + x₁) − F(x₂) ≠ x₁; ψ adds nothing to that.",
        "Batch normalization inside F takes the same batch again when it is undone, so training mode is inverted too, "
        "but running statistics are updated twice.",
        "The authors' code multiplies the input channels by 2 to the power of init_ds where ψ multiplies them by its "
        "square: right for 2 and 4 alone.",
        "Their injective_pad appends channels of zeros and drops them again: injective, not bijective.",
        "Theirs fails inside a reshape where a block does not divide the image; this says so.",
    ),
    examples=(
        {"block_size": (3, 2)},
        {"block_size": (1, 4), "order": "crd"},
        {"block_size": (3, 1)},
        {"block_size": 1, "order": "crd"},
    ),
    peer=Peer("torch.nn:PixelUnshuffle", {"downscale_factor": "RH"}, given="RH == RW and (order == 'crd' or RH == 1)"),
    draws="rearrangement",
)


class Squeeze(Layer):
    """ψ: (N, C, H, W) → (N, C·r_h·r_w, H/r_h, W/r_w); `inverse` goes back.

    Args: ``channels`` C; ``block_size``, one integer or (r_h, r_w); ``order`` of the channels. No parameters, no
    buffers. Dtype and memory format are kept; what is returned is new memory. Raises OptionError for refused options,
    ValueError where a block does not divide the positions.
    """

    block_size: tuple[int, int]
    order: str

    def __init__(
        self,
        channels: int,
        block_size: int | tuple[int, ...] = 2,
        order: str = "dcr",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))

    def forward(self, x: Tensor) -> Tensor:
        """Return ψ(x) for ``x`` (N, C, H, W)."""
        self.check_input(x)
        high, wide = self.block_size
        if x.shape[2] % high or x.shape[3] % wide:
            raise OptionError(
                f"Squeeze: block_size={self.block_size} does not divide the input of {x.shape[2]}×{x.shape[3]}: "
                "pad or crop it",
                "block_size",
            )
        return space_to_depth(x, self.block_size, self.order)

    def inverse(self, z: Tensor) -> Tensor:
        """Return the x of which ``z`` (N, C·r_h·r_w, H, W) is ψ(x), bit for bit; raises ValueError for other shapes."""
        wanted = self.channels * self.block_size[0] * self.block_size[1]
        if z.dim() != 4 or z.shape[1] != wanted:
            raise ValueError(f"Squeeze.inverse takes (N, {wanted}, H, W), not {tuple(z.shape)}")
        return depth_to_space(z, self.block_size, self.order)


def pixel_unshuffle_order(channels: int, block_size: int) -> Tensor:
    """Return p (C·r²,) with ``pixel_unshuffle(x, r) == squeeze(x)[:, p]`` for ψ in the order dcr; int64, on the CPU."""
    return torch.arange(channels * block_size**2).view(block_size**2, channels).t().reshape(-1)


def inverse_is_exact(layer: Squeeze, x: Tensor) -> tuple[Tensor, Tensor]:
    """inverse(ψ(x)) beside x."""
    return layer.inverse(layer(x)), x


def is_inverse_of(layer: Squeeze, x: Tensor) -> tuple[Tensor, Tensor]:
    """ψ(inverse(z)) beside z, for z of as many channels as ψ(x) has."""
    high, wide = layer.block_size
    z = x.repeat(1, high * wide, 1, 1).cos().flip(1, 2)
    return layer(layer.inverse(z)), z


def gradient_is_inverse(layer: Squeeze, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of x, and the squares' sum of ψ(x), beside the inverse of the upstream and that of x."""
    x = x.detach().requires_grad_()
    z = layer(x)
    upstream = z.detach().cos()
    (found,) = torch.autograd.grad(z, x, upstream)
    sums = [each.detach().square().sum().view(1) for each in (z, x)]
    return torch.cat([found.flatten(), sums[0]]), torch.cat([layer.inverse(upstream).flatten(), sums[1]])


def as_pixel_unshuffle(layer: Squeeze, x: Tensor) -> tuple[Tensor, Tensor]:
    """ψ(x) with its channels sorted beside torch's PixelUnshuffle."""
    r = layer.block_size[0]
    z = layer(x) if layer.order == "crd" else layer(x)[:, pixel_unshuffle_order(x.shape[1], r)]
    return z, F.pixel_unshuffle(x, r)


def first_half(layer: Squeeze, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of the channels of ψ(x), for r = 2, beside the even rows of x, by columns of a block."""
    rows = x[:, :, ::2]
    return layer(x).chunk(2, 1)[0], torch.cat([rows[..., ::2], rows[..., 1::2]], 1)
