"""Counting what a layer executes: every ATen operation is counted, declared free, or named as uncounted.

Convention: an add, subtract, multiply, divide, comparison or elementary function counts 1, a multiply-add 2 (its MAC is
reported beside). A mean of n values is n operations, a sum n − 1. A fused normalization kernel counts as its two-pass
definition: 4 per element for the moments, 1 to scale, 2 for γ and β, and 2 per statistic for + ε and the root.
Integer bookkeeping, views, copies, drawing numbers and allocation are free; `decompositions` are nominal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from profiles.counting.decompositions import NOMINAL
from profiles.counting.dispatch import Window
from profiles.counting.fused_kernels import FUSED_KERNELS
from profiles.counting.resampling import RESAMPLING

Args = Sequence[Any]
Formula = Callable[[Args, Mapping[str, Any], Any], int]


@dataclass
class Count:
    """Operations of one pass: ``flops`` and ``macs`` in all, by operation, and what was free or not counted.

    ``kernels`` is how many calls had something to compute, move or draw: all but views and bare allocations.
    """

    flops: int = 0
    macs: int = 0
    kernels: int = 0
    by_op: Counter[str] = field(default_factory=Counter)
    free: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[str] = field(default_factory=Counter)

    @property
    def status(self) -> str:
        """``complete``, or ``partial`` when an operation without a formula was executed."""
        return "partial" if self.uncounted else "complete"


class Counting(Window):
    """Count the operations executed inside the block, forward and backward alike, into `count`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def after(self, func: Any, name: str, args: Args, kwargs: Mapping[str, Any], out: Any) -> None:
        """Add up what ``func`` costs."""
        add(self.count, func, name, args, kwargs, out)


def add(count: Count, func: Any, name: str, args: Args, kwargs: Mapping[str, Any], out: Any) -> None:
    """Add to ``count`` what ``func``, called ``name``, costs that gave ``out``."""
    plain = name.removeprefix("_foreach_")
    plain = plain.rstrip("_") if not plain.startswith("_") else plain
    if out is None and name.startswith("_foreach_"):
        out = args[0]  # in place: it returns nothing
    count.kernels += plain not in _NO_KERNEL and not _is_view(func)
    if plain in _FREE or _is_view(func) or _is_integer(out, args):
        count.free[name] += 1
    elif plain in _MACS:
        macs = _MACS[plain](args, kwargs, out)
        added = _ADDS[plain](args, kwargs, out) if plain in _ADDS else 0
        count.macs += macs
        count.flops += 2 * macs + added
        count.by_op[name] += 2 * macs + added
    elif plain in _FORMULAS:
        flops = _FORMULAS[plain](args, kwargs, out)
        count.flops += flops
        count.by_op[name] += flops
    else:
        count.uncounted[name] += 1


def _is_view(func: Any) -> bool:
    return any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)


def _is_integer(out: Any, args: Args) -> bool:
    """Tell whether no floating-point tensor takes part."""
    tensors = [t for t in (*tree_leaves(out), *tree_leaves(list(args))) if isinstance(t, Tensor)]
    return not any(t.is_floating_point() or t.is_complex() for t in tensors)


def _elements(value: Any) -> int:
    return sum(t.numel() for t in tree_leaves(value) if isinstance(t, Tensor))


def _per_output(operations: int) -> Formula:
    return lambda args, kwargs, out: operations * _elements(out)


def _scaled(operations: int, scale: str, position: int | None = None) -> Formula:
    """``operations`` per element, one more when the factor ``scale``, for lists also at ``position``, is not 1."""

    def formula(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
        factor = kwargs.get(scale, 1) if position is None or len(args) <= position else args[position]
        return int((operations + (factor != 1)) * _elements(out))

    return formula


def _clamp(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    bounds = [*args[1:], *kwargs.values()]
    return _elements(out) * sum(bound is not None for bound in bounds)


def _sum(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return max(0, _elements(args[0]) - _elements(out[0] if isinstance(out, tuple) else out))


def _mean(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return _elements(args[0])


def _variance(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return 4 * _elements(args[0])


def _group_norm(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return _norm(args[0], out[1], [args[1], args[2]])


def _layer_norm(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return _norm(args[0], out[1], [args[2], args[3]])


def _norm(x: Tensor, statistic: Tensor, affine: Sequence[Tensor | None]) -> int:
    per_element: int = 5 + sum(p is not None for p in affine)
    return per_element * x.numel() + 2 * statistic.numel()


def _batch_norm(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    x, weight, bias, mean, var, training = args[:6]
    if training:
        kept = sum(3 * t.numel() for t in (mean, var) if t is not None)  # lerp of each running statistic
        kept += 0 if var is None else 2 * var.numel()  # made unbiased: n/(n − 1)
        return int(_norm(x, out[1], [weight, bias]) + kept)
    # a = γ/√(σ² + ε), b = β − μ a once per channel, then a·x + b
    return int(2 * x.numel() + (4 + (weight is not None)) * x.shape[1])


def _norm_backward(position: int) -> Callable[[Args, Mapping[str, Any], Any], int]:
    """The gradient of a normalization with x̂ at hand: 7 per element for ∂L/∂x, 4 more with γ and β, less their C."""

    def formula(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
        elements = args[0].numel()
        parameters = sum(t.numel() for t in out[1:] if t is not None)
        needs_input = out[0] is not None and out[0].numel() > 0
        scaled = args[position] is not None
        flops = (7 + scaled) * elements if needs_input else 0
        return int(flops + (3 * elements if parameters else 0) - parameters)

    return formula


def _batch_norm_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """As any normalization in training; in evaluation ∂L/∂x is one multiplication."""
    elements, training, wanted = args[0].numel(), args[7], args[9]
    sums = sum(t.numel() for t in out[1:] if t is not None and t.numel())
    flops = (2 * elements if wanted[1] else 0) + (elements if wanted[2] else 0) - sums
    if wanted[0]:
        flops += (7 + (args[2] is not None)) * elements if training else elements
    return int(flops)


def _matmul(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return int(out.numel() * args[0].shape[-1])


def _addmm(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return int(out.numel() * args[1].shape[-1])


def _started(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """The sum with what was there, unless β is 0."""
    return int(out.numel()) if kwargs.get("beta", 1) != 0 else 0


def _convolution(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    return int((x if transposed else out).numel() * math.prod(weight.shape[1:]))


def _convolution_bias(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return 0 if args[2] is None else int(out.numel())


def _convolution_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    """Each wanted gradient costs as much as the forward, whatever the groups."""
    grad, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    return int(int((x if transposed else grad).numel() * math.prod(weight.shape[1:])) * sum(wanted[:2]))


def _convolution_bias_backward(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    return args[0].numel() - out[2].numel() if args[10][2] else 0


# One operation per element of the output.
_ONE = (
    "mul div sqrt rsqrt reciprocal square pow exp log log2 log1p expm1 neg abs sign sin cos tanh sigmoid relu erf "
    "floor ceil round trunc remainder fmod maximum minimum eq ne lt le gt ge isfinite isnan isinf atan2 "
    "logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not threshold frac softplus silu gelu "
    "leaky_relu sgn acos asin tan sinh cosh clamp_min clamp_max threshold_backward"
).split()
_FORMULAS: dict[str, Formula] = {
    **{name: _per_output(1) for name in _ONE},
    "add": _scaled(1, "alpha"),
    "sub": _scaled(1, "alpha"),
    "rsub": _scaled(1, "alpha"),
    "addcmul": _scaled(2, "value", 3),
    "addcdiv": _scaled(2, "value", 3),
    "lerp": _per_output(3),
    **dict.fromkeys(("index_add", "scatter_add"), lambda args, kwargs, out: _elements(args[3])),
    "clamp": _clamp,
    "sigmoid_backward": _per_output(3),
    "tanh_backward": _per_output(3),
    **dict.fromkeys("sum prod amax amin max min argmax argmin any all cumsum".split(), _sum),
    **dict.fromkeys(("mean", "kthvalue"), _mean),  # selection: a comparison per element
    "var": _variance,
    "var_mean": _variance,
    "batch_norm_update_stats": lambda args, kwargs, out: 4 * args[0].numel(),  # nobody wants the running statistics
    "std": _variance,
    "sinc": _per_output(3),  # π x, its sine, the quotient
    "topk": lambda args, kwargs, out: _elements(args[0]),  # each once beside the least that is kept
    "trace": lambda args, kwargs, out: min(args[0].shape) - 1,
    **FUSED_KERNELS,
    **NOMINAL,
    **RESAMPLING,
    "col2im": lambda args, kwargs, out: _elements(args[0]),  # each element of a patch is added where it lay
    "norm": lambda args, kwargs, out: 2 * _elements(args[0]),
    "linalg_vector_norm": lambda args, kwargs, out: 2 * _elements(args[0]),
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_group_norm_backward": _norm_backward(4),
    "native_layer_norm_backward": _norm_backward(5),
    "native_batch_norm_backward": _batch_norm_backward,
}
_MACS: dict[str, Formula] = {
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": lambda args, kwargs, out: int(args[0].numel()),
    "addmm": _addmm,
    "baddbmm": _addmm,
    "addmv": _addmm,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}
PRODUCTS = frozenset(_MACS)  # the operations that multiply and add
_ADDS: dict[str, Formula] = {
    "addmm": _started,
    "baddbmm": _started,
    "addmv": _started,
    "convolution": _convolution_bias,
    "convolution_backward": _convolution_bias_backward,
}
# Allocates, or looks at a tensor otherwise.
_NO_KERNEL = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided resize set detach lift_fresh alias is_same_size "
    "_unsafe_view _reshape_alias promote_types _record_function_enter_new _record_function_exit".split()
)
# Moves, copies, allocates or draws, but computes nothing.
_FREE = frozenset(
    """
    clone copy _to_copy to contiguous empty empty_like empty_strided new_empty new_empty_strided new_zeros new_ones
    new_full zeros zeros_like ones ones_like full full_like scalar_tensor arange fill zero resize set detach lift_fresh
    alias cat stack index index_put index_copy index_fill index_select gather scatter slice_scatter select_scatter
    masked_fill where roll flip constant_pad_nd repeat _local_scalar_dense is_same_size pixel_shuffle pixel_unshuffle
    im2col slice_backward select_backward expand_copy permute_copy _unsafe_view _reshape_alias item bernoulli normal
    uniform randn rand randperm native_dropout eye tril triu channel_shuffle unsqueeze_copy
    diagonal_backward squeeze unsqueeze transpose t swapaxes _conj _fused_dropout reflection_pad2d replication_pad2d
    reflection_pad1d reflection_pad3d replication_pad1d replication_pad3d diagonal diag_embed diagonal_copy
    """.split()
)
