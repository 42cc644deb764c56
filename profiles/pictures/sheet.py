"""A contact sheet: one picture after every operation of an augmentation, or after draws of each of its sub-policies.

The pictures come from the running operations (`layers.augmentation.apply`), the draws from the running augmentation.
The record names every picture by its digest; the pixels are kept beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from layers.catalog import Stone
from layers.policies import OPERATIONS, POLICIES, WITHOUT_AMOUNT, Applied, Step, is_signed, value
from profiles.augmentations import words
from profiles.errors import Refusal
from profiles.pictures.photo import Photo, built_in
from profiles.subject import Subject

if TYPE_CHECKING:
    from layers.augmentation import Plan
    from profiles.pictures.photo import Pixels

Record = dict[str, Any]
Pictures = dict[str, "Pixels"]  # by the SHA-256 of their bytes, row by row, red, green, blue
INDICES = (0, 3, 6, 9)
DRAWS = 6


class Wanted(NamedTuple):
    """A row of the sheet: its name, and the plan and heading of each cell."""

    name: str
    plans: Sequence[Plan]
    headings: Sequence[str]


def photo_of(what: Subject) -> Photo:
    """Return the built-in picture in the size of the input of ``what``."""
    return built_in(*what.setup.shape[2:])


def sheet(what: Subject, photo: Photo | None = None, *, policy: bool = False) -> tuple[Record, Pictures]:
    """Return the panel of ``what``, an augmentation, on ``photo``, None: the built-in picture, and all its pictures.

    A row begins with the picture itself. Rows are the operations, each at some indices of its magnitude under the
    option ``reading``; with ``policy`` the sub-policies of the option ``policy``, each drawn `DRAWS` times under the
    seed. Raises `Refusal` for what is no augmentation.
    """
    if not isinstance(what.target, Stone) or not what.on_images:
        raise Refusal(f"{what.name} is no augmentation: there is no sheet of it")
    photo = photo_of(what) if photo is None else photo
    pictures: Pictures = {}
    rows = [
        {"name": row.name, "cells": _cells(what, photo, row, pictures)}
        for row in (_drawn(what, photo) if policy else _operations(what, photo))
    ]
    panel = {
        "kind": "sheet",
        "target": f"sub-policies of {what.options['policy']}" if policy else "operations",
        "shape": [len(rows), max(len(row["cells"]) for row in rows)],
        "image": photo.record(),
        "rows": rows,
    }
    return panel, pictures


def _operations(what: Subject, photo: Photo) -> Iterator[Wanted]:
    """Every operation at `INDICES`, then at their negatives where a coin decides the direction."""
    (width, height), reading = photo.size, str(what.options["reading"])
    for name in OPERATIONS:
        if name in WITHOUT_AMOUNT:
            yield Wanted(name, [(Applied(name, 0.0),)], [""])
            continue
        signs = (1, -1) if is_signed(name, reading) else (1,)
        at = [(index, sign) for sign in signs for index in INDICES if index or sign > 0]
        amounts = [value(Step(name, 1.0, index), reading, height, width, sign) for index, sign in at]
        headings = [f"index {'−' if sign < 0 else ''}{index}" for index, sign in at]
        yield Wanted(name, [(Applied(name, amount),) for amount in amounts], headings)


def _drawn(what: Subject, photo: Photo) -> Iterator[Wanted]:
    """Draws of every sub-policy by the augmentation itself."""
    import torch

    make, generator = cast("Stone", what.target).load(), torch.Generator().manual_seed(what.setup.seed)
    width, height = photo.size
    for number, steps in enumerate(POLICIES[str(what.options["policy"])]):
        augment = make(**what.options, sub_policies=[steps], generator=generator)
        name = ", ".join(f"{step.operation} {100 * step.probability:.0f} %" for step in steps)
        yield Wanted(f"{number}  {name}", augment.draw(DRAWS, height, width), [""] * DRAWS)


def _cells(what: Subject, photo: Photo, row: Wanted, pictures: Pictures) -> list[Record]:
    """The picture itself, then what becomes of it by the plans of ``row``, which goes to ``pictures``."""
    import torch

    from layers.augmentation import apply

    plans = [(), *row.plans]
    fill: tuple[int, ...] = what.options["fill"]  # type: ignore[assignment]
    image = torch.tensor(photo.pixels).permute(2, 0, 1).contiguous()
    found = apply(image.expand(len(plans), -1, -1, -1), plans, fill).permute(0, 2, 3, 1).contiguous().numpy()
    cells = []
    for plan, heading, pixels in zip(plans, ["original", *row.headings], found, strict=True):
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        pictures.setdefault(digest, pixels)
        steps = [step._asdict() for step in plan]
        label = [words(step.operation, (step.value,)) for step in plan] or ([] if heading else ["nothing"])
        cells.append({"label": [*label, *([heading] if heading else [])], "steps": steps, "sha256": digest})
    return cells


__all__ = ["DRAWS", "INDICES", "Pictures", "photo_of", "sheet"]
