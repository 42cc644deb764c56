"""How a measurement is refused: the two exceptions that the command line turns into exit status 2 and 3."""

from __future__ import annotations

LONGEST = 300  # characters of what somebody else's exception says


class Refusal(ValueError):
    """Wrong use or input (exit status 2). The message names the option, the value and the remedy in one line."""


class Unavailable(RuntimeError):
    """The environment lacks what was asked for: a device, memory, a module (exit status 3)."""


def first_line(error: BaseException) -> str:
    """Return the first line of what ``error`` says, or its type where it says nothing; endless lines are cut."""
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception:  # a class of the user's whose own __str__ fails
        said = ""
    return (said if len(said) <= LONGEST else said[:LONGEST] + "…") or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is how Python or torch, by a RuntimeError, say that memory is exhausted."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in first_line(error)
    )


def counted(number: int, noun: str) -> str:
    """Return ``number`` and ``noun``, which takes an s where there are several."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_article(noun: str) -> str:
    """Return ``noun`` after its indefinite article, for a sentence."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
