"""From the content of a page to one HTML file that needs nothing else: no network, no other file, no script to be read.

The content is plain: sections of tables, paragraphs and pictures, as the template ``templates/report.html.j2`` walks
through them. All text is escaped; only pictures, which `Inlined` wrote, are markup. Needs Jinja2, the extra ``report``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from profiles.errors import Unavailable, first_line

if TYPE_CHECKING:
    from profiles.reports.report_svg import Inlined


@dataclass(frozen=True)
class Cell:
    """One cell: its words, ``mark`` (a class of the style sheet), the place on the page that it leads to, and what it
    is sorted by where that is not its words.
    """

    text: str
    mark: str = ""
    to: str = ""
    key: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table; ``numeric`` says which columns hold numbers. One that is ``sortable`` can be filtered too."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    sortable: bool = False


@dataclass(frozen=True)
class Block:
    """What stands under a heading (none: an empty title): paragraphs, lines as they are, a table, a picture."""

    title: str = ""
    lines: Sequence[str] = ()
    fixed: bool = False
    grid: Grid | None = None
    picture: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page under ``anchor``; ``about`` stands under its heading, ``links`` are (words, https address).

    ``name`` stands for a long title among the contents.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    about: str = ""
    links: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    name: str = ""


@dataclass(frozen=True)
class Page:
    """The whole: ``facts`` are (name, value), ``summary`` the sentence that says what came out, ``ok`` whether well."""

    title: str
    summary: str
    ok: bool
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def check_jinja() -> None:
    """Raise `Unavailable` unless Jinja2, the extra ``report``, can be imported."""
    try:
        import jinja2  # noqa: F401
    except Exception as error:
        raise Unavailable(
            f"a report needs Jinja2, which cannot be imported ({first_line(error)}): pip install 'dl-stones[report]'"
        ) from error


def render(page: Page, pictures: Inlined) -> str:
    """Return ``page`` as HTML; ``pictures`` is what its pictures were added to. Raises `Unavailable` without Jinja2."""
    check_jinja()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("profiles.reports", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["words"] = _words
    return made.get_template("report.html.j2").render(page=page, styles=pictures.styles, glyphs=pictures.glyphs) + "\n"


def _words(line: str) -> str:
    """Return a line escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = line.split("`")
    if len(parts) % 2 == 0:
        return escape(line)
    return Markup("").join(Markup("<code>{}</code>").format(p) if at % 2 else p for at, p in enumerate(parts))
