"""What fvcore says of the same layer: a cross-check column, shown as it counts, with the handles that it lacks.

fvcore counts 1 per multiply-accumulate and 5 per element of a normalization (4 without γ and β) under one name, and
gives 0 to what it has no handle for. Ours add: elementwise operations 1 per output, reductions 1 per input, baddbmm as
its bmm, and eigenvectors their nominal number (`profiles.counting.decompositions`).
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from profiles.errors import first_line

_ELEMENTWISE = (
    "add sub rsub mul div sqrt rsqrt square pow reciprocal neg abs exp log clamp clamp_min clamp_max addcmul lerp "
    "minimum maximum where lt le gt ge eq ne sign isfinite threshold"
).split()
_REDUCTIONS = "mean sum var var_mean std amax amin all linalg_vector_norm kthvalue".split()
_FREE = (
    "view view_as reshape flatten unflatten unsqueeze squeeze expand expand_as to type_as clone detach contiguous "
    "permute transpose movedim numel size index select slice copy zeros ones full zeros_like ones_like fill "
    "new_ones new_zeros index_copy index_select mT eye triu_indices masked_fill"
).split()


@dataclass
class Fvcore:
    """fvcore's number for one forward: ``value`` in its own unit, what it still did not count, or why it failed."""

    value: int | None
    unit: str = "MAC = 1, norm element = 5 (4 without γ, β), elementwise = 1 (our handles)"
    status: str = "complete"
    version: str = ""
    by_op: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[str] = field(default_factory=Counter)
    error: str = ""


def fvcore(module: nn.Module, x: Tensor, *, handles: bool = True) -> Fvcore:
    """Trace a copy of ``module`` on ``x`` and return what fvcore counts; without our ``handles`` as people use it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        try:
            copied = copy.deepcopy(module)
        except Exception as error:  # a module may forbid it
            return _failed(error)
        analysis = FlopCountAnalysis(copied, x.detach().clone())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        if handles:
            _extend(analysis)
        try:
            by_op = Counter({name: round(value) for name, value in analysis.by_operator().items()})
            uncounted = Counter({name: int(times) for name, times in analysis.unsupported_ops().items()})
        except Exception as error:  # the tracer raises whatever the module or jit does
            return _failed(error)
    status = "partial" if uncounted else "complete"
    return Fvcore(sum(by_op.values()), status=status, version=_version(), by_op=by_op, uncounted=uncounted)


def _extend(analysis: Any) -> None:
    """Give fvcore our handles."""
    from fvcore.nn.jit_handles import norm_flop_counter

    for name in _ELEMENTWISE:
        analysis.set_op_handle(f"aten::{name}", _outputs, f"aten::{name}_", _outputs)
    for name in _REDUCTIONS:
        analysis.set_op_handle(f"aten::{name}", _inputs)
    for name in _FREE:
        analysis.set_op_handle(f"aten::{name}", _nothing, f"aten::{name}_", _nothing)
    for name, handle in _OTHERS.items():
        analysis.set_op_handle(f"aten::{name}", handle)
    analysis.set_op_handle("aten::native_group_norm", norm_flop_counter(1))
    analysis.set_op_handle("aten::native_layer_norm", norm_flop_counter(2))


def _failed(error: Exception) -> Fvcore:
    return Fvcore(None, status="unavailable", version=_version(), error=first_line(error))


def _outputs(inputs: list[Any], outputs: list[Any]) -> int:
    return sum(_size(value) for value in outputs)


def _inputs(inputs: list[Any], outputs: list[Any]) -> int:
    return _size(inputs[0])


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _added(inputs: list[Any], outputs: list[Any]) -> int:
    """index_add and scatter_add: 1 per element of their source."""
    return _size(inputs[3])


def _baddbmm(inputs: list[Any], outputs: list[Any]) -> int:
    return _size(outputs[0]) * int(inputs[1].type().sizes()[2])


def _eigenvectors(inputs: list[Any], outputs: list[Any]) -> int:
    return 9 * _size(inputs[0]) * int(inputs[0].type().sizes()[-1])


_OTHERS = {"index_add": _added, "scatter_add": _added, "baddbmm": _baddbmm, "linalg_eigh": _eigenvectors}


def _size(value: Any) -> int:
    """Return the elements of a floating-point tensor of the graph; what is no such tensor counts nothing."""
    if not value.isCompleteTensor() or not value.type().dtype().is_floating_point:
        return 0
    return math.prod(value.type().sizes())


def _version() -> str:
    from importlib.metadata import version

    return version("fvcore")
