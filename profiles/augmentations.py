"""What an augmentation does to a batch of images: its policy with the values that it comes to, what was drawn, and
whether Pillow makes the same of it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from layers.catalog import Stone
from layers.policies import POLICIES, Policy, Step, is_signed, value
from profiles.errors import Refusal
from profiles.subject import Subject, check_environment

if TYPE_CHECKING:
    from torch import Tensor

    from layers.augment.autoaugment import AutoAugment
    from layers.augmentation import Plan

    Fill = tuple[int, ...]

SCHEMA = "stones.augmentation/1"
NO_FLOPS = "most of the arithmetic is on integers, and how much there is depends on what is drawn"
MOST_BESIDE_PILLOW = 64  # images: more would not find more
Record = dict[str, Any]


def inspect(subject: Subject, *, measure: bool = True) -> Record:
    """Return a record of the policy and, with ``measure``, of one batch of uniform noise that was augmented.

    Raises `Refusal` for what is no augmentation, `Unavailable` for a batch that does not fit the memory. Leaves torch's
    generator as it was.
    """
    if not isinstance(subject.target, Stone) or not subject.on_images:
        raise Refusal(f"{subject.name} is no augmentation")
    card, setup = subject.target.card, subject.setup
    record: Record = {
        "schema": SCHEMA,
        "technique": {
            "name": subject.name,
            "title": card.title,
            "kind": subject.target.kind,
            "role": card.role,
            "options": dict(subject.options),
        },
        "input": {"shape": list(setup.shape), "dtype": setup.dtype, "device": setup.device, "bytes": setup.elements},
        "output": None,
        **_policy(subject),
        "flops": None,
        "flops_reason": NO_FLOPS,
        "drawn": None,
        "pillow": None,
        "checks": [],
        "measured": False,
    }
    if measure:
        check_environment(subject)
        _measure(record, subject)
    record["ok"] = all(check["ok"] for check in record["checks"])
    return record


def _policy(subject: Subject) -> Record:
    """The sub-policies with probabilities and values, and what an image is expected to get."""
    policy = POLICIES[str(subject.options["policy"])]
    shares = _shares(policy)
    of_all = sum(shares.values())
    return {
        "policy": [[_step(step, subject) for step in sub_policy] for sub_policy in policy],
        "different": len({tuple(map(_what, sub_policy)) for sub_policy in policy}),
        "expected": {
            "operations": round(of_all, 6),
            "shares": {name: round(share, 6) for name, share in shares.items()},
            "bytes": round(2 * of_all * subject.setup.elements),
        },
    }


def _what(step: Step) -> tuple[Any, ...]:
    """``step`` without a magnitude that it does not use."""
    return step.operation, step.probability, value(step, "torchvision", 331, 331)


def _shares(policy: Policy) -> dict[str, float]:
    """How often each operation is applied to an image, on the average; the most frequent first."""
    found: Counter[str] = Counter()
    for step in (step for sub_policy in policy for step in sub_policy):
        found[step.operation] += step.probability / len(policy)  # type: ignore[assignment]
    return dict(found.most_common())


def _step(step: Step, subject: Subject) -> Record:
    reading, (height, width) = str(subject.options["reading"]), subject.setup.shape[2:]
    signs = (1, -1) if is_signed(step.operation, reading) else (1,)
    values = dict.fromkeys(value(step, reading, height, width, sign) for sign in signs)
    return {**step._asdict(), "values": list(values)}


_UNITS = {"Rotate": "°", "TranslateX": " px", "TranslateY": " px", "Posterize": " bits"}


def words(operation: str, values: Sequence[float]) -> str:
    """Return an operation with its values, those of both directions where it has two: ``Rotate ±30°``,
    ``Color × 0.1 or 1.9``, ``Posterize 4 bits``.
    """
    told = [f"{value:.4g}".replace("-", "−") for value in values]
    match operation:
        case "AutoContrast" | "Invert" | "Equalize":
            return operation
        case "Contrast" | "Color" | "Brightness" | "Sharpness":
            return f"{operation} × {' or '.join(f'{value:.4g}' for value in sorted(values))}"
        case "Solarize":
            return f"{operation} from {told[0]}"
    return f"{operation} {'±' if len(values) > 1 else ''}{told[0]}{_UNITS.get(operation, '')}"


def _measure(record: Record, subject: Subject) -> None:
    """Augment one batch; run the same draws through Pillow where it is installed."""
    import torch

    from layers.augmentation import apply

    module, images = cast("AutoAugment", subject.build()), subject.input()
    before = images.clone()
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(subject.setup.seed)
        plans = copy.deepcopy(module).draw(len(images), *images.shape[2:])
        torch.manual_seed(subject.setup.seed)
        y = subject.run(module, images)
    record["output"] = {"shape": list(y.shape), "dtype": str(y.dtype).removeprefix("torch."), "bytes": y.nbytes}
    record["drawn"] = _drawn(plans)
    record["pillow"] = _beside_pillow(before, y, plans, module.fill)
    checks = [
        ("output.shape", list(images.shape), list(y.shape)),
        ("output.dtype", record["input"]["dtype"], record["output"]["dtype"]),
        ("images given are left as they are", True, torch.equal(images, before)),
        ("images are what was drawn", True, torch.equal(y, apply(before, plans, module.fill))),
    ]
    if record["pillow"]:
        checks.append(("images equal to Pillow's", record["pillow"]["images"], record["pillow"]["equal"]))
    record["checks"] = [{"what": what, "card": card, "measured": m, "ok": card == m} for what, card, m in checks]
    record["measured"] = True


def _drawn(plans: Sequence[Plan]) -> Record:
    counts = Counter(step.operation for plan in plans for step in plan)
    return {
        "operations": dict(counts.most_common()),
        "images_by_operations": dict(sorted(Counter(map(len, plans)).items())),
    }


def _beside_pillow(before: Tensor, after: Tensor, plans: Sequence[Plan], fill: Fill) -> Record | None:
    """How many of the first images are, bit for bit, what Pillow makes of them; None where it is not installed."""
    if not find_spec("PIL"):
        return None
    import PIL
    import torch

    from profiles.pillow import applied, picture, pixels

    triples = list(zip(before, after, plans, strict=True))[: MOST_BESIDE_PILLOW if after.numel() else 0]
    same = [torch.equal(pixels(applied(picture(x), plan, fill)), y.cpu()) for x, y, plan in triples]
    return {"version": PIL.__version__, "images": len(same), "equal": sum(same)}


__all__ = ["SCHEMA", "Record", "inspect", "words"]
