"""What a command imports: the causes of a slow start. Its processor time is measured by `tests/startup.py`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from command_line import ROOT, environment

from layers import catalog
from stones_cli.common import FORMATS

HEAVY = ("torch", "numpy", "yaml", "fvcore", "pydantic", "matplotlib", "sympy", "rich")
LIGHT = [
    ["--help"],
    ["--version"],
    [],
    ["nosuch"],
    ["list"],
    ["list", "--json", "--since", "2015"],
    ["list", "--kind", "nosuch"],
    *(["show", name] for name in catalog.stones()),
    *(["show", "gn", "--format", form] for form in FORMATS),
    ["show", "nosuch"],
    ["inspect", "--help"],
    ["inspect", "gn", "--help"],
    ["inspect", "gn", "--groups", "48"],
    ["inspect", "gn", "--backward-share", "0.5"],
    ["inspect", "meprop", "--backward-share", "2"],
    ["inspect", "gn", "--groups", "0"],
    ["inspect", "gn", "--gruops", "4"],
    ["inspect", "gn", "-i", "8xx"],
    ["inspect", "gn", "-i", "100000x100000x100000x100000"],
    ["inspect", "gn", "--device", "tpu"],
    ["inspect", "gn", "-o", "/nonexistent/out"],
    ["inspect", "gn", "--expect", "params"],
    ["inspect", "gn", "--no-measure", "--expect", "params=128"],
    ["inspect", "gn", "--no-measure", "--expect", "nosuch=128"],
    ["bench", "--help"],
    ["bench", "gn", "--groups", "48"],
    ["bench", "gn", "--rounds", "0"],
    ["bench", "--kind", "conv", "--help"],
    ["bench", "im2col", "normalized-conv", "--help"],
    ["bench", "--kind", "nosuch"],
    ["bench", "--kind", "conv", "-i", "4x4"],
    ["bench", "--kind", "conv", "im2col"],
    ["bench", "im2col", "gn", "--groups", "5"],
    ["diff", "--help"],
    ["diff", "gn", "ln", "--no-measure"],
    ["diff", "gn:groups=48", "ln"],
    ["diff", "gn", "svb"],
    ["diff", "old.json", "gn"],
    ["diff", "old.json", "new.json"],
    ["doctor", "--help"],
    ["doctor", "--budget", "0"],
    ["draw", "--help"],
    ["draw", "gn", "--help"],
    ["draw", "gn"],
    ["draw", "gn", "-o", "gn.svg"],
    ["draw", "gn", "-o", "gn.pdf"],
    ["draw", "gn", "--groups", "2", "-i", "8x64x32x32", "--json"],
    ["draw", "gn", "--groups", "2", "-o", "/nonexistent/gn.svg"],
    ["draw", "svb", "-o", "svb.svg"],
    ["report", "--help"],
    ["report", "gn"],
    ["report", "gn", "-o", "gn.svg"],
    ["report", "gn", "--groups", "48", "-o", "gn.html"],
    ["report", "--bench", "old.json", "-o", "gn.html"],
    ["report", "-o", "/nonexistent/gn.html"],
    ["check-invariance", "--help"],
    ["check-invariance", "ln", "--property", "nosuch"],
    ["check-invariance", "--list"],
    ["check-gradients", "--help"],
    ["check-gradients", "weight-norm", "--help"],
    ["check-gradients", "ln", "--property", "nosuch"],
    ["check-gradients", "nosuch"],
    ["check-gradients", "--list"],
    ["check-identities", "--help"],
    ["check-identities", "nosuch"],
]  # fmt: skip


def imported(lines, names):
    """Run ``lines`` one after another in one process and return what of ``names`` each had imported at its end."""
    program = (
        "import sys\n"
        "from stones_cli.commands import run\n"
        f"for line in {lines!r}:\n"
        "    status = run(line)\n"
        f"    print('found', status, sorted(set({names!r}) & set(sys.modules)), line, file=sys.stderr, flush=True)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    return re.findall(r"^found (\d+) (\[.*?\]) (\[.*\])$", result.stderr, re.MULTILINE)


def test_light_commands_and_usage_errors_import_nothing_heavy():
    found = imported(LIGHT, HEAVY)
    assert len(found) == len(LIGHT)
    assert {(modules, line) for _, modules, line in found if modules != "[]"} == set()
    assert {status for status, *_ in found} <= {"0", "2", "3"}


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("stones ", "inspect"),
        ("stones inspect g", "gn"),
        ("stones bench bn g", "gn"),
        ("stones show l", "ln"),
        ("stones inspect gn --gr", "--groups"),
        ("stones bench gn --gr", "--groups"),
        ("stones draw gn --gr", "--groups"),
        ("stones diff gn b", "bn"),
        ("stones diff gn gn --gr", "--groups"),
        ("stones diff gn:groups=4 l", "ln"),
        ("stones doctor --b", "--budget"),
        ("stones bench --kind c", "conv"),
        ("stones bench --kind conv --pad", "--padding"),
        ("stones bench im2col normalized-conv --pad", "--padding"),
        ("stones inspect gn --d", "--dtype"),
        ("stones inspect ln --axes ", "channel"),
        ("stones inspect gn --dtype b", "bfloat16"),
        ("stones list --kind n", "norm"),
        ("stones check-invariance ln --property x-", "x-scale"),
        ("stones inspect torch.nn:GroupNorm --d", "--dtype"),
    ],
)
def test_completion_offers_names_options_and_values_without_torch(words, offers):
    parts = words.split(" ")
    program = (
        "import sys, atexit\nfrom stones_cli.commands import run\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))\n"
        "run([])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(_STONES_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(parts) - 1)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert offers in result.stdout.split()
    assert result.stderr == "[]\n"


def test_only_a_picture_imports_matplotlib(tmp_path):
    gn = ["draw", "gn", "--groups", "2", "-i", "2x4x2"]
    found = imported([[*gn, "--json"], [*gn, "-o", str(tmp_path / "gn.svg")]], ("matplotlib", "matplotlib.pyplot"))
    assert [each[:2] for each in found] == [("0", "[]"), ("0", "['matplotlib']")]


def test_inspect_imports_no_compiler():
    small = ["--groups", "3", "-i", "4x12x3x5"]
    slow = ("torch._dynamo", "sympy", "matplotlib", "pydantic", "yaml", "pandas", "scipy")
    (found,) = imported([["inspect", "gn", *small, "--no-fvcore"]], (*slow, "fvcore"))
    assert found[:2] == ("0", "[]")
    (found,) = imported([["inspect", "gn", *small, "--eval"]], slow[:3])
    assert found[:2] == ("0", "[]")
