"""What every picture shares: matplotlib's settings while it is made, its bytes, its colours, words that are only words.

Needs matplotlib, the optional extra ``draw``; no pyplot, no window, no state that is left behind.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import Refusal, Unavailable, first_line

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
DPI = 150  # of a PNG
# Okabe and Ito's colours, which people with any colour vision tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
INK = "#222222"
LONGEST = 40  # characters of a name
_SETTINGS: Any = {
    "svg.hashsalt": "stones",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a name with two dollars in it is no formula
}


def check_matplotlib(extra: str = "draw") -> None:
    """Raise `Unavailable`, naming the ``extra`` that brings it, unless matplotlib can be imported."""
    try:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of its cache directory
        if not _has_home():
            os.environ.setdefault("MPLCONFIGDIR", os.devnull)  # it would create the home, and takes a temporary folder
        import matplotlib.figure  # noqa: F401
    except Exception as error:
        raise Unavailable(
            "a picture needs matplotlib, which cannot be imported "
            f"({first_line(error)}): pip install 'dl-stones[{extra}]'"
        ) from error


def _has_home() -> bool:
    with suppress(RuntimeError):  # nothing says where it is
        return Path.home().is_dir()
    return False


@contextmanager
def drawing() -> Iterator[None]:
    """Make and save figures inside the block: matplotlib's own defaults, whatever the user's, and our few settings.

    Characters that the font lacks become boxes, in silence.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def rendered(
    figure: Callable[[], Figure],
    form: str = "svg",
    dpi: int = DPI,
    creator: str = "stones",
    said: Mapping[str, str] | None = None,
) -> bytes:
    """Return what ``figure`` makes as a file of ``form``, svg or png of ``dpi`` per inch: always the same bytes.

    ``creator`` and what is ``said`` (Title, Description) stand in the file. Raises `Refusal` for another form,
    `Unavailable` without matplotlib.
    """
    if form not in FORMATS:
        raise Refusal(f"{form!r} is not one of {', '.join(FORMATS)}")
    check_matplotlib()
    about = {"Date": None, "Creator": creator} if form == "svg" else {"Software": creator}
    file = io.BytesIO()
    with drawing():
        figure().savefig(file, format=form, dpi=dpi, metadata={**about, **(said or {})})
    return file.getvalue()


def label(text: str, longest: int = LONGEST) -> str:
    """Return a name fit for a picture: nothing in it that does not print as itself, its middle left out if long."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    if len(shown) <= longest:
        return shown
    end = longest // 3
    return f"{shown[: longest - end - 1]}…{shown[-end:]}"


def plain_numbers(axis: Axis) -> None:
    """Let an axis write its numbers as one reads them, 0.1, 1, 10, and on a short logarithmic one 0.2, 0.5 too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        axis.set_minor_formatter(NullFormatter())
        if high < 4 * low:
            axis.set_major_locator(MaxNLocator(5))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=12))
