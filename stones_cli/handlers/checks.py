"""`stones check-invariance`, `check-gradients` and `check-identities`: what the cards claim, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from layers.catalog import Stone
from profiles.checks.carriers import CARRIERS
from profiles.checks.cells import claiming, failures
from profiles.checks.gradients import GRADIENT_PROPERTIES
from profiles.checks.transformations import PROPERTIES
from profiles.errors import Refusal
from stones_cli import common, pictures
from stones_cli.commands import given, named
from stones_cli.failures import tell_of_broken
from stones_cli.handlers import import_torch, judged, naming
from stones_cli.progress import Bar
from stones_cli.report.emit import deliver
from stones_cli.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from profiles.checks.cells import Cell
    from profiles.target import Target

Row = TypeVar("Row", bound="Cell")
WHAT = "What is checked"
ONLY = "only this one (see --list); may be repeated"
Property = Annotated[
    list[str] | None,
    common.choice("--property", among=tuple(PROPERTIES), of="property", help=ONLY, panel=WHAT),
]
GradientProperty = Annotated[
    list[str] | None,
    common.choice("--property", among=tuple(GRADIENT_PROPERTIES), of="property", help=ONLY, panel=WHAT),
]
Carrier = Annotated[
    list[str] | None,
    common.choice("--carrier", among=tuple(CARRIERS), help="only behind this layer; may be repeated", panel=WHAT),
]
Published = Annotated[
    bool,
    common.flag(
        "--published", help="the table of “Layer Normalization” itself: bn, weight norm, ln, as printed", panel=WHAT
    ),
]
List = Annotated[bool, common.flag("--list", help="only say what the properties are", panel=WHAT)]
Verbose = Annotated[
    bool, common.flag("-v", "--verbose", help="show a counterexample for every “no”", panel=common.OUTPUT)
]
Plot = Annotated[Path | None, pictures.plot_option("draw the table there")]


def check_invariance(
    context: typer.Context,
    techniques: common.Names = None,
    property_: Property = None,
    carrier: Carrier = None,
    published: Published = False,
    list_: List = False,
    verbose: Verbose = False,
    plot: Plot = None,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Check what layers are invariant to.

    A layer stands behind a linear layer, a valid and a zero-padded convolution, or is one, when it has a weight of its
    own. Weight or data are transformed, and the output must change or stay as the card claims. A claim that is false
    fails, and so does an invariance that the card does not claim. Without techniques: all that claim something. Given
    an option, or for a class, nothing is expected.
    """
    where = common.destination(format_, json, output)
    if published and (named(context) or property_ or carrier):
        raise Refusal("--published is one fixed table: give no techniques, properties or carriers with it")

    common.foresee(expect, "properties" if list_ else "invariance")

    from stones_cli.report.invariance import definitions, matrix

    if list_:
        _refuse_plot(plot)
        return judged(deliver(definitions(PROPERTIES.values()), where, expect), where)
    pictures.check(plot)
    import_torch()

    from profiles.checks import invariance
    from profiles.pictures import invariance_plot

    if published:
        rows = invariance.published()
    else:
        cells = len(property_ or PROPERTIES) * len(carrier or CARRIERS)
        rows = _rows(context, invariance.check, cells, properties=property_ or None, carriers=carrier or None)
    pictures.write(plot, lambda form: invariance_plot.render(rows, form))
    return judged([*failures(rows), *deliver(matrix(rows, verbose=verbose), where, expect, keep=True)], where)


def check_gradients(
    context: typer.Context,
    techniques: common.Names = None,
    property_: GradientProperty = None,
    carrier: Carrier = None,
    list_: List = False,
    verbose: Verbose = False,
    plot: Plot = None,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Check the geometry of the gradients of weights.

    Where the output forgets the scale of the weight, the gradient is orthogonal to it, shrinks as it grows, and makes
    it grow; where it forgets a shift, the gradient sums to zero. What the claims of a card imply must hold, and nothing
    else; how Adam and weight decay break the growth is measured beside it. The weight is the technique's own or that of
    the layer before it. Without techniques: all that claim something. Given an option, or for a class, nothing is
    expected.
    """
    where = common.destination(format_, json, output)

    common.foresee(expect, "gradient-properties" if list_ else "gradients")

    from stones_cli.report.geometry import definitions, matrix

    if list_:
        _refuse_plot(plot)
        return judged(deliver(definitions(GRADIENT_PROPERTIES.values()), where, expect), where)
    pictures.check(plot)
    import_torch()

    from profiles.checks import geometry
    from profiles.pictures import invariance_plot

    cells = len(property_ or GRADIENT_PROPERTIES) * len(carrier or CARRIERS)
    rows = _rows(context, geometry.check, cells, properties=property_ or None, carriers=carrier or None)
    pictures.write(plot, lambda form: invariance_plot.render(rows, form, title=invariance_plot.GRADIENTS))
    return judged([*failures(rows), *deliver(matrix(rows, verbose=verbose), where, expect, keep=True)], where)


def _refuse_plot(plot: Path | None) -> None:
    if plot is not None:
        raise Refusal(f"--plot {plot}: --list measures nothing that could be drawn; give one of them")


def _rows(
    context: typer.Context, check: Callable[..., list[Row]], cells: int, **chosen: Sequence[str] | None
) -> list[Row]:
    """Return what ``check`` finds for the techniques named, or for all, ``cells`` for each line of the table."""
    from profiles.checks.chain import Conditions

    targets: Iterable[Target] = named(context) or claiming()
    if not named(context):
        tell_of_broken()
    options = given(context)
    lines = sum(len(t.card.claims) if isinstance(t, Stone) and not options else 1 for t in targets)
    rows: list[Row] = []
    with Bar() as bar:

        def note(row: Row) -> None:
            rows.append(row)
            bar.show(len(rows) / (cells * lines), f"{row.stone} {row.property} {row.carrier}")

        for target in targets:
            with naming(target, named(context)):
                check(target, Conditions(options) if options else None, progress=note, **chosen)
    return rows


def check_identities(
    context: typer.Context,
    techniques: common.Names = None,
    expect: common.Expect = None,
    format_: common.Format = None,
    json: common.Json = False,
    output: common.Output = None,
) -> Status:
    """Check equations between techniques, as GN(C) = IN.

    Both sides run in float64 with the same parameters and statistics; outputs and input gradients are compared.
    Without techniques: every identity on every card.
    """
    from profiles.checks import identities

    where = common.destination(format_, json, output)
    common.foresee(expect, "identities")
    stones = [identities.stated(target) for target in named(context)] or identities.stating()
    if not named(context):
        tell_of_broken()

    from stones_cli.report.identities import equations

    import_torch()
    total, done = sum(len(stone.card.identities) for stone in stones), 0
    with Bar() as bar:

        def note(row: identities.Row) -> None:
            nonlocal done
            done += 1
            bar.show(done / total, f"{row.stone}: {row.says}")

        rows = identities.check(stones, progress=note)
    return judged([*identities.failures(rows), *deliver(equations(rows), where, expect, keep=True)], where)
