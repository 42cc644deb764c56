"""Compiling the layers of this library inside a model, by one switch.

`compile_layers(model)` lets torch.compile (inductor) make one kernel of what a layer does in several, where eager
operations stay far above the floor of bytes; everything else in the model stays as it is. Without a compiler on the
machine the layers go on in eager mode, with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from layers.base import Layer


def compile_layers(model: nn.Module, *, backend: str = "inductor", strict: bool = False) -> int:
    """Compile every layer of this library in ``model`` in place, itself included, and return how many there are.

    A layer inside another is compiled with it. Parameters, buffers, their names, hooks and modes stay; the first call
    of each shape compiles, with torch's cache on disk. Where compilation fails, the layer stays eager and a warning
    says why, unless ``strict``: then the error is raised. Copies and pickles of the model are not compiled.
    """
    found = list(_outermost(model))
    for layer in found:
        eager = layer._call_impl
        compiled = torch.compile(eager, fullgraph=True, backend=backend)
        layer._compiled_call_impl = compiled if strict else _OrEager(layer, compiled, eager)
    return len(found)


def uncompile_layers(model: nn.Module) -> None:
    """Undo `compile_layers`."""
    for module in model.modules():
        if isinstance(module, Layer):
            module._compiled_call_impl = None


def _outermost(model: nn.Module) -> Iterator[Layer]:
    """Yield the layers of this library that are in no other."""
    if isinstance(model, Layer):
        yield model
        return
    for child in model.children():
        yield from _outermost(child)


class _OrEager:
    """Calls ``compiled`` until that fails to compile, ``eager`` from then on."""

    def __init__(self, layer: Layer, compiled: Callable[..., Any], eager: Callable[..., Any]) -> None:
        self.name, self.call, self.eager = type(layer).__name__, compiled, eager

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.call is self.eager:
            return self.eager(*args, **kwargs)
        try:
            return self.call(*args, **kwargs)
        except _failures() as error:
            y = self.eager(*args, **kwargs)  # what a layer refuses fails here too, and is no reason to stay eager
            said = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            warnings.warn(f"{self.name} stays eager, torch.compile fails: {said}", RuntimeWarning, stacklevel=2)
            self.call = self.eager
            return y


def _failures() -> tuple[type[Exception], ...]:
    """Return what torch raises when it cannot compile, rather than what a layer raises about its input."""
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)
