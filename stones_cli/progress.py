"""One line on standard error that says how far long work has come; nothing where nobody watches."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from types import TracebackType

from stones_cli.visible import one_line

LEAST_SECONDS = 0.1  # between two redraws


class Bar:
    """A progress bar to be used as a context; it leaves no trace when the work is done."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn = 0
        self._last = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")

    def show(self, fraction: float, what: str) -> None:
        """Say that ``fraction`` of the work is done and ``what`` is in hand."""
        now = time.monotonic()
        if not self._shown or now - self._last < LEAST_SECONDS:
            return
        self._last = now
        room = max(0, shutil.get_terminal_size().columns - 1)
        done = round(20 * min(1.0, max(0.0, fraction)))
        line = f"[{'#' * done}{' ' * (20 - done)}] {fraction:4.0%} {one_line(what)}"[:room]
        self._write("\r" + line.ljust(self._drawn)[: max(room, self._drawn)])
        self._drawn = len(line)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
