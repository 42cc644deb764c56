"""`stones report`: techniques, claims and saved benches as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layers import catalog
from layers.catalog import KINDS
from profiles import atomic
from profiles.errors import Refusal
from stones_cli import common, parse
from stones_cli.commands import given, named
from stones_cli.failures import complain
from stones_cli.handlers import import_torch, judged, naming
from stones_cli.progress import Bar
from stones_cli.report.emit import emit
from stones_cli.status import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from profiles.reports.report import Benched, Findings
    from profiles.target import Target

CONTENT = "Content"


def _page_file(text: str | Path) -> Path:
    """Read the name of a page."""
    if text == "-":
        raise Refusal("a page goes to a file: name one that ends in .html")
    path = parse.output_file(text)
    if path.suffix.lower() != ".html":
        raise Refusal(f"{str(path)!r} must end in .html: the report is a page")
    return path


Kind = Annotated[
    str | None,
    common.choice(
        "--kind",
        among=KINDS,
        of="kind",
        help=f"every technique of it, instead of names: one of {', '.join(KINDS)}",
        panel=CONTENT,
    ),
]
Bench = Annotated[
    list[str] | None,
    common.option(
        "--bench",
        read=str,
        of="file.json",
        help="a result that `stones bench -o file.json` saved; may be repeated",
        panel=CONTENT,
    ),
]
Pictures = Annotated[
    bool,
    typer.Option("--pictures/--no-pictures", help="draw what `stones draw` draws", rich_help_panel=CONTENT),
]
Input = Annotated[
    parse.Shape | None,
    common.option(
        "-i",
        "--input",
        read=parse.shape,
        of="shape",
        help="sizes N x C x positions, of the weight for a technique on weights  [default: a usual one of each]",
        panel=common.SETUP,
    ),
]
Output = Annotated[
    Path | None,
    common.option(
        "-o",
        "--output",
        read=_page_file,
        of="file.html",
        help="the page, written whole or not at all; the same command writes the same bytes",
        panel=common.OUTPUT,
    ),
]
Json = Annotated[bool, common.flag("--json", help="print what came of it as JSON, not the page", panel=common.OUTPUT)]


def report(
    context: typer.Context,
    techniques: common.Names = None,
    kind: Kind = None,
    benches: Bench = None,
    pictures: Pictures = True,
    shape: Input = None,
    seed: common.Seed = 0,
    output: Output = None,
    json: Json = False,
) -> Status:
    """Write a page: costs, claims, pictures, benches.

    One HTML file that needs no network: a table of all techniques, what each computes, costs and keeps, a picture of
    it, the matrix of invariances, gradients and identities, all measured now, and benches that were saved. Without
    techniques: all of them; of a kind, those that refuse the options or the input are listed. Exit status 1 when a
    number is not as its card says or a claim fails; the page says so too. Needs Jinja2 and, for pictures, matplotlib:
    pip install 'dl-stones[report]'.
    """
    if output is None:
        raise Refusal("give -o file.html for the page")
    if kind is not None and named(context):
        raise Refusal(f"--kind {kind} names its techniques: give no names beside it")
    targets = list(dict.fromkeys(named(context))) or [
        stone for stone in catalog.stones().values() if kind in (None, stone.kind)
    ]
    sizes = None if shape is None else shape.sizes
    saved = _checked(context, targets, sizes, seed, benches or ())
    atomic.check_writable(output)
    _check_libraries(pictures or bool(saved))
    found = _gathered(context, targets, sizes, seed, pictures, saved)

    from stones_cli.report.page import html, told

    page = html(found).encode()
    atomic.write(output, page)
    emit(told(found, output, len(page)), common.Destination("json" if json else "table"))
    complain(str(output), "written")
    return judged(found.failed, common.Destination())


def _checked(
    context: typer.Context, targets: Sequence[Target], shape: tuple[int, ...] | None, seed: int, benches: Sequence[str]
) -> list[Benched]:
    """Refuse what is wrong with the options of the techniques named, and read the benches; without torch."""
    from profiles.reports.report import read_bench, subject_of
    from stones_cli.report.page import check_bench

    for target in targets if named(context) else ():
        with naming(target, named(context)):
            subject_of(target, given(context), shape, seed)
    saved = [read_bench(path) for path in dict.fromkeys(benches)]
    for each in saved:
        check_bench(each)
    return saved


def _check_libraries(drawn: bool) -> None:
    from profiles.pictures.figures import check_matplotlib
    from profiles.reports.report_page import check_jinja

    check_jinja()
    if drawn:
        check_matplotlib("report")


def _gathered(
    context: typer.Context,
    targets: Sequence[Target],
    shape: tuple[int, ...] | None,
    seed: int,
    pictures: bool,
    benches: Sequence[Benched],
) -> Findings:
    from profiles.reports.report import gather

    import_torch()
    with Bar() as bar:
        return gather(
            targets,
            given(context),
            shape=shape,
            seed=seed,
            pictures=pictures,
            benches=benches,
            skips=not named(context),
            progress=bar.show,
        )
