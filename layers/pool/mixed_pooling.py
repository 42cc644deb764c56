r"""Mixed Pooling: strips for what is far along a row or column, small grids for what is near (Hou et al. 2020,
arXiv 2003.13328, section 3.2).

With q = C/4, CB a convolution with batch norm and CBR one with a ReLU behind,
$$x_1 = \mathrm{CBR}_{1\times1}(x),\qquad x_2 = \mathrm{CBR}_{1\times1}(x)$$
$$s_1 = \mathrm{ReLU}\Big(\mathrm{CB}_{3\times3}(x_1)
  + \sum_{p \in \text{pool\_sizes}} \mathrm{up}\,\mathrm{CB}_{3\times3}(\mathrm{pool}_{p\times p}(x_1))\Big),\qquad
s_2 = \mathrm{ReLU}\big(\mathrm{CB}_{3\times1}(\mathrm{mean}_W x_2) + \mathrm{CB}_{1\times3}(\mathrm{mean}_H x_2)\big)$$
$$y = \mathrm{ReLU}\big(x + \mathrm{CB}_{1\times1}[\mathrm{CBR}_{3\times3}(s_1), \mathrm{CBR}_{3\times3}(s_2)]\big)$$
with adaptive average pooling and bilinear interpolation. The strips stay N×q×H×1 and N×q×1×W: interpolating a strip
to H×W is copying it, and that is a broadcast addition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import options_among
from layers.moments import widened
from layers.observe import observe
from layers.pooling import ConvNorm, Pooling, crossed, enlarged, like, mean_bins, positive, strips
from layers.shared import ALIGN_CORNERS, EPS, POOLED_POSITIONS

card = Card(
    title="Mixed Pooling Module",
    paper=Paper(
        authors="Hou, Zhang, Cheng, Feng",
        title="Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
        year=2020,
        venue="CVPR 2020",
        arxiv="2003.13328",
    ),
    impl="MixedPooling",
    formula="y = ReLU(x + CB[CBR(grids of x), CBR(strips of x)])",
    summary="A bottleneck of C/4 channels that adds to x what two grids and the two strips hold on average.",
    options=(
        Option(
            name="pool_sizes",
            type=int,
            default=(20, 12),
            axes=2,
            ge=1,
            help="bins along each side of the two grids",
            source="the authors' code",
        ),
        EPS,
        ALIGN_CORNERS,
    ),
    derived={
        "q": "C // 4",
        "p1": "axis(pool_sizes, 0)",
        "p2": "axis(pool_sizes, 1)",
        "maps": "N*q*S",
        "grids": "N*q*(p1*p1 + p2*p2)",
        "strips": "N*q*(H + W)",
        "windows": "N*q*((H + p1 - gcd(H, p1))*(W + p1 - gcd(W, p1)) + (H + p2 - gcd(H, p2))*(W + p2 - gcd(W, p2)))",
        "norms": "5*batch_norm(N, q, S) + batch_norm(N, q, p1*p1) + batch_norm(N, q, p2*p2) + batch_norm(N, q, H) + "
        "batch_norm(N, q, W) + batch_norm(N, C, S)",
        "norms_back": "5*batch_norm_backward(N, q, S) + batch_norm_backward(N, q, p1*p1) + "
        "batch_norm_backward(N, q, p2*p2) + batch_norm_backward(N, q, H) + batch_norm_backward(N, q, W) + "
        "batch_norm_backward(N, C, S)",
        "products": "q*(86*maps + 18*grids + 6*strips)",
    },
    rules=(
        Rule("C % 4 == 0", "{C} channels are not divisible by 4, the reduction of the bottleneck"),
        POOLED_POSITIONS,
        Rule(
            "not train or N*H != 1 and N*W != 1",
            "one value per channel in a strip cannot be normalized; give a larger batch",
        ),
        Rule(
            "not train or N != 1 or p1 != 1 and p2 != 1",
            "one bin of one sample is one value per channel, which cannot be normalized; give a larger batch",
            "pool_sizes",
        ),
    ),
    statistics=(
        Stat("rows", ("N", "q", "H", "1"), "N×C/4×H×1", help="means of the rows"),
        Stat("columns", ("N", "q", "1", "W"), "N×C/4×1×W", help="means of the columns"),
        Stat("mean", ("C",), given="train", help="of the last normalization"),
        Stat("rstd", ("C",), given="train", help="of the last normalization"),
    ),
    buffers=(
        Stat("near.norm.running_mean", ("q",)),
        Stat("near.norm.running_var", ("q",)),
        Stat("near.norm.num_batches_tracked", ()),
        Stat("far.norm.running_mean", ("q",)),
        Stat("far.norm.running_var", ("q",)),
        Stat("far.norm.num_batches_tracked", ()),
        Stat("local.norm.running_mean", ("q",)),
        Stat("local.norm.running_var", ("q",)),
        Stat("local.norm.num_batches_tracked", ()),
        Stat("first.norm.running_mean", ("q",)),
        Stat("first.norm.running_var", ("q",)),
        Stat("first.norm.num_batches_tracked", ()),
        Stat("second.norm.running_mean", ("q",)),
        Stat("second.norm.running_var", ("q",)),
        Stat("second.norm.num_batches_tracked", ()),
        Stat("rows.norm.running_mean", ("q",)),
        Stat("rows.norm.running_var", ("q",)),
        Stat("rows.norm.num_batches_tracked", ()),
        Stat("columns.norm.running_mean", ("q",)),
        Stat("columns.norm.running_var", ("q",)),
        Stat("columns.norm.num_batches_tracked", ()),
        Stat("gather_near.norm.running_mean", ("q",)),
        Stat("gather_near.norm.running_var", ("q",)),
        Stat("gather_near.norm.num_batches_tracked", ()),
        Stat("gather_far.norm.running_mean", ("q",)),
        Stat("gather_far.norm.running_var", ("q",)),
        Stat("gather_far.norm.num_batches_tracked", ()),
        Stat("out.norm.running_mean", ("C",)),
        Stat("out.norm.running_var", ("C",)),
        Stat("out.norm.num_batches_tracked", ()),
    ),
    params="4*C*q + 51*q*q + 18*q + 2*C",
    flops=Flops(
        "products + windows + (96*maps + 7*grids + 7*strips + 26*q if train else 51*maps + 2*grids + 2*strips + 65*q)",
        "2*products + windows + (140*maps + 12*grids + 10*strips if train else 77*maps + 5*grids + 3*strips) - 26*q",
    ),
    executed=Flops(
        "products + windows + (33*maps + norms if train else 42*maps + grids + strips + 65*q + 67*q*q)",
        "2*products + windows + (39*maps + grids + norms_back if train "
        "else 26*q + 48*maps + 2*grids + strips + 201*q*q)",
    ),
    explained="Means of strips are sums, divided, and gradients are divided before they are spread. In evaluation the "
    "batch norms are folded into the convolutions before them. An interpolated number takes 7 operations, 8 backward; "
    "strips are not interpolated. fvcore counts convolutions, by one per multiply-add, and what its handles know of "
    "the rest.",
    saved="104*q + (100*maps + 8*grids + 8*strips if train else 64*maps + 4*grids + 4*strips + 268*q*q)",
    stated="H > 1 and W > 1 and p1 > 1 and p2 > 1",
    ranks=(4,),
    claims=(
        Claim(
            holds=(),
            carriers=("conv", "conv-padded"),
            why="x itself is added to the normalized branches.",
        ),
    ),
    identities=(
        Identity(says="without the last γ and β the output is ReLU(x)", proof="residual"),
        Identity(says="a strip interpolated bilinearly to H×W is the strip, copied", proof="copied"),
    ),
    notes=(
        "This is the class StripPooling of the authors' code, models/customize.py, that the notes link as strip "
        "pooling; the Strip Pooling Module is models/resnet.py:SPBlock.",
        "The authors' code truncates C/4 without a word; channels that 4 does not divide are refused.",
        "The reference interpolates strips to H×W; that copies them, and a broadcast addition does without.",
        "Maps smaller than a grid have their pixels repeated.",
    ),
    examples=(
        {"pool_sizes": (3, 2), "eps": 1e-4},
        {"pool_sizes": (4, 2), "align_corners": False, "eps": 1e-3},
    ),
    couples="train",
    eval_differs="True",
)


class MixedPooling(Pooling):
    """Add pooled context to (N, C, H, W); the output has the shape, dtype and memory format of the input.

    Args: ``channels`` C, divisible by 4; ``pool_sizes`` of the two grids; ``eps`` of the batch norms; ``align_corners``
    of the interpolation.
    State: ten convolutions without bias, each with a batch norm: ``near``, ``far`` (1×1, C → C/4); ``local``,
    ``first``, ``second`` (3×3 on the map and the grids), ``rows``, ``columns`` (3×1, 1×3), ``gather_near``,
    ``gather_far`` (3×3) and ``out`` (1×1, C/2 → C).
    Raises OptionError for refused options, ValueError for inputs that do not fit and, in training, for a strip or grid
    of one value per channel.
    """

    pool_sizes: tuple[int, int]
    align_corners: bool

    def __init__(
        self,
        channels: int,
        pool_sizes: int | tuple[int, ...] = (20, 12),
        eps: float = 1e-5,
        align_corners: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))
        quarter = channels // 4

        def made(inputs: int, outputs: int, kernel: tuple[int, int]) -> ConvNorm:
            return ConvNorm(inputs, outputs, kernel, eps, device=device, dtype=dtype)

        self.near, self.far = made(channels, quarter, (1, 1)), made(channels, quarter, (1, 1))
        self.local, self.first, self.second = (made(quarter, quarter, (3, 3)) for _ in range(3))
        self.rows, self.columns = made(quarter, quarter, (3, 1)), made(quarter, quarter, (1, 3))
        self.gather_near, self.gather_far = (made(quarter, quarter, (3, 3)) for _ in range(2))
        self.out = made(2 * quarter, channels, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, C, H, W) with its pooled context added."""
        self.check_input(x)
        self.refuse_single_values(x.shape[0] * x.shape[2], "the means of the rows")
        self.refuse_single_values(x.shape[0] * x.shape[3], "the means of the columns")
        for size in self.pool_sizes:
            self.refuse_single_values(x.shape[0] * size, "a grid of one bin")
        wide = widened(x)
        near = self.gather_near(self._grids(self.near(wide).relu_())).relu_()
        far = self.gather_far(self._strips(self.far(wide).relu_())).relu_()
        return like(positive(x + self.out(torch.cat([near, far], 1))), x)

    def _grids(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        y: Tensor = self.local(x)
        for conv, bins in zip((self.first, self.second), self.pool_sizes, strict=True):
            y = y + enlarged(conv(mean_bins(x, bins)), size, self.align_corners)
        return y.relu_()

    def _strips(self, x: Tensor) -> Tensor:
        rows, columns = strips(x)
        observe(rows=rows, columns=columns)
        return crossed(self.rows(rows), self.columns(columns))


def residual(layer: MixedPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output where the last batch norm gives 0 beside ReLU(x)."""
    with torch.no_grad():
        for parameter in layer.out.norm.parameters():
            parameter.zero_()
    return layer(x), x.relu()


def copied(layer: MixedPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolated row and column means beside expanded ones."""
    size = (x.shape[2], x.shape[3])
    strips = [x.mean(axis, keepdim=True) for axis in (2, 3)]
    found = torch.stack([torch.nn.functional.interpolate(s, size, mode="bilinear", align_corners=True) for s in strips])
    return found, torch.stack([strip.expand(x.shape) for strip in strips])
