"""The sketch of a data path: a box for each step, down a stair in the order of the run, wires from what a step reads.

A wire leaves a box to its right and goes down into every later box that reads it, where the dot is; others it crosses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from profiles.pictures.figures import INK, label
from profiles.pictures.path_steps import INPUT, OUTPUT, PARAMETER, STATE, STATISTIC, UPDATE
from profiles.pictures.picture_sketch import PALE, Canvas, Sketch, words
from profiles.pictures.probe_words import few, tensors_of

Panel = Mapping[str, Any]
FILLS = {
    INPUT: PALE,
    PARAMETER: "#F5E9A8",
    STATE: "#F3C98B",
    STATISTIC: "#9CC8E4",
    UPDATE: "#E08A4B",
    OUTPUT: PALE,
}
_SAID = {
    STATISTIC: "a statistic, computed here",
    STATE: "state as it was before, read",
    UPDATE: "state, written",
    PARAMETER: "a parameter",
    INPUT: "input and output",
}
_WORDS = {STATE: "before", UPDATE: "written", PARAMETER: "parameter"}
_DOWN, _TALL, _STAIR, _LETTER, _SIZE = 2.0, 1.5, 0.3, 0.27, 9.0  # cells; a stair in widths of a box; points


def path_rows(panel: Panel) -> list[list[Sketch]]:
    """Return the sketches of a panel of kind path: the stair, and which colour is what."""
    kinds = {step["kind"] for step in panel["steps"]}
    legend = words([(FILLS[kind], said) for kind, said in _SAID.items() if kind in kinds])
    return [[_stair(panel["steps"])], [legend]]


def _lines(step: Mapping[str, Any]) -> tuple[str, str]:
    """Return what stands in the box of ``step``: names, and shapes with what sort of tensor it is."""
    names, shapes = tensors_of(step)
    about = [_WORDS[step["kind"]]] if step["kind"] in _WORDS else []
    return label(few(names), 60), "; ".join([label(few(shapes), 30), *about])


def _stair(steps: Sequence[Mapping[str, Any]]) -> Sketch:
    """Return the boxes with the wires between them; what is computed is numbered."""
    texts = [_lines(step) for step in steps]
    wide = max(5.0, 1.0 + _LETTER * max(len(line) for lines in texts for line in lines))
    places = [(0.8 + _STAIR * wide * number, 0.2 + _DOWN * number) for number in range(len(steps))]

    def enters(number: int) -> float:
        return places[number][0] + 0.85 * wide

    def draw(canvas: Canvas) -> None:
        computed = 0
        for number, (step, (name, shape)) in enumerate(zip(steps, texts, strict=True)):
            x, y = places[number]
            canvas.cell(x, y, FILLS[step["kind"]], width=wide, height=_TALL)
            canvas.frame(x, y, wide, _TALL, INK, 0.8)
            canvas.word(x + wide / 2, y + 0.48, name, _SIZE)
            canvas.word(x + wide / 2, y + 1.08, shape, _SIZE)
            if step["kind"] in (STATISTIC, UPDATE, OUTPUT):
                computed += 1
                canvas.word(x - 0.2, y + _TALL / 2, str(computed), _SIZE, at="right")
        for number in range(len(steps)):
            readers = [other for other, step in enumerate(steps) if number in step["reads"]]
            if readers:
                height = places[number][1] + _TALL / 2
                canvas.wire([(places[number][0] + wide, height), (enters(readers[-1]), height)])
            for reader in readers:
                canvas.dot(enters(reader), places[number][1] + _TALL / 2)
        for number, step in enumerate(steps):
            if step["reads"]:
                x = enters(number)
                canvas.arrow((x, places[step["reads"][0]][1] + _TALL / 2), (x, places[number][1]))

    return Sketch("in the order of the run", places[-1][0] + wide + 0.2, places[-1][1] + _TALL + 0.2, draw)
