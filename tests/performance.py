"""Write docs/performance.md: every stone that can be timed, beside what one would otherwise use: `make bench`.

``python tests/performance.py [NAME…] [--seconds 0.4] [--merge]``. A stone, its reference and a copy of the same bytes
run in turns, each case by itself; ratios are medians of paired rounds. With names only these are measured; the page is
then printed, or with --merge joined with the results of former runs (build/performance.json).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from layers import catalog
from layers.card import OptionError
from profiles import bench as benching
from profiles.cases import COPY, case, peer_of
from profiles.environment import environment
from profiles.errors import Refusal, Unavailable
from profiles.subject import Setup, subject
from profiles.timing import Plan

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "build" / "performance.json"
LAYERS = {"32x64x56x56": (32, 64, 56, 56), "8x512x7x7": (8, 512, 7, 7), "1x512x7x7": (1, 512, 7, 7)}
ROWS = {"512x1024": (512, 1024), "64x1024": (64, 1024), "8x1024": (8, 1024)}  # of layers without positions
WEIGHTS = {"64x64x3x3": (64, 64, 3, 3), "512x512x3x3": (512, 512, 3, 3), "1000x512": (1000, 512)}
STEPS = {"1 × 10M": (10_000_000, 1), "200 × 50k": (50_000, 1)}
IMAGES = {"64x3x32x32": (64, 3, 32, 32), "16x3x224x224": (16, 3, 224, 224)}
VARIANTS = {
    "": {},
    "channels_last": {"memory_format": "channels_last"},
    "bfloat16": {"dtype": "bfloat16"},
    "2 threads": {"threads": 2},
    "compiled": {"compile": True},
}
COMPILED = "8x512x7x7"  # the size at which compilation is worth its minutes
DIRECTIONS = ("forward", "backward")
OPTIONS = {"duc": {"scale": 2}}  # 8, the default, takes seconds at the largest size
# Beside what a stone without a peer of its own stands: what is trained in its place.
OTHERWISE = {"norm": "torch.nn:BatchNorm2d"}
# The authors' own code, training forward of 32x64x56x56 on one thread as multiples of a copy, measured with torch 2.13
# on another machine; sources: the repositories named in the stones' docstrings.
AUTHORS = {"batch-renorm": 39, "bcn": 21, "ghost-bn": 8, "mabn": 8, "pono": 66}
SLOWER = 1.05
PYTHON = "On tiny maps a call costs some microseconds of Python more than torch's: checks, the choice of a way."
PRODUCT = (
    "The matrix of patches is built and read again, where torch's convolution (oneDNN) makes the product from the "
    "input at once; on this processor the bare product takes about as long as all of that convolution."
)
# Why a stone is slower somewhere, where its card does not say so.
WHY = {
    "bn": f"{PYTHON} Half types keep γ, β and the statistics in float32. On channels_last float32 is shifted first, a "
    "pass more: torch's kernel loses all digits there where the mean is large.",
    "gn": f"{PYTHON} On channels_last torch computes E[x²] − E[x]², which loses all digits where the mean is large; "
    "the accurate way takes more passes.",
    "ln": f"{PYTHON} On channels_last γ and β are spread to a value per element for an accurate kernel; torch computes "
    "E[x²] − E[x]² there.",
    "in": "The backward alone is several kernels where torch has one; both together are faster on contiguous data.",
    "meprop": "The forward is the plain product and a node of the graph of its own; the backward, which is the point, "
    "is faster.",
    "irevnet-squeeze": PYTHON,
    **dict.fromkeys(("as-strided", "im2col", "im2row", "kn2col", "kn2row", "kn2row-aa", "mec"), PRODUCT),
}


def sizes(stone):
    """The inputs that a stone is measured on."""
    if stone.card.role == "optimizer":
        return STEPS
    if stone.card.role == "augmentation":
        return IMAGES
    if stone.card.works_on_weights:
        return WEIGHTS
    return LAYERS if 4 in stone.card.ranks else ROWS


def settings(stone, size, shape, variant):
    """Setup and the rest of one row's variant, None where it makes no sense."""
    changed = dict(VARIANTS[variant])
    on_weight, on_images = stone.card.works_on_weights, stone.card.role == "augmentation"
    if (on_weight or on_images) and variant in ("channels_last", "bfloat16", "compiled"):
        return None
    if variant == "channels_last" and len(shape) < 4:
        return None
    if variant == "compiled" and size != COMPILED:
        return None
    running = {key: changed.pop(key) for key in ("threads", "compile") if key in changed}
    return Setup(shape=shape, tensors=200 if size.startswith("200") else 1, **changed), running


def options_of(stone):
    """The options that a stone is measured with where they are not its defaults."""
    names = {option.name for option in stone.card.options}
    return OPTIONS.get(stone.name) or ({"padding": 1} if {"padding", "kernel_size"} <= names else {})


def wanted(stone):
    """Size, variant, what to run and how, and where the stone refuses it why, for every row that makes sense."""
    for size, shape in sizes(stone).items():
        for variant in VARIANTS:
            found = settings(stone, size, shape, variant)
            if found is None:
                continue
            setup, running = found
            try:
                yield size, variant, subject(stone, options_of(stone), setup), running, ""
            except (OptionError, Refusal) as error:
                yield size, variant, None, running, str(error)


def cases(stone):
    """All cases of a stone, with what they are: size, variant, direction."""
    for size, variant, what, running, refusal in wanted(stone):
        if refusal:
            continue  # the page names it
        other = OTHERWISE.get(stone.kind) if peer_of(what) is None else None
        for direction in DIRECTIONS if what.has_backward else DIRECTIONS[:1]:
            vs = {"vs": [other]} if other else {}
            label = f"{stone.name} {size} {variant}".strip()
            yield size, variant, replace(case(what, direction, label=label, **vs), **running)


def measured(stone, seconds, tell):
    """The rows of a stone, one for each size, variant and direction."""
    rows = []
    for size, variant, made in cases(stone):
        tell(f"{made.label} {made.direction}")
        try:
            record = benching.bench(benching.Bench((made,), Plan(seconds=seconds, block=0.001)))
        except (Refusal, Unavailable) as error:
            rows.append({"size": size, "variant": variant, "direction": made.direction, "refused": str(error)})
            continue
        if record["interrupted"]:
            raise KeyboardInterrupt
        found = record["cases"][0]
        own = found["candidates"][0]
        beside = next((ratio for ratio in found["ratios"] if ratio["vs"] != COPY), None)
        rows.append(
            {
                "size": size,
                "variant": variant,
                "direction": made.direction,
                "vs": beside and beside["vs"],
                "same": bool(beside) and stone.card.peer is not None and stone.card.peer.same,
                "ratio": beside and beside["ratio"],
                "ratio_ci95": beside and beside["ratio_ci95"],
                "copies": own["copies"],
                "bytes": made.bytes(),
                "flops": made.flops(),
                "of_roofline": own.get("of_roofline"),
                "bound": (found.get("roofline") or {}).get("bound"),
            }
        )
    return rows


def number(value, unit=1.0):
    return "" if value is None else f"{value / unit:.2f}" if value / unit < 100 else f"{value / unit:,.0f}"


def ratio(row):
    """The ratio to the reference, or to the copy (with a c) where there is none; – where it was refused."""
    if row is None:
        return ""
    if "refused" in row:
        return "–"
    return f"{row['copies']:.1f} c" if row["ratio"] is None else f"{row['ratio']:.2f}"


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


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
                    (forward["vs"] or "copy") + ("" if forward["same"] or not forward["vs"] else " (other work)"),
                    number(forward["bytes"], 1e6),
                    number(forward["flops"], 1e6),
                    ratio(forward),
                    ratio(backward),
                    number(forward["copies"]),
                    number(backward and backward.get("copies")),
                    "" if share is None else f"{share:.0%} {forward['bound']}",
                    f"{AUTHORS[name]}" if name in AUTHORS and size == "32x64x56x56" else "",
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
        "backward, copies", "of roofline", "authors' code, copies",
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
        worst = [row for row in rows if row.get("same") and row["ratio_ci95"][0] > SLOWER]
        if worst:
            row = max(worst, key=lambda row: row["ratio"])
            where = " ".join(part for part in (row["size"], row["variant"], row["direction"]) if part)
            said = WHY.get(name) or catalog.stone(name).card.caution
            yield name, f"{row['ratio']:.2f} ({where}; {len(worst)} of {len(rows)} rows)", said


def page(results, environment, seconds):  # the names of what is kept
    """The Markdown text."""
    by_kind = {}
    for name in (name for name in catalog.stones() if name in results):
        by_kind.setdefault(catalog.stone(name).kind, []).append(name)
    yield "# Performance"
    yield ""
    yield (
        f"Written by `make bench` on {environment['cpu']}, {environment['cores']} cores, torch "
        f"{environment['torch']}, Python {environment['python']}; about {seconds:g} s for each number. Each number "
        "is the median of paired rounds: the stone and what stands beside it ran in turns, in one process. ÷ is the "
        "time divided by that of what stands beside it, below 1 is faster; where there is nothing, c: multiples of a "
        "copy of the input. The floor is the fewest bytes that the forward must move, by the card. Of roofline: the "
        "least time by the measured ceilings of this machine, divided by the time taken, and what bounds it. "
        "Training, float32, contiguous, one thread, eager, unless a column says otherwise; the compiled column "
        "compares with the compiled reference. – was refused. The authors' code was timed on another machine, forward, "
        "in multiples of a copy there."
    )
    for kind, names in by_kind.items():
        yield ""
        yield f"## {kind}"
        yield ""
        yield from of_kind(results, names)
    stones = [catalog.stone(name) for kind in by_kind.values() for name in kind]
    yield ""
    yield "## Options, and what is not measured"
    yield ""
    changed = ((stone.name, *options_of(stone).items()) for stone in stones if options_of(stone))
    told = (f"{name} {', '.join(f'{key}={value}' for key, value in options)}" for name, *options in changed)
    yield f"Options are the defaults, but {'; '.join(told)}. Refused, in every variant of the size:"
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="stones; all without any")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each number")
    parser.add_argument("--merge", action="store_true", help="join with former results and write the page")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page from former results")
    given = parser.parse_args()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does, before torch is imported
    chosen = [catalog.stone(name) for name in given.names] or [
        stone for stone in catalog.stones().values() if stone.card.role != "transform"
    ]
    keeps = not given.names or given.merge
    kept = json.loads(RESULTS.read_text()) if given.merge or given.page else {"results": {}}
    try:
        for index, stone in enumerate([] if given.page else chosen):

            def tell(what, index=index):
                sys.stderr.write(f"\r\x1b[K{index + 1}/{len(chosen)} {what}")

            kept["results"][stone.name] = measured(stone, given.seconds, tell)
            kept |= {"environment": environment(), "seconds": given.seconds}
            if keeps:
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(kept))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: the page has what was measured until then\n")
    sys.stderr.write("\n")
    if not kept["results"]:
        return
    if keeps or given.page:
        write(kept)
    else:
        sys.stdout.write("\n".join(page(**kept)) + "\n")


def write(kept):
    """Write the page from all results."""
    PAGE.write_text("\n".join(page(**kept)) + "\n", encoding="utf-8")
    times = [row["ratio"] for rows in kept["results"].values() for row in rows if row.get("same")]
    sys.stdout.write(f"{PAGE}: {len(kept['results'])} stones; median ratio {statistics.median(times):.2f}\n")


if __name__ == "__main__":
    main()
