"""Fit the formulas `executed` and `saved` of a card to what the stone does: ``python tests/fit.py bn [gn …]``.

Measures every option set among the card's examples (and the default) at several shapes, solves for integer coefficients
of E, N·C, N·G, N·S, C, G, N, 1 and those of convolutions (Q, O, I), and prints the formula, or says that no such
formula fits. To be copied to the card and merged over the options by hand; `stones inspect` and the tests then compare
it with the measurement for ever.
"""

from __future__ import annotations

import sys

import numpy as np

from layers import catalog
from layers.card import OptionError
from profiles.counting.facts import inspect
from profiles.subject import Setup, subject

SHAPES = [
    (4, 12, 5, 3), (8, 12, 4, 7), (4, 24, 3, 3), (12, 36, 2, 5), (8, 24, 6, 2), (16, 12, 3, 4),
    (4, 60, 2, 2), (4, 36, 7, 3), (12, 12, 4, 4), (8, 48, 3, 5), (20, 24, 2, 3), (4, 72, 2, 3),
]  # fmt: skip
BASIS = {
    "Q*O*I": lambda v: v.get("Q", 0) * v.get("O", 0) * v.get("I", 0), "Q*O": lambda v: v.get("Q", 0) * v.get("O", 0),
    "O*I": lambda v: v.get("O", 0) * v.get("I", 0), "O": lambda v: v.get("O", 0), "Q": lambda v: v.get("Q", 0),
    "E": lambda v: v["E"], "N*C": lambda v: v["N"] * v["C"], "N*G": lambda v: v["N"] * v.get("G", 0),
    "N*S": lambda v: v["N"] * v["S"], "C": lambda v: v["C"], "G": lambda v: v.get("G", 0),
    "N": lambda v: v["N"], "1": lambda v: 1,
}  # fmt: skip


def fit(rows, values):
    """Return the formula in the fewest terms that gives ``values`` exactly, or None."""
    names = [name for name in BASIS if any(BASIS[name](row) for row in rows)]
    for wanted in range(1, len(names) + 1):
        kept = names[:wanted]
        columns = np.array([[float(BASIS[name](row)) for name in kept] for row in rows])
        found = np.round(np.linalg.lstsq(columns, np.array(values, float), rcond=None)[0] * 4) / 4
        if np.array_equal(columns @ found, np.array(values, float)):
            terms = [(c, n) for c, n in zip(found, kept, strict=True) if c]
            return " + ".join(f"{c:g}" if n == "1" else n if c == 1 else f"{c:g}*{n}" for c, n in terms) or "0"
    return None


def measure(name, options, train):
    """Return rows of symbols and the measured numbers by name, over the shapes that the stone admits."""
    rows, numbers = [], {"forward": [], "backward": [], "saved": []}
    for shape in SHAPES:
        try:
            made = subject(catalog.stone(name), options, Setup(shape=shape, train=train))
        except OptionError:
            continue
        record = inspect(made, fvcore=False)
        rows.append(made.symbols)
        for part in ("forward", "backward"):
            numbers[part].append(record["flops"][part]["executed"] or 0)
        numbers["saved"].append(record["memory"]["saved"]["measured"])
    return rows, numbers


def main(names):
    """Print the fitted formulas of the stones called ``names``."""
    for name in names:
        card = catalog.stone(name).card
        option_sets = [{}, *card.examples] if not any(o.name == "groups" for o in card.options) else card.examples
        for options in [dict(t) for t in dict.fromkeys(tuple(o.items()) for o in option_sets)]:
            for train in (True, False):
                rows, numbers = measure(name, options, train)
                for part, values in numbers.items():
                    print(f"{name} {options} {'train' if train else 'eval'} {part}: {fit(rows, values)}")


if __name__ == "__main__":
    main(sys.argv[1:])
