"""`stones race`: optimizers, and what is put into networks, side by side on one problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.errors import Refusal
from profiles.races.entrants import entrant
from profiles.races.problems import DIGITS, NAMES, PROBLEMS
from stones_cli import common, parse, pictures
from stones_cli.commands import was_given
from stones_cli.handlers import import_torch, judged
from stones_cli.options import complete_names
from stones_cli.progress import Bar
from stones_cli.report.emit import deliver
from stones_cli.status import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

RACE = "Race"
Entrants = Annotated[
    list[str] | None,
    typer.Argument(
        parser=str,
        metavar="ENTRANT",
        help="an optimizer: adax, adax:lr=0.01,beta2=1e-3, torch.optim:Adam; on digits also what is put into the "
        "network, with + between: bn-only+lars:lr=1",
        autocompletion=complete_names,
    ),
]
Name = Annotated[
    str | None,
    common.choice(
        "--problem", among=NAMES, of="problem", panel=RACE,
        help=f"what they race on: {', '.join(NAMES)}; none: what their cards state",
    ),
]  # fmt: skip
Profile = Annotated[
    str | None,
    common.option("--profile", read=str, of="name|file.yaml", help="a race on digits, built in or a file", panel=RACE),
]
Steps = Annotated[
    int | None,
    common.option("--steps", read=parse.whole(1), of="integer", help="how many; on digits epochs", panel=RACE),
]
Batch = Annotated[
    int, common.option("--batch", read=parse.whole(1), of="integer", help="of digits, samples a step", panel=RACE)
]
Repeats = Annotated[
    int, common.option("--repeats", read=parse.whole(1), of="integer", help="of digits, seeds in a row", panel=RACE)
]
Plot = Annotated[Path | None, pictures.plot_option("draw the trajectories there")]
_OF_DIGITS = ("batch", "repeats", "seed")


def race(
    context: typer.Context,
    entrants: Entrants = None,
    problem: Name = None,
    profile: Profile = None,
    steps: Steps = None,
    batch: Batch = 32,
    repeats: Repeats = 1,
    seed: common.Seed = 0,
    plot: Plot = None,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Race optimizers on a small problem of known outcome.

    Without --problem: the races that the cards of the named stones state, or of all, with what came out of them; one
    that comes out otherwise fails. Learning rates and the like are the problem's where an entrant does not give them.
    """
    where = common.destination(format_, json, output)
    common.foresee(expect, "races" if problem is None and profile is None else "race")
    if profile is not None:
        return _profiled(context, profile, plot, where, expect)
    if problem is None:
        return _stated(context, entrants or [], where, expect)
    if not entrants:
        raise Refusal(f"who races on {problem}? Name entrants, such as adax torch.optim:Adam")
    if problem != DIGITS and (given := was_given(context, _OF_DIGITS)):
        raise Refusal(f"{given} is for --problem {DIGITS}; {problem} draws no random numbers")
    made = [entrant(text) for text in entrants]
    pictures.check(plot)
    from profiles.races import digits
    from profiles.races import race as races

    if problem == DIGITS:
        training = digits.Training(steps or digits.Training.epochs, batch, repeats, seed)
        record = _run(lambda note: digits.race(made, training, note))
    else:
        record = _run(lambda note: races.race(PROBLEMS[problem], made, steps=steps, progress=note))
    return _told(record, plot, where, expect)


def _profiled(context: typer.Context, name: str, plot: Path | None, where: Any, expect: Any) -> Status:
    if given := was_given(context, ("entrants", "problem", "steps", *_OF_DIGITS)):
        raise Refusal(f"{given} is for entrants named here; a profile says it itself")
    from profiles.races import digits
    from profiles.races.race_profiles import load

    made, training = load(name)
    pictures.check(plot)
    return _told(_run(lambda note: digits.race(made, training, note)), plot, where, expect)


def _stated(context: typer.Context, names: Sequence[str], where: Any, expect: Any) -> Status:
    if given := was_given(context, ("steps", "plot", *_OF_DIGITS)):
        raise Refusal(f"{given} needs --problem, one of {', '.join(NAMES)}")
    from layers.catalog import stone
    from profiles.races.race import stated

    chosen = [stone(name).name for name in names]
    outcomes = _run(lambda note: stated(chosen, note))

    from stones_cli.report.race import outcomes as told

    failed = deliver(told(outcomes), where, expect)
    wrong = [
        f"{o.stone} on {o.race.problem}: {o.race.measure} is {o.found}, the card says {o.race.expected}"
        for o in outcomes
        if not o.ok
    ]
    return judged([*failed, *wrong], where)


def _run(work: Any) -> Any:
    """Do the work on one thread, for these tensors are small, under a progress bar."""
    import_torch()
    from profiles.threads import using_threads

    with using_threads(1), Bar() as bar:
        return work(bar.show)


def _told(record: dict[str, Any], plot: Path | None, where: Any, expect: Any) -> Status:
    from profiles.pictures.race_plot import render
    from stones_cli.report.race import trajectories

    pictures.write(plot, lambda form: render(record, form))
    if record["interrupted"]:
        deliver(trajectories(record), where, None)
        return Status.INTERRUPTED
    return judged(deliver(trajectories(record), where, expect, keep=True), where)
