"""The commands, one file per kind. Each parses, checks, runs, reports, and returns an exit status.

What is heavy is imported inside a handler, after its arguments were found right.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

from stones_cli.failures import complain
from stones_cli.status import Status


def import_torch() -> None:
    """Import torch with the cyclic collector off, and keep what it made out of the collector's sight for good."""
    if "torch" not in sys.modules:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of memory freed that is older than a profile
        gc.disable()
        importlib.import_module("torch")
        gc.freeze()
    gc.enable()


def judged(failed: Sequence[str]) -> Status:
    """Say what failed, one line each, and return the status."""
    for sentence in failed:
        complain(sentence, "failed")
    return Status.FAILED if failed else Status.DONE
