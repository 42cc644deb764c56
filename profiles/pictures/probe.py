"""`stones draw`: what the picture of a stone shows, measured on the running layer: one record, schema stones.draw/1.

``panels`` are what is drawn, each with its ``kind``: sharing (which elements each statistic is made of), origin (where
the number in each cell comes from), reach (how far convolutions see), sheet (what operations make of a picture) or path
(what statistics, state and output are computed from, in which order).
`picture.render` makes the picture of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from layers import catalog, formula
from layers.card import OptionError, OptionValue
from layers.catalog import Stone
from layers.dilation import rates_of
from profiles.errors import Refusal
from profiles.pictures.photo import BUILT_IN, LONGEST_SIDE
from profiles.pictures.probe_words import caption
from profiles.subject import Setup, Subject, subject
from profiles.target import Target, card_of

if TYPE_CHECKING:
    from profiles.pictures.photo import Photo
    from profiles.pictures.probe_sharing import Sharing
    from profiles.pictures.sheet import Pictures

SCHEMA = "stones.draw/1"
Record = dict[str, Any]
Step = Callable[[float], None]

MOST_ELEMENTS = 1024  # of what is changed one by one
MOST_CELLS = 2048  # of what is drawn
MOST_FOLLOWED = 2**24  # elements of an input that runs a few times
MOST_STEPS = 24  # of a path
# Inputs that nobody gave, the first one that the options admit.
_INPUTS = {
    "norm": ((2, 4, 4, 4), (4, 4, 4, 4), (8, 4, 2, 2)),
    "weight": ((1, 4, 3, 3), (1, 8, 3, 3)),
    "conv": ((1, 2, 4, 4), (1, 4, 4, 4), (1, 2, 6, 6)),
    "pool": ((1, 2, 4, 5), (1, 4, 7, 7)),
    "levels": ((1, 1, 13, 13),),
    "rearrangement": ((1, 2, 4, 4), (1, 2, 6, 6), (4, 2, 2, 2)),
    "sheet": ((1, 3, *BUILT_IN),),
    "path": ((3, 4, 2, 2), (4, 4, 2, 2), (8, 4, 2, 2)),  # sizes that tell N from C, where they may
}
PATH = "path"


def picture_of(target: Target) -> str:
    """Return what is drawn of ``target``, empty for nothing; without torch.

    One of sharing, windows, matrix, taps, rearrangement, reach, levels, sheet. Of a class it is what torch's
    normalization kernels compute in it, if there are any.
    """
    card = card_of(target)
    if card is None:
        return "sharing"
    if card.role == "augmentation":
        return "sheet"
    if card.role != "layer":
        return ""
    if card.draws:
        return card.draws
    names = {stat.name for stat in card.statistics}
    if isinstance(target, Stone) and target.kind == "backward":
        return ""  # thresholds found by a search, and what the step before left: nothing that elements share
    if isinstance(target, Stone) and target.kind == "conv":
        return "matrix" if "matrix" in names else "taps" if names <= {"partial", "indirection"} else "windows"
    return "sharing" if names else ""


def has_path(target: Target) -> bool:
    """Tell whether the data path of ``target`` can be followed: that of a stone which names what it computes."""
    card = card_of(target)
    return card is not None and card.role == "layer" and bool(card.statistics) and picture_of(target) != ""


def drawable() -> list[str]:
    """Return the names of the stones that have a picture."""
    return [name for name, stone in catalog.stones().items() if picture_of(stone)]


def drawing(
    target: Target,
    options: Mapping[str, OptionValue] | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    train: bool | None = None,
    seed: int = 0,
    path: bool = False,
) -> Subject:
    """Return ``target`` ready to be probed, in float64, on an input of ``shape``, None: a small one; augmentations work
    on one image in uint8.

    ``train`` None is training, but evaluation for poolings, whose batch norms tie everything together in training.
    ``path``: for its data path.
    Raises `Refusal` for a stone without a picture and for what is too large to be read, OptionError for options; does
    not import torch.
    """
    if path and not has_path(target):
        names = ", ".join(name for name, stone in catalog.stones().items() if has_path(stone))
        raise Refusal(f"no data path can be followed of {target.name}: it names no statistics; {names} do")
    picture = picture_of(target)
    if not picture:
        raise Refusal(f"no picture is defined for {target.name}; there is one for {', '.join(drawable())}")
    kind = target.kind if isinstance(target, Stone) else "norm"
    dtype = "uint8" if picture == "sheet" else "float64"
    setup = Setup((), dtype, train=kind != "pool" if train is None else train, seed=seed)
    if shape is not None:
        made = subject(target, options or {}, replace(setup, shape=shape))
    elif path:
        made = _smallest(target, options or {}, setup, PATH if kind == "norm" else kind)
    else:
        made = _smallest(target, options or {}, setup, kind if picture not in ("reach", *_INPUTS) else picture)
    _refuse_large(made, PATH if path else picture)
    return made


def _smallest(target: Target, options: Mapping[str, OptionValue], setup: Setup, group: str) -> Subject:
    """Return ``target`` on the first usual input that admits ``options``; raises OptionError as the first one does."""
    shapes = _INPUTS.get(group, _INPUTS["norm"])
    if group == "reach":  # all that a stack of dilated convolutions sees
        full = target.card.check({}, options) if isinstance(target, Stone) else {}
        side = 1 + (int(full["kernel_size"]) - 1) * sum(rates_of(str(full["rates"])))  # type: ignore[arg-type]
        shapes = ((1, 1, side, side),)
    refused: list[OptionError] = []
    for shape in shapes:
        try:
            return subject(target, options, replace(setup, shape=shape))
        except OptionError as error:
            refused.append(error)
    usual, first = "x".join(map(str, shapes[0])), refused[0]
    raise OptionError(f"{first}; drawn is {usual} unless --input says another", first.option)


def _refuse_large(what: Subject, picture: str) -> None:
    """Raise `Refusal` for more than can be read, or tried one by one, before anything is allocated."""
    shape = "x".join(map(str, what.setup.shape))
    if not what.setup.elements:
        raise Refusal(f"--input {shape}: nothing can be drawn of an input without elements")
    if picture == "sheet":
        count, *_, height, width = what.setup.shape
        if count != 1 or max(height, width) > LONGEST_SIDE:
            raise Refusal(f"--input {shape}: a sheet shows 1 image, its sides at most {LONGEST_SIDE} pixels")
        return
    most = MOST_CELLS if picture in ("reach", "rearrangement") else MOST_FOLLOWED if picture == PATH else MOST_ELEMENTS
    counts = {f"--input {shape}": (what.setup.elements, most)}
    card, symbols = what.card, what.symbols
    if card is not None:
        counts["its parameters"] = (int(formula.evaluate(card.params, symbols)), 2**20)
        if picture == "rearrangement":
            cells = math.prod(card.output_shape(what.setup.shape, what.options))
            counts["its output"] = (cells, MOST_CELLS)
        for stat in card.statistics if picture != PATH else ():
            sizes = stat.at(symbols)
            counts[f"its {stat.name}"] = (0 if sizes is None else math.prod(sizes), MOST_CELLS)
    for where, (count, limit) in counts.items():
        if count > limit:
            raise Refusal(
                f"{where}: {count:,} elements, for {what.name} on {shape}, are more than can be read in a picture "
                f"({limit:,}); give {_remedy(what)}"
            )


def _remedy(what: Subject) -> str:
    """Return what makes a picture smaller: an input of as many sizes, or options where that is small already."""
    small = tuple(min(size, most) for size, most in zip(what.setup.shape, (2, 4, 4, 4, 2), strict=False))
    return (
        "smaller options" if small == what.setup.shape else f"smaller sizes, as in --input {'x'.join(map(str, small))}"
    )


def probe(what: Subject, step: Step = lambda done: None) -> Record:
    """Run ``what``, made by `drawing`, and return the record of its picture; calls ``step`` with the share done.

    Raises `Refusal` where it computes nothing that could be drawn. Of an augmentation `sheet` returns the pixels too.
    """
    from profiles.pictures import probe_origin as origins
    from profiles.pictures import probe_sharing as sharing

    picture = picture_of(what.target)
    panels: list[Any]
    if picture == "sheet":
        return sheet(what)[0]
    if picture == "reach":
        panels = [*origins.reach(what)]
    elif picture == "rearrangement":
        panels = [origins.rearrangement(what)]
    elif picture == "taps":
        panels = [*origins.taps(what)]
    elif picture == "matrix":
        panels = [origins.matrix(what, step)]
    else:
        pools = isinstance(what.target, Stone) and what.target.kind == "pool"
        look = sharing.levels if picture == "levels" else sharing.pooled if pools else sharing.statistics
        panels = [*_all(what, sharing.sharings(what, look, step))]
    return _recorded(what, [panel.record() for panel in panels])


def data_path(what: Subject) -> Record:
    """Return the record of the data path of ``what``, made by `drawing` for it: `probe` of another picture.

    Raises `Refusal` for one of more steps than can be read.
    """
    from profiles.pictures.probe_path import path

    panel = path(what)
    if len(panel["steps"]) > MOST_STEPS:
        mode = "; in evaluation there are fewer: --eval" if what.setup.train else ""
        raise Refusal(
            f"the data path of {what.name} has {len(panel['steps'])} steps, more than can be read in a picture "
            f"({MOST_STEPS}){mode}"
        )
    return _recorded(what, [panel], PATH)


def sheet(what: Subject, photo: Photo | None = None, *, policy: bool = False) -> tuple[Record, Pictures]:
    """Return the record of the contact sheet of ``what``, an augmentation made by `drawing`, and its pictures.

    ``photo`` is the picture that is shown, None: the built-in one. Rows are operations, with ``policy`` sub-policies.
    """
    from profiles.pictures import sheet as sheets

    panel, pictures = sheets.sheet(what, photo, policy=policy)
    return _recorded(what, [panel]), pictures


def _recorded(what: Subject, panels: list[Record], picture: str = "") -> Record:
    record = {
        "schema": SCHEMA,
        "stone": what.name,
        "title": _title(what),
        "picture": picture or picture_of(what.target),
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in what.options.items()},
        "input": list(what.setup.shape),
        "mode": "train" if what.setup.train else "eval",
        "seed": what.setup.seed,
        "panels": panels,
    }
    return {**record, "caption": caption(record)}


def _all(what: Subject, found: list[Sharing]) -> list[Sharing]:
    if not found and what.card is None:
        raise Refusal(f"{what.name} runs none of torch's normalizations: there is no picture of it")
    if not found:
        mode, other = ("training", "--eval") if what.setup.train else ("evaluation", "--train")
        raise Refusal(f"{what.name} computes no statistics of its input in {mode} under these options; try {other}")
    return found


def _title(what: Subject) -> str:
    """Return the title of the card with the options that are not at their defaults."""
    if what.card is None:
        return what.name
    changed = [
        f"{option.name}={_spelt(what.options[option.name])}"
        for option in what.card.options
        if what.options[option.name] != option.check(option.default)
    ]
    return what.card.title + (f" ({', '.join(changed)})" if changed else "")


def _spelt(value: OptionValue) -> str:
    """Return a value as the command line spells it: one number where all axes have the same."""
    sizes = value if isinstance(value, tuple) else (value,)
    return "x".join(str(size).lower() for size in (sizes[:1] if len(set(sizes)) == 1 else sizes))
