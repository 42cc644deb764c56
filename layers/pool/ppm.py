r"""Pyramid Pooling Module: beside every pixel, what grids of a few sizes hold on average (Zhao et al. 2017,
arXiv 1612.01105, section 3.2).

$$z_l = \mathrm{up}\big(\mathrm{ReLU}(\mathrm{BN}(w_l * \mathrm{pool}_{n_l}(x)))\big),\qquad y = [x, z_1, \dots, z_L]$$
with n_l×n_l adaptive average pooling, a 1×1 convolution to C/L channels, and bilinear interpolation back to H×W: 2C
channels in all.

Where the finest grid divides height and width the grids that divide it are averages of its map: one pass over x, not L.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import options_among
from layers.pooling import ConvNorm, Pooling, enlarged, like, mean_bins, means, pyramid
from layers.shared import ALIGN_CORNERS, EPS, POOLED_POSITIONS, PYRAMID_SYMBOLS

card = Card(
    title="Pyramid Pooling Module",
    paper=Paper(
        authors="Zhao, Shi, Qi, Wang, Jia",
        title="Pyramid Scene Parsing Network",
        year=2017,
        venue="CVPR 2017",
        arxiv="1612.01105",
    ),
    impl="PyramidPooling",
    formula="y = [x, up(ReLU(BN(w_l * pool_l(x)))) for every grid l]",
    summary="Means over grids of a few sizes, each reduced to C/L channels and enlarged again, beside x itself.",
    options=(
        Option(
            name="levels",
            type=int,
            default=(1, 2, 3, 6),
            axes=4,
            ge=0,
            help="bins along each side, per grid; 0 is no grid",
            source="Zhao et al. 2017, section 3.2",
        ),
        EPS,
        ALIGN_CORNERS,
    ),
    derived={
        **PYRAMID_SYMBOLS,
        "R": "C // max(1, L)",
        "bins": "a*a + b*b + c*c + d*d",
        "flat": "(a == 1) + (b == 1) + (c == 1) + (d == 1)",
        "enlarging": "7*N*R*S*(L - flat)",
        "shrinking": "8*N*R*S*(L - flat) + N*R*S*flat + E",
        "pooling": "windows + N*C*(made - lone) + joined",
        "doubts": "(3*R - 1)*(L - flat) if R > 1 else 0",
        "norms": "batch_norm(N, R, a*a) + batch_norm(N, R, b*b) + batch_norm(N, R, c*c) + batch_norm(N, R, d*d)",
        "norms_back": "batch_norm_backward(N, R, a*a) + batch_norm_backward(N, R, b*b) + "
        "batch_norm_backward(N, R, c*c) + batch_norm_backward(N, R, d*d)",
    },
    rules=(
        Rule("L > 0", "levels={levels} is no pyramid; give at least one grid ≥ 1", "levels"),
        Rule(
            "C % max(1, L) == 0",
            "{C} channels do not divide among {L} grids; they divide into {divisors_of_C}",
            "levels",
        ),
        POOLED_POSITIONS,
        Rule(
            "not train or N != 1 or flat == 0",
            "one bin of one sample is one value per channel, which cannot be normalized; give a larger batch",
        ),
    ),
    statistics=(
        Stat("mean", ("R",), given="train", help="of the normalization behind the last grid"),
        Stat("rstd", ("R",), given="train", help="of the normalization behind the last grid"),
    ),
    buffers=(
        Stat("grids.0.norm.running_mean", ("R",)),
        Stat("grids.0.norm.running_var", ("R",)),
        Stat("grids.0.norm.num_batches_tracked", ()),
        Stat("grids.1.norm.running_mean", ("R",), given="L > 1"),
        Stat("grids.1.norm.running_var", ("R",), given="L > 1"),
        Stat("grids.1.norm.num_batches_tracked", (), given="L > 1"),
        Stat("grids.2.norm.running_mean", ("R",), given="L > 2"),
        Stat("grids.2.norm.running_var", ("R",), given="L > 2"),
        Stat("grids.2.norm.num_batches_tracked", (), given="L > 2"),
        Stat("grids.3.norm.running_mean", ("R",), given="L > 3"),
        Stat("grids.3.norm.running_var", ("R",), given="L > 3"),
        Stat("grids.3.norm.num_batches_tracked", (), given="L > 3"),
    ),
    params="C*C + 2*C",
    flops=Flops(
        "windows + 2*N*R*C*bins + enlarging + (8*N*R*bins + 2*R*L if train else 3*N*R*bins + 5*R*L)",
        "pooling + 4*N*R*C*bins + shrinking + (12*N*R*bins if train else 5*N*R*bins) - 2*R*L",
    ),
    executed=Flops(
        "windows + 2*N*R*C*bins + enlarging + (N*R*bins + norms + doubts if train else 2*N*R*bins + 5*R*L + C*C)",
        "pooling + 4*N*R*C*bins + shrinking - N*R*flat + "
        "(N*R*bins + norms_back if train else 2*N*R*bins + 2*R*L + 3*C*C)",
    ),
    explained="In training the batch norms look at the statistics of the small maps, channels last as those are, for a "
    "mean far above the spread; in evaluation they are folded into the convolutions before them. An interpolated "
    "number takes 7 operations, 8 backward; a single bin is expanded. fvcore counts a pooling by the elements of its "
    "input, whatever the overlap of bins, convolutions by one per multiply-add, and interpolation by 4 per number.",
    saved="4*N*C*bins + 8*R*L + (8*N*R*bins if train else 4*N*R*bins + 4*C*C)",
    traffic=Flops("3*E*B", "3*E*B"),
    ranks=(4,),
    output=("N", "2*C", "H", "W"),
    claims=(
        Claim(
            holds=(),
            carriers=("conv", "conv-padded"),
            why="The output begins with the data themselves; only the other half is normalized.",
        ),
    ),
    identities=(
        Identity(says="the first half of the channels is x", proof="beside"),
        Identity(
            says="grids that divide the finest are averages of its map where that divides the map",
            dims={"H": 12, "W": 6},
            proof="nested",
        ),
        Identity(
            says="a grid of one bin adds one number per channel and sample",
            options={"levels": (1, 0, 0, 0)},
            proof="flat",
        ),
    ),
    notes=(
        "The notes describe this module under Spatial Pyramid Pooling. That (spp) is He's: maxima, no convolution, and "
        "a vector of fixed length instead of a map.",
        "On a batch of one, training with a grid of one bin would normalize single values: it is refused.",
        "Bins overlap unless their number divides the size, and then the shortcut over the finest grid does not hold.",
    ),
    examples=(
        {},
        {"levels": (2, 0, 4, 0), "align_corners": False},
        {"levels": (3, 1, 0, 0), "eps": 1e-3},
    ),
    couples="train",
    eval_differs="True",
)


class PyramidPooling(Pooling):
    """Put pooled context beside (N, C, H, W): (N, 2C, H, W), in the dtype and memory format of the input.

    Args: ``channels`` C, divisible by the number of grids; ``levels``, four grid sizes, 0 for none; ``eps`` of the
    batch norms; ``align_corners`` of the interpolation.
    State: ``grids``, a 1×1 convolution and a batch norm for each grid.
    Raises OptionError for refused options, ValueError for inputs that do not fit and, in training, for a grid of one
    bin on a batch of one.
    """

    levels: tuple[int, ...]
    align_corners: bool

    def __init__(
        self,
        channels: int,
        levels: int | tuple[int, ...] = (1, 2, 3, 6),
        eps: float = 1e-5,
        align_corners: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))
        self._grids = [count for count in self.levels if count]
        reduced = channels // len(self._grids)
        self.grids = nn.ModuleList(
            ConvNorm(channels, reduced, eps=eps, device=device, dtype=dtype) for _ in self._grids
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [x, z_1, …, z_L] (N, 2C, H, W) of ``x`` (N, C, H, W)."""
        self.check_input(x)
        if 1 in self._grids:
            self.refuse_single_values(x.shape[0], "a grid of one bin")
        size = (x.shape[2], x.shape[3])
        # A grid to its end before the next: else torch.compile interpolates them all at once, number by number.
        maps = [
            like(enlarged(grid(pooled).relu_(), size, self.align_corners), x)
            for grid, pooled in zip(self.grids, means(x, self._grids), strict=True)
        ]
        return like(torch.cat([x, *maps], 1), x)


def beside(layer: PyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first C channels of the output beside x."""
    return layer(x)[:, : layer.channels], x


def nested(layer: PyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled maps of all grids beside poolings of x itself."""
    sides = pyramid(x, layer._grids, mean_bins), [mean_bins(x, count) for count in layer._grids]
    found, wanted = (torch.cat([pooled.flatten(1) for pooled in maps], 1) for maps in sides)
    return found, wanted


def flat(layer: PyramidPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The second half of the channels beside its first pixel everywhere."""
    z = layer(x)[:, layer.channels :]
    return z, z[:, :, :1, :1].expand_as(z)
