"""The equations on the cards, such as GN(C) = IN, evaluated: both sides in float64, outputs and input gradients.

With ``equals`` the two layers have the same sizes, parameters (γ and β away from 1 and 0) and stored statistics, and
both pass back the same upstream gradient. Layers whose published backward is not the derivative are compared like the
others: an identity says that two techniques train alike. With ``proof`` a function of the stone's file makes the two
sides: of a layer and an input, of a small ResNet where the stone transforms models, of the stone with its options and a
weight where it works on weights (an optimizer's gets what makes one from parameters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from layers import catalog, formula
from layers.card import Identity, OptionValue
from layers.catalog import Stone
from profiles.checks.difference import Difference, difference
from profiles.errors import Refusal
from profiles.prepared import perturb, seasoned
from profiles.subject import Setup, Subject, subject
from profiles.target import Target
from profiles.threads import using_threads

if TYPE_CHECKING:
    from torch import Tensor, nn

DIMS = {"N": 6, "C": 12, "H": 5, "W": 4}
WEIGHT = {"O": 6, "C": 4, "H": 3, "W": 2}  # of what works on weights
IMAGES = {"N": 6, "C": 3, "H": 16, "W": 16}  # for a small ResNet, where the stone transforms models, or augmented
HISTORY = 3  # batches that stored statistics have seen
SEED = 0  # of the data; γ and β and the upstream gradient have its neighbours: one along x would vanish behind a norm


@dataclass(frozen=True)
class Row:
    """One identity. ``deviation`` is the larger of those of output and input gradient, None if there is none.

    ``differs`` says which of them it is and ``at`` the element with the two values (None when the sides are equal);
    ``verdict`` is ok or failed, and ``reason`` says what went wrong where nothing could be compared.
    """

    stone: str
    says: str
    mode: str
    deviation: float | None
    within: float
    verdict: str
    differs: str = ""
    at: Difference | None = None
    reason: str = ""


def check(stones: Iterable[Stone] | None = None, *, progress: Callable[[Row], None] | None = None) -> list[Row]:
    """Evaluate every identity on the cards of ``stones`` (all); ``progress`` gets each row as it is made."""
    rows = []
    chosen = catalog.stones().values() if stones is None else stones
    with using_threads(1):
        for row in (_row(stone, identity) for stone in chosen for identity in stone.card.identities):
            rows.append(row)
            if progress is not None:
                progress(row)
    return rows


def stating() -> list[Stone]:
    """Return the stones whose cards state identities."""
    return [stone for stone in catalog.stones().values() if stone.card.identities]


def stated(target: Target) -> Stone:
    """Return ``target``, a stone whose card states identities; raises `Refusal` for what states none."""
    if not isinstance(target, Stone) or not target.card.identities:
        raise Refusal(f"{target.name} states no identities")
    return target


def failures(rows: Iterable[Row]) -> list[str]:
    """Return one sentence for each identity that does not hold."""
    return [f"{r.stone}: {r.says}: {r.reason or r.differs}" for r in rows if r.verdict == "failed"]


def _row(stone: Stone, identity: Identity) -> Row:
    row = Row(stone.name, identity.says, identity.mode, None, identity.within, "failed")
    try:
        found = _differences(stone, identity)
    except Exception as error:  # whatever a side raises, the identity does not hold
        message = str(error).strip().partition("\n")[0]
        return replace(row, reason=f"{type(error).__name__}: {message}")
    differs, at = max(found.items(), key=lambda item: _rank(item[1]))
    if at.deviation is None:
        return replace(row, differs=differs, at=at, reason=f"the {differs} is not finite")
    verdict = "ok" if at.deviation <= identity.within else "failed"
    if at.deviation == 0.0:
        return replace(row, deviation=0.0, verdict=verdict)
    return replace(row, deviation=at.deviation, verdict=verdict, differs=differs, at=at)


def _rank(found: Difference) -> float:
    return float("inf") if found.deviation is None else found.deviation


def _differences(stone: Stone, identity: Identity) -> dict[str, Difference]:
    """Return the deviations by what they are of."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if stone.card.role == "transform":
            return {"proof": _prove(stone, identity, *_model(identity))}
        if stone.card.role == "augmentation":
            return {"proof": _prove(stone, identity, *_pictures(stone, identity))}
        if stone.card.works_on_weights:
            return {"proof": _prove(stone, identity, *_bound(stone, identity))}
        setup = _setup(identity, dict(list(DIMS.items())[: max(stone.card.ranks)]))
        left, (x, *past) = _subject(stone, identity.options, setup), _batches(setup)
        first = left.build()
        perturb(first, SEED + 1)
        seasoned_first = seasoned(first, past, left.run, train=setup.train)
        if identity.proof:
            return {"proof": _prove(stone, identity, seasoned_first, x)}
        right = _subject(catalog.stone(identity.equals), identity.other, setup)
        second = right.build()
        _copy(dict(first.named_parameters()), dict(second.named_parameters()))
        second = seasoned(second, past, right.run, train=setup.train)
        _copy(dict(seasoned_first.named_buffers()), dict(second.named_buffers()))
        return _compare((left, seasoned_first), (right, second), x)


def _prove(stone: Stone, identity: Identity, layer: Callable[..., Any], x: Tensor) -> Difference:
    """Compare the two sides that a function of the stone's file returns."""
    proof: Callable[[Callable[..., Any], Tensor], tuple[Tensor, Tensor]]
    proof = getattr(stone.imported(), identity.proof)
    return difference(*proof(layer, x.requires_grad_()))


def _bound(stone: Stone, identity: Identity) -> tuple[Callable[..., Any], Tensor]:
    """Return the stone with its options bound, to be called on a weight or parameters, and the weight."""
    setup = _setup(identity, WEIGHT)
    made = _subject(stone, identity.options, setup)
    return partial(stone.load(), **made.options), _batches(setup)[0]


def _pictures(stone: Stone, identity: Identity) -> tuple[Callable[..., Any], Tensor]:
    """Return the stone with its options bound, and the images that the proof of an augmentation gets: k/255."""
    import torch

    setup = _setup(identity, IMAGES)
    generator = torch.Generator().manual_seed(SEED)
    levels = torch.randint(0, 256, setup.shape, generator=generator, dtype=torch.uint8)
    return partial(stone.load(), **_subject(stone, identity.options, replace(setup, dtype="uint8")).options), (
        levels.double() / 255
    )


def _model(identity: Identity) -> tuple[nn.Module, Tensor]:
    """Return the model, not yet transformed, and the images that the proof of a transform gets."""
    from layers.resnet import cifar_resnet

    setup = _setup(identity, IMAGES)
    x, *past = _batches(setup)
    model = cifar_resnet(8, width=4).double()
    perturb(model, SEED + 1)
    return seasoned(model, past, lambda module, batch: module(batch), train=setup.train), x


def _compare(left: tuple[Subject, nn.Module], right: tuple[Subject, nn.Module], x: Tensor) -> dict[str, Difference]:
    """Run both layers forward and backward on ``x`` with one upstream gradient."""
    import torch

    sides = []
    for made, layer in (left, right):
        torch.manual_seed(SEED)
        leaf = x.clone().requires_grad_()
        y = made.run(layer, leaf)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(SEED + 2), dtype=y.dtype)
        sides.append((y, *torch.autograd.grad(y, leaf, upstream)))
    (y1, grad1), (y2, grad2) = sides
    return {"output": difference(y1, y2), "input gradient": difference(grad1, grad2)}


def _setup(identity: Identity, standard: Mapping[str, int]) -> Setup:
    dims = {**standard, **identity.dims}
    return Setup(tuple(dims[name] for name in standard), dtype="float64", train=identity.mode == "train")


def _subject(stone: Stone, options: Mapping[str, OptionValue], setup: Setup) -> Subject:
    """Check ``options`` after evaluating the formulas among them."""
    known = stone.card.sizes(setup.shape, **setup.circumstances)
    values = {
        name: formula.evaluate(value, known)
        if isinstance(value, str) and stone.card.option(name).type in (int, float)
        else value
        for name, value in options.items()
    }
    return subject(stone, values, setup)


def _batches(setup: Setup) -> list[Tensor]:
    """The compared batch and those of the past, of other mean and variance than 0 and 1."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    drawn = (torch.randn(setup.shape, generator=generator, dtype=torch.float64) for _ in range(1 + HISTORY))
    return [1.5 * x + 0.5 for x in drawn]


def _copy(source: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy the tensors that both layers have under one name; raises ValueError when their shapes differ."""
    import torch

    with torch.no_grad():
        for name in source.keys() & into.keys():
            if source[name].shape != into[name].shape:
                shapes = f"{tuple(source[name].shape)} and {tuple(into[name].shape)}"
                raise ValueError(f"{name} has the shapes {shapes} in the two layers")
            into[name].copy_(source[name])
