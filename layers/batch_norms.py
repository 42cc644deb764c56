"""Which layers of a model are batch normalizations: torch.nn's, SyncBatchNorm among them, and this library's."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from layers.card import OptionError
from layers.norm.bn import BatchNorm

AnyBatchNorm = _BatchNorm | BatchNorm


def batch_norms(model: nn.Module) -> dict[str, AnyBatchNorm]:
    """Return the batch normalizations of ``model`` by name, in the order of its modules, each once.

    Raises OptionError when there is none, or when one has no γ and β to train.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, (_BatchNorm, BatchNorm))}
    if not found:
        raise OptionError(f"{type(model).__name__} has no batch normalization, neither torch.nn's nor this library's")
    for name, module in found.items():
        if module.weight is None or module.bias is None:
            raise OptionError(f"{name or type(model).__name__} has no γ and β: build it with affine=True")
    return found
