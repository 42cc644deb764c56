"""What a report is about, gathered: techniques inspected and drawn, their claims checked, benches that were saved.

Everything but the benches is measured here and now, on one thread; nothing is timed, so that the same call finds the
same. `stones_cli.report.page` makes a page of it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layers.card import OptionError, OptionValue
from layers.catalog import Stone
from profiles import inspecting, results
from profiles.checks import geometry, identities, invariance
from profiles.checks.cells import failures
from profiles.checks.chain import Conditions
from profiles.errors import Refusal, Unavailable, first_line
from profiles.pictures import picture
from profiles.pictures.probe import drawing, picture_of, probe, sheet
from profiles.reports import conforming
from profiles.reports.conforming import LONGEST
from profiles.skips import Skipped, Skips
from profiles.subject import Setup, Subject, subject
from profiles.target import Target, card_of
from profiles.threads import using_threads

SCHEMA = "stones.report/1"  # of what is said of a page that was written
_DRAWN = ((2, 12, 2, 2), (4, 12, 3, 4))  # inputs that the examples of cards fit
_DPI = 72  # of photographs in a page
Record = dict[str, Any]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Drawn:
    """A picture as an SVG file, and in words; or nothing, and why there is none."""

    svg: bytes = b""
    title: str = ""
    caption: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """One technique: the record of its inspection, None where that was refused for ``reason``, and its picture."""

    target: Target
    record: Record | None
    reason: str = ""
    drawn: Drawn = Drawn()

    @property
    def contradictions(self) -> list[str]:
        """One sentence for each number of the card that the measurement contradicts."""
        return inspecting.contradictions(self.record or {})


@dataclass(frozen=True)
class Benched:
    """A saved bench: where it was read, its record (schema stones.bench/1), and its plot as an SVG file."""

    path: str
    record: Record
    svg: bytes = b""


@dataclass(frozen=True)
class Checked:
    """The rows of all checks so far."""

    invariances: list[invariance.Row] = field(default_factory=list)
    gradients: list[geometry.Row] = field(default_factory=list)
    equations: list[identities.Row] = field(default_factory=list)

    def add(self, target: Target, options: Mapping[str, OptionValue]) -> None:
        """Check ``target``, with ``options`` without expectation; nothing for what claims nothing and is given none.

        Raises `Refusal` or OptionError as `profiles.checks.invariance.check` does, with the identities checked.
        """
        card = card_of(target)
        if isinstance(target, Stone) and target.card.identities:
            self.equations.extend(identities.check([target]))
        if card is None or (card.role == "layer" and (card.claims or options)):
            conditions = Conditions(options) if options else None
            self.invariances.extend(invariance.check(target, conditions))
            self.gradients.extend(geometry.check(target, conditions))


@dataclass(frozen=True)
class Findings:
    """All that a report tells; ``skipped`` is what was refused, with the reasons, ``versions`` what measured it."""

    entries: tuple[Entry, ...]
    checked: Checked
    benches: tuple[Benched, ...]
    skipped: tuple[Skipped, ...]
    versions: Mapping[str, str]

    @property
    def failed(self) -> list[str]:
        """One sentence for each number that is not as its card says and for each claim that is false."""
        return [
            *(f"{entry.target.name}: {sentence}" for entry in self.entries for sentence in entry.contradictions),
            *failures(self.checked.invariances),
            *failures(self.checked.gradients),
            *identities.failures(self.checked.equations),
        ]


def gather(
    targets: Sequence[Target],
    options: Mapping[str, OptionValue] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    pictures: bool = True,
    benches: Sequence[Benched] = (),
    skips: bool = True,
    progress: Progress | None = None,
) -> Findings:
    """Inspect, draw and check every target, with ``options``, on an input of ``shape`` (None: a usual one of each).

    With ``skips`` what is refused is left out and listed, as long as something is left; without, it raises `Refusal`,
    OptionError or `Unavailable` as an inspection does. Given options, claims are measured but nobody is held to them.
    """
    left_out, unchecked, entries = Skips(skips), Skips(wanted=True), list[Entry]()
    checked, plotted = Checked(), tuple(map(_plotted, benches))
    with using_threads(1):
        for number, target in enumerate(targets):
            if progress is not None:
                progress(number / len(targets), target.name)
            entry = _entry(target, options or {}, shape, seed, pictures, left_out)
            entries.append(entry)
            if entry.record is not None:
                with unchecked.leaving_out(f"claims of {target.name}"):
                    checked.add(target, options or {})
    left_out.check([entry for entry in entries if entry.record], "inspected")
    found = (*left_out.found, *unchecked.found)
    return Findings(tuple(entries), checked, plotted, found, versions())


def subject_of(target: Target, options: Mapping[str, OptionValue], shape: tuple[int, ...] | None, seed: int) -> Subject:
    """Return ``target`` as it is inspected for a report; raises as `profiles.subject.subject`, without torch."""
    return subject(target, options, Setup(shape or inspecting.usual_shape(target), seed=seed))


def _entry(
    target: Target,
    options: Mapping[str, OptionValue],
    shape: tuple[int, ...] | None,
    seed: int,
    pictures: bool,
    skips: Skips,
) -> Entry:
    with skips.leaving_out(target.name):
        record = inspecting.inspect(subject_of(target, options, shape, seed))
        return Entry(target, record, drawn=_drawn(target, options, seed) if pictures else Drawn())
    return Entry(target, None, skips.found[-1].reason)


def _drawn(target: Target, options: Mapping[str, OptionValue], seed: int) -> Drawn:
    """Draw ``target``; without options given, by those of the first example on its card that can be drawn."""
    if not picture_of(target):
        return Drawn()
    card, refused, is_sheet = card_of(target), "", picture_of(target) == "sheet"
    examples = () if options or card is None else card.examples
    for choice, shape in ((options, None), *((example, size) for example in examples for size in _DRAWN)):
        try:
            chosen = drawing(target, choice, shape, seed=seed)
            record, pixels = sheet(chosen, policy="policy" in options) if is_sheet else (probe(chosen), {})
        except (Refusal, OptionError, Unavailable) as error:
            refused = refused or str(error)
            continue
        return Drawn(picture.render(record, "svg", _DPI, pixels), record["title"], record["caption"])
    return Drawn(reason=refused)


def read_bench(path: str) -> Benched:
    """Return the bench saved at ``path``; raises `Refusal` for all else, in one line that begins with the path."""
    record = results.read(path)
    if record["schema"] != "stones.bench/1":
        raise Refusal(f"{path}: a {record['schema']}, not what stones bench writes, stones.bench/1")
    from profiles.schemas.measurements import BENCH

    if wrong := conforming.violation(record, BENCH):
        raise Refusal(f"{path}: not as stones bench writes it: {wrong}")
    return Benched(path, _printable(record))


def _printable(value: Any) -> Any:
    """Return ``value`` with every character that does not print as itself escaped: a picture may not hold it."""
    if isinstance(value, str):
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
    if isinstance(value, Mapping):
        return {_printable(name): _printable(inner) for name, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def _plotted(bench: Benched) -> Benched:
    from profiles.pictures.bench_plot import render

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numbers that no clock gives
            return Benched(bench.path, bench.record, render(bench.record, "svg") if bench.record["cases"] else b"")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise inconsistent(bench.path, error) from error


def inconsistent(path: str, error: Exception) -> Refusal:
    """Return the refusal of a bench at ``path`` that is as its schema says but of which ``error`` kept from telling."""
    said = first_line(error)[:LONGEST]
    why = f"it names {said}, which is not there" if isinstance(error, KeyError) else f"{type(error).__name__}: {said}"
    return Refusal(f"{path}: not as stones bench writes it: {why}")


def versions() -> dict[str, str]:
    """Return what measured the report and where, in words; nothing in it changes from one call to the next."""
    from importlib.metadata import PackageNotFoundError, version

    from profiles.environment import environment

    found = environment()
    said = {"Python": found["python"], "torch": found["torch"] or "unknown"}
    for name in ("fvcore", "matplotlib"):
        try:
            said[name] = version(name)
        except PackageNotFoundError:
            continue
    processor = re.sub(r"\s+", " ", found["cpu"] or "unknown")
    return {**said, "system": found["platform"], "processor": f"{processor}, {found['cores']} to run on"}
