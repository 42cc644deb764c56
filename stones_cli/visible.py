"""Text from users and files made harmless: what would move a cursor or reorder a line is shown as its escape."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""Return ``text`` with every character that does not print as itself escaped, ``\x1b``; newlines are kept.

    Control, bidirectional, zero-width and surrogate characters are such, also spaces that only look like a space.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)


def one_line(text: str) -> str:
    r"""Return `visible` text with newlines escaped too, ``\n``."""
    return visible(text).replace("\n", "\\n")


def _escape(char: str) -> str:
    return ascii(char)[1:-1]
