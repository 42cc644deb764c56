"""`stones inspect`: what a layer costs, or what a transformation does to a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from profiles.errors import Refusal
from profiles.subject import Subject, subject
from profiles.target import resolve
from stones_cli import common
from stones_cli import expect as expectations
from stones_cli.commands import given, named, was_given
from stones_cli.handlers import import_torch, judged
from stones_cli.report.emit import emit
from stones_cli.status import Status

_OF_LAYERS = ("shape", "dtype", "device", "memory_format", "train", "measure", "fvcore")


Model = Annotated[
    str | None,
    common.option(
        "--model",
        read=str,
        of="name",
        help="pkg.mod:factory or file.py:factory, the model for a technique that transforms one (it is called)",
        panel=common.SETUP,
    ),
]
COLUMNS = "Columns"
Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure", help="run it; else only the card's formulas, at once", rich_help_panel=COLUMNS
    ),
]
Fvcore = Annotated[
    bool, typer.Option("--fvcore/--no-fvcore", help="put fvcore's count beside ours", rich_help_panel=COLUMNS)
]


def inspect(
    context: typer.Context,
    technique: common.Name,
    shape: common.Input = common.SHAPE,
    dtype: common.Dtype = "float32",
    device: common.Device = "cpu",
    memory_format: common.MemoryFormat = "contiguous",
    train: common.Train = True,
    seed: common.Seed = 0,
    model: Model = None,
    measure: Measure = True,
    fvcore: Fvcore = True,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Count parameters, FLOPs, statistics and saved bytes.

    What the card says stands beside what is measured. For a technique that transforms models: what becomes of one.
    Exit status 1 when a number of the card is not what is measured, or when an expectation fails.
    """
    setup = common.setup(shape, dtype, device, memory_format, train, seed)
    chosen = subject(named(context)[0], given(context), setup)
    transforms = chosen.card is not None and chosen.card.role == "transform"
    _refuse_unfit(chosen, transforms, was_given(context, _OF_LAYERS), model, measure)
    where = common.destination(format_, json, output)
    if measure:
        import_torch()
    record = _transformed(chosen, model) if transforms else _counted(chosen, measure, fvcore)
    outcomes = expectations.judge(expect or (), record)

    from stones_cli.report.inspection import contradictions, inspection
    from stones_cli.report.transformation import transformation

    emit(transformation(record, outcomes) if transforms else inspection(record, outcomes), where)
    failed = [*contradictions(record), *(str(outcome) for outcome in outcomes if not outcome.ok)]
    return judged(failed)


def _refuse_unfit(chosen: Subject, transforms: bool, unfit: str, model: str | None, measure: bool) -> None:
    if transforms and unfit:
        raise Refusal(f"{unfit} is for layers; {chosen.name} transforms a model, which --model names")
    if model is not None and not transforms:
        raise Refusal(f"--model is for techniques that transform a model; {chosen.name} is a layer")
    if chosen.card is None and not measure:
        raise Refusal(f"--no-measure shows what a card says; {chosen.name} is a class and has none")


def _counted(layer: Subject, measure: bool, fvcore: bool) -> dict[str, Any]:
    from profiles import facts

    return facts.inspect(layer, measure=measure, fvcore=fvcore)


def _transformed(transform: Subject, model: str | None) -> dict[str, Any]:
    from profiles import transforms

    return transforms.inspect(transform, None if model is None else resolve(model))
