"""The Markdown of docs/performance.md, from what `performance` measured."""

from __future__ import annotations

from performance_cases import DIRECTIONS, VARIANTS, options_of, wanted

from layers import catalog

# Steps of the authors' own code on one thread, as multiples of what stands beside, measured with torch 2.13 on another
# machine; sources: the repositories named in the stones' docstrings.
AUTHORS = {
    ("adax", "1 × 10M"): 3.9,
    ("adax", "200 × 50k"): 2.1,
    ("adaxw", "1 × 10M"): 7.7,
    ("adaxw", "200 × 50k"): 2.6,
    ("adabound", "1 × 10M"): 2.05,
    ("adabound", "200 × 50k"): 0.59,
    ("amsbound", "1 × 10M"): 2.4,
    ("amsbound", "200 × 50k"): 0.74,
    ("lars", "1 × 10M"): 0.52,
    ("lars", "200 × 50k"): 0.41,
}
HEAD = """\
Written by `make bench`, or in several goes by `python tests/performance.py NAME… --merge`, on {cpu}, {cores} cores, \
torch {torch}, Python {python}; at least {seconds:g} s for each number. Each number is the median of paired rounds: \
the stone and what stands beside it ran in turns, in one process. ÷ is the time divided by that of what stands \
beside it, below 1 is faster; where there is nothing, c: multiples of a copy of the input. The floor is the fewest \
bytes that the forward must move, by the card. Of roofline: the least time by the measured ceilings of this machine, \
divided by the time taken, and what bounds it; those ceilings are of copies, reads and products of matrices, and an \
update in place, or a convolution by fewer operations than are counted, may be faster. Training, float32, \
contiguous, one thread, eager, unless a column says otherwise; the compiled column compares with the compiled \
reference. – was refused.

Plain torch is what one would write, tests/otherwise.py and otherwise_norms.py, and gives the same outputs. ÷ plain: \
the forward divided by that of plain torch where something else stands beside; * by the figure of the authors' code, \
timed on another machine."""
SLOWER = 1.05
PYTHON = "On tiny maps a call costs some microseconds of Python more than torch's: checks, the choice of a way."
HALVES = "Half types keep γ, β and the statistics in float32."
SHIFTED = (
    "On channels_last torch computes E[x²] − E[x]²: its result is looked at, and made again of shifted data where the "
    "mean is far above the spread."
)
COMPILED = "Compiled, it takes about as long as plain torch."
PRODUCT = (
    "The matrix of patches is built and read again, where torch's convolution (oneDNN) makes the product from the "
    "input at once; on this processor the bare product takes about as long as all of that convolution."
)
TAPS = (
    "Half types are multiplied and added up in float32, for the output and for ∂L/∂x, where torch's convolution of "
    "half types takes half the time of its own in float32."
)
PRODUCTS = (
    "There is a product for every image or tap, which on tiny maps has few columns and reads its filters again, and "
    f"the products are added up in passes of their own; torch's convolution (oneDNN) is one product. {TAPS}"
)
# Why a stone is slower somewhere, where its card does not say so.
WHY = {
    "bn": f"{PYTHON} {HALVES} On channels_last the mean that torch's kernel "
    "found is looked at, and data far from zero are shifted and normalized again.",
    "gn": f"{PYTHON} {HALVES} {SHIFTED}",
    "ln": f"{PYTHON} {HALVES} {SHIFTED}",
    "in": "On channels_last torch's backward has contiguous data, since its forward copied them: forward and backward "
    "together are faster here.",
    **dict.fromkeys(("actnorm", "mean-only-bn", "pixel-norm"), f"{PYTHON} {COMPILED}"),
    **dict.fromkeys(
        ("adanorm", "pono"),
        "Compiled, the first channel is taken away before the moments, a pass more, which keeps their digits where the "
        "mean is large; plain torch loses them.",
    ),
    "iew": f"{PYTHON} Its running statistics follow E[x] and E[x²], ten more operations on numbers per channel; on "
    "channels_last the moments that torch's kernel found are looked at.",
    "bcn": f"{PYTHON} One node does both normalizations and keeps one tensor where plain torch keeps two; what lies "
    "between is made again in backward. On channels_last the moments of both are looked at, and groups of few channels "
    "are copied, on which torch's kernel takes long.",
    "ghost-bn": f"{PYTHON} The running statistics follow the whole batch, where plain torch's follow ghost by ghost; "
    "on channels_last every ghost's moments are looked at.",
    "weight-norm": "Compiled, torch keeps its own fused kernel, which here is traced as plain operations, because its "
    "second derivative is wrong. Eager, it is that kernel.",
    **dict.fromkeys(
        ("cen-conv", "scaled-ws", "weight-standardization"),
        "The filters' moments are taken in float32 or wider, centred, and their gradient in one pass of its own.",
    ),
    "bilinear": f"{PYTHON} Half types are multiplied in float32 and rounded once, where plain torch multiplies and "
    "rounds at every step.",
    "spp": "Bins are pooled channels last, slice by slice; on tiny maps the backward, which adds to one element of "
    "each bin, is slower than torch's kernel. Forward and backward together are faster on contiguous data.",
    "mpn-cov": "Backward takes the steps again instead of keeping 2k + 3 matrices of each sample; half types are "
    "multiplied in float32.",
    "ppm": f"{PYTHON} On channels_last the statistics of every grid's norm are looked at. Compiled, those norms take "
    "moments of planes and join them, some loops more than plain torch's.",
    **dict.fromkeys(
        ("mixed-pooling", "strip-pooling"),
        f"{PYTHON} Half types are pooled and convolved in float32 and rounded once, and torch's float32 convolution "
        "takes twice as long as that of half types. On channels_last the statistics of every norm are looked at.",
    ),
    "normalized-conv": "On tiny maps centred filters and moments of windows, passes of their own, are most of the "
    "work; half types take their statistics in float32.",
    "shifted-l2": f"{PYTHON} Filters without variance are looked for.",
    "omd": PYTHON,
    "icnr": f"{PYTHON} Options and shape are checked.",
    "orthogonal": f"{PYTHON} Options and shape are checked.",
    "meprop": "The forward is the plain product and a node of the graph of its own; the backward, which is the point, "
    "is faster.",
    "irevnet-squeeze": PYTHON,
    **dict.fromkeys(
        ("as-strided", "im2col", "im2row"),
        f"{PRODUCT} In half types a batch that is lowered in several parts adds up ∂L/∂W in float32.",
    ),
    **dict.fromkeys(("kn2col", "kn2row", "kn2row-aa"), PRODUCTS),
    "indirect-conv": f"torch cannot multiply what pointers point to: pixels are gathered into panels first. {TAPS}",
    "mec": "Every row of the output is a product by itself, which reads all filters again: most of the time on tiny "
    "maps. Backward goes tap by tap, and adds up ∂L/∂x of half types in float32.",
}


def number(value, unit=1.0):
    return "" if value is None else f"{value / unit:.2f}" if value / unit < 100 else f"{value / unit:,.0f}"


def ratio(row):
    """The ratio to the reference, or to the copy (with a c) where there is none; – where it was refused."""
    if row is None:
        return ""
    if "refused" in row:
        return "–"
    return f"{row['copies']:.1f} c" if row["ratio"] is None else f"{row['ratio']:.2f}"


def of_plain(name, size, row):
    """The ratio to plain torch where something else stands beside, or to the figure of the authors' code (*)."""
    if row["same"] and row["same"]["vs"] != row["vs"]:
        return f"{row['same']['ratio']:.2f}"
    value = AUTHORS.get((name, size))
    return "" if value is None else f"{row['ratio'] / value:.2f} *"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def called(row):
    """What stands beside: torch's own, what one would write with torch, or the copy; marked where it is other work."""
    if not row["vs"]:
        return "copy"
    name = "plain torch" if row["vs"].startswith("otherwise") else row["vs"]
    return name if row["same"] and row["same"]["vs"] == row["vs"] else f"{name} (other work)"


def of_kind(results, names):
    """The two tables of a kind: float32, contiguous, one thread; and the other circumstances."""
    base, other = [], []
    for name in names:
        rows = {(row["size"], row["variant"], row["direction"]): row for row in results[name]}
        for size in dict.fromkeys(row["size"] for row in results[name]):
            forward, backward = (rows.get((size, "", direction)) for direction in DIRECTIONS)
            if forward is None or "refused" in forward:
                base.append([name, size, f"refused: {(forward or {}).get('refused', '')}", *[""] * 8])
                continue
            share = forward["of_roofline"]
            base.append(
                [
                    name,
                    size,
                    called(forward),
                    number(forward["bytes"], 1e6),
                    number(forward["flops"], 1e6),
                    ratio(forward),
                    ratio(backward),
                    number(forward["copies"]),
                    number(backward and backward.get("copies")),
                    "" if share is None else f"{share:.0%} {forward['bound']}",
                    of_plain(name, size, forward),
                ]
            )
            cells = []
            for variant in list(VARIANTS)[1:]:
                found = [ratio(rows.get((size, variant, direction))) for direction in DIRECTIONS]
                cells.append(" / ".join(found).strip(" /"))
            if any(cells):
                other.append([name, size, *cells])
    head = (
        "stone", "input", "beside", "floor, MB", "MFLOP", "forward ÷", "backward ÷", "forward, copies",
        "backward, copies", "of roofline", "÷ plain",
    )  # fmt: skip
    yield from table(head, base)
    if other:
        yield ""
        yield from table(
            ("stone", "input", *(f"{variant}, forward / backward" for variant in list(VARIANTS)[1:])), other
        )


def slower(results):
    """Each stone that is slower somewhere than a reference of the same outputs, its worst ratio, and why."""
    for name, rows in results.items():
        worst = [row for row in rows if row.get("same") and row["same"]["ratio_ci95"][0] > SLOWER]
        if worst:
            row = max(worst, key=lambda row: row["same"]["ratio"])
            where = " ".join(part for part in (row["size"], row["variant"], row["direction"]) if part)
            said = WHY.get(name) or catalog.stone(name).card.caution
            yield name, f"{row['same']['ratio']:.2f} ({where}; {len(worst)} of {len(rows)} rows)", said


def page(results, environment, seconds):  # the names of what is kept
    """The Markdown text."""
    by_kind = {}
    for name in (name for name in catalog.stones() if name in results):
        by_kind.setdefault(catalog.stone(name).kind, []).append(name)
    yield "# Performance"
    yield ""
    yield HEAD.format(**environment, seconds=seconds)
    for kind, names in by_kind.items():
        yield ""
        yield f"## {kind}"
        yield ""
        yield from of_kind(results, names)
    stones = [catalog.stone(name) for kind in by_kind.values() for name in kind]
    yield ""
    yield "## Options, and what is not measured"
    yield ""
    changed = [(stone.name, *options_of(stone).items()) for stone in stones if options_of(stone)]
    told = (f"{name} {', '.join(f'{key}={value}' for key, value in options)}" for name, *options in changed)
    yield f"Options are the defaults{', but ' if changed else ''}{'; '.join(told)}."
    yield ""
    yield "Refused, in every variant of the size:"
    yield ""
    refused = dict.fromkeys((s.name, size, why) for s in stones for size, _, _, _, why in wanted(s) if why)
    yield from table(("stone", "input", "why"), refused)
    found = list(slower(results))
    yield ""
    yield "## Slower than what one would otherwise use"
    yield ""
    yield f"By more than {SLOWER - 1:.0%}, the whole interval beyond it, against something of the same outputs:"
    yield ""
    yield from table(("stone", "worst ratio", "why"), ([name, worst, why or "?"] for name, worst, why in found))
