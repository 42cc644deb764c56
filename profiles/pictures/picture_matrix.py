"""Sketches of where numbers come from: the matrix of patches beside its image, planes before and after, a reach."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from profiles.pictures.picture_sketch import EMPTY, PALE, Canvas, Sketch, colour

Panel = Mapping[str, Any]
MOST_WINDOWS = 9  # outlined on one image; of more the first, the middle and the last one
Shape = tuple[int, int, int, int]


def matrix_rows(panel: Panel) -> list[list[Sketch]]:
    """Return the image, its elements numbered, and the matrix, a colour per line that the product sums."""
    high, wide = _sides(panel)
    cells = panel["cells"]
    lines = {
        "columns": [cells[column::wide] for column in range(wide)],
        "rows": [cells[row * wide : (row + 1) * wide] for row in range(high)],
    }.get(panel["reduced"], [])
    windows = [sorted({cell - 1 for cell in line if cell}) for line in lines]
    return [[image(tuple(panel["source_shape"]), windows), _matrix(panel)]]


def _sides(panel: Panel) -> tuple[int, int]:
    """Return rows and columns of the matrix on paper."""
    return math.prod(panel["shape"][: panel["split"]]), math.prod(panel["shape"][panel["split"] :])


def image(shape: Sequence[int], windows: Sequence[Sequence[int]]) -> Sketch:
    """Return the planes of an input (N, C, H, W), elements numbered from 1, with outlines of rectangular windows."""
    n, c, h, w = shape
    step, left, top = h + 1.1, 0.3, 0.9
    few = len(windows) <= MOST_WINDOWS
    numbers = [*range(len(windows))] if few else [0, len(windows) // 2, len(windows) - 1]
    outlined = {number: _rectangle(windows[number], h, w) for number in numbers}

    def draw(canvas: Canvas) -> None:
        for plane in range(n * c):
            y = top + plane * step
            name = f"c = {plane % c}" if n == 1 else f"n = {plane // c}, c = {plane % c}"
            canvas.word(left + w / 2, y - 0.4, name, 9)
            for position in range(h * w):
                row, column = divmod(position, w)
                canvas.cell(left + column, y + row, PALE, str(plane * h * w + position + 1))
            for place, (number, found) in enumerate(outlined.items()):
                if found is not None:
                    inset = 0.06 + 0.03 * place
                    row, column, high, wide = found
                    size = wide - 2 * inset, high - 2 * inset
                    canvas.frame(left + column + inset, y + row + inset, *size, colour(number), 1.3)

    return Sketch("input, elements numbered", w + 0.6, top + n * c * step - 0.8, draw)


def _rectangle(window: Sequence[int], h: int, w: int) -> tuple[int, int, int, int] | None:
    """Return row, column, height and width of the positions of ``window``, or None where they fill no rectangle."""
    places = {member % (h * w) for member in window}
    if not places:
        return None
    rows, cols = {place // w for place in places}, {place % w for place in places}
    high, wide = max(rows) - min(rows) + 1, max(cols) - min(cols) + 1
    return (min(rows), min(cols), high, wide) if high * wide == len(places) else None


def _matrix(panel: Panel) -> Sketch:
    high, wide = _sides(panel)
    by_column = panel["reduced"] == "columns"
    left, top = 2.4, 1.3
    down, across = (
        f"{name} = {size}" if name else str(size) for name, size in zip(panel["sides"], (high, wide), strict=True)
    )

    def draw(canvas: Canvas) -> None:
        for place, cell in enumerate(panel["cells"]):
            row, column = divmod(place, wide)
            fill = colour(column if by_column else row) if cell and panel["reduced"] else EMPTY
            canvas.cell(left + column, top + row, fill, str(cell))
        said = f"{'' if panel['whole'] else 'in parts '}summed by the product"
        canvas.word(left + wide / 2, top - 0.9, across, 9)
        canvas.word(left - 1.9, top + high / 2, down, 9, turned=True)
        if by_column:
            canvas.span((left - 0.5, top), (left - 0.5, top + high))
            canvas.word(left - 1.1, top + high / 2, said, 9, turned=True)
        elif panel["reduced"]:
            canvas.span((left, top - 0.3), (left + wide, top - 0.3))
            canvas.word(left + wide / 2, top + high + 0.5, f"rows {said}", 9)

    return Sketch(
        f"{panel['target']}: which element stands where",
        left + wide + 0.3,
        top + high + (0.3 if by_column else 1.0),
        draw,
    )


def columns(sets: Sequence[Sequence[int]], title: str, note: str, counted: int = 1) -> Sketch:
    """Return a matrix whose columns are the members of ``sets``, counted from ``counted``, with a ``note`` below."""
    rows = [*itertools.zip_longest(*sets)]
    left, top = 1.2, 0.3

    def draw(canvas: Canvas) -> None:
        for row, members in enumerate(rows):
            for column, member in enumerate(members):
                if member is not None:
                    canvas.cell(left + column, top + row, colour(column), str(member + counted))
        canvas.span((left - 0.5, top), (left - 0.5, top + len(rows)))
        canvas.word(0.2, top + len(rows) + 0.6, note, 8.5, at="left")

    return Sketch(title, max(left + len(sets) + 0.3, 0.24 * len(note)), top + len(rows) + 1.2, draw)


def taps_rows(panels: Sequence[Panel]) -> list[list[Sketch]]:
    """Return the first plane of the input and, laid out as the kernel is, what each tap brings to the output."""
    _, _, h, w = panels[0]["source_shape"]
    tap = [panel["target"].partition(" ")[2].split(", ") for panel in panels]
    wide = 1 + max(int(column) for _, column in tap)
    moved = [
        _numbered(panel["target"], panel["shape"], panel["cells"], {cell: number for cell in panel["cells"] if cell})
        for number, panel in enumerate(panels)
    ]
    rows = [moved[start : start + wide] for start in range(0, len(moved), wide)]
    return [[image((1, 1, h, w), [])], *rows]


def rearrangement_rows(panel: Panel) -> list[list[Sketch]]:
    """Return the planes before beside the planes after: a colour per plane of the side with more, numbers the same."""
    source, target = ((shape[0] * shape[1], *shape[2:]) for shape in (panel["source_shape"], panel["shape"]))
    before = [*range(1, math.prod(panel["source_shape"]) + 1)]
    per_source, per_target = math.prod(source[1:]), math.prod(target[1:])
    if source[0] >= target[0]:
        plane = {number: (number - 1) // per_source for number in before}
    else:
        plane = {number: place // per_target for place, number in enumerate(panel["cells"])}
    name = {"z": "z, what the convolution gives"}.get(panel["source"], panel["source"])
    return [
        [
            _numbered(f"{name}: {_size(panel['source_shape'])}", panel["source_shape"], before, plane),
            _numbered(f"output: {_size(panel['shape'])}", panel["shape"], panel["cells"], plane),
        ]
    ]


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _numbered(title: str, shape: Sequence[int], cells: Sequence[int], plane: Mapping[int, int]) -> Sketch:
    """Return the planes of a tensor (N, C, H, W), up to four in a row, with the number and colour of each element."""
    n, c, h, w = shape
    across = min(n * c, 4 if w < 8 else 2)
    step_x, step_y, top = max(w + 0.7, 2.6 if n == 1 else 4.0), h + 1.3, 0.9

    def draw(canvas: Canvas) -> None:
        for index in range(n * c):
            x, y = (index % across) * step_x, top + (index // across) * step_y
            name = f"c = {index % c}" if n == 1 else f"n = {index // c}, c = {index % c}"
            canvas.word(x + w / 2, y - 0.4, name if n * c > 1 else "", 8.5)
            for position in range(h * w):
                row, column = divmod(position, w)
                number = cells[index * h * w + position]
                fill = colour(plane[number]) if number in plane else EMPTY
                canvas.cell(x + column, y + row, fill, str(number))

    rows = -(-n * c // across)
    return Sketch(title, across * step_x, top + rows * step_y - 0.9, draw)


def reach_rows(panels: Sequence[Panel]) -> list[list[Sketch]]:
    """Return one image per convolution: how often each position is reached; a cross where it is not, inside."""
    return [[_reach(panel) for panel in panels[start : start + 3]] for start in range(0, len(panels), 3)]


def _reach(panel: Panel) -> Sketch:
    high, wide = panel["shape"]
    counts = panel["counts"]
    most = max(counts)
    rows = [place // wide for place, count in enumerate(counts) if count]
    cols = [place % wide for place, count in enumerate(counts) if count]
    side = min(1.0, 14 / max(high, wide))

    def draw(canvas: Canvas) -> None:
        for place, count in enumerate(counts):
            row, column = divmod(place, wide)
            inside = min(rows) <= row <= max(rows) and min(cols) <= column <= max(cols)
            fill = _blue(count / most) if count else "#D55E00" if inside else EMPTY
            canvas.cell(side * column, side * row, fill, str(count) if count else "", side, side)
        size = side * (max(cols) - min(cols) + 1), side * (max(rows) - min(rows) + 1)
        canvas.frame(side * min(cols), side * min(rows), *size, "#000000")
        holes = (max(rows) - min(rows) + 1) * (max(cols) - min(cols) + 1) - len(rows)
        canvas.word(
            side * wide / 2, side * high + 0.6, f"{len(rows)} seen, {holes} holes" + (" (orange)" if holes else ""), 9
        )

    return Sketch(f"after {panel['target']}", side * wide, side * high + 1.2, draw)


def _blue(share: float) -> str:
    """Return a blue, pale for few ways and strong for many."""
    strength = 0.25 + 0.75 * share
    red, green, blue = (round(255 + (end - 255) * strength) for end in (0, 114, 178))
    return f"#{red:02x}{green:02x}{blue:02x}"
