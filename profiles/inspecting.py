"""What is known about anything in the catalogue, or a class: the record of the inspection that its role has."""

from __future__ import annotations

from typing import Any

from profiles.spelling import value_text
from profiles.subject import Setup, Subject, default_shape
from profiles.target import Target, card_of

WEIGHT = (64, 64, 3, 3)
Record = dict[str, Any]


def usual_shape(target: Target) -> tuple[int, ...]:
    """Return the shape of the input, or weight, that ``target`` is inspected on where none is given."""
    from profiles.transforms import BATCH

    card = card_of(target)
    transforms = card is not None and card.role == "transform"
    return default_shape(target, BATCH if transforms else Setup().shape, WEIGHT)


def inspect(
    what: Subject,
    model: Target | None = None,
    *,
    measure: bool = True,
    fvcore: bool = True,
    peers: bool = False,
    backward_share: float | None = None,
) -> Record:
    """Return the record of ``what``; a transform is applied to ``model``, or to the paper's, whatever ``measure`` says.

    Its schema says which it is: stones.inspect/1 (`facts`), stones.transform/1 (`transforms`) or stones.augmentation/1
    (`augmentations`); it raises as that does.
    """
    from profiles import facts

    if peers:
        facts.check_peers(what, measure=measure)
    if what.role == "transform":
        from profiles import transforms

        return transforms.inspect(what, model)
    if what.on_images:
        from profiles import augmentations

        return augmentations.inspect(what, measure=measure)
    return facts.inspect(what, measure=measure, fvcore=fvcore, peers=peers, backward_share=backward_share)


def contradictions(record: Record) -> list[str]:
    """Return one sentence for each number of the card that the measurement contradicts."""
    return [
        f"{check['what']}: the card says {value_text(check['card'])}, measured {value_text(check['measured'])}"
        for check in record.get("checks", ())
        if not check["ok"]
    ]
