"""The way in and out of the process: streams, signals, the exit status. Nothing here knows a command.

On the way out the interpreter's tear-down is skipped (a fifth of the run once torch is loaded), and on the way in the
cyclic collector is off until the imports are done.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

_LONGEST_SPEECH = 10.0  # seconds: of the first rank, from its failure to the end of its report


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    gc.disable()
    _open_closed_streams()
    ended = _set_signals()
    status = _run()
    status = 128 + ended[0] if ended else status
    if status not in (0, 130, 143):
        _let_the_first_speak()
    _settle(status)


def _run() -> int:
    try:
        import warnings

        from stones_cli.commands import run

        warnings.resetwarnings()  # PYTHONWARNINGS=error would make errors of what torch deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)


def _open_closed_streams() -> None:
    """Put the null device where a standard stream is closed, so that no file takes its number and no write fails."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115 - kept for good
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _set_signals() -> list[int]:
    """Let a closed pipe end the process silently, as other tools do, and SIGTERM do what Ctrl-C does.

    Returns a list that gets the number of the signal when SIGTERM arrives.
    """
    ended: list[int] = []

    def terminate(number: int, frame: object) -> NoReturn:
        ended.append(number)
        raise KeyboardInterrupt

    sys.unraisablehook = _deliver_again
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, terminate)
    return ended


def _deliver_again(lost: sys.UnraisableHookArgs) -> None:
    """Interrupt once more, a moment later, where an interrupt came inside of a callback, which nothing leaves."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import _thread
    import threading

    threading.Timer(0.05, _thread.interrupt_main).start()


def _let_the_first_speak() -> None:
    """As one of several ranks that speaks not, wait a while: torchrun ends the others as soon as one has failed."""
    import contextlib
    import time

    from profiles.speed.ranks import is_silent

    with contextlib.suppress(KeyboardInterrupt):
        if is_silent():
            time.sleep(_LONGEST_SPEECH)


def _settle(status: int) -> NoReturn:
    """Flush both streams, then leave; what could not be written and was not yet said to be is status 3."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 3
    if sys.gettrace() is not None or sys.flags.dev_mode or "coverage" in sys.modules:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - nothing is left to say
        sys.exit(status)
    _run_exit_functions()
    os._exit(status)


def _run_exit_functions() -> None:
    """Do what others registered for the end of the process, such as the log handlers."""
    import atexit
    import contextlib

    with contextlib.redirect_stdout(sys.stderr):  # the result is complete
        atexit._run_exitfuncs()
