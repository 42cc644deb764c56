"""What is known about anything in the catalogue, or a class: the record of the inspection that its role has."""

from __future__ import annotations

from typing import Any

from profiles.errors import Refusal, with_article
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
    modules: bool = False,
    depth: int | None = None,
) -> Record:
    """Return the record of ``what``; a transform is applied to ``model``, or to the paper's, whatever ``measure`` says.

    Its schema says which it is: stones.inspect/1 (`facts`), stones.transform/1 (`transforms`) or stones.augmentation/1
    (`augmentations`); it raises as that does. With ``modules`` a layer or model is shown by module too, to
    the ``depth`` given.
    """
    from profiles.counting import facts

    check_modules(what, measure, modules, depth)
    if peers:
        facts.check_peers(what, measure=measure)
    if what.role == "transform":
        from profiles import transforms

        return transforms.inspect(what, model)
    if what.on_images:
        from profiles import augmentations

        return augmentations.inspect(what, measure=measure)
    options: dict[str, Any] = {"backward_share": backward_share, "modules": modules, "depth": depth}
    return facts.inspect(what, measure=measure, fvcore=fvcore, peers=peers, **options)


def check_modules(what: Subject, measure: bool, modules: bool, depth: int | None) -> None:
    """Raise `Refusal` where there is no table by module to ask for, or none of that depth."""
    if depth is not None and not modules:
        raise Refusal(f"--module-depth {depth} is of the table by module; give --modules too")
    if depth is not None and depth < 0:
        raise Refusal(f"--module-depth {depth} is not an integer ≥ 0")
    if modules and what.role != "layer":
        raise Refusal(f"--modules is for layers and models; {what.name} is {with_article(what.role)}")
    if modules and not measure:
        raise Refusal("--modules has no meaning beside --no-measure: what a module costs is measured")


def incomplete(record: Record) -> list[str]:
    """Return one sentence for each pass with operations that could not be counted, with their names."""
    return [
        f"flops.{name} is incomplete: not counted {', '.join(row['uncounted'])}"
        for name in ("forward", "backward")
        if (row := (record.get("flops") or {}).get(name)) and row["uncounted"]
    ]


def contradictions(record: Record) -> list[str]:
    """Return one sentence for each number of the card that the measurement contradicts."""
    return [
        f"{check['what']}: the card says {value_text(check['card'])}, measured {value_text(check['measured'])}"
        for check in record.get("checks", ())
        if not check["ok"]
    ]
