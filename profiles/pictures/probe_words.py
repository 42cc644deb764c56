"""What a picture shows, in a sentence made from the record of what was probed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Panel = Mapping[str, Any]
_PLURALS = {
    "N": "samples", "C": "channels", "L": "positions", "D": "planes", "H": "rows", "W": "columns",
    "O": "outputs", "I": "inputs", "KH": "kernel rows", "KW": "kernel columns",
}  # fmt: skip


def caption(record: Mapping[str, Any]) -> str:
    """Return one sentence for each panel, and how it was found."""
    words = {"sharing": _sharing, "origin": _origin, "reach": _reach, "sheet": _sheet, "path": _path}
    panels = record["panels"]
    said = [_taps(panels)] if record["picture"] == "taps" else [words[panel["kind"]](panel) for panel in panels]
    how = {
        "sharing": "Probed: each element was changed by itself, and what moved with it noted.",
        "origin": "Probed: the layer ran on numbered elements.",
        "reach": "Probed: the gradient of the output in the middle, all taps 1.",
        "sheet": "Probed: the operations ran on the original.",
        "path": "Probed: one run was followed operation by operation; then its sources were changed, one by one.",
    }
    return " ".join([*said, how[panels[0]["kind"]]])


def is_whole(panel: Panel) -> bool:
    """Tell whether every element of a sharing panel is made of the whole source."""
    return len(panel["sets"]) == 1 and len(panel["sets"][0]) == math.prod(panel["source_shape"])


def axes_of(panel: Panel) -> tuple[str, ...]:
    """Return the names of the axes of a panel's source."""
    rank = len(panel["source_shape"])
    if panel["source"] not in ("input", "z"):
        return ("O", "I", "KH", "KW")[:rank]
    return {2: ("N", "C"), 3: ("N", "C", "L"), 4: ("N", "C", "H", "W"), 5: ("N", "C", "D", "H", "W")}[rank]


def extents(panel: Panel, members: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """Return the indices on each axis whose product ``members`` are, or None where they are no product."""
    shape = panel["source_shape"]
    indices: list[set[int]] = [set() for _ in shape]
    for member in members:
        for axis in reversed(range(len(shape))):
            member, index = divmod(member, shape[axis])
            indices[axis].add(index)
    if math.prod(map(len, indices)) != len(members):
        return None
    return tuple(tuple(sorted(each)) for each in indices)


def _sharing(panel: Panel) -> str:
    """Say on how much of each axis a statistic depends."""
    sets, source = panel["sets"], "the input" if panel["source"] == "input" else panel["source"]
    name = f"{panel['target']} ({'×'.join(map(str, panel['shape'])) or 'scalar'})"
    subject = f"{name}: each element depends" if len(panel["of"]) > 1 else f"{name} depends"
    if is_whole(panel):
        return f"{subject} on all {len(sets[0])} elements of {source}."
    least, most = (choose(map(len, sets)) for choose in (min, max))
    found = f"{subject} on {least if least == most else f'{least} to {most}'} elements of {source}"
    blocks = {tuple(map(len, extents(panel, members) or ())) for members in sets}
    if len(blocks) == 1 and (block := blocks.pop()):
        sides = zip(block, panel["source_shape"], axes_of(panel), strict=True)
        found += ": " + ", ".join(_share(size, whole, _PLURALS[axis]) for size, whole, axis in sides if whole > 1)
    return found + ("." if panel["disjoint"] else "; the sets overlap.")


def _share(size: int, whole: int, axis: str) -> str:
    return f"all {whole} {axis}" if size == whole else f"{size} of {whole} {axis}"


def _origin(panel: Panel) -> str:
    cells, source = panel["cells"], {"input": "the input"}.get(panel["source"], "z, what the convolution gives")
    shape, other = ("×".join(map(str, sizes)) for sizes in (panel["shape"], panel["source_shape"]))
    if panel["target"] != "matrix":
        once = sorted(cells) == list(range(1, math.prod(panel["source_shape"]) + 1))
        return f"The output ({shape}) holds {'every' if once else 'not every'} number of {source} ({other}) once."
    used = [cell for cell in cells if cell]
    copies = len(used) / max(1, len(set(used)))
    found = f"The matrix ({shape}) holds {len(set(used))} elements of {source} ({other}), each "
    found += ("once" if copies == 1 else f"{copies:.3g} times on average") + (
        "; 0 is padding" if len(used) < len(cells) else ""
    )
    line = {"columns": "column", "rows": "row"}.get(panel["reduced"])
    return found + (
        f"; the product with the weights sums along {'' if panel['whole'] else 'parts of '}each {line}."
        if line
        else "."
    )


def _taps(panels: Sequence[Panel]) -> str:
    """Say how many pixels the taps move."""
    moved = [sum(cell > 0 for cell in panel["cells"]) for panel in panels]
    pixels = math.prod(panels[0]["source_shape"][2:])
    count = f"{min(moved)}" if len(set(moved)) == 1 else f"{min(moved)} to {max(moved)}"
    padded = any(cell == 0 for panel in panels for cell in panel["cells"])
    return f"Each output is the sum of {len(panels)} taps, of which each brings {count} of {pixels} pixels, moved" + (
        "; 0 is padding." if padded else "."
    )


def _reach(panel: Panel) -> str:
    counts = panel["counts"]
    seen = sum(count > 0 for count in counts)
    high, wide = panel["shape"]
    rows = [any(counts[row * wide : (row + 1) * wide]) for row in range(high)]
    columns = [any(counts[column::wide]) for column in range(wide)]
    field = (rows[::-1].index(True), rows.index(True), columns[::-1].index(True), columns.index(True))
    box = (high - field[0] - field[1]) * (wide - field[2] - field[3])
    holes = f"{box - seen} holes" if box > seen else "no holes"
    return f"After {panel['target']}: {seen} of {box} positions of the receptive field are seen, {holes}."


def tensors_of(step: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the tensors of a step of a path, and their shapes, each once."""
    shapes = ("×".join(map(str, tensor["shape"])) or "scalar" for tensor in step["tensors"])
    return [tensor["name"] for tensor in step["tensors"]], [*dict.fromkeys(shapes)]


def _path(panel: Panel) -> str:
    """Say step by step what is computed from what."""
    steps, said = panel["steps"], list[str]()
    for number, step in enumerate(steps):
        if step["kind"] not in ("statistic", "update", "output"):
            continue
        names, shapes = tensors_of(step)
        made = {"update": f"written: {few(names)}", "output": "the output"}.get(step["kind"], few(names))
        sources = [few(tensors_of(steps[i])[0]) + _ABOUT.get(steps[i]["kind"], "") for i in step["reads"]]
        unread = step["kind"] == "statistic" and not any(number in later["reads"] for later in steps)
        found = f"from {'; '.join(sources)}" if sources else "a constant"
        beside = ", read by nothing that follows" if unread else ""
        said.append(f"({len(said) + 1}) {made} ({', '.join(shapes)}), {found}{beside}")
    return ". ".join(said) + "."


_ABOUT = {"state": " before", "update": " as written"}


def few(names: Sequence[str], most: int = 4) -> str:
    """Return ``names``, of many the first and how many more there are."""
    few = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return ", ".join(few)


def _sheet(panel: Panel) -> str:
    """Say what the rows show, and of which picture."""
    image = panel["image"]
    size, before = (f"{width}×{height}" for width, height in (image["size"], image["file_size"]))
    shrunk = f", shrunk from {before}" if size != before else ""
    where = "computed" if image["source"] == "built in" else f"from a file in mode {image['mode']}"
    rows = (
        "every operation at indices of its magnitude, to the other side at negative ones"
        if panel["target"] == "operations"
        else f"draws of each of the {panel['target']}"
    )
    return f"The original ({size} pixels{shrunk}, {where}), then {rows}."
