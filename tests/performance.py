"""Write docs/performance.md: every stone that can be timed, beside what one would otherwise use: `make bench`.

``python tests/performance.py [NAME…] [--seconds 0.1] [--merge]``. A stone, its reference and a copy of the same bytes
run in turns, each case by itself; ratios are medians of paired rounds. With names only these are measured; the page is
then printed, or with --merge joined with the results of former runs (build/performance.json).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from performance_cases import cases, is_same
from performance_page import page

from layers import catalog
from profiles.environment import environment
from profiles.errors import Refusal, Unavailable
from profiles.speed import bench as benching
from profiles.speed.cases import COPY, check_timeable
from profiles.speed.timing import Plan

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "build" / "performance.json"


def timed(made, seconds):
    """The record of a case; without what it stands beside where that is refused."""
    try:
        record = benching.bench(benching.Bench((made,), Plan(seconds=seconds, block=0.001)))
    except Refusal as error:
        refused = [name for name in made.references if name.partition(":")[2] in str(error)]
        if not refused:
            raise
        kept = {name: found for name, found in made.references.items() if name not in refused}
        return timed(replace(made, references=kept), seconds)
    if record["interrupted"]:
        raise KeyboardInterrupt
    return record["cases"][0]


def measured(stone, seconds, tell):
    """The rows of a stone, one for each size, variant and direction."""
    rows = []
    for size, variant, made in cases(stone):
        tell(f"{made.label} {made.direction}")
        try:
            found = timed(made, seconds)
        except (Refusal, Unavailable) as error:
            rows.append({"size": size, "variant": variant, "direction": made.direction, "refused": str(error)})
            continue
        own = found["candidates"][0]
        ratios = [ratio for ratio in found["ratios"] if ratio["vs"] != COPY]
        first = ratios[0] if ratios else None
        same = next((ratio for ratio in ratios if is_same(stone, ratio["vs"])), None)
        rows.append(
            {
                "size": size,
                "variant": variant,
                "direction": made.direction,
                "vs": first and first["vs"],
                "ratio": first and first["ratio"],
                "same": same and {key: same[key] for key in ("vs", "ratio", "ratio_ci95")},
                "copies": own["copies"],
                "bytes": made.bytes(),
                "flops": made.flops(),
                "of_roofline": own.get("of_roofline"),
                "bound": (found.get("roofline") or {}).get("bound"),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="stones; all without any")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each number")
    parser.add_argument("--merge", action="store_true", help="join with former results and write the page")
    parser.add_argument("--page", action="store_true", help="measure nothing: write the page from former results")
    given = parser.parse_args()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does, before torch is imported
    try:
        chosen, kept = asked(given)
    except Refusal as refusal:
        parser.error(str(refusal))
    keeps, status = given.merge or not given.names, 0
    try:
        for index, stone in enumerate(chosen):

            def tell(what, index=index):
                sys.stderr.write(f"\r\x1b[K{index + 1}/{len(chosen)} {what}")

            kept["results"][stone.name] = measured(stone, given.seconds, tell)
            kept |= {"environment": environment(), "seconds": given.seconds}
            if keeps:
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(kept))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: the page has what was measured until then\n")
        status = 130
    sys.stderr.write("\n")
    if not kept["results"]:
        return status
    if keeps or given.page:
        write(kept)
    else:
        sys.stdout.write("\n".join(page(**kept)) + "\n")
    return status


def asked(given):
    """The stones to measure and the results so far; raises Refusal for what cannot be."""
    if not 0 < given.seconds < math.inf:
        raise Refusal(f"--seconds {given.seconds:g}: a positive number is needed")
    try:
        chosen = [catalog.stone(name) for name in given.names]
    except catalog.UnknownStone as error:
        raise Refusal(str(error)) from error
    for stone in chosen:
        check_timeable(stone)
    chosen = chosen or [stone for stone in catalog.stones().values() if stone.card.role != "transform"]
    if not (given.merge or given.page):
        return chosen, {"results": {}}
    try:
        return [] if given.page else chosen, json.loads(RESULTS.read_text())
    except (OSError, ValueError) as error:
        raise Refusal(f"no results of a former run in {RESULTS}, run `make bench` first: {error}") from error


def write(kept):
    """Write the page from all results."""
    PAGE.write_text("\n".join(page(**kept)) + "\n", encoding="utf-8")
    times = [row["same"]["ratio"] for rows in kept["results"].values() for row in rows if row.get("same")]
    median = f"; median ratio {statistics.median(times):.2f}" if times else ""
    sys.stdout.write(f"{PAGE}: {len(kept['results'])} stones{median}\n")


if __name__ == "__main__":
    sys.exit(main())
