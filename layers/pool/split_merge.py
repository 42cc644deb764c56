r"""Split-Merge pooling: every k-th pixel makes a small image, all k² of them go on as samples, and come together again
(Hosseini Jafari & Rother 2020, arXiv 2006.07742).

$$\mathrm{split}(x)_{(n,i,j)} = x_{n,:,\,i::k,\,j::k},\qquad
(N, C, H, W) \to (N k^2, C, H/k, W/k),\qquad \mathrm{merge}(\mathrm{split}(x)) = x.$$

Nothing is lost, unlike in max pooling or strides, and what lies between sees k times as far. For one convolution of
stride 1 that is a dilation by k, which copies nothing: prefer it there. Several layers between one split and its merge
share the two copies.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.card import Card, Claim, Identity, Option, Paper, Rule
from layers.convolution import options_among
from layers.moments import needs_plain_operations
from layers.norm.bn import BatchNorm
from layers.pooling import Pooling, is_last
from layers.shared import POOLED_POSITIONS

card = Card(
    title="Split-Merge pooling",
    paper=Paper(
        authors="Hosseini Jafari, Rother",
        title="Split-Merge Pooling",
        year=2020,
        arxiv="2006.07742",
    ),
    impl="SplitMerge",
    formula="split(x)_(n,i,j) = x[n, :, i::k, j::k]",
    summary="All k×k subsampled images of a sample become samples; merging puts them together again.",
    options=(
        Option(name="window", type=int, default=2, axes=2, ge=1, help="steps between the pixels of one image"),
        Option(name="merge", type=bool, default=False, help="the inverse: k² samples become one again"),
        Option(
            name="order",
            type=str,
            default="sample",
            choices=("sample", "offset"),
            help="whose images are neighbours in the batch: those of one sample, or, as in TensorFlow's "
            "space_to_batch, those of one offset (i, j)",
            source="ours: the paper's code is not published",
        ),
    ),
    derived={"KH": "axis(window, 0)", "KW": "axis(window, 1)", "K": "KH*KW"},
    rules=(
        POOLED_POSITIONS,
        Rule(
            "merge or H % KH == 0 and W % KW == 0",
            "window={window} does not divide {H}×{W} positions; pad them, or take a window that does",
            "window",
        ),
        Rule(
            "not merge or N % K == 0",
            "window={window} merges {K} samples into one, which a batch of {N} is no multiple of",
            "window",
        ),
    ),
    ranks=(4,),
    output=(
        "N // K if merge else N*K",
        "C",
        "H*KH if merge else H // KH",
        "W*KW if merge else W // KW",
    ),
    claims=(
        Claim(
            options={"window": (1, 2)},
            holds=(),
            carriers=("conv", "conv-padded"),
            why="The same numbers in another place: nothing is forgotten.",
        ),
    ),
    identities=(
        Identity(says="merge(split(x)) = x", options={"window": (3, 2)}, dims={"H": 6}, proof="inverse", within=0),
        Identity(
            says="merge(split(x)) = x, by offsets",
            options={"window": (3, 2), "order": "offset"},
            dims={"H": 6},
            proof="inverse",
            within=0,
        ),
        Identity(
            says="split, convolution padded by p, merge = the convolution dilated by k, padded by k p",
            options={"window": (3, 2)},
            dims={"H": 6},
            proof="dilated",
        ),
        Identity(
            says="split, batch norm in training, merge = batch norm",
            options={"window": 2},
            dims={"H": 6},
            proof="normal",
        ),
    ),
    notes=(
        "The notes have it only in a comment.",
        "The first axis of the output is not that of the samples: N k² of them, so what follows must not pool, count "
        "or weigh samples before the merge.",
        "Equal to the dilated convolution for stride 1 and zero padding, elementwise layers and batch norm; not for "
        "pooling over a whole image, other padding, or anything that knows where a pixel is.",
    ),
    examples=(
        {"window": (3, 2)},
        {"window": (1, 2), "order": "offset"},
        {"window": (1, 2), "merge": True},
        {"window": (2, 1), "merge": True, "order": "offset"},
    ),
    couples="always",
    draws="rearrangement",
)


class SplitMerge(Pooling):
    """Split (N, C, H, W) into (N·KH·KW, C, H/KH, W/KW), or merge it; no parameters, no state, one copy.

    Args: ``channels`` C; ``window`` KH×KW; ``merge`` for the inverse; ``order`` of the batch, by sample or by offset.
    The output has the dtype and memory format of the input.
    Raises OptionError for refused options and ValueError for inputs that do not fit.
    """

    window: tuple[int, int]
    merge: bool
    order: str

    def __init__(
        self,
        channels: int,
        window: int | tuple[int, ...] = 2,
        merge: bool = False,
        order: str = "sample",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, channels, options_among(card, locals()))

    def forward(self, x: Tensor) -> Tensor:
        """Split or merge ``x`` (N, C, H, W)."""
        self.check_input(x)
        n, _, h, w = x.shape
        kh, kw = self.window
        if self.merge and n % (kh * kw):
            raise ValueError(f"SplitMerge: {kh}×{kw} samples are merged into one, a batch of {n} is no multiple of it")
        if not self.merge and (h % kh or w % kw):
            raise ValueError(f"SplitMerge: a window of {kh}×{kw} does not divide an input of {h}×{w}; pad it")
        return (merge if self.merge else split)(x, self.window, self.order)


def split(x: Tensor, window: tuple[int, int], order: str = "sample") -> Tensor:
    """Return the KH·KW subsampled images of every sample as samples, in the memory format of ``x``; a copy."""
    if needs_plain_operations():
        return _split(x, window, order)
    made: Tensor = _Moved.apply(x, _split, _merge, window, order)  # type: ignore[no-untyped-call]
    return made


def merge(x: Tensor, window: tuple[int, int], order: str = "sample") -> Tensor:
    """Return the images that `split` with the same arguments makes ``x`` of, in the memory format of ``x``; a copy."""
    if needs_plain_operations():
        return _merge(x, window, order)
    made: Tensor = _Moved.apply(x, _merge, _split, window, order)  # type: ignore[no-untyped-call]
    return made


Move = Callable[[Tensor, tuple[int, int], str], Tensor]


class _Moved(torch.autograd.Function):
    """A permutation; its backward is the inverse in the memory format of the input, where autograd makes two copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Move, back: Move, window: tuple[int, int], order: str) -> Tensor:
        ctx.arguments, ctx.last, ctx.shape = (back, there, window, order), is_last(x), x.shape
        # No view: what follows may work in place, which autograd refuses on a view made in a custom Function.
        return x.new_empty(0).set_(there(x, window, order))  # type: ignore[call-overload, no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch._C._functorch.is_legacy_batchedtensor(grads[0]):  # which takes no layouts
            _, there, *arguments = ctx.arguments
            with torch.enable_grad():
                x = torch.zeros(ctx.shape, dtype=grads[0].dtype, device=grads[0].device, requires_grad=True)
                return torch.autograd.grad(there(x, *arguments), x, grads[0])[0], None, None, None, None
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        grad = grads[0].contiguous(memory_format=layout)
        return _Moved.apply(grad, *ctx.arguments), None, None, None, None  # type: ignore[no-untyped-call]


def _split(x: Tensor, window: tuple[int, int], order: str) -> Tensor:
    n, c, h, w = x.shape
    kh, kw = window
    shape = (n * kh * kw, c, h // kh, w // kw)
    grid = x.reshape(n, c, h // kh, kh, w // kw, kw)  # N C h i w j, a view
    parts = grid.permute((0, 3, 5, 1, 2, 4) if order == "sample" else (3, 5, 0, 1, 2, 4))
    return _copy(parts, 3, shape, is_last(x))


def _merge(x: Tensor, window: tuple[int, int], order: str) -> Tensor:
    n, c, h, w = x.shape
    kh, kw = window
    shape = (n // (kh * kw), c, h * kh, w * kw)
    by_sample = order == "sample"
    grid = x.reshape(*((shape[0], kh, kw) if by_sample else (kh, kw, shape[0])), c, h, w)  # a view
    if not is_last(x) and not needs_plain_operations():  # an offset at a time: rows of kw numbers are slow to copy
        made = x.new_empty(shape)
        blocks = made.view(shape[0], c, h, kh, w, kw)
        for i, j in product(range(kh), range(kw)):
            blocks[:, :, :, i, :, j].copy_(grid[:, i, j] if by_sample else grid[i, j])
        return made
    parts = grid.permute((0, 3, 4, 1, 5, 2) if by_sample else (2, 3, 4, 0, 5, 1))  # N C h i w j
    return _copy(parts, 1, shape, is_last(x))


def _copy(parts: Tensor, channels: int, shape: tuple[int, int, int, int], last: bool) -> Tensor:
    """Lay ``parts`` out as images of ``shape``, the axis ``channels`` innermost in memory if ``last``: one copy."""
    if not last:
        return parts.clone(memory_format=torch.contiguous_format).view(shape)
    n, c, h, w = shape
    inner = parts.movedim(channels, -1).clone(memory_format=torch.contiguous_format)
    return inner.view(n, h, w, c).movedim(-1, 1)


def inverse(layer: SplitMerge, x: Tensor) -> tuple[Tensor, Tensor]:
    """What splitting and merging make of x beside x."""
    back = SplitMerge(layer.channels, layer.window, not layer.merge, layer.order)
    return back(layer(x)), x


def dilated(layer: SplitMerge, x: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution between split and merge beside the dilated one."""
    weight = torch.linspace(-1, 1, 5 * x.shape[1] * 9, dtype=x.dtype).sin().view(5, -1, 3, 3)
    found = merge(F.conv2d(layer(x), weight, padding=1), layer.window, layer.order)
    return found, F.conv2d(x, weight, padding=layer.window, dilation=layer.window)


def normal(layer: SplitMerge, x: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm between split and merge beside batch norm."""
    norm = BatchNorm(x.shape[1], dtype=x.dtype)
    return merge(norm(layer(x)), layer.window, layer.order), norm(x)
