"""The parameters of a model as the techniques on weights see them: which is a kernel, and its matrices.

A kernel becomes one matrix per group, a row per output channel: (groups, O/groups, I) with I = C/groups × positions of
the kernel. That is the linear map of one window, not that of the whole convolution. A transposed convolution keeps its
outputs on the second axis, per group.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from layers.base import Norm
from layers.option import OptionError

_NORMS = (Norm, _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_PARAMETRIZED = "parametrizations."


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter of a model: its full ``name``, the ``module`` that uses it, and what it is there.

    ``kind`` is conv, transposed or linear (a kernel), norm (γ), bias or other. ``groups`` is that of the module.
    """

    name: str
    module: nn.Module
    parameter: nn.Parameter
    kind: str
    groups: int = 1

    @property
    def is_kernel(self) -> bool:
        """Whether it is the weight of a convolution or linear layer."""
        return self.kind in ("conv", "transposed", "linear")

    def matrices(self) -> Tensor:
        """Return the kernel as (groups, O/groups, I): a view where strides admit one, else a copy."""
        return as_matrices(self.parameter, self.groups, transposed=self.kind == "transposed")


def as_matrices(weight: Tensor, groups: int = 1, *, transposed: bool = False) -> Tensor:
    """Return a kernel (O, C/groups, …), transposed (C, O/groups, …), as (groups, O/groups, I)."""
    if transposed:
        weight = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
        return weight.flatten(2) if weight.dim() > 3 else weight
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1:].numel())


def from_matrices(matrices: Tensor, weight: Tensor, *, transposed: bool = False) -> Tensor:
    """Return what `as_matrices` made of a kernel of the shape of ``weight`` in that shape again."""
    if not transposed:
        return matrices.reshape(weight.shape)
    groups, outputs, _ = matrices.shape
    spread = matrices.reshape(groups, outputs, weight.shape[0] // groups, *weight.shape[2:])
    return spread.transpose(1, 2).reshape(weight.shape)


def weights(model: nn.Module) -> list[Weight]:
    """Return every parameter of ``model`` once, in order, each as the module that owns it uses it.

    No parametrization is computed for it. Raises OptionError for a parameter that has no shape yet.
    """
    return [_weight(model, name, parameter) for name, parameter in model.named_parameters()]


def _weight(model: nn.Module, name: str, parameter: nn.Parameter) -> Weight:
    """Classify one parameter; the original of a parametrized kernel is the kernel when it has its shape."""
    if is_lazy(parameter):
        raise OptionError(f"{name} has no shape yet: run the model once first")
    path, _, tensor = name.rpartition(".")
    if f".{_PARAMETRIZED}" in f".{path}":
        path, _, tensor = f".{path}".rpartition(f".{_PARAMETRIZED}")
        path = path.removeprefix(".")
    module = model.get_submodule(path)
    return Weight(name, module, parameter, _kind(module, tensor, parameter), getattr(module, "groups", 1) or 1)


def _kind(module: nn.Module, tensor: str, parameter: nn.Parameter) -> str:
    if tensor == "bias":
        return "bias"
    if isinstance(module, _NORMS):
        return "norm" if tensor == "weight" else "other"
    if tensor != "weight" or not isinstance(module, (_ConvNd, nn.Linear)):
        return "other"
    kind, shape = _kernel(module)
    return kind if parameter is module._parameters.get("weight") or parameter.shape == shape else "other"


def _kernel(module: _ConvNd | nn.Linear) -> tuple[str, tuple[int, ...]]:
    """The kind of kernel and its shape: asking a parametrized layer computes it, which moves torch's spectral norm."""
    if isinstance(module, nn.Linear):
        return "linear", (module.out_features, module.in_features)
    if isinstance(module, _ConvTransposeNd):
        return "transposed", (module.in_channels, module.out_channels // module.groups, *module.kernel_size)
    return "conv", (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
