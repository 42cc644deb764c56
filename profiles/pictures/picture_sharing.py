"""Sketches of which elements share a statistic: a cube and its planes, a weight as a matrix, bins on an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from profiles.pictures.picture_matrix import columns, image
from profiles.pictures.picture_sketch import EMPTY, Canvas, Point, Sketch, colour, shade, words
from profiles.pictures.probe_words import axes_of, extents, is_whole

Panel = Mapping[str, Any]
MOST_LINES = 8  # of a legend
MOST_OUTLINES = 49  # of bins on one image; of more only how many hold each position
_DEPTH: Point = (0.55, 0.42)  # one sample behind another, in cells


def sharing_rows(panels: Sequence[Panel], picture: str) -> list[list[Sketch]]:
    """Return the sketches of sharing panels, row by row; those that only say “everything” stand behind others."""
    on_images = picture != "windows" and any(map(_is_spatial, panels))
    telling = [panel for panel in panels if not is_whole(panel) or picture == "levels"] or panels[:1]
    rows: list[list[Sketch]] = []
    bins: list[Sketch] = []
    for panel in telling:
        if panel["source"] != "input":
            rows.append([_weight(panel), _legend(panel)])
        elif on_images and (_is_spatial(panel) or _is_of_whole_images(panel)):
            bins.append(_bins(panel))
        elif panel["disjoint"]:
            rows.append([_cube(panel), _planes(panel), _legend(panel)])
        else:
            rows.append(_members(panel))
    return [*_folded(bins), *rows]


def _folded(bins: list[Sketch], wide: int = 3) -> list[list[Sketch]]:
    return [bins[start : start + wide] for start in range(0, len(bins), wide)]


def _sizes(panel: Panel) -> tuple[int, int, int, int]:
    """Return N, C, H, W of the source: 1 for what it lacks, further axes folded into H."""
    n, c, *rest = panel["source_shape"]
    wide = rest[-1] if len(rest) > 1 else 1
    return n, c, math.prod(rest) // wide if rest else 1, wide


def _numbers(panel: Panel) -> dict[int, int]:
    """Return the set of each element of the source, for sets that are disjoint."""
    return {member: number for number, members in enumerate(panel["sets"]) for member in members}


def _shape(panel: Panel) -> str:
    return f"{panel['target']} ({'×'.join(map(str, panel['shape'])) or 'scalar'})"


def _legend(panel: Panel) -> Sketch:
    """Return which element of the statistic each number and colour is."""
    lines: list[tuple[str | None, str]] = []
    first = panel["target"].partition(",")[0]
    for number in range(min(len(panel["sets"]), MOST_LINES)):
        place = panel["of"].index(number)
        index: list[int] = []
        for size in reversed(panel["shape"]):
            place, at = divmod(place, size)
            index.insert(0, at)
        also = panel["of"].count(number) - 1
        lines.append((colour(number), f"{number}: {first}{index or ''}" + (f" and {also} more" if also else "")))
    if len(panel["sets"]) > MOST_LINES:
        lines.append((None, f"… {len(panel['sets'])} sets in all; colours repeat"))
    return words(lines)


def _cube(panel: Panel) -> Sketch:
    """Return the cube N × C × positions from its front: sample 0 in front, position 0 on top."""
    n, c, h, w = _sizes(panel)
    positions, number = h * w, _numbers(panel)
    tall = min(1.0, 8 / positions)
    behind, above = _DEPTH[0] * n, _DEPTH[1] * n
    high, left, top = tall * positions, 1.2, above + 0.3

    def fill(sample: int, channel: int, position: int) -> str:
        element = (sample * c + channel) * positions + position
        return colour(number[element]) if element in number else EMPTY

    def draw(canvas: Canvas) -> None:
        for channel in range(c):
            x = left + channel
            for position in range(positions):
                y = top + tall * position
                canvas.face([(x, y), (x + 1, y), (x + 1, y + tall), (x, y + tall)], fill(0, channel, position))
        for sample in range(n):
            near, far = ((_DEPTH[0] * s, _DEPTH[1] * s) for s in (sample, sample + 1))
            for channel in range(c):
                x = left + channel
                corners = [(x + near[0], top - near[1]), (x + 1 + near[0], top - near[1])]
                corners += [(x + 1 + far[0], top - far[1]), (x + far[0], top - far[1])]
                canvas.face(corners, fill(sample, channel, 0))
            for position in range(positions):
                y, x = top + tall * position, left + c
                corners = [(x + near[0], y - near[1]), (x + far[0], y - far[1])]
                corners += [(x + far[0], y + tall - far[1]), (x + near[0], y + tall - near[1])]
                canvas.face(corners, fill(sample, c - 1, position))
        axes = axes_of(panel)
        canvas.word(left + c / 2, top + high + 0.6, f"C = {c}", 9)
        canvas.word(left + c + behind / 2 + 0.25, top + high - above / 2 + 0.35, f"N = {n}", 9, at="left")
        spatial = ", ".join(axes[2:]) or "one position"
        canvas.word(left - 0.6, top + high / 2, f"{spatial} = {positions}", 9, turned=True)

    return Sketch(f"{panel['target']}: the cube from outside", left + c + behind + 1.9, top + high + 1.0, draw)


def _planes(panel: Panel) -> Sketch:
    """Return all planes, a row per sample and a column per channel, with the number of the set in each element."""
    n, c, h, w = _sizes(panel)
    number = _numbers(panel)
    side = 0.75 if h * w > 1 else 1.0
    step_x, step_y = side * w + 0.45, side * h + 0.45
    left, top = 1.9, 0.9

    def draw(canvas: Canvas) -> None:
        for sample in range(n):
            canvas.word(left - 0.3, top + sample * step_y + side * h / 2, f"n = {sample}", 9, at="right")
        for channel in range(c):
            canvas.word(left + channel * step_x + side * w / 2, top - 0.45, f"c = {channel}", 9)
        for plane in range(n * c):
            sample, channel = divmod(plane, c)
            x, y = left + channel * step_x, top + sample * step_y
            for position in range(h * w):
                row, column = divmod(position, w)
                here = number.get(plane * h * w + position)
                text, fill = ("", EMPTY) if here is None else (str(here), colour(here))
                canvas.cell(x + side * column, y + side * row, fill, text, side, side)

    count = len(panel["sets"])
    title = f"every element: the number of its set, {count} set{'s' if count > 1 else ''}"
    return Sketch(title, left + c * step_x, top + n * step_y, draw)


def _weight(panel: Panel) -> Sketch:
    """Return a weight as its matrix O × I, the kernels of its channels apart by lines, and what is reduced."""
    outputs, *rest = panel["source_shape"]
    inputs, kernel = math.prod(rest), math.prod(rest[1:])
    number, left, top = _numbers(panel), 1.6, 1.6
    lengths = {len(members) for members in panel["sets"]}
    by_row = lengths == {inputs}

    def draw(canvas: Canvas) -> None:
        for element in range(outputs * inputs):
            row, column = divmod(element, inputs)
            here = number.get(element)
            text, fill = ("", EMPTY) if here is None else (str(here), colour(here))
            canvas.cell(left + column, top + row, fill, text)
        for channel in range(rest[0] if rest else 1):
            canvas.frame(left + channel * kernel, top, kernel, outputs, "#000000", 1.4)
            canvas.word(left + (channel + 0.5) * kernel, top - 0.45, f"input {channel}", 8.5)
        canvas.word(left - 0.6, top + outputs / 2, f"O = {outputs}", 9, turned=True)
        taps = "×".join(map(str, rest))
        said = f"I = {taps} = {inputs}" + (f", reduced by {panel['target']}" if by_row else "")
        canvas.span((left, top + outputs + 0.4), (left + inputs, top + outputs + 0.4))
        canvas.word(left + inputs / 2, top + outputs + 0.95, said, 9)

    return Sketch(
        f"{panel['source']} as O × I: the set of each element", left + inputs + 0.2, top + outputs + 1.4, draw
    )


def _spatial_sets(panel: Panel) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Return the different sets of rows and columns that the sets cover, or None where one is no product."""
    if len(panel["source_shape"]) != 4 or panel["source"] != "input":
        return None
    found = [extents(panel, members) for members in panel["sets"]]
    if any(each is None for each in found):
        return None
    return [*dict.fromkeys((each[2], each[3]) for each in found if each is not None)]


def _is_spatial(panel: Panel) -> bool:
    """Tell whether the sets are bins of positions: several on one image, of more than one position each."""
    found = _spatial_sets(panel)
    return found is not None and len(found) > 1 and any(len(down) * len(across) > 1 for down, across in found)


def _is_of_whole_images(panel: Panel) -> bool:
    """Tell whether each set covers all positions: the one bin of a grid of one."""
    return panel["disjoint"] and len(_spatial_sets(panel) or ()) == 1


def _bins(panel: Panel) -> Sketch:
    """Return the bins on one plane: by colour where they are disjoint, else outlined, with how many hold each."""
    bins = _spatial_sets(panel) or []
    _, _, h, w = _sizes(panel)
    left, top = 0.2, 0.2
    holding: dict[int, list[int]] = {
        position: [
            number for number, (down, across) in enumerate(bins) if position // w in down and position % w in across
        ]
        for position in range(h * w)
    }
    most = max(map(len, holding.values()))

    def draw(canvas: Canvas) -> None:
        for position, numbers in holding.items():
            row, column = divmod(position, w)
            if most == 1:
                text, fill = (str(numbers[0]), colour(numbers[0])) if numbers else ("", EMPTY)
            else:
                text, fill = str(len(numbers)), shade((len(numbers) - 1) / max(1, most - 1)) if numbers else EMPTY
            canvas.cell(left + column, top + row, fill, text)
        for number, (down, across) in enumerate(bins if most > 1 and len(bins) <= MOST_OUTLINES else []):
            inset = 0.08 + 0.1 * (number % 3)
            size = across[-1] - across[0] + 1 - 2 * inset, down[-1] - down[0] + 1 - 2 * inset
            canvas.frame(left + across[0] + inset, top + down[0] + inset, *size, colour(number))
        inside = "number: its bin" if most == 1 else "number: bins that hold it"
        canvas.word(left, top + h + 0.6, f"{h}×{w} positions; {inside}", 8.5, at="left")

    title = f"{_shape(panel)}: {len(bins)} bin{'s' if len(bins) > 1 else ''}"
    return Sketch(title, max(w + 0.4, 9.5), h + 1.2, draw)


def _members(panel: Panel) -> list[Sketch]:
    """Return the sets as the columns of a matrix, beside the image where they are windows on it."""
    n, c, h, w = _sizes(panel)
    planes = [_whole_planes(members, h * w) for members in panel["sets"]]
    of = f"each column: what one of {panel['target']} depends on"
    if all(planes):
        title = f"{_shape(panel)}: planes, counted n·{c} + c"
        return [columns([each or () for each in planes], title, of, counted=0), _legend(panel)]
    listed = columns(panel["sets"], f"{_shape(panel)}: the elements of each set", of)
    return [image((n, c, h, w), panel["sets"]), listed, _legend(panel)]


def _whole_planes(members: Sequence[int], positions: int) -> tuple[int, ...] | None:
    """Return the planes that ``members`` are all elements of, or None where one is not whole."""
    planes = tuple(dict.fromkeys(member // positions for member in members))
    return planes if len(planes) * positions == len(members) else None
