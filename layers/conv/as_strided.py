r"""Convolution by a strided view of all patches: a matrix of no bytes, which the product copies all the same.

$$\mathrm{view}[n, c, i, j, u, v] = x[n, c,\; s u + d i,\; s v + d j]$$
is x with other strides: (C·HP·WP, HP·WP, d·WP, d, s·WP, s) channels-first. An array of six axes, it is the operand of
einsum and tensordot, the convolution of many NumPy tutorials. But a product of matrices (BLAS) takes an operand with
one unit stride and a leading dimension no smaller than what it leads, so that nothing overlaps, and neighbouring
patches do. einsum, tensordot and reshape therefore copy the view to the matrix of im2col, KH·KW times the input, before
they multiply: the convolution is free of code, not of copies.

Here the copy is spelled out, in the layout of the input: a patch per column of (C·KH·KW) × (HO·WO) per image
channels-first, a patch per row of (N·HO·WO) × (KH·KW·C) channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layers.card import Card, Identity, Paper, Stat
from layers.convolution import options_among
from layers.gemm_convolution import FEW, GemmConvolution, Geometry, as_torch, lowered_gradients, started
from layers.observe import observe
from layers.pooling import is_last
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
from layers.strided_windows import as_rows, made_output, multiply, packed, windows, zero_padded

card = Card(
    title="Convolution by as_strided",
    paper=Paper(
        authors="Chellapilla, Puri, Simard",
        title="High Performance Convolutional Neural Networks for Document Processing",
        year=2006,
        venue="IWFHR",
    ),
    impl="AsStridedConv2d",
    formula="Y = W·copy(view), view[n, c, i, j, u, v] = x[n, c, su + di, sv + dj] with the strides of x alone",
    summary="Views all patches through strides, at no cost, and copies them for the product: im2col in two lines.",
    options=CONVOLUTION,
    derived={
        **ALGORITHM_SYMBOLS,
        "last": "1 if nhwc and turned and padding_mode != 'circular' else 0",  # torch pads circularly channels-first
        "lowered": "0 if pointwise else Q*C*KH*KW*B",
        "padded": "N*C*HP*WP*B if zeros else 0",
        "few": "not last and not pointwise and HO*WO < 128 and N > 1",
    },
    rules=CONVOLUTION_RULES,
    statistics=(
        Stat(
            "matrix",
            ("N", "HO*WO if last else C*KH*KW", "C*KH*KW if last else HO*WO"),
            "N × C·KH·KW × HO·WO",
            help="the copied patches, one per column; one per row of a channels-last input's",
        ),
    ),
    params="O*I + (O if bias else 0)",
    flops=ALGORITHM_FLOPS,
    executed=LOWERED_FLOPS,
    explained="Backward the filters' gradient is added up over the images, small ones together, O×I numbers each "
    "time, and every element of a patch that is no padding is added "
    "to the image. fvcore does not see into the custom backward and counts a multiply-add as 1.",
    saved="4*kept",
    workspace="None if padding_mode != 'zeros' else max(padded + lowered + (packed if last else 0), turned_back if few "
    "else 0)",
    traffic=CONVOLUTION_TRAFFIC,
    ranks=(4,),
    output=("N", "O", "HO", "WO"),
    claims=ALGORITHM_CLAIMS,
    identities=(
        Identity(says="it is torch.nn.Conv2d", options={"padding": 1, "stride": 2}, proof="as_torch"),
        Identity(
            says="it is im2col", equals="im2col", options={"padding": 1, "groups": 3}, other={"padding": 1, "groups": 3}
        ),
        Identity(says="the view has no bytes: it is x's memory, from its first element on", proof="view_is_memory"),
        Identity(says="einsum, tensordot and reshape each allocate the whole matrix", proof="all_copy"),
    ),
    notes=(
        "as_strided does not make a convolution free of copies, as is often read: einsum, tensordot and reshape with @ "
        "all allocate N·HO·WO·C·KH·KW numbers, the matrix of im2col, before they multiply. BLAS needs rows that do "
        "not overlap, and those of the view do: a stride of s·C under a length of KW·C.",
        "What is free of copies: one element of the kernel at a time (kn2row-aa), or rows that mec has lowered along "
        "one axis, whose shifted panels overlap between products but not within one.",
        "Pointwise convolutions need no copy: the view of a 1×1 kernel is x.",
        "The strides are those of x itself, so the view exists in any layout; the copy is fast where its runs are "
        "long, WO numbers channels-first and KW·C channels-last, and is therefore made in the layout of x.",
        "Backward through the view itself (as_strided's own gradient) adds into x element by element; here the "
        "gradient is im2col's.",
    ),
    peer=ALGORITHM_PEER,
    examples=(
        {},
        {"out_channels": 8, "kernel_size": 2, "padding": 1, "groups": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 4, "bias": False},
        {"out_channels": 6, "padding": 2, "dilation": 2, "groups": 3, "padding_mode": "circular"},
        {"kernel_size": 1, "groups": 2},
    ),
)


class AsStridedConv2d(GemmConvolution):
    """torch.nn.Conv2d by a strided view of its patches: (N, C, H, W) → (N, O, HO, WO).

    Args: those of torch.nn.Conv2d. Parameters ``weight`` (O, C/groups, KH, KW) and ``bias`` (O,), so checkpoints of
    torch.nn.Conv2d load; no state. Raises OptionError for refused options, ValueError for inputs that do not fit.
    """

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
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(card, in_channels, options_among(card, locals()), device=device, dtype=dtype)

    def algorithm(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Return y (N, O, HO, WO), laid out as x: the view of all patches, copied to a matrix, times W, per group."""
        last, groups = is_last(x), geometry.groups
        view = windows(zero_padded(x, geometry.padding, last), geometry)  # (N, C, KH, KW, HO, WO)
        if not last and not geometry.is_pointwise and view.shape[4:].numel() < FEW:
            return _together(view, weight, bias, groups)
        y = made_output(x, weight, geometry, last)
        beta = started(y, bias)
        if last:
            view = as_rows(view, groups)
        matrix = view if geometry.is_pointwise else view.clone(memory_format=torch.contiguous_format)
        if last:
            multiply(y, packed(weight, groups), matrix, beta, last)
            observe(matrix=matrix.flatten(3).flatten(1, 2))
            return y
        filters = weight.reshape(groups, len(weight) // groups, -1)
        columns = matrix.flatten(4).flatten(1, 3)  # (N, C·KH·KW, HO·WO)
        for image, patches in zip(y, columns, strict=True):
            image.view(*filters.shape[:2], -1).baddbmm_(filters, patches.view(groups, filters.shape[2], -1), beta=beta)
        observe(matrix=columns)
        return y


def _together(view: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Return y (N, O, HO, WO), in memory O, N, HO, WO, as one product for all images, of few positions each."""
    matrix = view.permute(1, 2, 3, 0, 4, 5).clone(memory_format=torch.contiguous_format)  # (C, KH, KW, N, HO, WO)
    made = weight.new_empty(len(weight), *matrix.shape[3:])
    beta = started(made.transpose(0, 1), bias)
    filters = weight.reshape(groups, len(weight) // groups, -1)
    made.view(*filters.shape[:2], -1).baddbmm_(filters, matrix.view(groups, filters.shape[2], -1), beta=beta)
    observe(matrix=matrix.flatten(4).flatten(0, 2).transpose(0, 1))
    return made.transpose(0, 1)


def view_is_memory(layer: AsStridedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Address and bytes of the view's memory beside those of x."""
    view = windows(x, _unpadded(layer))
    return _place(view, x), _place(x, x)


def _place(tensor: Tensor, x: Tensor) -> Tensor:
    return torch.tensor([tensor.data_ptr() - x.data_ptr(), tensor.untyped_storage().nbytes()], dtype=torch.float64)


def all_copy(layer: AsStridedConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes of the largest tensor that each way to multiply allocates, beside those of the matrix."""
    view, weight = windows(x.detach(), _unpadded(layer)), layer.weight.detach()
    ways: tuple[Callable[[], Tensor], ...] = (
        lambda: torch.einsum("ncijuv,ocij->nouv", view, weight),
        lambda: torch.tensordot(view, weight, dims=([1, 2, 3], [1, 2, 3])),
        lambda: view.permute(0, 4, 5, 1, 2, 3).reshape(-1, weight[0].numel()) @ weight.flatten(1).T,
    )
    found = []
    for way in ways:
        with _Allocations() as allocations:
            way()
        found.append(allocations.largest)
    return torch.tensor(found, dtype=torch.float64), torch.full((3,), view.numel() * view.itemsize, dtype=torch.float64)


def _unpadded(layer: AsStridedConv2d) -> Geometry:
    return Geometry(layer.kernel_size, layer.stride, (0, 0), layer.dilation, 1)  # type: ignore[arg-type]


class _Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that operations inside the block allocate."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves(list(args)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        made = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *(s.nbytes() for s in made if s.data_ptr() not in known)])
        return out


__all__ = ["AsStridedConv2d", "all_copy", "as_torch", "card", "view_is_memory"]
