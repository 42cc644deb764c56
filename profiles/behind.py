"""A layer behind a carrier: its output before and after a transformation, with everything else the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layers.card import OptionValue
from profiles.carriers import Carrier, Scene
from profiles.difference import Difference, difference
from profiles.prepared import perturb, seasoned
from profiles.subject import Setup, Subject, subject
from profiles.target import Foreign, Target, options_of
from profiles.transformations import PROPERTIES, STRETCH, Draw, Property

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-30  # torch refuses 0
HIDDEN_EPS = 1e-5  # assumed of a class that has no option eps
HISTORY = 8  # batches that stored statistics have seen before the measured one; claims that follow forget within them
# Apart from the seeds of weight and data: γ, β or a shift drawn from the same stream would lie along a weight.
PARAMETERS, TRANSFORMATIONS = 1000, 2000


@dataclass(frozen=True)
class Conditions:
    """Under what a layer is measured without expectation, such as a class that has no card.

    ``options`` are the constructor's; ``mode`` is train or eval. ``history`` is what stored statistics do: they have
    seen the untransformed data (frozen) or the transformed (follow). ``bias`` gives the carrier a random bias.
    """

    options: Mapping[str, OptionValue] = field(default_factory=dict)
    mode: str = "train"
    history: str = "frozen"
    bias: bool = False


class Behind:
    """The layer is built once, γ and β random and never transformed; every output comes from its own copy.

    ``seed`` draws weight, data, γ, β and the transformations.
    Raises `Refusal` or OptionError when ``target`` cannot be built for ``carrier`` or refuses its output.
    """

    def __init__(self, target: Target, conditions: Conditions, carrier: Carrier, seed: int = 0) -> None:
        self.carrier = carrier
        self.seed = seed
        self._follow = conditions.history == "follow"
        self._subject = _subject(target, conditions, carrier)
        self._scenes = carrier.scenes(1 + HISTORY, bias=conditions.bias, seed=seed)
        self._fresh = self._subject.build()
        perturb(self._fresh, PARAMETERS + seed)
        self._settled = self._after(self._scenes[1:])
        self._output = self._respond(self._settled, self._scenes[0])

    def under(self, column: Property) -> Difference:
        """Return what the transformation of ``column`` does to the output; the same for every call."""

        def moved(scene: Scene) -> Scene:
            return column.apply(scene, Draw(TRANSFORMATIONS + self.seed))

        present, *past = self._scenes
        layer = self._after([moved(scene) for scene in past]) if self._follow else self._settled
        return difference(self._output, self._respond(layer, moved(present)))

    def is_degenerate(self) -> bool:
        """Tell whether another batch, with another bias of the carrier, gives the same output."""
        other = PROPERTIES["pre-bias"].apply(self._scenes[1], Draw(TRANSFORMATIONS + self.seed))
        return difference(self._output, self._respond(self._settled, other)).deviation == 0.0

    def disturbance(self) -> float:
        """The deviation that eps alone may cause in a layer invariant to re-scaling when eps is 0.

        Twice the first-order bound, since max |z| may be smaller with β than without.
        """
        hidden = HIDDEN_EPS if isinstance(self._subject.target, Foreign) else 0.0
        eps = self._subject.options.get("eps", hidden)
        return eps * STRETCH / _least_variance(self.carrier(self._scenes[0])) if isinstance(eps, float) else 0.0

    def _after(self, history: Sequence[Scene]) -> nn.Module:
        batches = [self.carrier(scene) for scene in history]
        with self._own_random_numbers(), self._subject.refusing("cannot be copied"):
            return seasoned(self._fresh, batches, self._subject.run, train=self._subject.setup.train)

    def _respond(self, layer: nn.Module, scene: Scene) -> Tensor:
        with self._own_random_numbers():
            return self._subject.run(copy.deepcopy(layer), self.carrier(scene))

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Give a layer that draws numbers the same ones in both runs, and the generator back as it was."""
        import torch

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            yield


def _subject(target: Target, conditions: Conditions, carrier: Carrier) -> Subject:
    """Check the options, with the smallest eps that is admitted unless the conditions give one."""
    options = dict(conditions.options)
    known = {option.name: option for option in options_of(target)}
    if "eps" in known:
        options.setdefault("eps", max(EPS, known["eps"].ge or 0.0))
    made = subject(target, options, Setup(carrier.output, dtype="float64", train=conditions.mode == "train"))
    if isinstance(target, Foreign) and "normalized_shape" in known and "normalized_shape" not in options:
        sample: Any = carrier.output[1:]  # no option is a tuple, but torch's layer and RMS normalization take one
        made = replace(made, options={**made.options, "normalized_shape": sample})
    return made


def _least_variance(y: Tensor) -> float:
    """The smallest variance that a statistic over samples, channels or positions of ``y`` can have."""
    rest = tuple(range(2, y.dim()))
    every = [(0, *rest), (1, *rest), (1,), *([rest] if rest else [])]
    return min(float(y.var(dims, correction=0).min()) for dims in every)
