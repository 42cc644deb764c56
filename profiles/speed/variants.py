"""One technique under several circumstances: dtypes, memory formats, numbers of threads, and a sweep of one size.

A sweep, ``N=1,8,64``, sets an axis of the input or an option to each of its values: how the cost grows with the work.
Axes are called as on cards: N, C, then the positions (W; H, W; D, H, W), together HW or DHW; of a weight O, I, H, W.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from layers.card import OptionError, OptionValue
from layers.catalog import suggest
from profiles import spelling
from profiles.errors import Refusal
from profiles.speed.cases import Case, Point, case
from profiles.speed.sweep import Sweep
from profiles.spelling import value_text
from profiles.subject import Setup, Subject, subject
from profiles.target import Target, options_of

_POSITIONS = {1: "W", 2: "HW", 3: "DHW"}
Record = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One of the circumstances; ``label`` says in what it differs from others, ``point`` where on the sweep it is."""

    setup: Setup
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    label: str = ""
    point: Point | None = None


def variants(
    target: Target,
    setup: Setup,
    dtypes: Sequence[str] = (),
    memory_formats: Sequence[str] = (),
    sweep: Sweep | None = None,
) -> list[Variant]:
    """Return every combination: ``setup`` in each dtype and memory format (none given: its own), along the sweep.

    Raises `Refusal` for an axis that the input has not and the technique has no option of that name, or its values.
    """
    found, points = [], list(_points(target, setup, sweep))
    if twice := [
        point.label for number, point in enumerate(points) if point.label in {p.label for p in points[:number]}
    ]:
        raise Refusal(f"sweep {sweep}: {twice[0]} stands twice, in two spellings")
    for point, dtype, layout in itertools.product(
        points, dtypes or [setup.dtype], memory_formats or [setup.memory_format]
    ):
        words = [point.label, dtype if len(dtypes) > 1 else "", layout if len(memory_formats) > 1 else ""]
        changed = replace(point.setup, dtype=dtype, memory_format=layout)
        found.append(replace(point, setup=changed, label=" ".join(word for word in words if word)))
    return found


def case_of(
    target: Target, options: Mapping[str, OptionValue], variant: Variant, direction: str, **settings: Any
) -> Case:
    """Return the case of ``target`` with ``options`` in one of its variants; ``settings`` are those of `cases.case`.

    Raises `Refusal`, of a sweep with the point, for options that do not fit, and for one that is given and swept.
    """
    for name in options.keys() & variant.options.keys():
        raise Refusal(f"{name} is given as {value_text(options[name])} and swept too: leave one out")
    try:
        what = subject(target, {**options, **variant.options}, variant.setup)
    except OptionError as error:
        if variant.point is None:
            raise
        raise Refusal(f"{variant.label}: {error}") from error
    return case(what, direction, label=f"{target.name} {variant.label}".strip(), point=variant.point, **settings)


def over_threads(cases: Iterable[Case], threads: Sequence[int]) -> tuple[Case, ...]:
    """Return ``cases`` with each number of ``threads``, named by it where there are several."""
    return tuple(
        replace(case, label=f"{case.label} threads={count}" if len(threads) > 1 else case.label, threads=count)
        for case in cases
        for count in threads
    )


def _points(target: Target, setup: Setup, sweep: Sweep | None) -> Iterator[Variant]:
    """Yield the variants along ``sweep``; without one, ``setup`` itself."""
    if sweep is None:
        yield Variant(setup)
        return
    axes = _axes(Subject(target, {}, setup))
    options = {option.name: option for option in options_of(target)}
    name = sweep.axis.replace("-", "_")
    if sweep.axis not in axes and name not in options:
        upper = sweep.axis.upper()
        near = upper if upper in axes else suggest(name, [*axes, *options])
        raise Refusal(
            f"sweep {sweep}: {target.name} has neither an axis nor an option {sweep.axis!r}; "
            + (f"did you mean {near}?" if near else f"there are {', '.join([*axes, *options])}")
        )
    for text in sweep.values:
        if sweep.axis in axes:
            size = spelling.whole(text)
            if size is None or size < 1:
                due = f"an integer ≥ 1 of at most {spelling.MOST_DIGITS} digits"
                raise Refusal(f"sweep {sweep}: {text!r} is not a size of {sweep.axis}, {due}")
            shape = tuple(size if axis in axes[sweep.axis] else old for axis, old in enumerate(setup.shape))
            yield Variant(replace(setup, shape=shape), {}, f"{sweep.axis}={size}", Point(sweep.axis, size))
            continue
        try:
            value = spelling.read(options[name], text)
        except OptionError as error:
            raise Refusal(f"sweep {sweep}: {error}") from error
        yield Variant(setup, {name: value}, f"{name}={value_text(value)}", Point(name, value))


def _axes(what: Subject) -> dict[str, tuple[int, ...]]:
    """Return the axes that the setup's shape has by name: one each, and all positions together."""
    rank = len(what.setup.shape)
    positions = _POSITIONS.get(rank - 2, "")
    names = ("OI" if what.on_weight else "NC")[:rank] + positions
    axes: dict[str, tuple[int, ...]] = {name: (axis,) for axis, name in enumerate(names)}
    if len(positions) > 1:
        axes[positions] = tuple(range(2, rank))
    return axes


def sweep_of(cases: Sequence[Case]) -> Record | None:
    """Return the axis and the values along which ``cases`` lie, None where they lie along none."""
    points = list(dict.fromkeys(case.point for case in cases if case.point is not None))
    if not points:
        return None
    return {"axis": points[0].axis, "values": [point.value for point in points]}


def growth(record: Mapping[str, Any]) -> list[Record]:
    """Return, for a bench along a sweep, a row for each candidate at each point in the order of the cases.

    ``exponent`` is the slope since the point before on logarithmic scales, ln(t₂/t₁)/ln(v₂/v₁): 1 where the time grows
    as the value does, 0 where it does not grow; None at the first point and where a value is no positive number.
    """
    rows: list[Record] = []
    before: dict[tuple[str, ...], Record] = {}
    for made in record["cases"]:
        if made["at"] is None:
            continue
        line = line_of(made)
        for candidate in made["candidates"]:
            name = line if candidate["role"] == "stone" else candidate["name"]
            key = (made["direction"], line, name)
            row = {"direction": made["direction"], "case": line, "candidate": name, "value": made["at"]["value"]}
            row |= {"ms": candidate["ms"], "copies": candidate["copies"], "exponent": None}
            if key in before:
                row["exponent"] = slope(before[key], row)
            before[key] = row
            rows.append(row)
    return rows


def line_of(made: Mapping[str, Any]) -> str:
    """Return the name of a record of a case on a sweep without its point: what it shares with its neighbours."""
    point = f"{made['at']['axis']}={value_text(made['at']['value'])}"
    return str(made["name"]).replace(f" {point}", "", 1)


def slope(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Return the exponent between two points, each with ``value`` and ``ms``; None where one is no positive number."""
    values = one["value"], other["value"]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values):
        return None
    return round(math.log(other["ms"] / one["ms"]) / math.log(values[1] / values[0]), 2)
