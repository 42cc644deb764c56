"""The commands, one file per kind. Each parses, checks, runs, reports, and returns an exit status.

What is heavy is imported inside a handler, after its arguments were found right.
"""

from __future__ import annotations

import gc
import importlib
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from layers.card import OptionError
from profiles.target import Target
from stones_cli.common import Destination
from stones_cli.failures import complain
from stones_cli.status import Status


def import_torch() -> None:
    """Import torch with the cyclic collector off, and keep what it made out of the collector's sight for good.

    A signal meanwhile takes effect afterwards: within its own imports torch swallows what the signal raises.
    """
    if "torch" not in sys.modules:
        gc.disable()
        with _signals_later():
            importlib.import_module("torch")
        gc.freeze()
    gc.enable()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda number, frame: arrived.append(number)) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    if arrived:
        signal.raise_signal(arrived[0])


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
