"""What is timed: a layer in one direction, its references on the same input, and a plain copy of the same bytes.

``forward`` runs as in training, recording the graph (in evaluation mode: as in inference, recording none).
Of an optimizer ``forward`` is one step; what else works on a weight is called on it, the input.
``backward`` is the backward pass alone, each time of a fresh graph whose making is off the clock.
``forward+backward`` is both. Backward gives the gradients of the input and of all parameters, from a fixed upstream
gradient, and adds them to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from layers import formula
from layers.card import Card, OptionError, OptionValue, Peer
from layers.catalog import Stone, UnknownStone, stones
from profiles.errors import Refusal
from profiles.speed.timing import Comparison
from profiles.spelling import read_all
from profiles.subject import Subject, subject
from profiles.target import Foreign, Target, is_optimizer, options_of, resolve
from profiles.threads import MOST_THREADS

DIRECTIONS = ("forward", "backward", "forward+backward")
COPY, PEER = "copy", "peer"
Record = dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """A bar: the time of the stone divided by that of ``vs`` must not exceed ``max_ratio``; advisory ones only warn."""

    vs: str
    max_ratio: float
    advisory: bool = False


@dataclass(frozen=True)
class Point:
    """A place on a sweep: the ``value`` that an axis of the input, or an option, has there."""

    axis: str
    value: OptionValue


@dataclass(frozen=True)
class Case:
    """One stone in one direction under the name ``label``, beside ``references``; made by `case`.

    A reference is a subject, or None where it is to be looked up by its name; the copy is always there. torch uses so
    many ``threads``. ``point`` is where on a sweep the case lies, if it is part of one. With ``graph`` the calls are
    replayed from CUDA graphs, so that no launch by the processor is timed.
    """

    label: str
    subject: Subject
    direction: str = "forward"
    references: Mapping[str, Subject | None] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    compile: bool = False
    threads: int = 1
    point: Point | None = None
    graph: bool = False

    def __post_init__(self) -> None:
        if self.graph and not self.subject.setup.device.startswith("cuda"):
            raise Refusal(f"--cuda-graph needs --device cuda, not {self.subject.setup.device}")
        if self.graph and self.direction == "backward":
            raise Refusal("--cuda-graph takes no --backward, which starts from a graph made outside: take --both")
        if not 1 <= self.threads <= MOST_THREADS:
            raise Refusal(f"threads={self.threads} is out of range: it must be ≥ 1 and ≤ {MOST_THREADS}")

    def role(self, name: str) -> str:
        """Return what the job ``name`` is: the stone, the copy, a reference, or a yardstick, which computes other."""
        if name in (self.label, COPY):
            return "stone" if name == self.label else COPY
        peer = peer_of(self.subject)
        is_yardstick = peer is not None and not peer.same and name == peer_name(self.subject)
        return "yardstick" if is_yardstick else "reference"

    @property
    def comparisons(self) -> list[Comparison]:
        """The ratios to measure: one per gate, and one for every reference that no gate names."""
        gated = [Comparison(self.label, gate.vs, gate.max_ratio) for gate in self.gates]
        named = {gate.vs for gate in self.gates}
        return gated + [Comparison(self.label, vs) for vs in (*self.references, COPY) if vs not in named]

    def bytes(self) -> int | None:
        """Return the fewest bytes that the direction must move, by the card; None without a card."""
        return self._count("traffic")

    def flops(self) -> int | None:
        """Return the arithmetic operations of the direction's definition, by the card; None without a card."""
        return self._count("flops")

    def _count(self, which: str) -> int | None:
        card = self.subject.card
        if card is None:
            return None
        texts = [getattr(getattr(card, which), name) for name in self.direction.split("+")]
        of_one = sum(int(formula.evaluate(text, self.subject.symbols)) for text in texts)
        return of_one * self.subject.setup.tensors


def case(
    what: Subject,
    direction: str = "forward",
    *,
    vs: Sequence[str] | None = None,
    gates: Sequence[Gate] = (),
    label: str = "",
    others: Mapping[str, Subject] | None = None,
    compile: bool = False,
    threads: int = 1,
    point: Point | None = None,
    graph: bool = False,
) -> Case:
    """Return the case of ``what`` in ``direction`` beside the references ``vs`` and those that ``gates`` name.

    A reference is ``copy``, ``peer`` (the card's), ``pkg.mod:Class``, a stone, a stone with options such as
    ``svb:method=svd,factor=2``, or a name in ``others``. Without ``vs`` the peer is taken if there is one.
    Raises `Refusal` for an unknown direction or a peer that does not exist.
    """
    label = label or what.name
    if direction not in DIRECTIONS:
        raise Refusal(f"direction={direction!r} is not one of {', '.join(DIRECTIONS)}")
    check_timeable(what.target)
    if what.setup.elements == 0:
        raise Refusal(f"{what.name}: an input without elements takes no time that could be compared")
    if vs is None:
        vs = [PEER] if peer_of(what) is not None else []
    real = {name: peer_name(what) if name == PEER else name for name in (*vs, *(gate.vs for gate in gates))}
    if label in (*real.values(), COPY):
        raise Refusal(f"{label} cannot be compared with {label}: give one of them another name")
    known = others or {}
    references = {name: known.get(name) or _early(what, name) for name in real.values() if name != COPY}
    named = tuple(replace(gate, vs=real[gate.vs]) for gate in gates)
    return Case(label, what, direction, references, named, compile, threads, point, graph)


def _early(what: Subject, name: str) -> Subject | None:
    """Return the reference ``name`` unless it is a class, so that it is refused before torch is imported."""
    stone, is_more, option = name.partition(":")
    is_class = bool(is_more) and not (stone in stones() and "=" in option)
    return None if is_class else reference(what, name)


def check_timeable(target: Target) -> None:
    """Refuse what cannot be timed under any circumstances: a transform of models."""
    if isinstance(target, Stone) and target.card.role == "transform":
        raise Refusal(f"{target.name} transforms a model: it has no forward to time")


def peer_of(what: Subject) -> Peer | None:
    """Return the card's peer, None when there is none for these options or its package is not installed."""
    peer = what.card.peer if what.card is not None else None
    if peer is None or not formula.evaluate(peer.given, what.symbols) or (peer.needs and not find_spec(peer.needs)):
        return None
    return peer


def peer_name(what: Subject) -> str:
    """Return the name of the card's peer for the setup's rank; raises `Refusal` when there is none."""
    peer = peer_of(what)
    if peer is None:
        raise Refusal(
            f"{what.name} has no peer on its card for these options; name a reference by pkg.mod:Class or take copy"
        )
    return peer.target.format(d=max(1, len(what.setup.shape) - 2))


def reference(what: Subject, name: str) -> Subject:
    """Return the layer called ``name``, constructed as ``what`` is, under the same setup.

    It may have options of its own, ``svb:method=svd``, ``torch.optim:Adam:fused=true``. Its arguments are those of the
    card's peer when that is what ``name`` means, or a class that takes them all; else options of the same name, and
    the channels under whatever name it takes them. Raises `Refusal` for what does not compare or cannot be built.
    """
    stone, _, spelt = name.rpartition(":") if "=" in name else (name, "", "")
    try:
        target = resolve(stone)
    except UnknownStone as error:
        raise Refusal(f"{error}; references are copy, peer, a stone (svb, svb:method=svd), or pkg.mod:Class") from error
    takes = {option.name for option in options_of(target)}
    peer = peer_of(what)
    of_peer = peer is not None and what.role != "optimizer" and peer.arguments.keys() <= takes
    if peer is not None and isinstance(target, Foreign) and (name == peer_name(what) or of_peer):
        arguments = {key: formula.evaluate(text, what.symbols) for key, text in peer.arguments.items()}
        return Subject(target, arguments | _spelt(target, spelt), what.setup)
    _check_comparable(what, target, name)
    if isinstance(target, Foreign) and is_optimizer(target):
        return Subject(target, _spelt(target, spelt), what.setup)
    usual = {option.name: option.default for option in options_of(what.target)}
    options = {
        key: value
        for key, value in what.options.items()
        if key in takes and (value != usual.get(key) or _admits(target, key, value))  # a default need not fit
    }
    try:
        return subject(target, options | _spelt(target, spelt), what.setup)
    except OptionError as error:
        own = f"; give it its own, --vs {name}:{error.option}=…" if error.option in takes and not spelt else ""
        raise Refusal(f"{name} beside {what.name}: {error}{own}") from error


def _admits(target: Target, name: str, value: OptionValue) -> bool:
    """Tell whether the option ``name`` of ``target`` can have ``value``."""
    try:
        next(option for option in options_of(target) if option.name == name).check(value)
    except OptionError:
        return False
    return True


def _check_comparable(what: Subject, target: Target, name: str) -> None:
    if isinstance(target, Foreign) and is_optimizer(target) and what.role != "optimizer":
        raise Refusal(f"{name} is an optimizer, {what.name} is not: their times do not compare")
    if not isinstance(target, Stone):
        return
    check_timeable(target)
    one, other = (_works_on(card) for card in (what.card, target.card))
    if one != other:
        raise Refusal(f"{what.name} works on {one}, {name} on {other}: their times do not compare")


def _works_on(card: Card | None) -> str:
    if card is not None and card.role == "augmentation":
        return "images"
    return "a weight" if card is not None and card.works_on_weights else "a layer's input"


def _spelt(target: Target, text: str) -> dict[str, OptionValue]:
    return read_all(target.name, options_of(target), text)
