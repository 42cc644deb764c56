"""`stones run`: a profile of inspections, checks and benches, carried out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stones_cli import common
from stones_cli.bench_options import FailInconclusive
from stones_cli.failures import complain
from stones_cli.handlers import import_torch
from stones_cli.progress import Bar
from stones_cli.report.emit import deliver
from stones_cli.status import Status

if TYPE_CHECKING:
    from profiles.run_profiles import Run


def _complete(incomplete: str) -> list[str]:
    """Offer the profiles that are built in."""
    from profiles.run_profiles import names

    return [name for name in names() if name.startswith(incomplete)]


Profile = Annotated[
    str,
    typer.Argument(
        parser=str,
        metavar="PROFILE",
        help="a file.yaml, or one that is built in: ci, or a bench (quick, speed, gpu)",
        autocompletion=_complete,
    ),
]


def run(
    profile: Profile,
    fail_inconclusive: FailInconclusive = False,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Run a profile: many inspections, checks and benches.

    A YAML file says what; `stones schema run` says how it is written. Exact numbers must be exact, gates are judged as
    by `stones bench`. What fails does not keep the rest from running. A wrong profile is refused, with
    file:line:column, before anything runs. Ctrl-C ends it and reports what was done so far.
    """
    where = common.destination(format_, json, output)
    common.foresee(expect, "run-result")
    record = _run(_loaded(profile, where.format))

    from stones_cli.report.github import Annotation, annotate
    from stones_cli.report.run import complaints, remarks, report

    expected = None if record["interrupted"] else expect
    failed = deliver(report(record), where, expected, keep=True)
    for kind, sentence in (*complaints(record), *(("failed", sentence) for sentence in failed)):
        complain(sentence, kind)
    if where.format == "github":
        annotate([*remarks(record), *map(Annotation, failed)])
    return _status(record, bool(failed), fail_inconclusive)


def _loaded(name: str, format_: str) -> Run:
    """Return the profile; where it is refused, an annotation on standard error says so to GitHub."""
    from profiles.document import ProfileError
    from profiles.run_profiles import load

    try:
        return load(name)
    except ProfileError as error:
        if format_ == "github":
            from stones_cli.report.github import Annotation, command

            message = str(error).removeprefix(f"{error.place}: ")
            typer.echo(command(Annotation(message, place=error.place)), err=True)
        raise


def _run(what: Run) -> dict[str, Any]:
    """Run it under a progress bar; Ctrl-C while torch is imported leaves a record without rows."""
    from profiles import run as runs
    from profiles.threads import using_threads

    with Bar() as bar:
        try:
            import_torch()
        except KeyboardInterrupt:
            return runs.interrupted(what)
        with using_threads(1):  # small tensors; benches set their own number
            return runs.run(what, bar.show)


_STATUSES = {
    "failed": Status.FAILED,
    "refused": Status.MISUSE,
    "unavailable": Status.ENVIRONMENT,
    "error": Status.INTERNAL,
}


def _status(record: dict[str, Any], failed: bool, fail_inconclusive: bool) -> Status:
    """Return what the worst of the rows comes to: a bug before a failure, before what could not be run."""
    if record["interrupted"]:
        return Status.INTERRUPTED
    counts = {**record["counts"], "failed": record["counts"]["failed"] + failed}
    for verdict in ("error", "failed", "refused", "unavailable"):
        if counts[verdict]:
            return _STATUSES[verdict]
    return Status.INCONCLUSIVE if fail_inconclusive and counts["inconclusive"] else Status.DONE
