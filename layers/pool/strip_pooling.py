r"""Strip pooling: gate every pixel by what its row and its column hold on average (Hou et al. 2020, arXiv 2003.13328,
section 3.1).

$$r_{nci} = \tfrac1W \sum_j x_{ncij},\qquad s_{ncj} = \tfrac1H \sum_i x_{ncij},$$
$$u_{oij} = \mathrm{BN}(w^{3\times1} * r)_{oi} + \mathrm{BN}(w^{1\times3} * s)_{oj},\qquad
y = x \odot \sigma(w^{1\times1} * \mathrm{ReLU}(u) + b).$$

The strips stay N×C×H×1 and N×C×1×W: the copies along rows and columns that the paper draws are a broadcast addition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.card import Card, Claim, Flops, Identity, Option, Paper, Rule, Stat
from layers.convolution import options_among
from layers.observe import observe
from layers.pooling import ConvNorm, Pooling, convolve, crossed, like, strips
from layers.shared import EPS, POOLED_POSITIONS

card = Card(
    title="Strip Pooling Module",
    paper=Paper(
        authors="Hou, Zhang, Cheng, Feng",
        title="Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
        year=2020,
        venue="CVPR 2020",
        arxiv="2003.13328",
    ),
    impl="StripPooling",
    formula="y = x ⊙ σ(w₁ₓ₁ * ReLU(BN(w₃ₓ₁ * mean_W x) + BN(w₁ₓ₃ * mean_H x)) + b)",
    summary="A gate per pixel from the means of its row and of its column, each convolved along itself.",
    options=(
        Option(name="out_channels", type=int, default=None, optional=True, ge=1, help="channels of the gate; none: C"),
        Option(
            name="returns",
            type=str,
            default="product",
            choices=("product", "gate"),
            help="x times its gate, or the gate by itself, for another map to be multiplied by",
        ),
        Option(
            name="relu",
            type=bool,
            default=True,
            help="ReLU before the 1×1 convolution",
            source="the authors' code; the published formula has none",
        ),
        EPS,
    ),
    derived={
        "O": "C if out_channels is None else out_channels",
        "strips": "N*O*(H + W)",
        "both": "2*E + N*O*S*(3 + relu) + (E if returns == 'product' else 0) + 2*N*S*O*O + 6*C*strips",
        "back": "N*O*S*(6 + relu) + (6*E if returns == 'product' else 3*E) + 4*N*S*O*O + 12*C*strips",
    },
    rules=(
        POOLED_POSITIONS,
        Rule(
            "returns == 'gate' or O == C",
            "out_channels={O} cannot gate {C} channels; take returns=gate, or as many as there are",
            "out_channels",
        ),
        Rule(
            "not train or N*H != 1 and N*W != 1",
            "one value per channel in a strip cannot be normalized; give a larger batch",
        ),
    ),
    statistics=(
        Stat("rows", ("N", "C", "H", "1"), "N×C×H×1", help="means of the rows"),
        Stat("columns", ("N", "C", "1", "W"), "N×C×1×W", help="means of the columns"),
        Stat("mean", ("O",), given="train", help="of the normalization behind the columns, over N×W values"),
        Stat("rstd", ("O",), given="train", help="of the normalization behind the columns, over N×W values"),
    ),
    buffers=(
        Stat("rows.norm.running_mean", ("O",)),
        Stat("rows.norm.running_var", ("O",)),
        Stat("rows.norm.num_batches_tracked", ()),
        Stat("columns.norm.running_mean", ("O",)),
        Stat("columns.norm.running_var", ("O",)),
        Stat("columns.norm.num_batches_tracked", ()),
    ),
    params="6*C*O + O*O + 5*O",
    flops=Flops(
        "both + (7*strips + 4*O if train else 2*strips + 10*O)",
        "back + (10*strips if train else 3*strips) - 5*O",
    ),
    executed=Flops(
        "both + (batch_norm(N, O, H) + batch_norm(N, O, W) if train else strips + 6*C*O + 10*O)",
        "back - 2*E + N*C*(H + W) + "
        "(batch_norm_backward(N, O, H) + batch_norm_backward(N, O, W) - strips - O if train else 18*C*O + 3*O)",
    ),
    explained="Means of strips are sums, divided, and gradients are divided before they are spread. In evaluation the "
    "batch norms are folded into the convolutions before them. fvcore counts convolutions, by one per multiply-add, "
    "and what its handles know of the rest.",
    saved="8*N*O*S + (4*E if returns == 'product' else 0) + 4*N*C*(H + W)"
    " + (4*strips + 16*O if train else 24*C*O + 16*O)",
    stated="H > 1 and W > 1",
    traffic=Flops("B*(E + N*O*S)", "B*(2*E + N*O*S)"),
    ranks=(4,),
    output=("N", "O", "H", "W"),
    claims=(
        Claim(
            holds=(),
            carriers=("conv", "conv-padded"),
            why="The gate multiplies the data, which keep their scale and their shift.",
        ),
        Claim(
            row="the gate alone",
            options={"returns": "gate"},
            holds=("w-scale", "x-scale"),
            carriers=("conv", "conv-padded"),
            why="Both strips are normalized, so one scale of all data vanishes. A shift does not: zeros pad the ends "
            "of the strips. Nor do scales per channel, which the convolutions before the norms mix.",
        ),
    ),
    identities=(
        Identity(says="a row of strips is adaptive average pooling to H×1, a column to 1×W", proof="adaptive"),
        Identity(
            says="before the ReLU u_ij − u_ij' − u_i'j + u_i'j' = 0: rank 2 per channel, whatever the image",
            options={"returns": "gate", "relu": False},
            proof="additive",
        ),
        Identity(says="the gate ignores the order of pixels that keeps all row and column means", proof="rectangle"),
        Identity(says="the product is x times the gate", proof="product"),
    ),
    notes=(
        "Why is it called pooling when the size does not change? The pooling changes it: a window of one whole row or "
        "column makes H×1 and 1×W out of H×W. What keeps the size is the module: it copies the strips back over rows "
        "and columns and gates x by them, as squeeze-and-excitation does with its 1×1.",
        "The class that the notes link, StripPooling in models/customize.py, is the Mixed Pooling Module; the Strip "
        "Pooling Module is SPBlock in models/resnet.py, which returns the gate: returns=gate.",
        "The published formula has no ReLU between the sum of the strips and the 1×1 convolution; the code has.",
        "The authors' code expands both strips to H×W before it adds them; a broadcast addition is the same.",
    ),
    examples=(
        {},
        {"returns": "gate", "out_channels": 8, "relu": False},
        {"returns": "gate", "eps": 1e-3},
    ),
    couples="train",
    eval_differs="True",
)


class StripPooling(Pooling):
    """Gate (N, C, H, W) by strip pooling; the output has the dtype and memory format of the input.

    Args: ``in_channels`` C; ``out_channels`` of the gate; ``returns``, product or gate; ``relu`` before the last
    convolution; ``eps`` of both batch norms.
    State: ``rows`` and ``columns``, each a convolution along its strip and a batch norm, and ``fuse``, 1×1 with bias.
    Raises OptionError for refused options, ValueError for inputs that do not fit and, in training, for a strip of one
    value per channel.
    """

    out_channels: int | None
    returns: str
    relu: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        returns: str = "product",
        relu: bool = True,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()))
        gates = in_channels if out_channels is None else out_channels
        self.rows = ConvNorm(in_channels, gates, (3, 1), eps, device=device, dtype=dtype)
        self.columns = ConvNorm(in_channels, gates, (1, 3), eps, device=device, dtype=dtype)
        self.fuse = nn.Conv2d(gates, gates, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times its gate, or the gate (N, O, H, W), of ``x`` (N, C, H, W)."""
        self.check_input(x)
        self.refuse_single_values(x.shape[0] * x.shape[2], "the means of the rows")
        self.refuse_single_values(x.shape[0] * x.shape[3], "the means of the columns")
        rows, columns = strips(x)
        observe(rows=rows, columns=columns)
        u = crossed(self.rows(rows), self.columns(columns), self.relu)
        gate = convolve(self.fuse, u).sigmoid_()
        # The backward of σ needs its output, which what follows this module may overwrite.
        return like(x * gate if self.returns == "product" else gate.clone(), x)


def adaptive(layer: StripPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The strips that the layer pools beside torch's adaptive pooling to H×1 and 1×W."""
    from layers.observe import observing

    with observing() as seen:
        layer(x)
    shapes = [(x.shape[2], 1), (1, x.shape[3])]
    found = [nn.functional.adaptive_avg_pool2d(x, shape).flatten() for shape in shapes]
    return torch.cat([seen["rows"].flatten(), seen["columns"].flatten()]), torch.cat(found)


def additive(layer: StripPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of the gate beside those that the first row and the first column give (1×1 commutes with sums)."""
    z = layer(x).logit()
    return z, z[:, :, :1] + z[:, :, :, :1] - z[:, :, :1, :1]


def rectangle(layer: StripPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gate of x beside that of x with +1, −1, −1, +1 on the corners of a rectangle; output / x where it gates x."""
    other = x.detach().clone()
    other[:, :, 0, 0] += 1
    other[:, :, 0, 2] -= 1
    other[:, :, 3, 0] -= 1
    other[:, :, 3, 2] += 1
    return layer(x) / x, layer(other) / other


def product(layer: StripPooling, x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output beside x times what the same parameters give as a gate."""
    gate = StripPooling(layer.channels, returns="gate", dtype=x.dtype)
    gate.load_state_dict(layer.state_dict())
    return layer(x), x * gate(x)
