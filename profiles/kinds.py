"""Every technique of a kind, each beside its peer: what `bench` times when a kind is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from layers import catalog
from layers.card import OptionValue
from layers.catalog import KINDS, Stone
from profiles.errors import Refusal
from profiles.skips import Skips
from profiles.speed.bench import Bench
from profiles.speed.cases import Case, Gate, check_timeable
from profiles.speed.variants import Variant, case_of


def stones_of(kind: str) -> list[Stone]:
    """Return the techniques of ``kind``; raises `Refusal` for a kind that is none."""
    if kind not in KINDS:
        raise Refusal(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    return [stone for stone in catalog.stones().values() if stone.kind == kind]


def timeable(kind: str) -> list[Stone]:
    """Return the techniques of ``kind`` that can be timed under some circumstances: all but transforms of models."""
    return [stone for stone in stones_of(kind) if stone.card.role != "transform"]


def bench_of(
    kind: str,
    options: Mapping[str, OptionValue],
    variants: Callable[[Stone], Sequence[Variant]],
    directions: Sequence[str] = ("forward",),
    *,
    vs: Sequence[str] | None = None,
    gates: Sequence[Gate] = (),
    compile: bool = False,
    graph: bool = False,
) -> Bench:
    """Return the bench of every technique of ``kind`` with ``options``, in all ``variants`` and ``directions``.

    What cannot be timed, or refuses the options or the input, is left out and stands under ``skipped``, in the record
    too. The rest is that of `cases.case`. Raises `Refusal` when nothing is left.
    """
    skips, cases, found = Skips(wanted=True), list[Case](), list[tuple[Stone, Variant]]()
    for stone in stones_of(kind):
        with skips.leaving_out(stone.name):
            check_timeable(stone)
            found += [(stone, variant) for variant in variants(stone)]
    for (stone, variant), direction in product(found, directions):
        with skips.leaving_out(stone.name):
            cases.append(case_of(stone, options, variant, direction, vs=vs, gates=gates, compile=compile, graph=graph))
    skips.check(cases)
    if not cases:
        raise Refusal(f"there is no technique of the kind {kind} yet")
    return Bench(tuple(cases), skips=True, skipped=tuple(skips.found))
