"""Whole models changed in one call: `convert` puts a stone into every layer that it suits, `fold` takes weights out.

    convert(model, "gn", groups=8)              # every batch normalization becomes group normalization
    convert(model, "weight-standardization")    # every convolution with I > 1 is reparametrized, its weights kept
    convert(model, "meprop", ratio=1 / 32)      # convolutions and linear layers go back by a part of the gradient
    fold(model)                                 # plain torch layers with the effective weights, for deployment

Both work in place and return the model: a new layer where the model itself is the one that is replaced. Either all is
changed or, with an error, nothing. Parameters may be new ones: build the optimizer and wrap for DDP afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from layers import catalog
from layers.batch_norms import AnyBatchNorm
from layers.card import OptionError, OptionValue
from layers.catalog import Stone
from layers.choice import Choice, shown
from layers.convolution import Convolution
from layers.reparametrization import Reparametrization, parametrizations
from layers.shared import CONVOLUTION
from layers.weights import weights

_OF_LAYERS = tuple(option.name for option in CONVOLUTION)  # options that a converted convolution keeps
_OF_BATCH_NORMS = {"affine": None, "eps": 1e-5, "momentum": 0.1, "track_running_stats": True}  # and torch's defaults


def convert(
    model: nn.Module, name: str, *, only: str | Iterable[str] | None = None, **options: OptionValue
) -> nn.Module:
    """Put the stone called ``name`` into ``model``, in place, and return the model.

    - A stone of weights becomes a parametrization of the weight of every layer that its ``excludes`` does not name.
    - A normalization replaces every batch normalization, torch's or this library's. It gets γ and β (affine), eps,
      momentum and track_running_stats if it has them too, unless given; what is torch's default there is the stone's
      own default here; and the running statistics where it keeps no others.
    - A convolution replaces every torch.nn.Conv2d, with the same parameters; so does a rule for the backward, meprop
      every torch.nn.Linear too.

    Device, dtype and training mode stay; hooks of layers that are replaced are lost. ``only`` are names or patterns
    (``stages.0.*``) of modules, each standing for the layers inside too; a layer that is named itself is converted even
    if ``excludes`` would leave it out.
    Raises OptionError, before anything is changed, for options that the stone refuses, naming the layer; for a layer
    that has the technique already; for a pattern, or a model, without such a layer; catalog.UnknownStone for ``name``.
    torch cannot pickle a parametrized module: keep its state_dict, or `fold` it first.
    """
    stone = catalog.stone(name)
    if stone.card.role != "layer" or stone.kind not in _KINDS:
        kinds = ", ".join(_KINDS)
        raise OptionError(f"convert takes layers of the kinds {kinds}; {stone.name} is {stone.kind}, {stone.card.role}")
    for option in options:
        stone.card.option(option)
        if option in _OF_LAYERS and stone.kind in ("weight", "conv", "backward"):
            raise OptionError(f"{option}: every layer of the model keeps its own", option)
    return _KINDS[stone.kind](model, stone, Choice(model, stone, only), options)


def fold(model: nn.Module) -> nn.Module:
    """Replace this library's convolutions by torch.nn.Conv2d and its parametrizations by the weights that they give.

    Linear layers with a rule for the backward become torch.nn.Linear with the same parameters.

    In place, in either mode; returns the model (a new layer where the model is such a convolution itself). Outputs
    stay; what is folded is plain torch, can be pickled and loads without this library. Weights that are tied and come
    out equal stay tied, biases stay the parameters that they are. A layer that is more than a convolution by a weight,
    such as a normalized convolution, stays as it is.
    Raises OptionError, before anything is changed, where the model itself is such a layer, or where a hook or other
    parametrizations beside this library's have a part in a weight.
    """
    plain: dict[nn.Module, Any] = {}
    effective: dict[nn.Module, nn.Parameter] = {}
    for name, module in model.named_modules():
        known = [isinstance(each, Reparametrization) for each in parametrizations(module)]
        if not all(known) and (any(known) or isinstance(module, Convolution)):
            raise OptionError(f"{shown(name, model)}: its weight has parametrizations of others; remove those")
        if isinstance(module, Convolution) and (module is model or type(module).forward is Convolution.forward):
            with _naming(shown(name, model)):
                plain[module] = module.fold()
            effective[module] = plain[module].weight
        elif any(known):
            learnt = any(parameter.requires_grad for parameter in _owner(module).parameters())
            effective[module] = nn.Parameter(cast(Tensor, module.weight).detach().clone(), learnt)
        elif isinstance(module, nn.Linear) and hasattr(module, "fold"):
            plain[module] = cast(Any, module).fold()
    tied: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for module, weight in effective.items():
        same = tied.setdefault(_origin(module), [])
        same.append(weight := next((each for each in same if torch.equal(each, weight)), weight))
        if module in plain:
            plain[module].weight = weight
            plain[module].bias = module._parameters.get("bias", plain[module].bias)
        else:
            _unparametrize(module, weight)
    return _replaced(model, plain)


def _origin(module: nn.Module) -> tuple[int, ...]:
    """Identify the parameters that the weight of ``module`` is made of, but for those of its parametrizations."""
    return tuple(map(id, _owner(module).parameters(recurse=False) if parametrizations(module) else [module.weight]))


def _owner(module: nn.Module) -> parametrize.ParametrizationList:
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, module.parametrizations)["weight"])


def _unparametrize(module: nn.Module, weight: nn.Parameter) -> None:
    """Give ``module`` its effective ``weight`` for the parametrized one; write into nothing that others may share."""
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=not _owner(module).is_tensor)
    for kept in (module._parameters, module._buffers):
        kept.pop("weight", None)
    module.register_parameter("weight", weight)
    if "bias" in module._parameters:  # behind the weight again, where torch has it
        module._parameters["bias"] = module._parameters.pop("bias")


def _reparametrize(model: nn.Module, stone: Stone, choice: Choice, options: Mapping[str, OptionValue]) -> nn.Module:
    """Register the parametrization of a stone of weights."""
    file = stone.imported()

    def suits(layer: nn.Module) -> str:
        kernel = next((each for each in weights(layer) if each.module is layer and each.is_kernel), None)
        return "its weight is no parameter" if kernel is None else str(file.excludes(kernel))

    made: dict[nn.Module, Reparametrization] = {}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(shown(name, model))
    for name, layer in choice.of((_ConvNd, nn.Linear), "layer", suits).items():
        with _naming(name):
            made[layer] = file.parametrization(layer, **options)
            others = [other for other in owners.get(id(layer._parameters.get("weight")), ()) if other != name]
            if others and made[layer].unties:
                raise OptionError(f"its weight is also that of {others[0]}, and {stone.name} would part them")
    for layer, parametrization in made.items():
        parametrize.register_parametrization(layer, "weight", parametrization)
        cast(nn.Module, layer.parametrizations).train(layer.training)
    return model


def _normalize(model: nn.Module, stone: Stone, choice: Choice, options: Mapping[str, OptionValue]) -> nn.Module:
    """Replace batch normalizations by a normalization stone."""
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in choice.of(AnyBatchNorm, "batch normalization").items():
        with _naming(name):
            made[layer] = _like(cast(AnyBatchNorm, layer), model, stone, options)
    return _replaced(model, made)


def _like(old: AnyBatchNorm, model: nn.Module, stone: Stone, options: Mapping[str, OptionValue]) -> nn.Module:
    """Return the normalization for the place of ``old`` in ``model``."""
    carried: dict[str, OptionValue] = {}
    known = {option.name: option for option in stone.card.options}
    for name, usual in _OF_BATCH_NORMS.items():
        if name in known and getattr(old, name, usual) != usual:
            with suppress(OptionError):  # another type, such as layer normalization's affine
                carried[name] = known[name].check(getattr(old, name))
    tensors = {**dict(old.named_parameters()), **dict(old.named_buffers())}
    kind = next((t for t in (*tensors.values(), *model.parameters()) if t.is_floating_point()), torch.empty(0))
    channels = old.channels if hasattr(old, "channels") else old.num_features
    new: nn.Module = stone.load()(channels, **{**carried, **options}, device=kind.device, dtype=kind.dtype)
    buffers = dict(new.named_buffers())
    kept = buffers if buffers.keys() <= tensors.keys() else {}
    with torch.no_grad():
        for name, tensor in {**dict(new.named_parameters()), **kept}.items():
            if name in tensors and tensors[name].shape == tensor.shape:
                tensor.copy_(tensors[name]).requires_grad_(tensors[name].requires_grad)
    return new.train(old.training)


def _replace(model: nn.Module, stone: Stone, choice: Choice, options: Mapping[str, OptionValue]) -> nn.Module:
    """Replace layers of torch by a stone that has their options: convolutions, or those that its REPLACES names."""
    new: Mapping[type[nn.Module], Any] = {nn.Conv2d: stone.load()}
    if stone.kind == "backward":
        new = getattr(stone.imported(), "REPLACES", {})
    if not new:
        raise OptionError(f"{stone.name} stands in the place of no layer of torch: build it into the model by hand")
    what = " or ".join(f"torch.nn.{kind.__name__}" for kind in new)
    made: dict[nn.Module, nn.Module] = {}

    def suits(layer: nn.Module) -> str:
        if type(layer) not in new:
            return f"a {type(layer).__name__}, not {what} itself"
        more = {**layer._parameters, **layer._buffers, **layer._modules}.keys() - {"weight", "bias"}
        return f"it has {', '.join(sorted(more))} beside weight and bias" if more else ""

    for name, layer in choice.of(tuple(new), what, suits).items():
        if reason := suits(layer):
            raise OptionError(f"{name}: {reason}", "only")
        with _naming(name):
            made[layer] = _alike(cast(nn.Conv2d | nn.Linear, layer), stone, new[type(layer)], options)
    return _replaced(model, made)


def _alike(old: nn.Conv2d | nn.Linear, stone: Stone, make: Any, options: Mapping[str, OptionValue]) -> nn.Module:
    """Return what ``make`` constructs for the place of ``old``, with its parameters."""
    place = {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        theirs = {name: getattr(old, name) for name in _OF_LAYERS} | {"padding": _padding(old)}
        new = make(old.in_channels, **{**theirs, **options, **place})
    else:
        new = make(old.in_features, old.out_features, **options, **place)
    for name, parameter in old.named_parameters():
        if new.get_parameter(name).shape != parameter.shape:
            raise OptionError(f"{stone.name} has a {name} of another shape than {tuple(parameter.shape)}")
        setattr(new, name, parameter)
    return new.train(old.training)


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    """Return what is added on each side, in numbers."""
    if layer.padding == "valid":
        return (0, 0)
    if layer.padding != "same":
        return tuple(map(int, layer.padding))
    reach = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(size % 2 for size in reach):
        raise OptionError(f"padding='same' adds unequal sides for a kernel_size of {layer.kernel_size}")
    return tuple(size // 2 for size in reach)


def _replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put the modules ``new`` wherever the old ones are, and return the model, or what is in its own place."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                setattr(parent, name, new[child])
    return new.get(model, model)


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Put the name of the layer in front of what is said against it."""
    try:
        yield
    except ValueError as error:
        raise OptionError(f"{layer}: {error}", getattr(error, "option", "")) from error


_KINDS = {"weight": _reparametrize, "norm": _normalize, "conv": _replace, "backward": _replace}
