"""The properties of the invariance table: what each does to the weight, the bias or the data before a normalization.

The first six are the columns of table 1 of “Layer Normalization” (Ba, Kiros, Hinton 2016, section 5.1), the others
extend it. A layer has a property when its output stays the same under the transformation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from profiles.checks.carriers import Scene

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = 3
GHOST = 2
DELTA = 2.7  # the one factor of the uniform scalings
SCALES = (0.4, DELTA)  # the range of the others
# The most that (1 − δ⁻²) can be: under a scale δ an eps in the root moves the output by eps/2 · |1 − δ⁻²| / variance.
STRETCH = max(abs(1 - scale**-2) for scale in SCALES)
STRETCH_OUTSIDE = max(abs(1 - 1 / scale) for scale in SCALES)  # and one outside of it by eps · |1 − δ⁻¹| / deviation


class Draw:
    """The random numbers of one transformation, the same for every batch that goes through it."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Return N(0, 1) numbers, float64."""
        import torch

        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def scales(self, count: int) -> Tensor:
        """Return ``count`` positive factors, no two alike, in random order."""
        import torch

        order = torch.randperm(count, generator=self._generator)
        return torch.linspace(*SCALES, count, dtype=torch.float64)[order]


@dataclass(frozen=True)
class Property:
    """One column: ``id``, the ``title`` of the column, its ``definition``, whether it is one of the ``paper``.

    ``scales`` tells a re-scaling, which an eps in the root disturbs, from a shift, which it does not.
    """

    id: str
    title: str
    definition: str
    apply: Callable[[Scene, Draw], Scene]
    paper: bool = False
    scales: bool = False


def _along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """View ``values`` along one axis of ``like``."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.view(shape)


def _grouped(values: Tensor, size: int) -> Tensor:
    """Repeat one row per group for ``size`` members of all groups, in order."""
    return values.repeat_interleave(size // values.shape[0], 0)


def _times_w(scene: Scene, factors: Tensor) -> Scene:
    return replace(scene, weight=scene.weight * _along(factors, 0, scene.weight))


def _times_x(scene: Scene, factors: Tensor) -> Scene:
    return replace(scene, x=scene.x * _along(factors, 0, scene.x))


def _first(scene: Scene, case: Tensor) -> Scene:
    """Put ``case`` in the place of the first sample."""
    x = scene.x.clone()
    x[0] = case
    return replace(scene, x=x)


def _per_channel(scene: Scene, draw: Draw) -> Tensor:
    """One number per input channel, to be added to a batch."""
    return _along(draw.normal(scene.x.shape[1]), 1, scene.x)


PROPERTIES = {
    column.id: column
    for column in (
        Property(
            "w-scale",
            "Weight matrix re-scaling",
            "W' = δW, δ > 0",
            lambda s, d: replace(s, weight=DELTA * s.weight),
            paper=True,
            scales=True,
        ),
        Property(
            "w-recenter",
            "Weight matrix re-centering",
            "W' = W + 1γᵀ: the same vector γ added to the incoming weights of every neuron",
            lambda s, d: replace(s, weight=s.weight + d.normal(*s.weight.shape[1:])),
            paper=True,
        ),
        Property(
            "w-vec-scale",
            "Weight vector re-scaling",
            "w_o' = δ_o w_o, a different δ_o > 0 for every neuron o",
            lambda s, d: _times_w(s, d.scales(len(s.weight))),
            paper=True,
            scales=True,
        ),
        Property(
            "x-scale",
            "Dataset re-scaling",
            "x_n' = δx_n for every sample n",
            lambda s, d: replace(s, x=DELTA * s.x),
            paper=True,
            scales=True,
        ),
        Property(
            "x-recenter",
            "Dataset re-centering",
            "x_n' = x_n + γ, the same γ for every sample (convolution: one constant per input channel)",
            lambda s, d: replace(s, x=s.x + _per_channel(s, d)),
            paper=True,
        ),
        Property(
            "case-scale",
            "Single training case re-scaling",
            "x_0' = δx_0, the other samples as they were; all samples compared",
            lambda s, d: _first(s, DELTA * s.x[0]),
            paper=True,
            scales=True,
        ),
        Property(
            "w-recenter-scalar",
            "Weight matrix re-centering by a scalar",
            "W' = W + c",
            lambda s, d: replace(s, weight=s.weight + d.normal(1)),
        ),
        Property(
            "w-vec-recenter",
            "Weight vector re-centering",
            "w_o' = w_o + c_o 1, a different c_o for every neuron o",
            lambda s, d: replace(s, weight=s.weight + _along(d.normal(len(s.weight)), 0, s.weight)),
        ),
        Property(
            "w-recenter-group",
            "Weight re-centering per group",
            f"w_o' = w_o + γ_g, one vector γ_g for each of {GROUPS} groups of neurons",
            lambda s, d: replace(s, weight=s.weight + _grouped(d.normal(GROUPS, *s.weight.shape[1:]), len(s.weight))),
        ),
        Property(
            "w-scale-group",
            "Weight re-scaling per group",
            f"w_o' = δ_g w_o, one δ_g > 0 for each of {GROUPS} groups of neurons",
            lambda s, d: _times_w(s, _grouped(d.scales(GROUPS), len(s.weight))),
            scales=True,
        ),
        Property(
            "x-recenter-scalar",
            "Dataset re-centering by a scalar",
            "x' = x + c",
            lambda s, d: replace(s, x=s.x + d.normal(1)),
        ),
        Property(
            "x-recenter-image",
            "Dataset re-centering by an image",
            "x_n' = x_n + γ, one γ of the size of a sample",
            lambda s, d: replace(s, x=s.x + d.normal(*s.x.shape[1:])),
        ),
        Property(
            "cases-scale",
            "Re-scaling of every training case",
            "x_n' = δ_n x_n, a different δ_n > 0 for every sample n",
            lambda s, d: _times_x(s, d.scales(len(s.x))),
            scales=True,
        ),
        Property(
            "ghost-scale",
            "Re-scaling per ghost batch",
            f"x_n' = δ_b x_n, one δ_b > 0 for each {GHOST} samples in order",
            lambda s, d: _times_x(s, _grouped(d.scales(len(s.x) // GHOST), len(s.x))),
            scales=True,
        ),
        Property(
            "case-recenter",
            "Single training case re-centering",
            "x_0' = x_0 + γ (convolution: one constant per input channel); all samples compared",
            lambda s, d: _first(s, (s.x + _per_channel(s, d))[0]),
        ),
        Property(
            "pre-bias",
            "Bias of the layer before",
            "b_o' = b_o + β_o: where it holds, that bias is useless",
            lambda s, d: replace(s, bias=s.bias + d.normal(len(s.bias))),
        ),
        Property(
            "pre-bias-common",
            "Common bias of the layer before",
            "b_o' = b_o + β, the same β for every neuron",
            lambda s, d: replace(s, bias=s.bias + d.normal(1)),
        ),
    )
}
