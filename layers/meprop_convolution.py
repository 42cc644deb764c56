"""meProp's backward for convolutions (layers/backward/meprop.py): rows are positions, columns output channels."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.card import Card, Paper
from layers.convolution import Convolution, autocast, options_among
from layers.gemm_convolution import Geometry
from layers.shared import CONVOLUTION, CONVOLUTION_RULES, CONVOLUTION_SYMBOLS, KEPT, KEPT_RULES
from layers.sparse_backward import gradients, is_traced, kept, largest, magnitudes, of_channels, only_largest, refusing

_OPTIONS = Card(
    title="meProp convolution",
    paper=Paper(authors="Sun, Ren, Ma, Wang", title="meProp", year=2017, arxiv="1706.06197"),
    impl="MePropConv2d",
    formula="y = W * x + b",
    summary="What convert puts for a convolution.",
    options=(*CONVOLUTION, *KEPT),
    derived=CONVOLUTION_SYMBOLS,
    rules=(*CONVOLUTION_RULES, *KEPT_RULES),
)


class MePropConv2d(Convolution):
    """A convolution (N, C, H, W) → (N, O, HO, WO) with meProp's backward: what `convert` puts for torch.nn.Conv2d.

    Args: those of torch.nn.Conv2d, and ``k``, ``ratio``, ``unified`` of `MePropLinear`: unified keeps the k output
    channels of largest Σ|G| over samples and positions, else the k largest of every position of every sample. Groups
    save nothing. Parameters are torch's; no state. Raises what `Convolution` and `MePropLinear` raise.
    """

    k: int | None
    ratio: float | None
    unified: bool

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
        k: int | None = None,
        ratio: float | None = 0.0625,
        unified: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = options_among(_OPTIONS, locals())
        super().__init__(_OPTIONS, in_channels, options, device=device, dtype=dtype)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k = kept(self.out_channels, self.k, self.ratio)
        if k == self.out_channels or is_traced():
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        x, padding = self.padded(input)
        x, weight, bias = autocast(x, weight, bias)
        geometry = Geometry(self.kernel_size, self.stride, padding, self.dilation, self.groups)  # type: ignore[arg-type]
        y: Tensor = _Convolution.apply(x, weight, bias, geometry, k, self.unified)  # type: ignore[no-untyped-call]
        return y


class _Convolution(torch.autograd.Function):
    """A convolution with the gradients of Ĝ. Keeps x and W."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, k: int, unified: bool) -> Tensor:
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry, ctx.k, ctx.unified = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight), wants = grads, ctx.saved_tensors, ctx.needs_input_grad
        with torch.no_grad():
            if ctx.unified:
                index = largest(magnitudes(grad, 1), ctx.k)
                found = of_channels(grad, index, x, weight, ctx.geometry, wants[:2])
            else:
                found = gradients(only_largest(grad, ctx.k), x, weight, ctx.geometry, wants[:2])
        of_bias = grad.sum((0, 2, 3)) if wants[2] else None
        return *refusing(found, grad, x, weight), of_bias, None, None, None
