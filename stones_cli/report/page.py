"""`stones report`: what `profiles.reports.report` gathered as the content of a page, and the few lines on the terminal.

The tables are those of the other commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import stones_cli
from layers.catalog import Stone
from profiles.checks.gradients import GRADIENT_PROPERTIES
from profiles.checks.transformations import PROPERTIES
from profiles.reports.report import SCHEMA, Benched, Entry, Findings, inconsistent
from profiles.reports.report_page import Block, Cell, Grid, Page, Section, render
from profiles.reports.report_svg import Inlined
from profiles.target import card_of
from stones_cli.report import bench, cards, geometry, identities, inspection, invariance
from stones_cli.report.augmentation import augmentation
from stones_cli.report.overview import COLUMNS, row
from stones_cli.report.tables import Drawing, Part, Prose, Report, Table, text_of
from stones_cli.report.transformation import transformation
from stones_cli.visible import one_line

READING = (
    "Every technique is a card: formulas of what it computes, costs and keeps, and claims of what it is invariant to. "
    "“card” is what such a formula comes to on the input named, “measured” is what was counted while the technique "
    "ran; the verdict is ok where the two are equal, else FAILED. FLOPs by definition are those of the textbook, "
    "“executed” those that this implementation runs.",
    "In the matrices yes and no are found by transforming weights or data and comparing outputs, with the largest "
    "relative change; FAILED marks what is not as the card claims. In parentheses nothing was claimed.",
    f"Symbols of layers: {cards.SYMBOLS} Of what works on weights: {cards.WEIGHT_SYMBOLS}",
    "Nothing but saved benches is timed: the same command makes the same page. With JavaScript, tables with arrows can "
    "be sorted and filtered; nothing else needs it.",
)
_REPLACED = {"Operations", "Costs", "Formulas of the card"}  # by one table of costs with their formulas
_TOLD = {"", "Picture", "Options", "Paper"}  # elsewhere in a section
_MEASURED = {"Statistics and buffers", "State"}  # where anything is


def html(found: Findings) -> str:
    """Return the page as one HTML file; raises `Unavailable` without Jinja2."""
    pictures = Inlined()
    anchors = _anchors(entry.target.name for entry in found.entries)
    sections = [
        Section("reading", "How to read it", (Block(lines=READING),)),
        _overview(found, anchors),
        *_skipped(found),
        Section(
            "techniques",
            "Techniques",
            (),
            sections=[_technique(entry, anchors, pictures) for entry in found.entries],
        ),
        *_checks(found, anchors),
        *(_bench(number, each, pictures) for number, each in enumerate(found.benches, 1)),
    ]
    failed = found.failed
    summary = (
        f"{len(failed)} of the measured values and claims FAILED: {'; '.join(failed[:5])}{'; …' * (len(failed) > 5)}"
        if failed
        else "ok: every measured value is as its card says, and every claim holds."
    )
    facts = {"stones": stones_cli.__version__, **found.versions}
    page = Page("Techniques, measured", one_line(summary), not failed, list(facts.items()), sections)
    return render(page, pictures)


def _anchors(names: Iterable[str]) -> dict[str, str]:
    """Return an id for each name, no two alike."""
    found: dict[str, str] = {}
    for name in names:
        wanted = "of-" + re.sub(r"[^A-Za-z0-9]+", "-", name)
        found[name] = wanted if wanted not in found.values() else f"{wanted}-{len(found)}"
    return found


def _overview(found: Findings, anchors: Mapping[str, str]) -> Section:
    rows = Table("", COLUMNS, tuple(row(entry) for entry in found.entries))
    about = f"{len(found.entries)} techniques, each on its usual input or the one that was asked for."
    return Section("overview", "Overview", (Block(grid=_grid(rows, anchors, sortable=True)),), about)


def _skipped(found: Findings) -> Iterator[Section]:
    if found.skipped:
        lines = [one_line(str(skipped)) for skipped in found.skipped]
        yield Section("skipped", "Left out", (Block(lines=lines),), "What was refused, and why.")


def _technique(entry: Entry, anchors: Mapping[str, str], pictures: Inlined) -> Section:
    """Return the section of one technique: what its card says, its picture, what was measured."""
    target, card = entry.target, card_of(entry.target)
    told = cards.page(target).parts if isinstance(target, Stone) else ()
    head = told[0].lines if told and isinstance(told[0], Prose) else ()
    blocks = [Block(lines=head[:1], fixed=True), Block(lines=head[2:])] if head else []
    blocks += _picture(entry, told, pictures)
    blocks += _blocks(part for part in told[1:] if part.title == "Options")
    blocks += [Block("Left out", (one_line(entry.reason),))] if entry.record is None else _blocks(_measured(entry))
    blocks += _blocks(_claimed(entry, told[1:]))
    title = f"{target.name}: {card.title}" if card else target.name
    links = []
    if card and card.paper.arxiv:
        links = [(str(card.paper), f"https://arxiv.org/abs/{card.paper.arxiv}")]
    elif card:
        blocks.append(Block("Paper", (str(card.paper),)))
    about = card.summary if card else "A class outside the catalogue: it has no card."
    return Section(anchors[target.name], one_line(title), blocks, about, links, name=one_line(target.name))


def _picture(entry: Entry, told: Sequence[Part], pictures: Inlined) -> list[Block]:
    """Return what was drawn; or what the card draws in characters; or why there is nothing."""
    drawn = entry.drawn
    if drawn.svg:
        return [Block("Picture", picture=pictures.add(drawn.svg, drawn.title, drawn.caption))]
    sketch = [Block("Picture", part.lines, fixed=True) for part in told if isinstance(part, Drawing)]
    return sketch or ([Block("Picture", (f"None: {one_line(drawn.reason)}",))] if drawn.reason else [])


def _measured(entry: Entry) -> Iterator[Part]:
    """Yield the parts of the inspection, without its title and with the costs and their formulas in one table."""
    record: Mapping[str, Any] = entry.record or {}
    reports = {"stones.transform/1": transformation, "stones.augmentation/1": augmentation}
    heading, *parts = reports.get(record["schema"], inspection.inspection)(record).parts
    if isinstance(heading, Prose):
        yield Prose("Measured", heading.lines[1:])
    yield from _costs(entry)
    yield from (part for part in parts if part.title not in (_REPLACED if _costs(entry) else ()))


def _claimed(entry: Entry, told: Sequence[Part]) -> Iterator[Part]:
    """Yield what else the card says; of its formulas those that are no costs, all where nothing was measured."""
    shown = {str(row[1]) for part in _costs(entry) for row in part.rows}
    for part in told:
        if isinstance(part, Table) and part.title == "Formulas":
            rows = tuple(row for row in part.rows if row[1] not in shown)
            yield Table("Conditions" if shown else part.title, part.columns, rows)
        elif part.title not in _TOLD and (part.title not in _MEASURED or not shown):
            yield part


def _costs(entry: Entry) -> list[Table]:
    """Return the costs of a layer, or of a step on a weight, that was measured; none of anything else."""
    record = entry.record or {}
    return [inspection.costs(record)] if record.get("schema") == "stones.inspect/1" else []


def _checks(found: Findings, anchors: Mapping[str, str]) -> Iterator[Section]:
    """Yield the matrices and the identities, as far as there are any."""
    if found.checked.invariances:
        parts = invariance.matrix(found.checked.invariances, verbose=False).parts
        defined = invariance.definitions(PROPERTIES.values()).parts
        yield _matrix("invariances", "Invariances", parts, defined, anchors)
    if found.checked.gradients:
        parts = geometry.matrix(found.checked.gradients, verbose=False).parts
        defined = geometry.definitions(GRADIENT_PROPERTIES.values()).parts
        yield _matrix("gradients", "Gradients of weights", parts, defined, anchors)
    if found.checked.equations:
        (rows,) = identities.equations(found.checked.equations).parts
        assert isinstance(rows, Table)
        yield Section("identities", "Identities", (Block(grid=_grid(rows, anchors, sortable=True)),))


def _matrix(
    anchor: str, title: str, parts: Sequence[Part], defined: Sequence[Part], anchors: Mapping[str, str]
) -> Section:
    blocks = [*_blocks(parts[1:])]  # the legend, counterexamples
    blocks += [
        Block(grid=_grid(part, anchors, sortable=True)) for part in parts[:1] if isinstance(part, Table) and part.rows
    ]
    blocks += [Block("What the properties are", grid=_grid(part)) for part in defined if isinstance(part, Table)]
    return Section(anchor, title, blocks)


def check_bench(benched: Benched) -> None:
    """Raise `Refusal` for a bench of whose numbers no tables can be made."""
    try:
        bench.report(benched.record)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise inconsistent(benched.path, error) from error


def _bench(number: int, benched: Benched, pictures: Inlined) -> Section:
    """Return the section of a saved bench: its plot and the tables of `stones bench`."""
    blocks = []
    if benched.svg:
        said = "What the bench measured; the tables below have the numbers."
        blocks.append(Block("Plot", picture=pictures.add(benched.svg, "Times of the bench", said)))
    blocks += _blocks(bench.report(benched.record).parts)
    return Section(f"bench-{number}", f"Bench: {one_line(benched.path)}", blocks)


def _blocks(parts: Iterable[Part]) -> Iterator[Block]:
    """Yield the parts of a report as blocks of a page, without tables that are empty."""
    for part in parts:
        if not isinstance(part, Table):
            lines = [one_line(line) for line in part.lines]
            yield Block(one_line(part.title), lines, fixed=isinstance(part, Drawing))
        elif part.rows:
            yield Block(one_line(part.title), grid=_grid(part))


def _grid(part: Table, anchors: Mapping[str, str] | None = None, *, sortable: bool = False) -> Grid:
    """Return a table for the page; names in its first column lead to the technique of ``anchors``."""
    marks = _VERDICTS | _FOUND if sortable else _VERDICTS
    rows = [[_cell(value, marks) for value in row] for row in part.rows]
    for cells in rows if anchors else ():
        cells[0] = replace(cells[0], to=(anchors or {}).get(cells[0].text, ""))
    return Grid([one_line(name) for name in part.columns], rows, part.numeric, sortable)


_VERDICTS = {"FAILED": "f", "failed": "f", "fail": "f", "ok": "y", "pass": "y"}  # the first word, and its class
_FOUND = {"yes": "y", "no": "n"}


def _cell(value: Any, marks: Mapping[str, str]) -> Cell:
    text = text_of(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(text, marks.get(text.split(" ", 1)[0].rstrip(":"), ""), key=value if number else None)


def told(found: Findings, file: Path, size: int) -> Report:
    """Return what is said on the terminal of a page of ``size`` bytes that was written to ``file``."""
    failed, skipped = found.failed, [{"name": each.name, "reason": each.reason} for each in found.skipped]
    record = {
        "schema": SCHEMA,
        "file": str(file),
        "bytes": size,
        "techniques": len(found.entries),
        "benches": len(found.benches),
        "failed": failed,
        "skipped": skipped,
        "ok": not failed,
    }
    counts = {"techniques": found.entries, "saved benches": found.benches, "failed": failed, "left out": skipped}
    sums = ", ".join(f"{words} {len(what)}" for words, what in counts.items())
    parts: list[Part] = [Prose("", (f"{sums}; {size:,} bytes",))]
    if skipped:
        parts.append(Prose("Left out", tuple(map(str, found.skipped))))
    return Report(record, tuple(parts), items="failed")
