"""The tools that count what a layer computes, each asked as people ask it, and its answer in one form.

What a tool needs is imported when it is asked: torch's own counter brings torch's compiler with it, a second.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor, nn

from profiles.errors import first_line

# Which operations each of the names that fvcore traces becomes when it runs; others keep their name.
TRACED = {
    "conv": ("convolution",),
    "linear": ("addmm", "mm", "bmm", "mv", "addmv"),
    "matmul": ("mm", "bmm", "mv", "dot"),
    "einsum": ("bmm", "mm", "mul", "sum"),
    "batch_norm": ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"),
    "instance_norm": ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"),
    "group_norm": ("native_group_norm",),
    "layer_norm": ("native_layer_norm",),
    "adaptive_avg_pool2d": ("_adaptive_avg_pool2d", "mean"),
}
FVCORE_PRODUCTS = frozenset({"conv", "linear", "matmul", "einsum"})


@dataclass
class Said:
    """What a tool said of one pass: ``value`` in its own unit and, where it tells, by operation."""

    value: int
    by_op: Counter[str] | None = None


@dataclass
class Answer:
    """A tool's answer. ``mac`` is what one multiply-add counts in it; ``rule`` how it counts, in words, for tools that
    give one number; ``covers`` the operations it has a formula for, where that is documented; ``traces`` whether it
    sees names before they are dispatched.
    """

    forward: Said | None = None
    backward: Said | None = None
    params: int | None = None
    uncounted: Counter[str] = field(default_factory=Counter)
    error: str = ""
    mac: int = 1
    rule: str = ""
    covers: frozenset[str] | None = None
    traces: bool = False


Ask = Callable[[nn.Module, Tensor], Answer]


def _plain_fvcore(module: nn.Module, x: Tensor) -> Answer:
    return _fvcore(module, x, handles=False)


def _our_fvcore(module: nn.Module, x: Tensor) -> Answer:
    return _fvcore(module, x, handles=True)


def _fvcore(module: nn.Module, x: Tensor, *, handles: bool) -> Answer:
    from fvcore.nn import parameter_count

    from profiles.counting.peers import fvcore

    found = fvcore(module, x, handles=handles)
    forward = None if found.value is None else Said(found.value, found.by_op)
    params = int(parameter_count(module)[""])
    return Answer(forward, params=params, uncounted=found.uncounted, error=found.error, traces=True)


def _flop_counter_mode(module: nn.Module, x: Tensor) -> Answer:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from profiles.counting.backward import loss

    with FlopCounterMode(display=False) as forward:
        y = module(x)
    y = y[0] if isinstance(y, (tuple, list)) else y
    answer = Answer(_by_operation(forward), mac=2)
    if y.requires_grad and y.numel():
        scalar = loss(y, torch.ones_like(y))
        with FlopCounterMode(display=False) as backward:
            scalar.backward()  # type: ignore[no-untyped-call]
        answer.backward = _by_operation(backward)
    return answer


def _by_operation(counter: Any) -> Said:
    found = counter.get_flop_counts().get("Global", {})
    by_op = Counter({str(op).rpartition(".")[2]: int(flops) for op, flops in found.items()})
    return Said(int(counter.get_total_flops()), by_op)


def _torchinfo(module: nn.Module, x: Tensor) -> Answer:
    from torchinfo import summary

    mode = "train" if module.training else "eval"
    found = summary(module, input_data=[x], mode=mode, device=x.device, verbose=0)
    rule = "it goes by the names of the parameters and by Conv or Linear in the name of the class, not by operations"
    return Answer(Said(int(found.total_mult_adds)), params=int(found.total_params), rule=rule)


def _thop(module: nn.Module, x: Tensor) -> Answer:
    from thop import profile

    macs, params = profile(module, inputs=(x,), verbose=False)
    rule = "it counts modules of the classes that it knows, in evaluation, and nothing else"
    return Answer(Said(round(macs)), params=round(params), rule=rule)


def _ptflops_modules(module: nn.Module, x: Tensor) -> Answer:
    rule = "it counts modules of the classes that it knows and some functions, in evaluation, and nothing else"
    return _ptflops(module, x, "pytorch", rule=rule)


def _ptflops_aten(module: nn.Module, x: Tensor) -> Answer:
    rule = "it has formulas for products alone, and works in evaluation"
    answer = _ptflops(module, x, "aten", rule=rule)
    answer.covers = frozenset({"mm", "addmm", "bmm", "convolution"})
    return answer


def _ptflops(module: nn.Module, x: Tensor, backend: str, *, rule: str) -> Answer:
    from ptflops import get_model_complexity_info

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        macs, params = get_model_complexity_info(
            module,
            tuple(x.shape[1:]),
            as_strings=False,
            print_per_layer_stat=False,
            input_constructor=lambda _: x,
            backend=backend,
        )
    if macs is None:  # it prints its exceptions
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        return Answer(error=first_line(RuntimeError(lines[1] if len(lines) > 1 else "it gave no number")))
    return Answer(Said(round(macs)), params=int(params), rule=rule)


# By name: the distribution's names, for the version, and how it is asked.
TOOLS: dict[str, tuple[tuple[str, ...], Ask]] = {
    "fvcore": (("fvcore",), _plain_fvcore),
    "fvcore, our handles": (("fvcore",), _our_fvcore),
    "FlopCounterMode": (("torch",), _flop_counter_mode),
    "torchinfo": (("torchinfo",), _torchinfo),
    "thop": (("thop", "ultralytics-thop"), _thop),
    "ptflops pytorch": (("ptflops",), _ptflops_modules),
    "ptflops aten": (("ptflops",), _ptflops_aten),
}


def asked(name: str, module: nn.Module, x: Tensor) -> Answer | None:
    """Return what the tool ``name`` answers about ``module``, which it may change; None where it is not installed."""
    needed, ask = TOOLS[name]
    try:
        with _quietly():
            return ask(module, x)
    except ModuleNotFoundError as error:
        if error.name in needed:
            return None
        return Answer(error=first_line(error))
    except Exception as error:  # whatever somebody else's tool or the layer under it raises
        return Answer(error=first_line(error))


def version_of(name: str) -> str | None:
    """Return the version of the tool ``name``; None where no distribution of that name is installed."""
    for distribution in TOOLS[name][0]:
        with contextlib.suppress(PackageNotFoundError):
            return version(distribution)
    return None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
