"""`stones bench`: how fast layers run, beside their references and a plain copy; named, of a kind, or of a profile."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import typer

from profiles.errors import Refusal
from profiles.expect import Expectation, Outcome, judge
from profiles.speed.ranks import Launch, joined, launch, placed
from profiles.subject import Setup, default_shape
from stones_cli import bench_options as options
from stones_cli import common, parse, pictures
from stones_cli.commands import given, named, was_given
from stones_cli.failures import complain
from stones_cli.handlers import import_torch, naming
from stones_cli.progress import Bar
from stones_cli.report.emit import emit
from stones_cli.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from profiles.speed.bench import Bench, Progress
    from profiles.speed.cases import Gate
    from profiles.speed.variants import Variant
    from profiles.target import Target

_OF_PROFILES = (
    "shape", "dtypes", "device", "memory_formats", "train", "seed", "vs", "forward", "backward", "both", "max_ratio",
    "compile_", "cuda_graph", "sweep", "tensors",
)  # fmt: skip


def bench(
    context: typer.Context,
    techniques: common.Names = None,
    kind: options.Kind = None,
    vs: options.Vs = None,
    forward: options.Forward = False,
    backward: options.Backward = False,
    both: options.Both = False,
    profile: options.Profile = None,
    rounds: options.Rounds = None,
    budget: options.Budget = None,
    threads: options.Threads = None,
    compile_: options.Compile = False,
    cuda_graph: options.CudaGraph = False,
    max_ratio: options.MaxRatio = None,
    fail_inconclusive: options.FailInconclusive = False,
    sweep: options.SweepOver = None,
    tensors: options.Tensors = 1,
    no_roofline: options.NoRoofline = False,
    shape: common.Input = common.BENCH_SHAPE,
    dtypes: options.Dtypes = options.FLOAT32,
    device: common.Device = "cpu",
    memory_formats: options.MemoryFormats = options.CONTIGUOUS,
    train: common.Train = True,
    seed: common.Seed = 0,
    plot: options.Plot = None,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Time techniques beside torch's layers and a plain copy.

    Everything is interleaved in one process; what counts is the ratio of each round, not the time. Without techniques:
    the profile quick. Options that all the techniques have are given to all; of a kind, those that refuse are listed.
    Ctrl-C ends it and reports what was measured so far. Under torchrun all ranks measure together, the first reports.
    """
    where = common.destination(format_, json, output)
    common.foresee(expect, "bench")
    if kind is not None and (named(context) or profile is not None):
        raise Refusal(f"--kind {kind} names its techniques: give no names and no --profile beside it")
    if kind is None and (profile is not None or not named(context)):
        if unfit := was_given(context, _OF_PROFILES):
            raise Refusal(f"{unfit} is for techniques named here; a profile says it itself")
        what = _profiled("quick" if profile is None else profile, named(context))
    else:
        sizes = shape if was_given(context, ("shape",)) else None
        directions = [name for name, on in _directions(forward, backward, both).items() if on] or ["forward"]
        settings = {"vs": vs or None, "gates": _gates(vs, max_ratio), "compile": compile_, "graph": cuda_graph}

        def every(target: Target) -> list[Variant]:
            from profiles.speed.variants import variants

            setup = Setup(_shape(target, sizes), dtypes[0], device, memory_formats[0], train, seed, tensors)
            return variants(target, setup, dtypes, memory_formats, sweep)

        what = _chosen(context, kind, every, directions, settings)
    found = launch()
    what = placed(_planned(what, rounds, budget, threads), found)
    what = replace(what, roofline=what.roofline and not no_roofline)
    pictures.check(plot)
    record = _run(what, found)
    return _status(record, _told(record, plot, where, expect), fail_inconclusive, where)


def _told(
    record: dict[str, Any], plot: Path | None, where: common.Destination, expect: Sequence[Expectation] | None
) -> list[str]:
    """Write the record and the plot; return a sentence for each expectation that failed."""
    from profiles.pictures.bench_plot import render
    from stones_cli.report.bench import report

    outcomes: list[Outcome] = []
    try:
        outcomes = [] if record["interrupted"] else judge(expect or (), record)
    finally:  # also where an expectation is refused: what was measured is not lost
        try:
            emit(report(record, outcomes), where)
        finally:  # also where nobody reads the table to its end
            pictures.write(plot if record["cases"] else None, lambda form: render(record, form))
    return [str(outcome) for outcome in outcomes if not outcome.ok]


def _directions(forward: bool, backward: bool, both: bool) -> dict[str, bool]:
    return {"forward": forward, "backward": backward, "forward+backward": both}


def _gates(vs: Sequence[str] | None, max_ratio: float | None) -> list[Gate]:
    """Return a gate for each reference when there is a bar."""
    from profiles.speed.cases import Gate

    return [] if max_ratio is None else [Gate(name, max_ratio) for name in vs or ["peer"]]


def _chosen(
    context: typer.Context,
    kind: str | None,
    variants: Callable[[Target], list[Variant]],
    directions: Sequence[str],
    settings: Mapping[str, Any],
) -> Bench:
    """Return a case for each technique, those named or those of a kind, each variant and each direction."""
    from profiles.kinds import bench_of
    from profiles.speed.bench import Bench
    from profiles.speed.cases import Case
    from profiles.speed.variants import case_of

    if kind is not None:
        return bench_of(kind, given(context), variants, directions, **settings)
    cases = list[Case]()
    for target in dict.fromkeys(named(context)):
        with naming(target, named(context)):
            every = product(variants(target), directions)
            cases += [case_of(target, given(context), variant, way, **settings) for variant, way in every]
    return Bench(tuple(cases))


def _shape(target: Target, shape: parse.Shape | None) -> tuple[int, ...]:
    """Return the sizes to run ``target`` on; without a ``shape`` those of a usual input, or of a large weight."""
    return shape.sizes if shape else default_shape(target, common.BENCH_SHAPE.sizes, common.BENCH_WEIGHT.sizes)


def _profiled(name: str, targets: Sequence[Target]) -> Bench:
    """Return the profile, or of it the cases of ``targets``."""
    from profiles.loading import load

    what = load(name)
    if not targets:
        return what
    wanted, there = {target.name for target in targets}, {case.subject.name for case in what.cases}
    if missing := sorted(wanted - there):
        raise Refusal(f"the profile {name} has no {missing[0]}; it has {', '.join(sorted(there))}")
    return replace(what, cases=tuple(case for case in what.cases if case.subject.name in wanted))


def _planned(what: Bench, rounds: int | None, budget: float | None, threads: Sequence[int] | None) -> Bench:
    from profiles.speed.variants import over_threads

    plan = replace(what.plan, rounds=rounds or what.plan.rounds, seconds=budget or what.plan.seconds)
    return replace(what, plan=plan, cases=over_threads(what.cases, threads) if threads else what.cases)


def _run(what: Bench, found: Launch | None) -> dict[str, Any]:
    """Measure under a progress bar, on all ranks that are ``found``; an early Ctrl-C leaves a record without cases."""
    from dataclasses import asdict

    from profiles.environment import environment
    from profiles.speed import bench as timing

    try:
        import_torch()
        with joined(found, what.cases[0].subject.setup.device), Bar() as bar:

            def note(progress: Progress) -> None:
                bar.show(progress.fraction, progress.case)

            return timing.bench(what, note)
    except KeyboardInterrupt:
        plan = {**asdict(what.plan), "clock": what.clock, "cache": None}
        return {
            "schema": timing.SCHEMA,
            "profile": what.name or None,
            "environment": environment(what.cases[0].subject.setup.device),
            "plan": plan,
            "sweep": None,
            "ranks": None,
            "ceilings": [],
            "cases": [],
            "skipped": [asdict(skipped) for skipped in what.skipped],
            "warnings": [],
            "verdict": None,
            "interrupted": True,
        }


def _status(
    record: dict[str, Any], failed: Sequence[str], fail_inconclusive: bool, where: common.Destination
) -> Status:
    """Say what failed, one line each, and return the status."""
    from profiles.speed.bench_record import judgements

    told = [each for case in record["cases"] for each in judgements(case)]
    told += [("failed", sentence) for sentence in failed]
    for weight, sentence in told:
        complain(sentence, weight)
    if where.format == "github":
        from stones_cli.report.github import Annotation, annotate

        levels = {"fail": "error", "failed": "error"}
        annotate(Annotation(sentence, levels.get(weight, "warning")) for weight, sentence in told)
    if record["interrupted"]:
        return Status.INTERRUPTED
    if failed or record["verdict"] == "fail":
        return Status.FAILED
    return Status.INCONCLUSIVE if fail_inconclusive and record["verdict"] == "inconclusive" else Status.DONE
