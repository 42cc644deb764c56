"""The options that several commands share, each declared once, and the two ways to declare one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from profiles.errors import Refusal
from profiles.expect import Expectation
from profiles.expect import parse as expectation
from profiles.subject import DTYPES, MEMORY_FORMATS, Setup
from stones_cli import parse
from stones_cli.options import complete_names, offering

FORMATS = ("table", "json", "jsonl", "markdown", "csv", "github")
SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".md": "markdown", ".csv": "csv", ".txt": "table"}
SETUP, OUTPUT = "Setup", "Output"
SHAPE = parse.Shape((8, 64, 32, 32))
WEIGHT = parse.Shape((64, 64, 3, 3))
BATCH = parse.Shape((16, 3, 32, 32))
BENCH_WEIGHT = parse.Shape((512, 512, 3, 3))
BENCH_SHAPE = parse.Shape((32, 64, 56, 56))  # larger than caches: what a training step sees


def option(*flags: str, read: Callable[[str], Any], of: str, help: str, panel: str, words: Sequence[str] = ()) -> Any:
    """Declare an option whose value, shown as ``<of>``, goes through ``read``; the shell offers ``words``."""
    complete = offering(*words) if words else None
    return typer.Option(
        *flags, parser=read, metavar=f"<{of}>", help=help, rich_help_panel=panel, autocompletion=complete
    )


def choice(*flags: str, among: Sequence[str], help: str, panel: str, of: str = "") -> Any:
    """Declare an option that takes one of a few words."""
    return option(*flags, read=parse.one_of(*among), of=of or "|".join(among), help=help, panel=panel, words=among)


def flag(*flags: str, help: str, panel: str) -> Any:
    """Declare a flag that is off when it is not given."""
    return typer.Option(*flags, help=help, show_default=False, rich_help_panel=panel)


def _argument(help: str, complete: Any = None) -> Any:
    return typer.Argument(parser=str, metavar="TECHNIQUE", help=help, autocompletion=complete)


_FOREIGN = "pkg.mod:Class or file.py:Class (imported, so its code runs)"
Names = Annotated[list[str] | None, _argument(f"names from `stones list`, {_FOREIGN}", complete_names)]
Name = Annotated[str, _argument(f"a name from `stones list`, {_FOREIGN}", complete_names)]
StoneName = Annotated[str, _argument("a name from `stones list`", complete_names)]

Input = Annotated[
    parse.Shape,
    option(
        "-i",
        "--input",
        read=parse.shape,
        of="shape",
        help="sizes N x C x positions, 2 to 5 of them, with x, × or commas between; of the weight, O x …, for a "
        "technique on weights (64x64x3x3, in bench 512x512x3x3)",
        panel=SETUP,
    ),
]
Dtype = Annotated[str, choice("--dtype", among=tuple(DTYPES), help="of input and parameters", panel=SETUP)]
Device = Annotated[
    str,
    option(
        "--device", read=parse.device, of="cpu|cuda|cuda:N", help="where it runs", panel=SETUP, words=("cpu", "cuda")
    ),
]
MemoryFormat = Annotated[str, choice("--memory-format", among=MEMORY_FORMATS, help="of the input", panel=SETUP)]
Train = Annotated[bool, typer.Option("--train/--eval", help="mode of the layer", rich_help_panel=SETUP)]
Seed = Annotated[int, option("--seed", read=parse.whole(0), of="integer", help="of parameters and input", panel=SETUP)]

Format = Annotated[str | None, choice("--format", among=FORMATS, help="of the result  [default: table]", panel=OUTPUT)]
Json = Annotated[bool, flag("--json", help="short for --format json", panel=OUTPUT)]
Output = Annotated[
    Path | None,
    option(
        "-o",
        "--output",
        read=parse.output_file,
        of="file",
        help="write the result to this file too, whole or not at all, in the format of its suffix "
        f"({', '.join(SUFFIXES)}), else in that of --format",
        panel=OUTPUT,
    ),
]
Expect = Annotated[
    list[Expectation] | None,
    option(
        "--expect",
        read=expectation,
        of="key=value",
        help="fail unless this holds of the JSON result, such as params=128, stats.mean.shape=8x32, "
        "flops.forward<=4M; operators = != < <= > >=; may be repeated",
        panel=OUTPUT,
    ),
]


@dataclass(frozen=True)
class Destination:
    """Where a result goes: in ``format`` to standard output, and to ``file`` in the format of its suffix."""

    format: str = "table"
    file: Path | None = None

    @property
    def file_format(self) -> str:
        """The format of the file."""
        return SUFFIXES.get(self.file.suffix.lower(), self.format) if self.file is not None else self.format


def destination(format_: str | None, json: bool, file: Path | None) -> Destination:
    """Combine --format, --json and --output; raises `Unavailable` for a file that cannot be written."""
    if json and format_ not in (None, "json"):
        raise Refusal(f"--json and --format {format_} contradict each other; give one")
    if file is not None:
        from profiles.atomic import check_writable

        check_writable(file)
    return Destination("json" if json else format_ or "table", file)


def foresee(expect: list[Expectation] | None, *documents: str) -> None:
    """Raise `Refusal` for an expectation about what no document called one of ``documents`` has, before it is made."""
    if expect:
        from profiles.expect import foresee
        from profiles.schemas import schema

        foresee(expect, [schema(name) for name in documents])


def setup(shape: parse.Shape, dtype: str, device: str, memory_format: str, train: bool, seed: int) -> Setup:
    """Return the circumstances of a run; an impossible combination is refused when the subject is made."""
    return Setup(shape.sizes, dtype, device, memory_format, train, seed)
