"""The commands, one file per kind. Each parses, checks, runs, reports, and returns an exit status.

What is heavy is imported inside a handler, after its arguments were found right.
"""

from __future__ import annotations

import gc
import importlib
import sys


def import_torch() -> None:
    """Import torch with the cyclic collector off, and keep what it made out of the collector's sight for good."""
    if "torch" not in sys.modules:
        gc.disable()
        importlib.import_module("torch")
        gc.freeze()
    gc.enable()
