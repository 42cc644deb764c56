"""The pass of one batch through a model that sets scale and bias of its layers on the way, and what it leaves alone.

`excluded` says of a layer why it has no scale per output that could be set. `FirstBatch` is the hook that sets one
layer after the other; `restored` gives back buffers afterwards, and everything after an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations as of_torch
from torch.nn.utils import parametrize

from layers.card import OptionError
from layers.convolution import Convolution
from layers.moments import wide_dtype
from layers.norm.actnorm import ActNorm
from layers.norm.mean_only_bn import MeanOnlyBatchNorm
from layers.reparametrization import parametrizations
from layers.synchronise import merge_over_ranks, spans_ranks
from layers.weight.weight_norm import WeightNorm, WeightNormConv2d
from layers.weights import as_matrices, from_matrices

Layer = _ConvNd | nn.Linear


def length(layer: Layer) -> nn.Parameter | None:
    """Return g of a weight-normalized ``layer``, this library's or torch's, of whatever shape; None for others."""
    known = parametrizations(layer)
    if len(known) == 1 and isinstance(known[0], (WeightNorm, of_torch._WeightNorm)):
        return layer.get_parameter("parametrizations.weight.original0")
    return layer.gain if isinstance(layer, WeightNormConv2d) and not known else None


def excluded(layer: Layer, *, lengths_only: bool) -> str:
    """Return why ``layer`` is left alone; "" when its g (unless ``lengths_only`` its weight) and bias can be set."""
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return "lazy: it has no shape before its first batch"
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return "never called: attention uses its weight directly"
    gain = length(layer)
    if gain is None and (reason := _unscalable(layer, lengths_only)):
        return reason
    if not (dtype := scaled(layer).dtype).is_floating_point:
        return f"{dtype}: real floating-point weights alone"
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    if gain is not None and (gain.dim() == 0 or gain.shape[axis] != outputs(layer)):
        return "its lengths are not one per output channel"
    if parametrize.is_parametrized(layer, "bias"):
        return "its bias is parametrized"
    if not all(parameter.requires_grad for parameter in (scaled(layer), layer.bias) if parameter is not None):
        return "frozen: requires_grad is False"
    return ""


def _unscalable(layer: Layer, lengths_only: bool) -> str:
    """Why a ``layer`` without g of its own does not have a weight that can be multiplied instead."""
    if parametrizations(layer):
        return "parametrized by something else than weight normalization alone"
    if isinstance(layer, Convolution) and (type(layer).effective_weight, type(layer).forward) != _PLAIN:
        return f"{type(layer).__name__} makes of its weight what it uses"
    if "weight" not in layer._parameters:
        return "its weight is no parameter"
    return "not weight-normalized" if lengths_only else ""


_PLAIN = (Convolution.effective_weight, Convolution.forward)


def scaled(layer: Layer) -> nn.Parameter:
    """Return what is multiplied to scale the outputs: g, or the weight."""
    gain = length(layer)
    return layer.get_parameter("weight") if gain is None else gain


def outputs(layer: Layer) -> int:
    """Return the number of output channels."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


class FirstBatch:
    """Sets each of ``layers`` (by name) at its first call, by the moments of its output over the batch of all ranks.

    Inside `hooks`. ``scale`` is the standard deviation to reach, ``eps`` is added to the variance. What a layer returns
    is what it returns from then on. A parameter that two layers share is set once.
    """

    def __init__(self, layers: Mapping[str, Layer], scale: float, eps: float, group: dist.ProcessGroup | None) -> None:
        self.scale, self.eps, self.group = scale, eps, group
        self.reached: set[str] = set()
        self._names = {layer: name for name, layer in layers.items()}
        self._done: set[int] = set()
        self._last: tuple[Tensor, Layer, Tensor | None] | None = None  # output, layer, the bias that it had

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Listen to the layers, and to mean-only batch normalizations, while the batch passes."""
        listening = [
            layer.register_forward_hook(self._set, prepend=True, with_kwargs=True) for layer in self._names
        ] + [
            norm.register_forward_pre_hook(self._before_mean_only)
            for norm in model.modules()
            if isinstance(norm, MeanOnlyBatchNorm)
        ]
        try:
            yield
        finally:
            for handle in listening:
                handle.remove()
            self._last = None

    def _set(self, layer: Layer, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
        name, parameter = self._names[layer], scaled(layer)
        self.reached.add(name)
        if id(parameter) in self._done:
            return None
        self._done.add(id(parameter))
        mean, std = self._moments(name, layer, output)
        factor = self.scale / std
        _write(name, parameter, _times(layer, parameter, factor))
        before = None
        if layer.bias is not None and id(layer.bias) not in self._done:
            self._done.add(id(layer.bias))
            before = layer.bias.detach().clone()
            _write(name, layer.get_parameter("bias"), (before.to(mean.dtype) - mean) * factor)
        torch.clear_autocast_cache()  # which holds the weights as they were
        made: Tensor = layer.forward(*inputs, **named)
        self._last = (made, layer, before)
        return made

    def _moments(self, name: str, layer: Layer, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (O,) of ``output`` per channel, or the refusal of this batch."""
        rows = output.detach().to(wide_dtype(output.dtype)).movedim(_axis(layer, output), 0).unsqueeze(1).flatten(1)
        count = rows.shape[1]
        var, mean = torch.var_mean(rows, 1, correction=0) if count else (rows.sum(1), rows.sum(1))
        if spans_ranks(self.group):
            mean, var, total = merge_over_ranks(mean, var, count, self.group)
            count = int(total)
        if count < 2:
            raise OptionError(
                f"{name}: channel 0, as every other, has {count} values in this batch: it needs 2 or more"
            )
        _refuse(name, mean.isfinite() & var.isfinite(), "is not finite: the batch or the layers before overflow")
        constant = (self.eps == 0) & (var.sqrt() <= torch.finfo(output.dtype).eps * mean.abs())
        _refuse(name, ~constant, "is constant over the batch, σ = 0: take another batch or give eps > 0")
        return mean, (var + self.eps).sqrt()

    def _before_mean_only(self, norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give the bias back to a layer whose output goes into ``norm``, which has the bias of the two."""
        if self._last is None or not inputs or inputs[0] is not self._last[0]:
            return None
        output, layer, before = self._last
        self._last = None
        if layer.bias is None or before is None:
            return None
        shift = before - layer.bias
        layer.bias.copy_(before)
        return (output + shift.view(-1, *(1,) * (output.dim() - 1 - _axis(layer, output))), *inputs[1:])


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """After the block give every buffer back, as the tensor and with the values that it had, but those of ActNorm.

    After an error in the block those too, and the values of every parameter.
    """
    parameters = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    failed = True
    try:
        yield
        failed = False
    finally:
        for module, name, buffer, values in buffers:
            if failed or not isinstance(module, ActNorm):
                module._buffers[name] = buffer
                if buffer is not None and values is not None:
                    buffer.copy_(values)
        for parameter, values in parameters if failed else ():
            parameter.copy_(values)


def _axis(layer: Layer, output: Tensor) -> int:
    """The axis of ``output`` with the output channels: a batch of a linear layer has any number of axes before it."""
    return output.dim() - 1 - (0 if isinstance(layer, nn.Linear) else len(layer.kernel_size))


def _times(layer: Layer, parameter: nn.Parameter, factor: Tensor) -> Tensor:
    """``parameter``, g or the weight of ``layer``, times ``factor`` (O,) of each output, in the dtype of that."""
    if length(layer) is not None:
        return parameter.to(factor.dtype) * factor.view_as(parameter)
    groups, transposed = getattr(layer, "groups", 1), isinstance(layer, _ConvTransposeNd)
    rows = as_matrices(parameter.to(factor.dtype), groups, transposed=transposed)
    return from_matrices(rows * factor.view(groups, -1, 1), parameter, transposed=transposed)


def _write(name: str, parameter: nn.Parameter, values: Tensor) -> None:
    narrow = values.to(parameter.dtype)
    if not bool(narrow.isfinite().all()):
        raise OptionError(f"{name}: what this batch needs is beyond {parameter.dtype}: {float(values.abs().max()):.3g}")
    parameter.copy_(narrow)


def _refuse(name: str, right: Tensor, why: str) -> None:
    """Raise OptionError naming the layer and the first channel that is not ``right`` (O,)."""
    if not bool(right.all()):
        raise OptionError(f"{name}: channel {int(right.int().argmin())} {why}")
