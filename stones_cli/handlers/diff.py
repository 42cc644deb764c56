"""`stones diff`: two techniques on one input, or two saved results of one command, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from profiles import results
from profiles.errors import Refusal
from profiles.inspecting import contradictions, usual_shape
from profiles.races.entrants import Part, read_part
from profiles.subject import Setup, Subject, subject
from profiles.target import Target
from stones_cli import common
from stones_cli.commands import Command, given, named, was_given
from stones_cli.handlers import import_torch, judged, naming
from stones_cli.options import complete_names
from stones_cli.report.emit import deliver
from stones_cli.status import Status

_PARTS = "stones.parts"
_OF_TECHNIQUES = ("shape", "dtype", "device", "memory_format", "train", "seed", "measure")
_OF_RESULTS = ("gate", "anyway")
WHAT = "What is compared"
Two = Annotated[
    list[str] | None,
    typer.Argument(
        parser=str,
        metavar="TECHNIQUE TECHNIQUE | old.json new.json",
        help="two names from `stones list`, with options of their own (gn:groups=8), pkg.mod:Class or file.py:Class; "
        "or two results that -o saved",
        autocompletion=complete_names,
    ),
]
All = Annotated[bool, common.flag("--all", help="show what is alike too", panel=common.OUTPUT)]
Measure = Annotated[
    bool,
    typer.Option("--measure/--no-measure", help="run them; else only the cards' formulas", rich_help_panel=WHAT),
]
Gate = Annotated[
    bool, common.flag("--gate", help="of results: fail when a count, shape or verdict differs", panel=WHAT)
]
Anyway = Annotated[
    bool,
    common.flag("--anyway", help="of results: compare times made under other circumstances too", panel=WHAT),
]


class Diff(Command):
    """The command whose names may be saved results, and may have options spelt in them."""

    def targets(self, names: Sequence[str], ctx: Any) -> tuple[Target, ...]:
        """Return the techniques; none where results are named. Raises `Refusal` for one of each."""
        if ctx.resilient_parsing:
            return super().targets(names, ctx)
        saved = [name for name in names if results.is_file(name)]
        if saved and len(saved) < len(names):
            other = next(name for name in names if name not in saved)
            raise Refusal(f"{saved[0]} is a saved result, {other} is none: give two techniques, or two results")
        ctx.meta[_PARTS] = [] if saved else [read_part(name) for name in names]
        return tuple(part.target for part in ctx.meta[_PARTS])


def diff(
    context: typer.Context,
    techniques: Two = None,
    gate: Gate = False,
    anyway: Anyway = False,
    measure: Measure = True,
    shape: common.Input = common.SHAPE,
    dtype: common.Dtype = "float32",
    device: common.Device = "cpu",
    memory_format: common.MemoryFormat = "contiguous",
    train: common.Train = True,
    seed: common.Seed = 0,
    all_: All = False,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Compare two techniques, or two saved results.

    Techniques: options, costs, statistics and invariances on one input. Options that both have are given to both.
    Results (of inspect, bench, the checks, list, …): counts, shapes and verdicts strictly, times as ratios where both
    benches ran alike. Times are never a reason to fail: two runs are not interleaved.
    """
    names = techniques or []
    if len(names) != 2:
        raise Refusal(f"diff compares two, not {len(names)}: give two techniques, or two results (file.json)")
    where = common.destination(format_, json, output)
    if not named(context):
        if unfit := was_given(context, _OF_TECHNIQUES):
            raise Refusal(f"{unfit} is for techniques; {names[0]} and {names[1]} are saved results")
        return _of_results((names[0], names[1]), gate, anyway, (all_, where, expect))
    if unfit := was_given(context, _OF_RESULTS):
        raise Refusal(f"{unfit} is for two saved results; {names[0]} and {names[1]} are techniques")
    from profiles.checks.diff import check_comparable

    check_comparable(*named(context))
    sizes = shape.sizes if was_given(context, ("shape",)) else _usual_shape(named(context))
    subjects = _subjects(context, Setup(sizes, dtype, device, memory_format, train, seed))
    return _of_techniques(subjects, (names[0], names[1]), measure, (all_, where, expect))


def _of_results(names: tuple[str, str], gate: bool, anyway: bool, shown: Any) -> Status:
    from profiles.checks import changes
    from stones_cli.report.diff import differences

    old, new = (results.read(name) for name in names)
    record = changes.results(old, new, names, anyway=anyway)
    all_, where, expect = shown
    failed = deliver(differences(record, everything=all_), where, expect)
    if gate and record["binding"]:
        first = next(change["path"] for change in record["changes"] if change["binding"])
        failed.append(f"{record['binding']} differ that must not, the first is {first}")
    return judged(failed, where)


def _usual_shape(targets: Sequence[Target]) -> tuple[int, ...]:
    """Return the usual input that all of ``targets`` admit: of as few axes as one of them needs."""
    return min(map(usual_shape, targets), key=len)


def _subjects(context: typer.Context, setup: Setup) -> tuple[Subject, Subject]:
    parts: list[Part] = context.meta[_PARTS]
    made = []
    for part in parts:
        with naming(part.target, named(context)):
            made.append(subject(part.target, {**given(context), **part.options}, setup))
    left, right = made
    return left, right


def _of_techniques(subjects: tuple[Subject, Subject], names: tuple[str, str], measure: bool, shown: Any) -> Status:
    for what in subjects:
        if what.card is None and not measure:
            raise Refusal(f"--no-measure shows what a card says; {what.name} is a class and has none")
    from profiles.checks.diff import techniques

    if measure:
        import_torch()
    record = techniques(*subjects, measure=measure, names=names)

    from stones_cli.report.diff import beside

    all_, where, expect = shown
    sides = zip(names, (record["left"], record["right"]), strict=True)
    lies = [f"{name}: {lie}" for name, side in sides for lie in contradictions(side)]
    return judged([*lies, *deliver(beside(record, everything=all_), where, expect)], where)
