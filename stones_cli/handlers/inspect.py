"""`stones inspect`: what a layer costs, or what a transformation does to a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from profiles import expect as expectations
from profiles import inspecting
from profiles.errors import Refusal, with_article
from profiles.shares import SHARE, check_share
from profiles.subject import Subject, subject
from profiles.target import resolve
from stones_cli import common, parse
from stones_cli.commands import given, named, was_given
from stones_cli.failures import complain
from stones_cli.handlers import import_torch, judged
from stones_cli.report.emit import emit
from stones_cli.status import Status

_OF_LAYERS = ("dtype", "device", "memory_format", "train", "measure", "fvcore", "peers")


Model = Annotated[
    str | None,
    common.option(
        "--model",
        read=str,
        of="name",
        help="pkg.mod:factory or file.py:factory (it is called), the model that a technique transforms, or of whose "
        "parameters it is to be said which ones a technique on weights is for",
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
Peers = Annotated[
    bool,
    typer.Option(
        "--peers",
        help="say what fvcore, torch's FlopCounterMode and, where installed, torchinfo, thop and ptflops count, and "
        "why they differ",
        rich_help_panel=COLUMNS,
    ),
]
BackwardShare = Annotated[
    float | None,
    common.option(
        "--backward-share",
        read=parse.positive,
        of="number",
        help="of the training time that is spent in the backwards that a rule replaces, for the bound on what it "
        f"gains (default: {SHARE})",
        panel=common.SETUP,
    ),
]


Modules = Annotated[
    bool,
    common.flag(
        "--modules",
        help="the costs by module too, in a table that adds up to the whole: of a class, of what a factory makes "
        "(pkg.mod:factory), of a stone",
        panel=COLUMNS,
    ),
]
Depth = Annotated[
    int | None,
    common.option(
        "--module-depth",
        read=parse.whole(0),
        of="integer",
        help="fold modules that lie deeper into the row of the one at this depth; the model itself is at 0 "
        "(default: all)",
        panel=COLUMNS,
    ),
]
FailUncounted = Annotated[
    bool,
    common.flag("--fail-uncounted", help="exit status 3 when an operation could not be counted", panel=common.OUTPUT),
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
    peers: Peers = False,
    backward_share: BackwardShare = None,
    modules: Modules = False,
    module_depth: Depth = None,
    fail_uncounted: FailUncounted = False,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Count parameters, FLOPs, statistics and saved bytes.

    What the card says stands beside what is measured. For a technique that transforms models: what becomes of one.
    For an augmentation: its policy in degrees, pixels and factors, beside what Pillow makes of the same images.
    For one on weights with --model: which parameters of the model it is for, with state and FLOPs of a step.
    Exit status 1 when a number of the card is not what is measured, or when an expectation fails; with
    --fail-uncounted 3 when an operation could not be counted, so that a number is a lower bound.
    """
    target = named(context)[0]
    shape = shape if was_given(context, ("shape",)) else parse.Shape(inspecting.usual_shape(target))
    chosen = subject(target, given(context), common.setup(shape, dtype, device, memory_format, train, seed))
    _refuse_unfit(chosen, context, model, measure)
    inspecting.check_modules(chosen, measure, modules, module_depth)
    if fail_uncounted and not measure:
        raise Refusal("--fail-uncounted has no meaning beside --no-measure: then nothing is counted")
    share = _share(chosen, backward_share, measure)
    where = common.destination(format_, json, output)
    if measure:
        import_torch()
    more = {"peers": peers, "backward_share": share, "modules": modules, "depth": module_depth}
    record = _record(chosen, model, measure, fvcore, **more)
    outcomes = expectations.judge(expect or (), record)

    from stones_cli.report.augmentation import augmentation
    from stones_cli.report.inspection import inspection
    from stones_cli.report.transformation import touched, transformation

    reports = {
        "stones.transform/1": transformation,
        "stones.touched/1": touched,
        "stones.augmentation/1": augmentation,
    }
    emit(reports.get(record["schema"], inspection)(record, outcomes), where)
    failed = [*inspecting.contradictions(record), *(str(outcome) for outcome in outcomes if not outcome.ok)]
    return judged(failed, where) or _uncounted(record if fail_uncounted else {})


def _uncounted(record: dict[str, Any]) -> Status:
    """Say what in ``record`` is incomplete, one line each; return the status."""
    sentences = inspecting.incomplete(record)
    for sentence in sentences:
        complain(sentence, "incomplete")
    return Status.ENVIRONMENT if sentences else Status.DONE


def _transforms(chosen: Subject) -> bool:
    return chosen.card is not None and chosen.card.role == "transform"


def _refuse_unfit(chosen: Subject, context: typer.Context, model: str | None, measure: bool) -> None:
    from profiles.counting.touched import OF_THE_MODEL, is_for_weights
    from profiles.transforms import takes_batch

    unfit = was_given(context, _OF_LAYERS)
    shape = was_given(context, ("shape",))
    if _transforms(chosen):
        of_data = ("dtype",) if takes_batch(chosen) else ()
        unfit = was_given(context, tuple(name for name in _OF_LAYERS if name not in of_data))
        if unfit or (shape and not takes_batch(chosen)):
            raise Refusal(f"{unfit or shape} is for layers; {chosen.name} transforms a model, which --model names")
    if chosen.on_images and (of_layers := was_given(context, ("dtype", "train", "fvcore", "peers"))):
        raise Refusal(f"{of_layers} is for layers; {chosen.name} works on uint8 images, in any mode")
    if model is not None and ":" not in model:
        raise Refusal(f"--model {model!r} is no factory; give pkg.mod:factory or file.py:factory")
    if model is not None and not _transforms(chosen):
        if not is_for_weights(chosen):
            what = with_article(chosen.role)
            raise Refusal(f"--model is for techniques that transform a model or its weights; {chosen.name} is {what}")
        if unfit or shape:
            raise Refusal(f"{unfit or shape} has no meaning beside --model, whose parameters have their own shapes")
        if own := sorted(OF_THE_MODEL & given(context).keys()):
            raise Refusal(f"--{own[0].replace('_', '-')} has no meaning beside --model, whose layers have their own")
    if chosen.card is None and not measure:
        raise Refusal(f"--no-measure shows what a card says; {chosen.name} is a class and has none")


def _share(chosen: Subject, given: float | None, measure: bool) -> float | None:
    """Return the share of the training time that is given for a rule for the backward, or the usual one."""
    from profiles.counting import savings

    if given is not None:
        check_share(given)
    if not (saves := savings.saves(chosen)) and given is not None:
        raise Refusal(f"--backward-share is for rules of the backward that replace a layer; {chosen.name} is none")
    if given is not None and not measure:
        raise Refusal("--backward-share has no meaning beside --no-measure: what is saved is measured")
    return (SHARE if given is None else given) if saves else None


def _record(chosen: Subject, model: str | None, measure: bool, fvcore: bool, **more: Any) -> dict[str, Any]:
    if model is not None and not _transforms(chosen):
        from profiles.counting import touched

        return touched.inspect(chosen, resolve(model))
    target = None if model is None else resolve(model)
    return inspecting.inspect(chosen, target, measure=measure, fvcore=fvcore, **more)
