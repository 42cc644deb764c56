"""`stones doctor`: is this machine fit for measuring?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from profiles.errors import Refusal
from stones_cli import common, parse
from stones_cli.handlers import import_torch, judged
from stones_cli.progress import Bar
from stones_cli.report.emit import deliver
from stones_cli.status import Status

if TYPE_CHECKING:
    from profiles.speed.doctor import Record

LOOK = "Examination"
Budget = Annotated[
    float | None,
    common.option("--budget", read=parse.positive, of="seconds", help="for all of it  [default: 12]", panel=LOOK),
]
Strict = Annotated[bool, common.flag("--strict", help="fail when a verdict is caution or bad", panel=LOOK)]


def doctor(
    budget: Budget = None,
    strict: Strict = False,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Tell whether this machine is fit for measuring.

    Processors, threads, frequency, load, memory, clock, the build of torch; and how far a job differs from itself, the
    smallest difference that a bench here can tell. The ceilings of the machine are measured anew, and kept for `bench`:
    how fast it copies, reads, multiplies matrices and calls. The status is 0 whatever is found, except with --strict
    or --expect (verdict!=bad). What the system does not tell is unknown and fails nobody. Ctrl-C ends it and reports
    what was found so far.
    """
    if budget is not None and budget > 3600:
        raise Refusal(f"--budget {budget:g} is out of range: it must be ≤ 3600 seconds")
    where = common.destination(format_, json, output)
    common.foresee(expect, "doctor")
    record = _run(budget)

    from stones_cli.report.doctor import examination

    failed = deliver(examination(record), where, [] if record["interrupted"] else expect, keep=True)
    if strict:
        bad = (row for row in record["findings"] if row["verdict"] in ("caution", "bad"))
        failed += [f"{row['name']}: {row['found']}" + (f"; {row['advice']}" if row["advice"] else "") for row in bad]
    status = judged(failed, where)
    return Status.INTERRUPTED if record["interrupted"] else status


def _run(budget: float | None) -> Record:
    """Examine under a progress bar."""
    import_torch()
    from profiles.speed import doctor as examining

    with Bar() as bar:
        return examining.doctor(budget or examining.SECONDS, bar.show)
