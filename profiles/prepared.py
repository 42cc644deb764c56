"""A layer as training leaves it: parameters away from 1 and 0, stored statistics that have seen data.

Fresh γ = 1 and β = 0, running mean 0 and variance 1 hide half of what a layer can get wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

SPREAD = 0.3
Batch = TypeVar("Batch")


def perturb(module: nn.Module, seed: int) -> None:
    """Add 0.3 N(0, 1) to every parameter of ``module``, drawn from ``seed`` in the order of their names."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(SPREAD * noise.to(parameter))


def seasoned(
    module: nn.Module, batches: Sequence[Batch], run: Callable[[nn.Module, Batch], Tensor], *, train: bool
) -> nn.Module:
    """Return a copy of ``module`` that has ``run`` through ``batches`` in training, in the mode that ``train`` says.

    A module without buffers remembers nothing and is only copied. Raises what ``run`` raises.
    """
    import torch

    made = copy.deepcopy(module)
    if any(True for _ in made.buffers()):
        made.train()
        with torch.no_grad():
            for batch in batches:
                run(made, batch)
    trained: nn.Module = made.train(train)
    return trained
