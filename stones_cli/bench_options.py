"""The options of `stones bench`, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layers.catalog import KINDS
from profiles.speed.sweep import Sweep
from profiles.subject import DTYPES, MEMORY_FORMATS, MOST_TENSORS
from profiles.threads import MOST_THREADS
from stones_cli import common, parse, pictures
from stones_cli.options import complete_names

TIMING, GATES = "Timing", "Gates"
FLOAT32, CONTIGUOUS = parse.Several(["float32"]), parse.Several(["contiguous"])

Kind = Annotated[
    str | None,
    common.choice(
        "--kind",
        among=KINDS,
        of="kind",
        help=f"every technique of it that can be timed, instead of names: one of {', '.join(KINDS)}",
        panel=TIMING,
    ),
]
Vs = Annotated[
    list[str] | None,
    typer.Option(
        parser=str,
        metavar="<name>",
        autocompletion=complete_names,
        help="a reference: copy, peer (torch's layer, the default), a technique, one with options (svb:method=svd), "
        "pkg.mod:Class; may be repeated",
        rich_help_panel=TIMING,
    ),
]
Forward = Annotated[bool, common.flag("--forward", help="time the forward (the default)", panel=TIMING)]
Backward = Annotated[bool, common.flag("--backward", help="time the backward alone", panel=TIMING)]
Both = Annotated[bool, common.flag("--both", help="time forward + backward", panel=TIMING)]
Profile = Annotated[
    str | None,
    common.option(
        "--profile",
        read=str,
        of="name|file.yaml",
        help="what to measure, built in (quick, speed, gpu) or from a file; techniques then choose among it",
        panel=TIMING,
        words=("quick", "speed", "gpu"),
    ),
]
Rounds = Annotated[
    int | None, common.option("--rounds", read=parse.whole(1), of="integer", help="at most so many", panel=TIMING)
]
Budget = Annotated[
    float | None, common.option("--budget", read=parse.positive, of="seconds", help="for each case", panel=TIMING)
]
Threads = Annotated[
    parse.Several | None,
    common.option(
        "--threads",
        read=parse.several(parse.whole(1, MOST_THREADS)),
        of="integer,…",
        help="of torch; each of several in turn  [default: 1]",
        panel=TIMING,
    ),
]
Dtypes = Annotated[
    parse.Several,
    common.option(
        "--dtype",
        read=parse.several(parse.one_of(*DTYPES)),
        of=f"{'|'.join(DTYPES)},…",
        help="of input and parameters; each of several in turn",
        panel=common.SETUP,
        words=tuple(DTYPES),
    ),
]
MemoryFormats = Annotated[
    parse.Several,
    common.option(
        "--memory-format",
        read=parse.several(parse.one_of(*MEMORY_FORMATS)),
        of=f"{'|'.join(MEMORY_FORMATS)},…",
        help="of the input; each of several in turn",
        panel=common.SETUP,
        words=MEMORY_FORMATS,
    ),
]
Tensors = Annotated[
    int,
    common.option(
        "--tensors",
        read=parse.whole(1, MOST_TENSORS),
        of="integer",
        help="parameters of an optimizer, each of the shape of --input",
        panel=common.SETUP,
    ),
]
SweepOver = Annotated[
    Sweep | None,
    common.option(
        "--sweep",
        read=parse.sweep,
        of="axis=value,…",
        help="how the cost grows: sets N, C, H, W or HW (all positions) of the input (O, I, H, W of a weight), or an "
        "option, to each value in turn, as in N=1,8,64",
        panel=TIMING,
    ),
]
Compile = Annotated[
    bool,
    common.flag("--compile", help="time the layers under torch.compile; what it takes is told apart", panel=TIMING),
]
CudaGraph = Annotated[
    bool,
    common.flag("--cuda-graph", help="replay the calls from CUDA graphs: launches are not timed", panel=TIMING),
]
NoRoofline = Annotated[
    bool, common.flag("--no-roofline", help="do not measure the ceilings of the machine", panel=TIMING)
]
MaxRatio = Annotated[
    float | None,
    common.option(
        "--max-ratio",
        read=parse.positive,
        of="number",
        help="fail when a technique takes longer than this multiple of its reference",
        panel=GATES,
    ),
]
FailInconclusive = Annotated[
    bool,
    common.flag(
        "--fail-inconclusive", help="exit with status 4 when the noise does not let a gate be judged", panel=GATES
    ),
]
Plot = Annotated[Path | None, pictures.plot_option("draw ratios and samples there, of a sweep times")]
