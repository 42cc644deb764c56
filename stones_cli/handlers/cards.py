"""`stones list` and `stones show`: from the cards alone, without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from layers import catalog
from layers.catalog import Stone
from stones_cli import common, parse
from stones_cli.failures import complain, tell_of_broken
from stones_cli.handlers import judged
from stones_cli.report.emit import deliver
from stones_cli.status import Status

FILTER = "Filter"


Words = Annotated[
    list[str] | None,
    typer.Argument(parser=str, metavar="WORD", help="words that name, title, summary or authors contain, all"),
]
Kind = Annotated[
    str | None,
    common.choice("--kind", among=catalog.KINDS, of="kind", help=f"one of {', '.join(catalog.KINDS)}", panel=FILTER),
]
Year = Annotated[
    int | None, common.option("--year", read=parse.whole(0), of="year", help="published then", panel=FILTER)
]
Since = Annotated[
    int | None, common.option("--since", read=parse.whole(0), of="year", help="published then or later", panel=FILTER)
]


def list_(
    words: Words = None,
    kind: Kind = None,
    year: Year = None,
    since: Since = None,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """List the techniques: name, kind, title, paper, year.

    Plug-ins that are installed are among them, with their origin; of one that is broken, or whose name another has, a
    warning says why it is not. STONES_NO_PLUGINS=1 turns plug-ins off.
    """
    where = common.destination(format_, json, output)

    def wanted(stone: Stone) -> bool:
        paper = stone.card.paper
        text = " ".join((stone.name, stone.card.title, stone.card.summary, paper.authors, paper.title)).casefold()
        return (
            kind in (None, stone.kind)
            and year in (None, paper.year)
            and (since is None or paper.year >= since)
            and all(word.casefold() in text for word in words or ())
        )

    from stones_cli.report.cards import listing

    found = [stone for stone in catalog.stones().values() if wanted(stone)]
    failed = deliver(listing(found), where, expect)
    if not found:
        complain("no technique matches", "note")
    tell_of_broken()
    return judged(failed, where)


def show(
    name: common.StoneName,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Show a technique's formulas, options and invariances.

    Everything that its card says: also the statistics, the costs as formulas, why the invariances hold, identities with
    other techniques, what notes and papers got wrong, and the paper.
    """
    stone = catalog.stone(name)
    tell_of_broken(stone.name)
    where = common.destination(format_, json, output)

    from stones_cli.report.cards import page

    return judged(deliver(page(stone), where, expect), where)
