"""Who takes part in a race: an optimizer, and for networks also what is put into them, as people write it.

adax                        a stone, with its defaults and the problem's settings
adax:lr=0.01,beta2=1e-3     with options
torch.optim:Adam:lr=0.1     a class of optimizers; beta1 and beta2 are its betas
bn-only+lars:lr=1           for networks: transforms, layers and backward rules, then how it is trained
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from layers.card import Option, OptionError, OptionValue
from layers.catalog import Stone
from profiles.errors import Refusal, first_line
from profiles.spelling import read_all
from profiles.target import Foreign, Target, is_optimizer, options_of, resolve

BETAS = ("beta1", "beta2")
_KINDS = ("norm", "weight", "conv", "backward")  # what may be put into a network by `layers.convert`


@dataclass(frozen=True)
class Part:
    """One technique with the options that were spelt."""

    target: Target
    options: Mapping[str, OptionValue]

    @property
    def trains(self) -> bool:
        """Whether it is an optimizer."""
        target = self.target
        return target.card.role == "optimizer" if isinstance(target, Stone) else is_optimizer(target)

    def optimizer(self, parameters: Iterable[Any], settings: Mapping[str, float]) -> Any:
        """Return the optimizer of ``parameters`` with ``settings``, as far as it has them, under the spelt options.

        Raises `Refusal` where its constructor refuses them.
        """
        wanted = {name: value for name, value in settings.items() if name in self._names()} | dict(self.options)
        try:
            if isinstance(self.target, Stone):
                return self.target.load()(parameters, **wanted)
            return self.target.factory(parameters, **_with_betas(self.target, wanted))
        except (OptionError, ValueError, TypeError) as error:
            raise Refusal(f"{self.target.name}: {first_line(error)}") from error

    def _names(self) -> set[str]:
        return {option.name for option in _options(self.target)}


@dataclass(frozen=True)
class Entrant:
    """The parts of one entrant, at most one of them an optimizer, under the text that named them."""

    label: str
    parts: tuple[Part, ...]

    @property
    def trainer(self) -> Part | None:
        """The optimizer, if one is named."""
        return next((part for part in self.parts if part.trains), None)

    @property
    def changes(self) -> tuple[Part, ...]:
        """What is put into a network, in order."""
        return tuple(part for part in self.parts if not part.trains)


def entrant(text: str) -> Entrant:
    """Return what ``text`` names; raises `Refusal` or `OptionError` for what it should not."""
    words = text.split("+")
    if len(words) > 1 and not all(word.strip() for word in words):
        raise Refusal(f"{text!r} is not an entrant: a name is missing, such as adax or bn-only+lars:lr=1")
    parts = tuple(read_part(word) for word in words)
    if sum(part.trains for part in parts) > 1:
        raise Refusal(f"{text}: an entrant has one optimizer; give several entrants")
    for part in parts:
        _check_part(part, text)
    return Entrant(text, parts)


def _check_part(part: Part, text: str) -> None:
    if part.trains:
        return
    if not isinstance(part.target, Stone):
        raise Refusal(f"{text}: {part.target.name} is no optimizer")
    card = part.target.card
    if card.role != "transform" and (card.role != "layer" or part.target.kind not in _KINDS):
        raise Refusal(
            f"{text}: {part.target.name} is a {card.role} of kind {part.target.kind}; a race takes optimizers, "
            f"transforms, and layers of the kinds {', '.join(_KINDS)}"
        )


def read_part(word: str) -> Part:
    """Return the technique of ``word`` with the options spelt in it; raises `Refusal` or `OptionError`."""
    head, colon, tail = word.strip().rpartition(":")
    name, spelt = (head, tail) if colon and "=" in tail else (word.strip(), "")
    target = resolve(name)
    return Part(target, read_all(target.name, _options(target), spelt))


def _options(target: Target) -> tuple[Option, ...]:
    """The options of ``target``; a class that takes ``betas`` has beta1 and beta2 for them."""
    found = options_of(target)
    if isinstance(target, Foreign) and _betas(target) is not None:
        return (*found, *(Option(name=name, type=float, default=0.9, ge=0, lt=1, help="of betas") for name in BETAS))
    return found


def _betas(target: Foreign) -> tuple[float, ...] | None:
    parameter = inspect.signature(target.factory).parameters.get("betas")
    return parameter.default if parameter is not None and isinstance(parameter.default, tuple) else None


def _with_betas(target: Foreign, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` with beta1 and beta2 as the ``betas`` that the constructor of ``target`` takes."""
    betas = _betas(target)
    kept = {name: value for name, value in options.items() if name not in BETAS}
    if betas is not None and len(kept) < len(options):
        kept["betas"] = tuple(options.get(name, default) for name, default in zip(BETAS, betas, strict=False))
    return kept
