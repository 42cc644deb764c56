"""A carrier and what stands behind it as one function of weight, bias and data: z = layer(W x + b).

A convolution with a weight of its own, such as weight-standardization, stands in the place of the carrier: it is built
as the carrier is, on the linear one with a 1×1 kernel and one position, and its weight and bias are those of the scene.
What else it learns, such as the gain of weight-norm, is its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layers import catalog
from layers.card import OptionValue
from layers.catalog import Stone
from profiles.checks.carriers import BATCH, CHANNELS, Carrier, Scene
from profiles.errors import Refusal
from profiles.prepared import perturb
from profiles.subject import Setup, Subject, subject
from profiles.target import Foreign, Target, card_of, options_of

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-30  # torch refuses 0
INPUTS = ("in_channels", "in_channel")  # what constructors of convolutions call them


@dataclass(frozen=True)
class Conditions:
    """Under what a layer is measured without expectation, such as a class that has no card.

    ``options`` are the constructor's; ``mode`` is train or eval. ``history`` is what stored statistics do: they have
    seen the untransformed data (frozen) or the transformed (follow). ``weight`` is the stone of the carrier in front of
    a layer, none for a plain one; ``bias`` gives the carrier a random bias.
    """

    options: Mapping[str, OptionValue] = field(default_factory=dict)
    mode: str = "train"
    history: str = "frozen"
    weight: str = ""
    bias: bool = False


def has_weight(target: Target) -> bool:
    """Tell whether ``target`` is a convolution, to be built from channels in and out and a kernel size."""
    names = _parameters(target)
    return {"out_channels", "kernel_size"} <= names and any(name in names for name in INPUTS)


class Chain:
    """The subjects of a case: ``kernel`` in the place of the carrier, ``layer`` behind it, and the ``last`` of them.

    Raises `Refusal` or OptionError when one of them cannot be built for ``carrier``.
    """

    def __init__(self, target: Target, conditions: Conditions, carrier: Carrier) -> None:
        self.carrier = carrier
        self.kernel: Subject | None = None
        self.layer: Subject | None = None
        if has_weight(target):
            if conditions.weight:
                raise Refusal(f"{target.name} has a weight of its own: it cannot stand behind {conditions.weight}")
            self.last = self.kernel = _kernel(target, conditions.options, carrier, conditions.mode)
        else:
            if conditions.weight:
                self.kernel = _kernel(_reparametrizing(conditions.weight), {}, carrier, conditions.mode)
            self.last = self.layer = _layer(target, conditions, carrier)

    def build(self, seed: int) -> nn.ModuleDict:
        """Construct what there is, every parameter away from its first value, drawn from ``seed``."""
        from torch import nn

        subjects = {"kernel": self.kernel, "layer": self.layer}
        modules = nn.ModuleDict({name: each.build() for name, each in subjects.items() if each is not None})
        perturb(modules, seed)
        return modules

    def run(self, modules: nn.Module, scene: Scene) -> Tensor:
        """Return the output z of what `build` made, or of a copy, for a scene."""
        y = self.carried(modules, scene)
        return y if self.layer is None else self.layer.run(modules.get_submodule("layer"), y)

    def carried(self, modules: nn.Module, scene: Scene) -> Tensor:
        """Return y, the output of the carrier or of the convolution in its place, with weight and bias of ``scene``."""
        from torch.func import functional_call

        if self.kernel is None:
            return self.carrier(scene)
        module, flat = modules.get_submodule("kernel"), not self.carrier.kernel
        x, weight = (t[..., None, None] if flat else t for t in (scene.x, scene.weight))
        tensors = {_weight_of(module, self.kernel.name, weight): weight.clone()}  # a copy, which the layer may change
        bias = _bias_of(module, scene.bias)
        if bias:
            tensors[bias] = scene.bias.clone()
        y = self.kernel.run(lambda batch: functional_call(module, tensors, (batch,)), x)
        y = y if bias else y + scene.bias[:, None, None]
        return y.flatten(1) if flat else y


def _kernel(target: Target, options: Mapping[str, OptionValue], carrier: Carrier, mode: str) -> Subject:
    """Return a convolution with as many channels and the kernel and padding of ``carrier``."""
    names = _parameters(target)
    size, padding = carrier.kernel[0] if carrier.kernel else 1, carrier.padding
    imposed = {"out_channels": CHANNELS, "kernel_size": size, "padding": padding}
    for name in options:
        if name in imposed or name in INPUTS:
            raise Refusal(f"--{name.replace('_', '-')} is that of the carrier here: leave it out")
    if "padding" not in names:
        if padding:
            raise Refusal(f"{target.name} takes no padding")
        del imposed["padding"]
    known = {option.name for option in options_of(target)}
    positions = carrier.positions or (1, 1)
    setup = _setup((BATCH, carrier.inputs, *positions), mode)
    given = _with_least_eps(target, options) | {name: value for name, value in imposed.items() if name in known}
    made = subject(target, given, setup)
    if isinstance(target, Foreign):  # of a type that its constructor does not say, and therefore no option
        every: dict[str, Any] = {**imposed, next(name for name in INPUTS if name in names): carrier.inputs}
        made = replace(made, options={**every, **made.options})
    return made


def _layer(target: Target, conditions: Conditions, carrier: Carrier) -> Subject:
    """Return the layer for the output of ``carrier``."""
    card, sizes = card_of(target), len(carrier.output)
    if card is not None and sizes not in card.ranks:
        counts = " or ".join(map(str, card.ranks))
        raise Refusal(f"{target.name} needs {counts} sizes, N x C x positions; what {carrier.name} gives has {sizes}")
    options = _with_least_eps(target, conditions.options)
    made = subject(target, options, _setup(carrier.output, conditions.mode))
    known = {option.name for option in options_of(target)}
    if isinstance(target, Foreign) and "normalized_shape" in known and "normalized_shape" not in options:
        sample: Any = carrier.output[1:]  # no option is a tuple, but torch's layer and RMS normalization take one
        made = replace(made, options={**made.options, "normalized_shape": sample})
    return made


def _with_least_eps(target: Target, options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Return ``options`` with the smallest eps that is admitted unless they have one."""
    known = {option.name: option for option in options_of(target)}
    least = {"eps": max(EPS, known["eps"].ge or 0.0)} if "eps" in known else {}
    return {**least, **options}


def _setup(shape: tuple[int, ...], mode: str) -> Setup:
    return Setup(shape, dtype="float64", train=mode == "train")


def _reparametrizing(name: str) -> Stone:
    found = catalog.stone(name)
    if not has_weight(found):
        raise Refusal(f"{name} has no weight of its own: it cannot take the place of the carrier")
    return found


def _parameters(target: Target) -> set[str]:
    """Return the names of the constructor's parameters."""
    if isinstance(target, Foreign):
        return set(inspect.signature(target.factory).parameters)
    names = {option.name for option in target.card.options}
    return names | {INPUTS[0]} if target.card.role == "layer" and "kernel_size" in names else names


def _weight_of(module: nn.Module, name: str, weight: Tensor) -> str:
    """Return the name of the parameter that is the kernel: of four axes, the one with most elements."""
    kernels = {each: tensor for each, tensor in module.named_parameters() if tensor.dim() == 4}
    if not kernels:
        raise Refusal(f"{name} has no parameter of four axes, the kernel of a two-dimensional convolution")
    found = max(kernels, key=lambda each: kernels[each].numel())
    if kernels[found].shape != weight.shape:
        shapes = [" x ".join(map(str, tensor.shape)) for tensor in (kernels[found], weight)]
        raise Refusal(f"{name} has a weight of {shapes[0]}, the check needs {shapes[1]}, outputs first")
    return found


def _bias_of(module: nn.Module, bias: Tensor) -> str:
    """Return the name of the one parameter that is a bias of the shape of ``bias``; nothing where there is none."""
    shapes = {each: tensor.shape for each, tensor in module.named_parameters() if each.rpartition(".")[2] == "bias"}
    found = [each for each, shape in shapes.items() if shape == bias.shape]
    return found[0] if len(found) == 1 else ""
