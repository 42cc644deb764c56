"""What a stone says about itself. Standard library only: a card is read without importing torch.

Symbols that formulas on cards may use: the sizes of the input, ``N C H W`` (1 where the input lacks the axis; a 5-d
input has its depth folded into H), ``S = H·W`` positions, ``E = N·C·H·W`` elements, ``B`` bytes per element,
``train`` (is the layer in training mode?), ``nhwc`` (is the input channels-last?), and every option of the card by its
name. Where the stone is no layer but works on a weight, its sizes are ``O`` outputs (the first axis), ``I`` inputs of
each (the product of the others) and ``E = O·I`` elements, beside ``B`` and ``train``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layers import formula
from layers.claims import CARRIERS, Claim, Identity, Race
from layers.dimensions import SIZES, WEIGHT_SIZES, divisors, sizes, weight_sizes
from layers.option import Option, OptionError, OptionValue

DRAWS = ("", "levels", "reach", "rearrangement")
ROLES = ("layer", "transform", "penalty", "projection", "initializer", "optimizer", "augmentation")
SAME = ("*",)  # the shape of a state tensor that is that of its parameter


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a technique was published."""

    authors: str
    title: str
    year: int
    venue: str = ""
    arxiv: str = ""

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.venue, f"arXiv {self.arxiv}" if self.arxiv else "") if part)
        return f"{self.authors}, “{self.title}”, {self.year}{', ' + where if where else ''}"


@dataclass(frozen=True)
class Rule:
    """A condition that sizes and options must meet together, and what to say when they do not.

    ``message`` may use every symbol in braces, and ``{divisors_of_C}`` (also of N and O) for the remedy.
    """

    test: str
    message: str
    option: str = ""

    def refusal(self, values: Mapping[str, Any]) -> str | None:
        """Return the message when the rule can be judged from ``values`` and is broken."""
        if not formula.symbols(self.test) <= values.keys() or formula.evaluate(self.test, values):
            return None
        words = {f"divisors_of_{name}": _listed(divisors(values[name])) for name in ("N", "C", "O") if name in values}
        return self.message.format(**values, **words)


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")


@dataclass(frozen=True)
class Stat:
    """A tensor the layer computes or keeps: name, symbolic shape, the notes' way to write it, when it exists."""

    name: str
    shape: tuple[str, ...]
    label: str = ""
    given: str = "True"
    help: str = ""

    def symbolic(self) -> str:
        """Return the shape as the notes write it, such as ``N×C/K``; ``scalar`` for a 0-d tensor."""
        if self.shape == SAME:
            return "that of the parameter"
        return self.label or "×".join(formula.pretty(size) for size in self.shape) or "scalar"

    def at(self, values: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Return the concrete shape, or None when this tensor does not exist under ``values``."""
        if not formula.evaluate(self.given, values):
            return None
        if self.shape == SAME:
            return tuple(values["*"])
        return tuple(int(formula.evaluate(size, values)) for size in self.shape)


@dataclass(frozen=True)
class Flops:
    """Arithmetic operations of one pass (every operation 1, a multiply-add 2) as formulas."""

    forward: str
    backward: str


@dataclass(frozen=True)
class Peer:
    """The layer people use today for the same computation: ``pkg.mod:Class`` and its arguments as formulas.

    ``{d}`` in ``target`` is the number of spatial axes, at least 1. ``given`` says for which options it computes the
    same. `bench` puts it beside the stone. ``same`` is false for a yardstick, which does not compute the same: the
    plain convolution beside one whose weights are standardized. ``needs`` names a package without which there is none.
    """

    target: str
    arguments: Mapping[str, str]
    given: str = "True"
    same: bool = True
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything a stone states about itself; `profiles` measures whether it is true.

    ``formula`` in the paper's symbols; ``impl``, the class or function in the file; ``options``; ``rules`` across
    options and sizes; ``derived``, further symbols as formulas over both (``{"G": "groups"}``);
    ``statistics`` computed in a forward; ``buffers`` kept in the state_dict; ``params``, their number;
    ``flops``, the two-pass textbook count; ``executed``, what this implementation executes, and ``saved``, the bytes
    it keeps for backward beside parameters and buffers (both: float32, contiguous, CPU, at least 2 positions, and where
    ``stated``, a formula over the options, holds);
    ``workspace``, where it is stated (and not None), the most bytes allocated at once beside the output in a forward
    that records no graph (CPU, float32 and float64);
    ``explained``, why the counts and fvcore differ; ``traffic``, the byte floor;
    ``claims``, ``identities`` and, of an optimizer, ``races``;
    ``notes``, what reading notes, papers or public code got wrong;
    ``picture``, lines of a drawing in text (tests/pictured.py draws it from the running stone);
    ``caution``, why the times that `bench` measures are not those of the published algorithm, where they are not;
    ``examples``, option sets on which every promise is tested (12 channels, batch of 4);
    ``couples``, when one sample's output depends on others: never, train, always; ``eval_differs`` and
    ``exact_gradient``, formulas over the options, the latter false where the published backward is not the derivative
    by design (the reference in the tests then detaches what the paper detaches); ``remembers``, a formula too: the
    training output depends on stored statistics, so that recomputing a forward (activation checkpointing) differs;
    ``derivable``, another: the gradient may be derived again; where not, that is refused with a RuntimeError;
    ``role``: a layer, a transform of a model, or what works on one weight: a penalty (a number that is minimized with
    the loss), a projection (a new weight in its place), an initializer, an optimizer, which keeps ``state`` per
    parameter; or an augmentation, a callable on images (N, 3, H, W) uint8; ``ranks``, the numbers of axes of the inputs
    that are admitted; ``output``, the shape of a layer's output as formulas, where it is not that of the input;
    ``peer``, the reference of `bench`; ``draws``, what `draw` shows where that is not a statistic: the grids of a
    pyramid, how far convolutions reach, where numbers are moved to.
    """

    title: str
    paper: Paper
    impl: str
    formula: str
    summary: str
    options: tuple[Option, ...] = ()
    rules: tuple[Rule, ...] = ()
    derived: Mapping[str, str] = field(default_factory=dict)
    statistics: tuple[Stat, ...] = ()
    buffers: tuple[Stat, ...] = ()
    state: tuple[Stat, ...] = ()
    params: str = "0"
    flops: Flops = Flops("0", "0")
    executed: Flops = Flops("", "")
    explained: str = ""
    saved: str = "0"
    workspace: str = ""
    stated: str = "True"
    traffic: Flops = Flops("2*E*B", "3*E*B")
    claims: tuple[Claim, ...] = ()
    identities: tuple[Identity, ...] = ()
    races: tuple[Race, ...] = ()
    notes: tuple[str, ...] = ()
    picture: tuple[str, ...] = ()
    caution: str = ""
    examples: tuple[Mapping[str, OptionValue], ...] = ({},)
    couples: str = "never"
    eval_differs: str = "False"
    exact_gradient: str = "True"
    remembers: str = "False"
    derivable: str = "True"
    role: str = "layer"
    ranks: tuple[int, ...] = (2, 3, 4, 5)
    output: tuple[str, ...] = ()
    peer: Peer | None = None
    draws: str = ""

    def __post_init__(self) -> None:
        """Refuse a role, or a picture, that there is not. Formulas wait for `check_formulas`: listing needs none."""
        if self.role not in ROLES:
            raise ValueError(f"{self.title}: role={self.role!r} is not one of {', '.join(ROLES)}")
        if self.draws not in DRAWS:
            raise ValueError(f"{self.title}: draws={self.draws!r} is not one of {', '.join(DRAWS[1:])}")

    def check_formulas(self) -> None:
        """Raise FormulaError for a formula that does not parse, or is over a symbol that nothing defines."""
        known = {
            *(WEIGHT_SIZES if self.works_on_weights else SIZES),
            *(option.name for option in self.options),
            *self.derived,
        }
        for text in self._formulas():
            if unknown := formula.symbols(text) - known:
                raise formula.FormulaError(f"{self.title}: formula {text!r} uses unknown {', '.join(sorted(unknown))}")

    @property
    def works_on_weights(self) -> bool:
        """Whether the stone works on one weight of any shape: not on the input of a layer, a model, or images."""
        return self.role not in ("layer", "transform", "augmentation")

    def _formulas(self) -> list[str]:
        pairs = (self.flops, self.executed, self.traffic)
        texts = [
            self.params,
            self.saved,
            self.workspace or "0",
            self.stated,
            self.exact_gradient,
            self.remembers,
            self.derivable,
            self.eval_differs,
            *self.derived.values(),
            *((self.peer.given, *self.peer.arguments.values()) if self.peer else ()),
            *(t for p in pairs for t in (p.forward, p.backward) if t),
        ]
        texts += [rule.test for rule in self.rules]
        tensors = (*self.statistics, *self.buffers, *self.state)
        texts += self.output
        return texts + [t for stat in tensors for t in (*(stat.shape if stat.shape != SAME else ()), stat.given)]

    def option(self, name: str) -> Option:
        """Return the option called ``name``; raises OptionError with a near miss when there is none."""
        for option in self.options:
            if option.name == name:
                return option
        import difflib

        near = difflib.get_close_matches(name, [option.name for option in self.options], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"{self.title} has no option {name!r}{hint}", name)

    def check(self, known: Mapping[str, Any], options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Return all options, defaults filled in, or raise OptionError; rules over sizes not given are not judged."""
        for name in options:
            self.option(name)
        for name, size in known.items():
            if name == "C" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
                raise OptionError(f"channels={size!r} is not an integer ≥ 1", "channels")
        full = {option.name: option.check(options.get(option.name, option.default)) for option in self.options}
        values = {**known, **full}
        for name, text in self.derived.items():
            if formula.symbols(text) <= values.keys():
                values[name] = formula.evaluate(text, values)
        for rule in self.rules:
            if refusal := rule.refusal(values):
                raise OptionError(refusal, rule.option)
        return full

    def sizes(
        self, shape: Sequence[int], *, train: bool = True, itemsize: int = 4, nhwc: bool = False
    ) -> dict[str, Any]:
        """Return the sizes that an input (a weight where the stone works on weights) gives to formulas."""
        return (weight_sizes if self.works_on_weights else sizes)(shape, train=train, itemsize=itemsize, nhwc=nhwc)

    def output_shape(self, shape: Sequence[int], options: Mapping[str, OptionValue]) -> tuple[int, ...]:
        """Return the shape of a layer's output for an input of ``shape`` and all ``options``."""
        values = self.symbols(shape, options)
        return tuple(int(formula.evaluate(size, values)) for size in self.output) or tuple(shape)

    def symbols(self, shape: Sequence[int], options: Mapping[str, OptionValue], **circumstances: Any) -> dict[str, Any]:
        """Return every symbol of this card's formulas for an input (or weight) of ``shape`` and all ``options``.

        ``circumstances`` are those of `sizes`: train, itemsize, nhwc.
        """
        values = self.sizes(shape, **circumstances) | dict(options)
        for name, text in self.derived.items():
            values[name] = formula.evaluate(text, values)
        return values


__all__ = [
    "CARRIERS", "ROLES", "SAME", "SIZES", "Card", "Claim", "Flops", "Identity", "Option", "OptionError", "OptionValue",
    "Paper", "Peer", "Race", "Rule", "Stat", "divisors", "sizes", "weight_sizes",
]  # fmt: skip
