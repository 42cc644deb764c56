"""A layer behind a carrier: its output before and after a transformation, with everything else the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from profiles.checks.carriers import Carrier, Scene
from profiles.checks.chain import Chain, Conditions
from profiles.checks.difference import Difference, difference
from profiles.checks.transformations import PROPERTIES, STRETCH, STRETCH_OUTSIDE, Draw, Property
from profiles.prepared import seasoned
from profiles.target import Foreign, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

HIDDEN_EPS = 1e-5  # assumed of a class that has no option eps, and of an option eps that is none
ROUNDING = 1e-9  # relative; beside what a normalization of a handful of values makes of 1e-16
HISTORY = 8  # batches that stored statistics have seen before the measured one; claims that follow forget within them
# Apart from the seeds of weight and data: γ, β or a shift drawn from the same stream would lie along a weight.
PARAMETERS, TRANSFORMATIONS, UPSTREAM = 1000, 2000, 3000


class Behind:
    """The layer is built once, γ and β random and never transformed; every output comes from its own copy.

    ``seed`` draws weight, data, γ, β and the transformations.
    Raises `Refusal` or OptionError when ``target`` cannot be built for ``carrier`` or refuses its output.
    """

    def __init__(self, target: Target, conditions: Conditions, carrier: Carrier, seed: int = 0) -> None:
        self.carrier = carrier
        self.seed = seed
        self._follow = conditions.history == "follow"
        self._chain = Chain(target, conditions, carrier)
        self.scenes = carrier.scenes(1 + HISTORY, bias=conditions.bias, seed=seed)
        self._fresh = self._chain.build(PARAMETERS + seed)
        self._settled = self._after(self.scenes[1:])
        self._output = self._respond(self._settled, self.scenes[0])

    def under(self, column: Property) -> Difference:
        """Return what the transformation of ``column`` does to the output; the same for every call."""

        def moved(scene: Scene) -> Scene:
            return column.apply(scene, Draw(TRANSFORMATIONS + self.seed))

        present, *past = self.scenes
        layer = self._after([moved(scene) for scene in past]) if self._follow else self._settled
        return difference(self._output, self._respond(layer, moved(present)))

    def gradient(self, weight: Tensor, step: int = 0, *, follow: bool = False) -> Tensor:
        """Return ∂L/∂W at ``weight`` for L = Σ r z, the output z of batch ``step`` and a random r of its own.

        Stored statistics are constants. They saw the weight as it was drawn; with ``follow``, and where that is the
        condition, this one.
        """
        import torch

        layer = self._settled
        if follow and self._follow:
            layer = self._after([replace(scene, weight=weight) for scene in self.scenes[1:]])
        leaf = weight.detach().clone().requires_grad_()
        scene = replace(self.scenes[step % len(self.scenes)], weight=leaf)
        with torch.enable_grad(), self._own_random_numbers(), self._chain.last.refusing("has no gradient"):
            remembers = any(True for _ in layer.buffers())  # copying takes longer than all the rest
            z = self._chain.run(copy.deepcopy(layer) if remembers else layer, scene)
            upstream = Draw(UPSTREAM + 100 * self.seed + step).normal(*z.shape)
            found = torch.autograd.grad(z, leaf, upstream, allow_unused=True)[0] if z.requires_grad else None
        return torch.zeros_like(weight) if found is None else found

    def is_flat(self) -> bool:
        """Tell whether the output does not change with the weight: the gradient is nothing but rounding errors."""
        weight, z = self.scenes[0].weight, self._output
        slope = float(self.gradient(weight).norm() * weight.norm())
        return slope <= ROUNDING * float(z.norm()) * math.sqrt(z.numel())

    def is_degenerate(self) -> bool:
        """Tell whether another batch, with another bias of the carrier, gives the same output."""
        other = PROPERTIES["pre-bias"].apply(self.scenes[1], Draw(TRANSFORMATIONS + self.seed))
        return difference(self._output, self._respond(self._settled, other)).deviation == 0.0

    def disturbance(self) -> float:
        """The deviation that eps alone may cause in a layer invariant to re-scaling when eps is 0.

        Twice the first-order bound, since max |z| may be smaller with β than without. An eps in the root moves the
        output by eps/2σ² · |1 − δ⁻²|, one outside by eps/σ · |1 − δ⁻¹|; where it stands is not known.
        """
        last = self._chain.last
        eps = last.options.get("eps", HIDDEN_EPS if isinstance(last.target, Foreign) else 0.0)
        eps = HIDDEN_EPS if eps is None else eps
        if not isinstance(eps, float) or not eps:
            return 0.0
        variance = self._least_variance()
        return max(eps * STRETCH / variance, 2 * eps * STRETCH_OUTSIDE / math.sqrt(variance))

    def _least_variance(self) -> float:
        """The smallest variance that may be divided by, behind the carrier or, without a layer there, in its place."""
        import torch

        scene = self.scenes[0]
        if self._chain.layer is None:
            return _of_rows_and_windows(scene, self.carrier)
        with torch.no_grad(), self._own_random_numbers():
            return _of_outputs(self._chain.carried(copy.deepcopy(self._settled), scene))

    def _after(self, history: Sequence[Scene]) -> nn.Module:
        with self._own_random_numbers(), self._chain.last.refusing("cannot be copied"):
            return seasoned(self._fresh, history, self._chain.run, train=self._chain.last.setup.train)

    def _respond(self, layer: nn.Module, scene: Scene) -> Tensor:
        import torch

        with torch.no_grad(), self._own_random_numbers():
            return self._chain.run(copy.deepcopy(layer), scene)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Give a layer that draws numbers the same ones in both runs, and the generator back as it was."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            yield


def _of_rows_and_windows(scene: Scene, carrier: Carrier) -> float:
    """The smallest variance of a row of the weight or of a window of the data."""
    from torch.nn import functional as F

    windows = F.unfold(scene.x, carrier.kernel, padding=carrier.padding) if carrier.kernel else scene.x
    return min(float(rows.var(1, correction=0).min()) for rows in (scene.weight.flatten(1), windows))


def _of_outputs(y: Tensor) -> float:
    """The smallest variance that a statistic over samples, channels or positions of ``y`` can have."""
    rest = tuple(range(2, y.dim()))
    every = [(0, *rest), (1, *rest), (1,), *([rest] if rest else [])]
    return min(float(y.var(dims, correction=0).min()) for dims in every)
