r"""The engine under dynamic region-aware convolution: every position is convolved by the filter of its own region.

$$y_{np} = U_{np}\,W_{n r},\qquad r = \operatorname{argmax}_t F_{ntp},$$
U_np the K·C numbers that position p of sample n sees, W_nr the filter (K·C, O) of region r of sample n. Positions are
sorted by region: the rows of U of one region of one sample are gathered, meet their filter in one product of matrices
while they are in cache, and go back to where they came from. Nothing is computed that the guide F throws away, and U is
never whole.

Backward, with g = ∂L/∂y and π = softmax of F over the regions: x and W see the regions as they were taken,
$$\partial L/\partial W_{nr} = \textstyle\sum_{p \in r} U_{np}^T g_{np},\qquad
\partial L/\partial U_{np} = g_{np} W_{nr}^T,$$
F as if they had been mixed by π,
$$\partial L/\partial F_{ntp} = \pi_t\,(s_t - \textstyle\sum_q \pi_q s_q),\qquad
s_t = \langle g_{np}, U_{np} W_{nt} \rangle,$$
which takes the product with every filter: here, and only here, the work is m-fold. Saved: x, what W is made from, F
and the regions; backward makes W again. The passes are in layers/region_passes.py; on small maps, where the filters are
more numbers than all else, those of layers/region_factors.py do the same without W. torch.compile sees each as one
operation. `define` is the same in plain operations, m-fold: for double backward, tracing, functorch and the meta
device; the passes are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from layers import region_factors, region_passes
from layers.definition import through_definition
from layers.moments import needs_plain_operations
from layers.region_factors import Maker, pays
from layers.region_passes import Windows, define


def choice(guide: Tensor) -> Tensor:
    """Return the regions (N, HO, WO) that the ``guide`` (N, m, HO, WO) chooses, the lowest of equals."""
    return guide.detach().max(1).indices  # argmax is slower across planes


def region_convolution(x: Tensor, maker: Maker, guide: Tensor, regions: Tensor, windows: Windows) -> Tensor:
    """Return y (N, O, HO, WO) for ``x`` (N, C, H, W), in whatever memory format is at hand.

    ``maker`` has what the filters are made from, ``hidden`` of the dtype in which they are made; ``regions`` (N, HO,
    WO) are those of ``guide`` (N, m, HO, WO), which gets its gradient as if it had mixed the filters. Where ``x`` is of
    half precision hidden and guide should be float32: their gradients are sums over a whole map.
    """
    if torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        compiled: Tensor = operator(x, *maker, guide, regions, *windows)
        return compiled
    if needs_plain_operations() or x.is_meta:
        return define(x, maker.filters(x.shape[1]), guide, regions, windows)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *maker, guide)):
        made: Tensor = _Regions.apply(x, *maker, guide, regions, windows)  # type: ignore[no-untyped-call]
        return made
    return forward(x, maker, regions, windows)


def forward(x: Tensor, maker: Maker, regions: Tensor, windows: Windows) -> Tensor:
    """Return y, by filters that are made where they are worth it."""
    if pays(maker.regions, regions[:1].numel(), prod(windows.kernel)):
        return region_factors.forward(x, maker, regions, windows)
    return region_passes.forward(x, maker.filters(x.shape[1]), regions, windows)


def backward(
    grad: Tensor, x: Tensor, maker: Maker, guide: Tensor, regions: Tensor, windows: Windows, wants: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, hidden, weight, bias and guide, those that ``wants`` has first, from that of y."""
    if pays(maker.regions, regions[:1].numel(), prod(windows.kernel)):
        return region_factors.backward(grad, x, maker, guide, regions, windows, wants)
    parts = wants[0], any(wants[1:4]), wants[4]
    filters = maker.filters(x.shape[1])
    grad_x, made, grad_guide = region_passes.backward(grad, x, filters, guide, regions, windows, parts)
    return grad_x, *((None,) * 3 if made is None else maker.gradients(made, wants[1:4])), grad_guide


class _Regions(torch.autograd.Function):
    """`define`, region by region."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        guide: Tensor,
        regions: Tensor,
        windows: Windows,
    ) -> Tensor:
        ctx.windows = windows
        ctx.save_for_backward(x, hidden, weight, bias, guide, regions)
        return forward(x, Maker(hidden, weight, bias), regions, windows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), wants = grads, ctx.needs_input_grad[:5]
        *inputs, regions = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_plain_operations() or torch._C._functorch.is_legacy_batchedtensor(grad):
            define_by = partial(_defined, regions=regions, windows=ctx.windows)
            return (*through_definition(define_by, inputs, wants, grads), None, None)
        x, hidden, weight, bias, guide = inputs
        return (*backward(grad, x, Maker(hidden, weight, bias), guide, regions, ctx.windows, wants), None, None)


def _defined(
    x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, guide: Tensor, regions: Tensor, windows: Windows
) -> tuple[Tensor]:
    return (define(x, Maker(hidden, weight, bias).filters(x.shape[1]), guide, regions, windows),)


# The same for torch.compile, whose graphs cannot hold a number of positions that is known when it has been counted.
_SIZES = "int[] kernel, int[] stride, int[] padding, int[] dilation"
_INPUTS = "Tensor x, Tensor hidden, Tensor weight, Tensor bias, Tensor guide, Tensor regions"


@torch.library.custom_op("stones::regions", mutates_args=(), schema=f"({_INPUTS}, {_SIZES}) -> Tensor")
def operator(x: Tensor, *inputs: Any) -> Tensor:
    """Return `forward` as one operation of a compiled graph."""
    hidden, weight, bias, _, regions, *windows = inputs
    return forward(x, Maker(hidden, weight, bias), regions, Windows(*map(tuple, windows)))


@torch.library.custom_op(
    "stones::regions_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, {_SIZES}, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _operator_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    x, hidden, weight, bias, guide, regions, *windows, wants = inputs
    maker, sizes = Maker(hidden, weight, bias), Windows(*map(tuple, windows))
    found = backward(grad, x, maker, guide, regions, sizes, wants)
    return tuple(grad.new_empty(0) if each is None else each.contiguous() for each in found)


@operator.register_fake
def _(x: Tensor, *inputs: Any) -> Tensor:
    _, _, bias, guide, regions, *_ = inputs
    outputs = bias.shape[0] // (guide.shape[1] * x.shape[1])
    shape = (x.shape[0], outputs, regions.shape[1], regions.shape[2])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@_operator_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    pairs = zip(inputs[:5], inputs[-1], strict=True)
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if w else grad.new_empty(0) for t, w in pairs
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.windows = inputs[6:]
    ctx.save_for_backward(*inputs[:6])


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wants = ctx.needs_input_grad[:5]
    found = _operator_backward(grad, *ctx.saved_tensors, *ctx.windows, wants)
    return (*(t if wanted else None for t, wanted in zip(found, wants, strict=True)), *(None,) * 5)


operator.register_autograd(_derive, setup_context=_keep)
