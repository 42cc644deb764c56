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
which takes the product with every filter: here, and only here, the work is m-fold. Saved: x, W, F and the regions.
The passes are in layers/region_passes.py; torch.compile sees each as one operation. `define` there is the same in plain
operations, m-fold: for double backward, tracing, functorch and the meta device; the passes are tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layers.definition import through_definition
from layers.moments import needs_plain_operations
from layers.region_passes import Windows, backward, define, forward


def choice(guide: Tensor) -> Tensor:
    """Return the regions (N, HO, WO) that the ``guide`` (N, m, HO, WO) chooses, the lowest of equals."""
    return guide.detach().max(1).indices  # argmax is slower across planes


def region_convolution(x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, windows: Windows) -> Tensor:
    """Return y (N, O, HO, WO) for ``x`` (N, C, H, W), in whatever memory format is at hand.

    ``filters`` (m, N, KH·KW, C, O), rounded to the dtype of ``x``; ``regions`` (N, HO, WO), those of ``guide``
    (N, m, HO, WO), which gets its gradient as if it had mixed the filters. Where ``x`` is of half precision filters and
    guide should be float32: their gradients are sums over a whole map.
    """
    if torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        compiled: Tensor = operator(x, filters, guide, regions, *windows)
        return compiled
    if needs_plain_operations() or x.is_meta:
        return define(x, filters, guide, regions, windows)
    if torch.is_grad_enabled() and (x.requires_grad or filters.requires_grad or guide.requires_grad):
        made: Tensor = _Regions.apply(x, filters, guide, regions, windows)  # type: ignore[no-untyped-call]
        return made
    return forward(x, filters, regions, windows)


class _Regions(torch.autograd.Function):
    """`define`, region by region."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, windows: Windows) -> Tensor:
        ctx.windows = windows
        ctx.save_for_backward(x, filters, guide, regions)
        return forward(x, filters, regions, windows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if torch.is_grad_enabled() or needs_plain_operations() or torch._C._functorch.is_legacy_batchedtensor(grad):
            define_by = partial(_defined, regions=ctx.saved_tensors[3], windows=ctx.windows)
            return (*through_definition(define_by, ctx.saved_tensors[:3], ctx.needs_input_grad[:3], grads), None, None)
        x, filters, guide, regions = ctx.saved_tensors
        return (*backward(grad, x, filters, guide, regions, ctx.windows, ctx.needs_input_grad), None, None)


def _defined(x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, windows: Windows) -> tuple[Tensor]:
    return (define(x, filters, guide, regions, windows),)


# The same for torch.compile, whose graphs cannot hold a number of positions that is known when it has been counted.
_SIZES = "int[] kernel, int[] stride, int[] padding, int[] dilation"
_INPUTS = "Tensor x, Tensor filters, Tensor guide, Tensor regions"


@torch.library.custom_op("stones::regions", mutates_args=(), schema=f"({_INPUTS}, {_SIZES}) -> Tensor")
def operator(x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, *windows: Sequence[int]) -> Tensor:
    """Return `forward` as one operation of a compiled graph."""
    return forward(x, filters, regions, Windows(*map(tuple, windows)))


@torch.library.custom_op(
    "stones::regions_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, {_SIZES}, bool[] wants) -> (Tensor, Tensor, Tensor)",
)
def _operator_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    x, filters, guide, regions, *windows, wants = inputs
    found = backward(grad, x, filters, guide, regions, Windows(*map(tuple, windows)), wants)
    return tuple(grad.new_empty(0) if each is None else each.contiguous() for each in found)


@operator.register_fake
def _(x: Tensor, filters: Tensor, guide: Tensor, regions: Tensor, *windows: Sequence[int]) -> Tensor:
    shape = (x.shape[0], filters.shape[4], regions.shape[1], regions.shape[2])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@_operator_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    pairs = zip(inputs[:3], inputs[-1], strict=True)
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if w else grad.new_empty(0) for t, w in pairs
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.windows = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _derive(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wants = ctx.needs_input_grad[:3]
    found = _operator_backward(grad, *ctx.saved_tensors, *ctx.windows, wants)
    return (*(t if wanted else None for t, wanted in zip(found, wants, strict=True)), *(None,) * 5)


operator.register_autograd(_derive, setup_context=_keep)
