"""The commands, one file per kind. Each parses, checks, runs, reports, and returns an exit status.

What is heavy is imported inside a handler, after its arguments were found right.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from layers.card import OptionError
from profiles.target import Target
from stones_cli.common import Destination
from stones_cli.failures import complain
from stones_cli.status import Status


def import_torch() -> None:
    """Import torch with the cyclic collector off, and keep what it made out of the collector's sight for good."""
    if "torch" not in sys.modules:
        gc.disable()
        importlib.import_module("torch")
        gc.freeze()
    gc.enable()


@contextmanager
def naming(target: Target, among: Collection[Target]) -> Iterator[None]:
    """Say in front of an OptionError of the block whose options it is about, where several share them."""
    try:
        yield
    except OptionError as error:
        if len(among) < 2:
            raise
        raise OptionError(f"{target.name}: {error}", error.option) from error


def judged(failed: Sequence[str], where: Destination) -> Status:
    """Say what failed, one line each, to GitHub by annotations where the result goes there; return the status."""
    for sentence in failed:
        complain(sentence, "failed")
    if failed and where.format == "github":
        from stones_cli.report.github import Annotation, annotate

        annotate(map(Annotation, failed))
    return Status.FAILED if failed else Status.DONE
