r"""Convolution as one product with the matrix of patches, a patch per column (Chellapilla, Puri & Simard 2006).

With x_col (C·KH·KW) × (HO·WO), column u·WO + v the patch that output (u, v) sees and row c·KH·KW + i·KW + j the input
at element (i, j) of channel c in all of them,
$$Y = W\,x_{col} + b,\qquad W\ (O \times C\,KH\,KW),\quad Y\ (O \times HO\,WO),$$
so that the output is channels-first as the input is, and a batch needs one product per sample. Backward:
∂L/∂W = G x_colᵀ and ∂L/∂x = col2im(Wᵀ G), the patches added up where they lay; x_col is made again, not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.card import Card, Identity, Option, Paper, Stat
from layers.convolution import options_among
from layers.gemm_convolution import (
    GemmConvolution,
    Geometry,
    as_torch,
    lowered_gradients,
    patch_matrix,
    patches,
    started,
)
from layers.observe import observe
from layers.shared import (
    ALGORITHM_CLAIMS,
    ALGORITHM_FLOPS,
    ALGORITHM_PEER,
    ALGORITHM_SYMBOLS,
    CONVOLUTION,
    CONVOLUTION_RULES,
    CONVOLUTION_TRAFFIC,
    LOWERED_FLOPS,
)

card = Card(
    title="im2col convolution",
    paper=Paper(
        authors="Chellapilla, Puri, Simard",
        title="High Performance Convolutional Neural Networks for Document Processing",
        year=2006,
        venue="IWFHR",
    ),
    impl="Im2colConv2d",
    formula="Y = W·x_col + b, x_col (C·KH·KW) × (HO·WO): each column is one patch",
    summary="Lowers every image to a matrix of patches, one per column, and multiplies: the convolution of Caffe.",
    options=(
        *CONVOLUTION,
        Option(
            name="batched",
            type=bool,
            default=False,
            help="lower the whole batch at once; else one image after the other into the same matrix",
            source="Caffe: one by one",
        ),
    ),
    derived={
        **ALGORITHM_SYMBOLS,
        "lowered": "0 if pointwise else (N if batched else 1)*C*KH*KW*HO*WO*B",
    },
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "matrix",
            ("N if batched else 1", "C*KH*KW", "HO*WO"),
            "C·KH·KW × HO·WO",
            given="N > 0",
            help="patches, one per column, of the batch or of the last image",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=LOWERED_FLOPS,
    explained="Backward the filters' gradient is added up over the images, small ones together, O×I numbers each "
    "time, and col2im adds every element of a patch that is no padding "
    "to the image. fvcore does not see into the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else max(turned + lowered, turned_back) if nhwc else lowered",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(says="the matrix is torch.nn.functional.unfold's, column by column", proof="matrix_is_unfold"),
        Identity(says="⟨x_col, G⟩ = ⟨x, col2im G⟩: the backward is the adjoint", proof="adjoint"),
    ),
    notes=(
        "The notes swap im2col and im2row. im2col: each COLUMN is a patch, (C·KH·KW) × (HO·WO), as in MATLAB, Caffe "
        "and torch.nn.functional.unfold; im2row: each ROW is one. The notes' [N(H − k + 1)(W − k + 1), k·k·c] × "
        "[k·k·c, d] is im2row. TensorFlow's source calls its patch-per-row buffer im2col, which the notes follow.",
        "A column is one patch; it is a column of the im2row matrix that runs over the whole image.",
        "The notes' size N(H − k + 1)(W − k + 1)·k·k·c is N·HO·WO·KH·KW·C without padding, stride and dilation.",
        "A row-major a×b buffer is a column-major b×a one, so a Fortran BLAS sees Caffe's matrix transposed: the "
        "second source of the confusion. What matters is which index is contiguous: here the output position.",
        "“Caffe is BCWH and torch BWHC”: neither is. Both lie in memory as N, C, H, W, W fastest, at offset "
        "((n·C + c)·H + h)·W + w. matcaffe shows width, height, channels, number because MATLAB writes the fastest "
        "index first: the same bytes. NHWC is TensorFlow's default and torch's channels_last, whose shape stays "
        "(N, C, H, W).",
        "Row-major: the last index is the fastest (C, NumPy, torch). Column-major: the first (Fortran, BLAS, MATLAB); "
        "C = AB row-major is Cᵀ = BᵀAᵀ column-major, computed so without a copy.",
        "torch.nn.functional.unfold allocates the bytes of its input first, drops them, and copies number by number; "
        "this allocates the matrix alone and copies rows.",
        "A 1×1 convolution without stride and padding needs no matrix: x is one already.",
    ),
    picture=(
        "x, C×H×W = 2×3×4     x_col, C·KH·KW × HO·WO = 8×6, uv the outputs",
        "c = 0  a b c d       c ij  00 01 02 10 11 12",
        "       e f g h       0 00   a  b  c  e  f  g",
        "       i j k l       0 01   b  c  d  f  g  h",
        "c = 1  A B C D       0 10   e  f  g  i  j  k",
        "       E F G H       0 11   f  g  h  j  k  l",
        "       I J K L       1 00   A  B  C  E  F  G",
        "                     1 01   B  C  D  F  G  H",
        "                     1 10   E  F  G  I  J  K",
        "                     1 11   F  G  H  J  K  L",
        "",
        "The product with W (O × 8) sums over the rows ↓: y is O × HO·WO, channels-first.",
        "Along a row, in memory too, lie neighbouring outputs; each COLUMN is one patch.",
    ),
    peer=ALGORITHM_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2, "batched": True},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular"},
        {"kernel_size": 1, "groups": 2},
    ),
)


class Im2colConv2d(GemmConvolution):
    """torch.nn.Conv2d by im2col: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d; ``batched`` lowers the whole batch at once, N times the workspace of one image.
    Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of torch.nn.Conv2d load; no state.
    Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

    batched: bool
    gradients = staticmethod(lowered_gradients)

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
        batched: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), channels-first: per image and group, W (O/G × I) times the patches (I × HO·WO)."""
        x = x.contiguous()
        (high, wide), groups = geometry.output(*x.shape[2:]), geometry.groups
        y = x.new_empty(len(x), len(weight), high, wide)
        beta = started(y, bias)
        filters = weight.reshape(groups, len(weight) // groups, -1)
        at_once = max(1, len(x)) if self.batched else 1
        matrix = None if geometry.is_pointwise else patch_matrix(x[:at_once], geometry)
        for n in range(0, len(x), at_once):
            lowered = patches(x[n : n + at_once], geometry, matrix)
            for image, columns in zip(y[n : n + at_once], lowered, strict=True):
                rows = image.view(groups, -1, high * wide)
                rows.baddbmm_(filters, columns.view(groups, -1, high * wide), beta=beta)
            observe(matrix=lowered)
        return y


def matrix_is_unfold(layer: Im2colConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The patches beside torch.nn.functional.unfold's."""
    geometry = Geometry(layer.kernel_size, layer.stride, (0, 0), layer.dilation, 1)  # type: ignore[arg-type]
    return patches(x.detach(), geometry), F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)


def adjoint(layer: Im2colConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """⟨x_col, G⟩ beside ⟨x, ∂⟨x_col, G⟩/∂x⟩, by the layer's own backward with filters G."""
    x = x.detach().requires_grad_()
    y = layer(x) - (0 if layer.bias is None else layer.bias.view(-1, 1, 1))
    (found,) = torch.autograd.grad(y.cos().sum(), x)
    upstream = -y.detach().sin()
    return (y.detach() * upstream).sum(), (x.detach() * found).sum()


__all__ = ["Im2colConv2d", "adjoint", "as_torch", "card", "matrix_is_unfold"]
