"""The matrices of the convolution algorithms in text, drawn from the running stones: ``python tests/pictured.py``.

The image has 2 channels, 3 × 4, its elements lettered a … l and A … L; the kernel is 2 × 2, so there are 2 × 3 outputs.
What the stone observes for an image of numbers tells which element stands where. Printed to be copied to the card;
a test compares the two for ever.
"""

from __future__ import annotations

import string
import sys

import torch

from layers import catalog
from layers.observe import observing

LETTERS = "·" + string.ascii_lowercase[:12] + string.ascii_uppercase[:12]
IMAGE = ["c = 0  " + " ".join("abcd"), "       " + " ".join("efgh"), "       " + " ".join("ijkl"),
         "c = 1  " + " ".join("ABCD"), "       " + " ".join("EFGH"), "       " + " ".join("IJKL")]  # fmt: skip
OUTPUTS = [(u, v) for u in range(2) for v in range(3)]
TAPS = [(i, j) for i in range(2) for j in range(2)]


def observed(name: str, statistic: str = "matrix", **options) -> torch.Tensor:
    """What the stone shows of its workspace for the numbered image."""
    x = torch.arange(1.0, 25, dtype=torch.float64).view(1, 2, 3, 4)
    layer = catalog.stone(name).load()(2, 1, 2, bias=False, dtype=torch.float64, **options)
    with torch.no_grad(), observing() as seen:
        layer(x)
    return seen[statistic]


def grid(rows, head: str, columns, cells, names=LETTERS) -> list[str]:
    """Rows and columns under their labels, a letter, or another of ``names``, per cell."""
    width = max(len(label) for label in (*columns, "x")) + 1
    margin = max(len(label) for label in (*rows, head)) + 1
    lines = [head.ljust(margin) + "".join(label.rjust(width) for label in columns)]
    for label, row in zip(rows, cells, strict=True):
        lines.append(label.ljust(margin) + "".join(names[int(value)].rjust(width) for value in row))
    return lines


def beside(left: list[str], right: list[str]) -> list[str]:
    """Two drawings side by side."""
    width = max(map(len, left)) + 5
    height = max(len(left), len(right))
    pairs = zip(left + [""] * (height - len(left)), right + [""] * (height - len(right)), strict=True)
    return [(one.ljust(width) + other).rstrip() for one, other in pairs]


def im2col() -> list[str]:
    rows = [f"{c} {i}{j}" for c in range(2) for i, j in TAPS]
    matrix = grid(rows, "c ij", [f"{u}{v}" for u, v in OUTPUTS], observed("im2col").view(8, 6).tolist())
    return [
        *beside(["x, C×H×W = 2×3×4", *IMAGE], ["x_col, C·KH·KW × HO·WO = 8×6, uv the outputs", *matrix]),
        "",
        "The product with W (O × 8) sums over the rows ↓: y is O × HO·WO, channels-first.",
        "Along a row, in memory too, lie neighbouring outputs; each COLUMN is one patch.",
    ]


def im2row() -> list[str]:
    columns = [f"{i}{j}{c}" for i, j in TAPS for c in range(2)]
    rows = [f"{u}{v}" for u, v in OUTPUTS]
    matrix = grid(rows, "uv ijc", columns, observed("im2row").tolist())
    return [
        *beside(["x, C×H×W = 2×3×4", *IMAGE], ["HO·WO × KH·KW·C = 6×8, ij the kernel's elements", *matrix]),
        "",
        "Each ROW is one patch, its channels side by side as they lie in an NHWC image.",
        "Times Wᵀ (8 × O) it sums along the rows →: y is N·HO·WO × O, channels-last.",
    ]


def mec() -> list[str]:
    lowered = observed("mec").view(3, 3, 4)
    columns = [f"{h}{j}{c}" for h in range(3) for j in range(2) for c in range(2)]
    matrix = grid([f"{v}" for v in range(3)], "v hjc", columns, lowered.flatten(1).tolist())
    return [
        *beside(["x, C×H×W = 2×3×4", *IMAGE], ["L, WO × HP·KW·C = 3×12: a strip of the image per row", *matrix]),
        "",
        "Output row u = 0 takes the columns 000 … 111 times Wᵀ, u = 1 those from 100 on:",
        "the panels overlap, so that the rows of a window are stored once, not KH times.",
    ]


def indirect_conv() -> list[str]:
    pixels = [low + high for low, high in zip(LETTERS[1:13], LETTERS[13:], strict=True)]
    table = observed("indirect-conv", "indirection").tolist()
    matrix = grid([f"{i}{j}" for i, j in TAPS], "ij uv", [f"{u}{v}" for u, v in OUTPUTS], table, pixels)
    return [
        *beside(["x, C×H×W = 2×3×4", *IMAGE], ["indirection, KH·KW × HO·WO = 4×6: where a pixel's row lies", *matrix]),
        "",
        "Each entry is one index, whatever C: the channels there are read, not copied.",
        "A column times the filters, tap by tap, is one output; padding points to zeros.",
    ]


PICTURES = {"im2col": im2col, "im2row": im2row, "indirect-conv": indirect_conv, "mec": mec}


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        print(f"{name}:", *(f'        "{line}",' for line in PICTURES[name]()), sep="\n")
