"""The command line as a whole: its commands and what stands before them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import stones_cli
from stones_cli.commands import Command, Root
from stones_cli.handlers.bench import bench
from stones_cli.handlers.cards import list_, show
from stones_cli.handlers.checks import check_gradients, check_identities, check_invariance
from stones_cli.handlers.diff import Diff, diff
from stones_cli.handlers.doctor import doctor
from stones_cli.handlers.draw import draw
from stones_cli.handlers.inspect import inspect
from stones_cli.handlers.race import race
from stones_cli.handlers.report import report
from stones_cli.handlers.run import run
from stones_cli.handlers.schema import schema

app = typer.Typer(
    cls=Root,
    name="stones",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list", cls=Command)(list_)
app.command("show", cls=Command)(show)
app.command("inspect", cls=Command)(inspect)
app.command("bench", cls=Command)(bench)
app.command("diff", cls=Diff)(diff)
app.command("doctor", cls=Command)(doctor)
app.command("draw", cls=Command)(draw)
app.command("race", cls=Command)(race)
app.command("check-invariance", cls=Command)(check_invariance)
app.command("check-gradients", cls=Command)(check_gradients)
app.command("check-identities", cls=Command)(check_identities)
app.command("report", cls=Command)(report)
app.command("run", cls=Command)(run)
app.command("schema", cls=Command)(schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"stones {stones_cli.__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True, show_default=False
        ),
    ] = False,
) -> None:
    """Deep-learning layers: what they compute, what they cost, what they are invariant to, how fast they run."""
