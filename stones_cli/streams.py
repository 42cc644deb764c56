"""Standard output belongs to the result: what code of the user prints while a command runs goes to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

from profiles.errors import Refusal, first_line

_results: list[TextIO] = []


def result_stream() -> TextIO:
    """Return where the result goes: standard output, also while it is kept for that."""
    return _results[-1] if _results else sys.stdout


@contextlib.contextmanager
def kept_for_the_result() -> Iterator[None]:
    """Run a block in which code of the user can neither print into the result nor end the process.

    Raises `Refusal` where it tries to end it: an exit status of its choice would look like ours.
    """
    _results.append(sys.stdout)
    try:
        with contextlib.redirect_stderr(sys.stderr), contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Refusal(f"the code named here ended the run: {type(error).__name__}: {first_line(error)}") from error
    finally:
        _results.pop()
