"""What README.md prints is what the commands print, and what it says of commands, targets and versions is so."""

from __future__ import annotations

import re
import tomllib

import pytest
from readme import BLOCK, README, commands, output

from layers import catalog

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
RUNS = [(*run, bool(timed)) for timed, block in BLOCK.findall(TEXT) for run in commands(block)]
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(("command", "printed", "timed"), RUNS, ids=[command for command, *_ in RUNS])
def test_console_blocks_show_the_real_output(command, printed, timed):
    assert masked(output(command), timed) == masked(printed, timed)


def masked(text, timed):
    """Put one word for every rounding error, which differs between processors, and one space for several.

    Of what is ``timed`` every number is one of the moment.
    """
    numbers = r"-?\b\d[\d.,]*(e-?\d+)?%?" if timed else r"\b(0|\d(\.\d+)?e-1\d)\b"
    return re.sub(r" +", " ", re.sub(numbers, "tiny", text))


def test_there_are_console_blocks_for_the_commands():
    shown = " ".join(command for command, *_ in RUNS)
    for name in ("inspect", "check-invariance", "check-identities", "list"):
        assert f"stones {name}" in shown


def test_there_are_python_examples():
    assert EXAMPLES


@pytest.mark.parametrize("code", EXAMPLES, ids=range(1, len(EXAMPLES) + 1))
def test_every_python_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", TEXT)) <= targets


def test_every_stone_is_listed():
    assert all(re.search(rf"^{re.escape(name)} ", TEXT, re.MULTILINE) for name in catalog.stones())


def test_pins_lie_in_the_ranges_and_the_versions_agree():
    import stones_cli

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == stones_cli.__version__
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {re.match(r"[\w-]+", line)[0].lower() for line in wanted} <= pinned


def test_the_page_of_performance_has_every_stone_that_can_be_timed_and_every_reason():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows, _, reasons = page.partition("## Slower")
    shown = set(re.findall(r"^\| ([a-z0-9-]+) \|", rows, re.MULTILINE))

    assert shown == {name for name, stone in catalog.stones().items() if stone.card.role != "transform"} | {"stone"}
    slower = [line.strip("| ").split(" | ") for line in reasons.splitlines() if line.startswith("| ")][1:]
    assert slower
    assert all(len(why) > 20 for _, _, why in slower)
