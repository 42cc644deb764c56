"""Pictures that commands write: the option that names the file, what is checked before work, the writing at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiles import atomic
from profiles.errors import Refusal
from profiles.pictures import figures
from stones_cli import common, parse

PLOT = "--plot"


def picture_file(text: str | Path) -> Path:
    """Read the name of a picture, whose suffix says what is written."""
    if text == "-":
        raise Refusal("a picture goes to a file: name one that ends in .svg or .png")
    path = parse.output_file(text)
    if form_of(path) not in figures.FORMATS:
        raise Refusal(f"{str(path)!r} must end in .svg or .png, which says what is written")
    return path


def plot_option(help: str) -> Any:
    """Declare ``--plot``, of a command whose result is a table and that draws it too."""
    said = f"{help} (needs matplotlib)"
    return common.option(PLOT, read=picture_file, of="file.svg|file.png", help=said, panel=common.OUTPUT)


def check(path: Path | None, option: str = PLOT) -> None:
    """Raise `Unavailable` when a picture could not be made or not be written to ``path``; call before long work."""
    if path is not None:
        atomic.check_writable(path, option)
        figures.check_matplotlib()


def write(path: Path | None, render: Callable[[str], bytes], option: str = PLOT) -> None:
    """Write what ``render`` returns for svg or png, whole or not at all; nothing without a ``path``."""
    if path is not None:
        atomic.write(path, render(form_of(path)), option)


def form_of(path: Path) -> str:
    """Return what the suffix of ``path`` says: svg, png, or something else."""
    return path.suffix.lower().removeprefix(".")
