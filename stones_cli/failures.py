"""From an exception to an exit status and its message on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container

from layers import catalog
from layers.card import OptionError
from layers.catalog import UnknownStone
from layers.formula import FormulaError
from profiles.errors import Refusal, Unavailable, first_line, is_out_of_memory
from stones_cli.status import Status
from stones_cli.visible import visible


def complain(message: str, kind: str = "error") -> None:
    """Write one message to standard error; a full or closed standard error is nobody's to hear about."""
    try:
        sys.stderr.write(f"{kind}: {visible(message)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def tell_of_broken(*names: str) -> None:
    """Warn of every plug-in called one of ``names`` (any) that clashes or is broken."""
    for each in catalog.broken():
        if not names or each.name in names:
            complain(str(each), "warning")


def status_of(run: Callable[[], object]) -> Status:
    """Call ``run`` and return the status it returns (or `Status.DONE`); exceptions become a message and a status."""
    try:
        result = run()
    except KeyboardInterrupt:
        result = Status.INTERRUPTED
    except (OptionError, UnknownStone, Refusal, FormulaError) as error:
        complain(str(error))
        return Status.MISUSE
    except Unavailable as error:
        complain(str(error))
        return Status.ENVIRONMENT
    except OSError as error:
        complain(_of_the_system(error))
        return Status.ENVIRONMENT
    except (MemoryError, ImportError) as error:
        complain(str(error) or "out of memory")
        return Status.ENVIRONMENT
    except Exception as error:
        return _unexpected(error)
    if result == Status.INTERRUPTED:
        complain("interrupted", "note")
    return Status(result) if isinstance(result, int) else Status.DONE


def _of_the_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _unexpected(error: Exception) -> Status:
    """Tell an exhausted memory, which torch reports as RuntimeError, from a bug; a bug shows its traceback."""
    if is_out_of_memory(error):
        complain(f"out of memory: {first_line(error)}")
        return Status.ENVIRONMENT
    import traceback

    whose = _culprit({frame.filename for frame in traceback.extract_tb(error.__traceback__)})
    told = f"this is a bug in {whose}, please report it"
    complain("".join(traceback.format_exception(error)) + told, "internal error")
    return Status.INTERNAL


def _culprit(files: Container[str]) -> str:
    """Return the plug-in whose file is among those that a traceback goes through, or stones."""
    for stone in catalog.stones().values():
        if stone.origin and str(stone.path) in files:
            return f"the plug-in {stone.name} of {stone.origin}"
    return "stones"
