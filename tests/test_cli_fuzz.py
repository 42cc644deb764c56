"""Generated command lines, from right to absurd: no traceback, a known exit status, strict JSON, errors that speak."""

from __future__ import annotations

import json
import random

import pytest
from command_line import at_once, invoke

from layers import catalog
from stones_cli.common import FORMATS
from stones_cli.status import Status

LINES, MANY = 400, 10_000
REAL = 12
ADMITTED = {Status.DONE, Status.FAILED, Status.MISUSE, Status.ENVIRONMENT}
HOSTILE = [
    "", " ", "-", "--", "-1", "0", "1e999", "nan", "-inf", "9" * 30, "2.5", "none", "true", "γ", "\x1b[31m", "\u202e",
    "[/red]", "a=b", "a\nb", "../..", "%s", "{0}", "*", "'", '"', "\\", "x" * 5000, "🤖", "\udcff", "--help", "-i",
    "0x10", "1_000", "+5", "٣", "8x64x32x32", "gn", "torch.nn:ReLU", "json:loads", ":", "a:b", "nosuch.py:C",
    "/dev/null", "=", ",",
]  # fmt: skip
SHAPES = ["4x12x3x5", "2x12x4x4", "4,12,3", "3x12x2x2x2", "3x12x3x1", "2×64×2×2"]
WEIGHTS = ["12x5", "8x4x3x3", "3x12", "4x2x1x1", "6x1"]
MODELS = ["layers.resnet:cifar_resnet"]
BAD_SHAPES = ["0x12x2x2", "1x12x1x1", "2x12", "10000000x12x1000x1000", "8", "x", "8x0x2"]


def mostly(draw, good, bad=HOSTILE):
    """One of ``good``, now and then one of ``bad``."""
    return draw.choice(good if draw.random() < 0.93 else bad)


def value_of(option, draw):
    """A value that ``option`` admits, mostly."""
    words = {int: ["1", "2", "3", "4", "12"], float: ["0.1", "1e-3", "0.5", "1"], str: ["text"], bool: ["true"]}
    good = [*(option.choices or words[option.type]), *(["none"] if option.optional else [])]
    if option.axes:
        return mostly(draw, [*good, "3x1", "1,2", "2×2"], ["3x", "x", "3x3x3", "3x-1", "0x1", f"1x{10**12}", *HOSTILE])
    return mostly(draw, good)


def shape_of(stone, draw):
    """The shape of an input, or of a weight where the stone works on weights; a transformation has its own."""
    if stone.card.role == "transform":
        return []
    return ["-i", mostly(draw, WEIGHTS if stone.card.works_on_weights else SHAPES, BAD_SHAPES)]


def options_of(stone, draw):
    """Some options of a stone."""
    words = []
    for option in stone.card.options:
        if draw.random() < 0.2:
            flag = option.name.replace("_", "-")
            if option.type is bool:
                words.append(draw.choice([f"--{flag}", f"--no-{flag}"]))
            else:
                words += draw.choice([[f"--{flag}", value_of(option, draw)], [f"--{flag}={value_of(option, draw)}"]])
    return words


def shared(draw):
    """Some options that commands share."""
    offers = [
        ["--dtype", mostly(draw, ["float64", "bfloat16", "float16"])],
        ["--device", mostly(draw, ["cpu"], ["cuda:7", "mps", *HOSTILE])],
        ["--memory-format", mostly(draw, ["channels_last", "contiguous"])],
        [mostly(draw, ["--train", "--eval"], ["--evil"])],
        ["--seed", mostly(draw, ["0", "7", str(2**63 - 1)], [str(2**64), *HOSTILE])],
        ["--format", mostly(draw, FORMATS)],
        ["--expect", mostly(draw, ["params>=0", "stats.mean.shape=4x3", "params=24", "nosuch=1"])],
        ["-o", mostly(draw, ["out.json", "out"], ["no/such/out", ".", *HOSTILE])],
    ]
    return [word for words in draw.sample(offers, draw.randrange(4)) for word in words]


def command_line(draw):
    """One command line."""
    stone = draw.choice(list(catalog.stones().values()))
    name = mostly(draw, [stone.name, stone.name, stone.name.upper()], [stone.name[:-1], *HOSTILE])
    shape = shape_of(stone, draw)
    kind = draw.random()
    if kind < 0.15:
        words = ["list", *draw.choice([[], ["norm"], ["--kind", mostly(draw, ["norm"])], [draw.choice(HOSTILE)]])]
    elif kind < 0.3:
        words = ["show", name]
    elif kind < 0.55:
        words = ["inspect", name, "--no-measure", *shape, *options_of(stone, draw), *shared(draw)]
    elif kind < 0.8:
        words = ["inspect", name, *shape, *options_of(stone, draw), *shared(draw)]
    elif kind < 0.83:
        words = ["check-invariance", name, "--property", "x-scale", "--carrier", mostly(draw, ["linear", "conv"])]
    elif kind < 0.85:
        words = ["check-gradients", name, "--property", mostly(draw, ["orthogonal", "zero-mean"]), "--carrier"]
        words += [mostly(draw, ["linear"]), *options_of(stone, draw)]
    elif kind < 0.86:
        words = ["inspect", name, "--model", mostly(draw, MODELS), *options_of(stone, draw)]
    elif kind < 0.9:
        words = ["bench", name, *shape, "--rounds", mostly(draw, ["5"]), "--budget", "0.001", *options_of(stone, draw)]
    else:
        words = [draw.choice(HOSTILE) for _ in range(draw.randrange(5))]
    if draw.random() < 0.3:
        words.insert(draw.randint(min(1, len(words)), len(words)), mostly(draw, ["--json"]))
    if draw.random() < 0.05:
        draw.shuffle(words)
    return words


def lines(seed, count):
    """Return ``count`` command lines, none of which starts a long bench."""
    draw, found = random.Random(seed), []
    while len(found) < count:
        words = command_line(draw)
        if "bench" not in words or (words[0] == "bench" and "--budget" in words and words[1] in catalog.stones()):
            found.append(words)
    return found


def check(words, status, stdout, stderr):
    """Hold the outcome of a command line to the promises."""
    assert status in ADMITTED, words
    assert all(char.isprintable() or char == "\n" for char in stdout + stderr), words
    if status == Status.MISUSE:
        assert stdout == "", words
        assert 1 <= len(stderr.splitlines()) <= 40, words
    if status == Status.FAILED:
        assert "failed: " in stderr, words
    if "--json" in words and status in (Status.DONE, Status.FAILED) and not {"--help", "-h", "--"} & set(words):
        json.loads(stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(4 + n, marks=pytest.mark.slow) for n in range(MANY * 4 // LINES))]
)
def test_generated_command_lines(seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in lines(seed, LINES // 4):
        result = invoke(*words)
        check(words, result.exit_code, result.stdout, result.stderr)
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".stones")], words


def test_real_processes_agree(tmp_path):
    chosen = [words for words in lines(99, 200) if "-o" not in words and "\udcff" not in words][:REAL]
    for start in range(0, REAL, 4):
        some = chosen[start : start + 4]
        for words, (stdout, stderr, status) in zip(some, at_once(*some), strict=True):
            assert "Traceback" not in stderr
            check(words, status, stdout, stderr)
            assert status == invoke(*words).exit_code, words
