"""Networks raced on scikit-learn's bundled digits: 1797 images of 8×8, a small network with batch normalization.

The data come with scikit-learn, the optional extra ``race``; nothing is fetched. The last 360 images, in the order of
the data set, are the test: other writers than those of the first 1437. Pixels are divided by 16.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from profiles.errors import Refusal, Unavailable, first_line
from profiles.races.entrants import Entrant, Part, entrant
from profiles.races.problems import DIGITS
from profiles.races.race import SCHEMA, Progress, until_interrupted

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAINED = 1437
SETTINGS = {"lr": 0.05, "momentum": 0.9}
TRAINER = "torch.optim:SGD"
MEASURES = ("accuracy", "loss")
Record = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """How long, in which batches, how often, from which seed everybody is trained; a smaller last batch is left out."""

    epochs: int = 5
    batch: int = 32
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 1, 1000), ("batch", 1, TRAINED), ("repeats", 1, 100), ("seed", 0, 2**31)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise Refusal(f"{name}={value!r} is out of range: it must be ≥ {low} and ≤ {high}")


def network() -> nn.Module:
    """Return the network: two 3×3 convolutions of 16 and 32 channels, normalized, and two linear layers."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def race(entrants: Sequence[Entrant], training: Training, progress: Progress | None = None) -> Record:
    """Return the record of a race on digits: per entrant and epoch the mean over the repeats, at the end its range.

    ``accuracy`` is the share of the test that is right, after the epoch, ``loss`` the mean cross entropy of the epoch's
    batches as they were trained on. Raises `Unavailable` without scikit-learn, `Refusal` for an entrant that the
    network does not admit, before anything is trained. KeyboardInterrupt ends it early: entrants that are through with
    all their repeats are returned, ``interrupted`` true.
    """
    import torch

    data = _data()
    for each in entrants:
        _try(each, data, training)
    total = len(entrants) * training.repeats * training.epochs

    def runs() -> Iterator[Record]:
        for i, each in enumerate(entrants):
            repeats = []
            for repeat in range(training.repeats):
                done = (i * training.repeats + repeat) * training.epochs

                def note(epoch: int, done: int = done, label: str = each.label) -> None:
                    if progress is not None:
                        progress((done + epoch) / total, label)

                with torch.random.fork_rng(devices=[]):
                    repeats.append(_train(each, data, training, training.seed + repeat, note))
            yield {"entrant": each.label, **_summary(repeats)}

    finished, interrupted = until_interrupted(runs())
    says = f"digits of scikit-learn, {TRAINED} to train on, a network of 2 convolutions and 2 linear layers"
    settings = {**asdict(training), **SETTINGS}
    about = {"name": DIGITS, "says": says, "measures": list(MEASURES), "settings": settings}
    return {"schema": SCHEMA, "problem": about, "entrants": finished, "interrupted": interrupted}


def _data() -> tuple[Tensor, Tensor]:
    import torch

    try:
        from sklearn.datasets import load_digits
    except Exception as error:
        raise Unavailable(
            f"digits need scikit-learn, which cannot be imported ({first_line(error)}): pip install 'dl-stones[race]'"
        ) from error
    found = load_digits()
    images = torch.from_numpy(found.data).float().view(-1, 1, 8, 8) / 16
    return images, torch.from_numpy(found.target).long()


def _trained(each: Entrant, seed: int) -> tuple[nn.Module, Any]:
    """Return the network of ``each`` as it starts, and its optimizer, under ``seed``."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        for part in each.changes:
            model = _changed(model, part)
    trainer = each.trainer or entrant(TRAINER).parts[0]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, trainer.optimizer(parameters, SETTINGS)


def _try(each: Entrant, data: tuple[Tensor, Tensor], training: Training) -> None:
    """Make one step and evaluate once: what the network does not admit is refused before anybody is trained."""
    import torch

    model, optimizer = _trained(each, training.seed)
    images, digits = data
    with torch.random.fork_rng(devices=[]):
        try:
            _step(model.train(), optimizer, images[: training.batch], digits[: training.batch])
            _accuracy(model, images, digits)
        except (ValueError, TypeError, RuntimeError) as error:
            raise Refusal(f"{each.label}, --batch {training.batch}: {first_line(error)}") from error


def _changed(model: nn.Module, part: Part) -> nn.Module:
    from layers.convert import convert

    target = part.target
    try:
        if target.card.role == "transform":  # type: ignore[union-attr]
            changed: nn.Module = target.load()(model, **part.options)  # type: ignore[union-attr]
            return changed
        options: dict[str, Any] = dict(part.options)
        return convert(model, target.name, **options)
    except (ValueError, TypeError) as error:
        raise Refusal(f"{target.name}: {first_line(error)}") from error


def _train(
    each: Entrant, data: tuple[Tensor, Tensor], training: Training, seed: int, note: Callable[[int], None]
) -> list[Record]:
    """Train once from ``seed`` and return one point per epoch; shorter where the loss leaves the numbers."""
    import torch

    model, optimizer = _trained(each, seed)
    images, digits = data
    torch.manual_seed(seed)
    points = []
    for epoch in range(1, training.epochs + 1):
        model.train()
        losses = []
        order = torch.randperm(TRAINED)
        for start in range(0, TRAINED - training.batch + 1, training.batch):
            batch = order[start : start + training.batch]
            losses.append(_step(model, optimizer, images[batch], digits[batch]))
        if not math.isfinite(losses[-1]):
            break
        points.append({"step": epoch, "accuracy": _accuracy(model, images, digits), "loss": statistics.fmean(losses)})
        note(epoch)
    return points


def _step(model: nn.Module, optimizer: Any, images: Tensor, digits: Tensor) -> float:
    """Make one step and return the loss before it; a closure, for LBFGS evaluates it again and again."""
    from torch.nn.functional import cross_entropy

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), digits)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss: float = optimizer.step(closure).item()
    return loss


def _accuracy(model: nn.Module, images: Tensor, digits: Tensor) -> float:
    import torch

    with torch.no_grad():
        found = model.eval()(images[TRAINED:]).argmax(1)
    right: Tensor = found == digits[TRAINED:]
    return right.double().mean().item()


def _summary(repeats: Sequence[list[Record]]) -> Record:
    """The means over ``repeats`` by epoch, as far as all came, their range at the end, where the first diverged."""
    epochs = min(map(len, repeats))
    points = [
        {"step": epoch + 1, **{m: statistics.fmean(run[epoch][m] for run in repeats) for m in MEASURES}}
        for epoch in range(epochs)
    ]
    longest = max(map(len, repeats))
    diverged = epochs + 1 if epochs < longest or not epochs else None
    end = None
    if points and diverged is None:
        last = [run[-1]["accuracy"] for run in repeats]
        end = {**points[-1], "accuracy_min": min(last), "accuracy_max": max(last)}
    return {"options": {}, "points": points, "end": end, "diverged": diverged}
