"""How a measurement is refused: the two exceptions that the command line turns into exit status 2 and 3."""

from __future__ import annotations


class Refusal(ValueError):
    """Wrong use or input (exit status 2). The message names the option, the value and the remedy in one line."""


class Unavailable(RuntimeError):
    """The environment lacks what was asked for: a device, memory, a module (exit status 3)."""
