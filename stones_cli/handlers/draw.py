"""`stones draw`: a picture of what a running layer does with its elements or an augmentation with a picture, and the
data of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiles.errors import Refusal
from profiles.pictures.figures import DPI
from profiles.subject import Subject
from profiles.target import Target
from stones_cli import common, parse, pictures
from stones_cli.commands import given, named
from stones_cli.failures import complain
from stones_cli.handlers import import_torch
from stones_cli.pictures import picture_file
from stones_cli.progress import Bar
from stones_cli.report.emit import emit
from stones_cli.report.tables import Prose, Report
from stones_cli.status import Status

if TYPE_CHECKING:
    from profiles.pictures.photo import Photo


def _image_file(text: str | Path) -> Path:
    """Read the name of a picture that is shown."""
    if not str(text).strip():
        raise Refusal("an empty name is no file")
    return Path(text)


Image = Annotated[
    Path | None,
    typer.Argument(
        parser=_image_file,
        metavar="IMAGE",
        help="a picture in a file, for augmentations: sides above 224 pixels are shrunk  [default: a built-in one]",
    ),
]
Input = Annotated[
    parse.Shape | None,
    common.option(
        "-i",
        "--input",
        read=parse.shape,
        of="shape",
        help="sizes N x C x positions, at most 1,024 elements  [default: a small one, such as 2x4x4x4]; of the "
        "built-in picture 1x3xHxW",
        panel=common.SETUP,
    ),
]
Train = Annotated[
    bool | None,
    typer.Option(
        "--train/--eval",
        help="mode of the layer  [default: train; eval for poolings]",
        show_default=False,
        rich_help_panel=common.SETUP,
    ),
]
Path_ = Annotated[
    bool,
    common.flag(
        "--path",
        help="instead: the data path, what statistics, state and output are computed from, in which order",
        panel=common.OUTPUT,
    ),
]
Output = Annotated[
    Path | None,
    common.option(
        "-o",
        "--output",
        read=picture_file,
        of="file.svg|file.png",
        help="the picture, written whole or not at all; the same command writes the same bytes",
        panel=common.OUTPUT,
    ),
]
Dpi = Annotated[
    int | None,
    common.option(
        "--dpi", read=parse.whole(20, 1200), of="integer", help="of a PNG  [default: 150]", panel=common.OUTPUT
    ),
]
Json = Annotated[
    bool, common.flag("--json", help="print the probed data, which the picture shows, as JSON", panel=common.OUTPUT)
]


def draw(
    context: typer.Context,
    technique: common.Name,
    image: Image = None,
    path: Path_ = False,
    shape: Input = None,
    train: Train = None,
    seed: common.Seed = 0,
    output: Output = None,
    dpi: Dpi = None,
    json: Json = False,
) -> Status:
    """Draw what a running layer does with its elements.

    Which share a statistic (normalizations, standardized weights), which stand where in the matrix of patches, where a
    rearrangement moves them, which bins and strips poolings take, how far dilated convolutions see; with --path what
    is computed from what. All of it is found by running the layer, nothing is read off its card. Of an augmentation, a
    contact sheet: IMAGE after each operation or, given --policy, after draws of its sub-policies. Needs matplotlib: pip
    install 'dl-stones[draw]'.
    """
    if output is None and not json:
        raise Refusal("give -o file.svg or -o file.png for the picture, or --json for its data alone")
    if dpi is not None and (output is None or output.suffix.lower() != ".png"):
        raise Refusal(f"--dpi {dpi} is for a PNG, -o file.png")
    from profiles.pictures import picture
    from profiles.pictures.probe import data_path, drawing

    target, options = named(context)[0], given(context)
    photo = _photo(target, image, shape) if image is not None else None
    sizes = (1, 3, *photo.pixels.shape[:2]) if photo else shape.sizes if shape else None
    chosen = drawing(target, options, sizes, train=train, seed=seed, path=path)
    pictures.check(output, "--output")
    import_torch()
    record, shown = (data_path(chosen), {}) if path else _probed(chosen, photo, policy="policy" in options)
    pictures.write(output, lambda form: picture.render(record, form, dpi or DPI, shown), "--output")
    told = Report(record, (Prose(record["title"], (record["caption"],)),), items="panels")
    emit(told, common.Destination("json" if json else "table"))
    if output is not None:
        complain(str(output), "written")
    return Status.DONE


def _photo(target: Target, image: Path, shape: parse.Shape | None) -> Photo:
    """Read the picture in a file, where one is wanted."""
    from profiles.pictures.probe import picture_of

    if picture_of(target) != "sheet":
        raise Refusal(
            f"IMAGE {str(image)!r} is for augmentations, which `stones list augment` names, not {target.name}"
        )
    if shape is not None:
        raise Refusal(f"--input {shape} is the size of the built-in picture, not of IMAGE {str(image)!r}: give one")
    from profiles.pictures import photo

    return photo.read(image)


def _probed(chosen: Subject, photo: Photo | None, *, policy: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record, found under a progress bar, and the pictures of a contact sheet by their digests."""
    from profiles.pictures.probe import picture_of, probe, sheet

    if picture_of(chosen.target) == "sheet":
        return sheet(chosen, photo, policy=policy)
    with Bar() as bar:
        return probe(chosen, lambda done: bar.show(done, f"changing the elements of {chosen.name}, one by one")), {}
