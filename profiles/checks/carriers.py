"""What a normalization stands behind, or, when it has a weight of its own, in the place of: a linear layer or a
convolution, and its data.

The setting of every check: batch of 8; linear 7 → 12; 3×3 convolution 5 → 12 on 7×6, valid or zero-padded; float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
CHANNELS = 12
STD = 4.0  # of y: beside its variance an eps of 1e-5 is small, and y still has values near 0


@dataclass(frozen=True, eq=False)
class Scene:
    """What a property transforms: weight (O, I, *kernel), bias (O,) and batch (N, I, *positions), all float64."""

    weight: Tensor
    bias: Tensor
    x: Tensor


@dataclass(frozen=True)
class Carrier:
    """A map y = W x + b: linear when ``kernel`` is empty, else a convolution with ``padding`` zeros on each side."""

    name: str
    inputs: int
    positions: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    padding: int = 0

    @property
    def output(self) -> tuple[int, ...]:
        """The shape of y, (N, O, *positions)."""
        kept = (size + 2 * self.padding - k + 1 for size, k in zip(self.positions, self.kernel, strict=True))
        return (BATCH, CHANNELS, *kept)

    @property
    def sizes(self) -> str:
        """What it maps from and to, in words: the shapes of x and y."""
        shapes = (BATCH, self.inputs, *self.positions), self.output
        return " → ".join("x".join(map(str, shape)) for shape in shapes)

    def scenes(self, count: int, *, bias: bool, seed: int) -> list[Scene]:
        """Draw ``count`` scenes from ``seed``: one weight (and bias, else zeros), a new batch each."""
        import torch

        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        spread = STD / math.sqrt(self.inputs * math.prod(self.kernel))
        weight = spread * normal(CHANNELS, self.inputs, *self.kernel)
        shift = normal(CHANNELS) * (STD / 2 if bias else 0.0)
        return [Scene(weight, shift, normal(BATCH, self.inputs, *self.positions)) for _ in range(count)]

    def __call__(self, scene: Scene) -> Tensor:
        """Return y, contiguous."""
        from torch.nn import functional as F

        if not self.kernel:
            return F.linear(scene.x, scene.weight, scene.bias)
        return F.conv2d(scene.x, scene.weight, scene.bias, padding=self.padding)


CARRIERS = {
    carrier.name: carrier
    for carrier in (
        Carrier("linear", 7),
        Carrier("conv", 5, (7, 6), (3, 3)),
        Carrier("conv-padded", 5, (7, 6), (3, 3), padding=1),
    )
}
