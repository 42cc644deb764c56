"""A profile is read without trust: what is good becomes a bench, everything else one line with file:line:column."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from profiles.document import MOST_BYTES, ProfileError, read
from profiles.errors import Refusal
from profiles.loading import SCHEMA, built_in, load, parse

HEAD = f"schema: {SCHEMA}\n"
GOOD = f"""\
schema: {SCHEMA}
defaults: {{input: 8x64x8x8, dtype: float64, memory-format: channels_last, mode: eval, threads: 2,
           compile: false, seed: 7}}
seconds: 2
rounds: 30
block: 1.0e-3
precision: 0.1
clock: wall
allocator: system
directions: [forward]
stones:
  - bn
  - {{stone: gn, name: gn-8, options: {{groups: 8, affine: false}}, directions: [forward, backward], input: 4x16x5x5}}
gates:
  - {{of: bn, vs: gn-8, max_ratio: 2}}
  - {{of: gn-8, vs: peer, direction: backward, max-ratio: 1.5, advisory: true}}
  - {{of: gn-8, vs: "torch.nn:BatchNorm2d", max_ratio: 1.5}}
  - {{of: gn-8, vs: gn, max_ratio: 1.5}}
"""


def loaded(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(read(path, "p.yaml"), "p")


def refusal(tmp_path, text):
    with pytest.raises(ProfileError) as caught:
        loaded(tmp_path, text)
    message = str(caught.value)
    assert re.match(r"p\.yaml:\d+:\d+: \S", message), message
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("name", built_in(SCHEMA))
def test_the_profiles_that_come_with_it_load(name):
    bench = load(name)

    assert bench.name == name
    assert bench.cases


def test_what_is_written_is_what_is_benched(tmp_path):
    bench = loaded(tmp_path, GOOD)
    bn, forward, backward = bench.cases

    assert [(c.label, c.subject.name, c.direction) for c in bench.cases] == [
        ("bn", "bn", "forward"),
        ("gn-8", "gn", "forward"),
        ("gn-8", "gn", "backward"),
    ]
    assert bn.subject.setup.shape == (8, 64, 8, 8)
    assert forward.subject.setup.shape == (4, 16, 5, 5)
    for case in bench.cases:
        setup = case.subject.setup
        assert (setup.dtype, setup.memory_format, setup.train, setup.seed) == ("float64", "channels_last", False, 7)
    assert forward.subject.options["groups"] == 8
    assert (bench.cases[0].threads, bench.allocator, bench.clock) == (2, "system", "wall")
    assert (bench.plan.seconds, bench.plan.rounds, bench.plan.block, bench.plan.seed) == (2, 30, 1e-3, 7)
    assert [(g.vs, g.max_ratio, g.advisory) for g in bn.gates] == [("gn-8", 2, False)]
    assert bn.references["gn-8"] == forward.subject
    assert [(g.vs, g.advisory) for g in backward.gates] == [("torch.nn:GroupNorm", True)]
    assert list(forward.references) == ["torch.nn:GroupNorm", "torch.nn:BatchNorm2d", "gn"]


def test_reading_profiles_does_not_import_torch():
    script = "import sys; from profiles.loading import load; load('quick'); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (HEAD + "stones: [gn]\nsecond: 3\n", "3:1", "second: unknown key; did you mean seconds?"),
        (HEAD + "stones:\n  - {stone: gn, optons: {}}\n", "3:17", "did you mean options?"),
        (HEAD + "stones: [gnn]\n", "2:10", "did you mean gn?"),
        (HEAD + "stones:\n  - stone: gn\n    options: {groups: 7}\n", "4:15", "groups=7 does not divide 64"),
        (
            HEAD + "stones:\n  - stone: gn\n    options: {groops: 7}\n",
            "4:15",
            "no option 'groops'; did you mean groups?",
        ),
        (HEAD + "stones: [gn]\nstones: [bn]\n", "3:1", "stones is given twice"),
        (HEAD + "defaults: {memory-format: contiguous, memory_format: contiguous}\nstones: [gn]\n", "2:39", "twice"),
        (HEAD + "stones: [gn, gn]\n", "2:14", "the name 'gn' is taken"),
        (HEAD + "stones: [{stone: gn, name: copy}]\n", "2:10", "the name 'copy' is taken"),
        (HEAD + "stones: []\n", "2:1", "nothing to bench"),
        (HEAD, "1:1", "nothing to bench"),
        ("stones: [gn]\n", "1:1", "the key schema is missing"),
        ("schema: stones.profile/2\nstones: [gn]\n", "1:1", f"reads {SCHEMA}"),
        (HEAD + "stones: [gn]\nseconds: 1e5\n", "3:1", "write 1.0e+5"),
        (HEAD + "stones: [gn]\nseconds: .inf\n", "3:10", "not a finite number"),
        (HEAD + "stones: [gn]\nseconds: .nan\n", "3:10", "not a finite number"),
        (HEAD + "stones: [gn]\nseconds: 0\n", "3:1", "out of range"),
        (HEAD + "stones: [gn]\nrounds: 2.5\n", "3:1", "2.5 is not an integer"),
        (HEAD + "stones: [gn]\nrounds: true\n", "3:1", "True is not an integer"),
        (HEAD + "stones: [gn]\ndefaults: {compile: 1}\n", "3:12", "1 is not true or false"),
        (HEAD + "stones: [gn]\ndefaults: {threads: 0}\n", "3:12", "0 is out of range: it must be ≥ 1"),
        (HEAD + "stones: [gn]\ndefaults: {seed: -1}\n", "3:12", "out of range"),
        (HEAD + "stones: [gn]\ndefaults: {dtype: float31}\n", "3:12", "did you mean float32?"),
        (HEAD + "stones: [gn]\ndefaults: {input: 8x64xx2}\n", "3:12", "such as 8x64x32x32"),
        (HEAD + "stones: [gn]\ndefaults: {input: 8}\n", "3:12", "such as 8x64x32x32"),
        (HEAD + "stones: [gn]\ndefaults: {input: 8x0x2x2}\n", "2:10", "at least 1 channel"),
        (HEAD + "stones: [{stone: gn, input: 8x0x2x2}]\n", "2:22", "stones[0].input: 8x0x2x2: at least 1 channel"),
        (HEAD + "stones: [{stone: adax, tensors: 0}]\n", "2:24", "stones[0].tensors: 0 is out of range"),
        (HEAD + "stones: [gn]\ndefaults: {input: 8x32, memory-format: channels_last}\n", "2:10", "input 8x32 has 2"),
        (HEAD + "stones: [{stone: gn, input: 8x3}]\n", "2:10", "stones[0].options: groups=32 does not divide"),
        (HEAD + "stones: [gn]\ndefaults: {input: 99999999999x64x99999999999x2}\n", "2:10", "more than any tensor"),
        (HEAD + "stones: [gn]\ndirections: [sideways]\n", "3:14", "not one of forward"),
        (HEAD + "stones: [gn]\ngates: [{of: bn, vs: copy, max_ratio: 1}]\n", "3:10", "no stone of this profile"),
        (HEAD + "stones: [gn]\ngates: [{of: gn, vs: copy}]\n", "3:9", "the key max_ratio is missing"),
        (HEAD + "stones: [gn]\ngates: [{of: gn, vs: 'os:system', max_ratio: 1}]\n", "3:18", "a class torch.nn:Name"),
        (
            HEAD + "stones: [gn]\ngates: [{of: gn, vs: 'torch.nn:/x.py:L', max_ratio: 1}]\n",
            "3:18",
            "a class torch.nn:Name",
        ),
        (HEAD + "stones: ['os:system']\n", "2:10", "no stone is called"),
        (HEAD + "stones: [bn-only]\n", "2:10", "transforms a model"),
        (HEAD + "stones: [gn]\ndefaults: {compile: !!bool x}\n", "3:21", "'x' is no bool"),
        (HEAD + "stones: [gn]\nrounds: 0x" + "f" * 5000, "3:9", "beyond all use"),
        (HEAD + "stones: [{stone: gn, options: {eps: 1" + "0" * 400 + "}}]\n", "2:37", "beyond all use"),
        (HEAD + "stones: [{stone: gn, options: {groups: [1]}}]\n", "2:32", "a list is no value"),
        (HEAD + "stones: [gn]\ngates: [{of: gn, vs: gn, max_ratio: 1}]\n", "2:10", "cannot be compared with gn"),
        (HEAD + "stones: [gn]\ngates: [{of: gn, vs: copy, direction: backward, max_ratio: 1}]\n", "3:28", "directions"),
        (HEAD + "stones: {gn: 1}\n", "2:1", "a list is due"),
        ("- 1\n", "1:1", "a mapping with the keys"),
        ("[a, b", "1:6", "not YAML"),
        ("a: b: c\n", "1:5", "not YAML"),
        ("a: \t- x\n", "1:4", "not YAML"),
        ("", "1:1", "no document"),
        ("# only a comment\n", "1:1", "no document"),
        (HEAD + "---\n" + HEAD, "2:1", "more than 1 document"),
        (HEAD + "stones: [gn]\n1: 2\n", "3:1", "a key must be text"),
        (HEAD + "stones: [gn]\n? [a]\n: 2\n", "3:3", "a key must be text"),
        ("<<: {schema: 1}\n", "1:1", "merge keys"),
        (HEAD + "stones: [2020-01-01]\n", "2:10", "timestamp values are not admitted"),
        (HEAD + "stones: [2020-13-45]\n", "2:10", "timestamp values are not admitted"),
        (HEAD + "stones: [!!python/object/apply:os.system [id]]\n", "2:10", "is not admitted"),
        (HEAD + "stones: !!set {gn}\n", "2:9", "is not admitted"),
        (HEAD + "stones: [!!binary aGk=]\n", "2:10", "binary values are not admitted"),
        (HEAD + "stones: [!!int x]\n", "2:10", "is no int"),
        (HEAD + f"seconds: {'9' * 5000}\n", "2:10", "is no int"),
        (HEAD + "stones: &a [*a]\n", "1:1", "stands inside"),
        (HEAD + "stones: [*nothing]\n", "2:10", "not YAML"),
        (b"\xff\xfe\x00", "1:1", "not UTF-8"),
        ("a: \x00", "1:1", "not YAML"),
        ("a: \x1b[31m", "1:1", "not YAML"),
        ("[" * 5000, "1:33", "more than 32 levels"),
        ("{a: " * 5000, "1:", "more than 32 levels"),
        ("[" + "a," * 20_000 + "]", "1:", "more than 10,000 pieces"),
        ("a: &a [x]\nb: [" + "*a," * 17 + "]", "2:", "more than 16 aliases"),
        ("#" * (MOST_BYTES + 1), "1:1", "larger than 64 KiB"),
    ],
)
def test_a_refusal_says_where_and_why(tmp_path, text, where, words):
    message = refusal(tmp_path, text)

    assert message.startswith(f"p.yaml:{where}")
    assert words in message


def test_a_bomb_of_aliases_or_merges_is_refused_before_it_is_built(tmp_path):
    laughs = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 8))

    assert "aliases" in refusal(tmp_path, laughs)
    assert "merge keys" in refusal(tmp_path, merges)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", ".", "no-such-profile", "x" * 5000, "a\0b", "qick", ""])
def test_what_is_no_file_is_refused(name):
    with pytest.raises(Refusal):
        load(name)


def test_a_pipe_and_an_unreadable_file_are_refused(tmp_path):
    pipe, locked = tmp_path / "pipe", tmp_path / "locked.yaml"
    os.mkfifo(pipe)
    locked.write_text(GOOD)
    locked.chmod(0)

    with pytest.raises(ProfileError, match="not a regular file"):
        load(str(pipe))
    if os.geteuid() != 0:  # root reads everything
        with pytest.raises(ProfileError, match="cannot be read"):
            load(str(locked))


def test_a_misspelt_profile_gets_a_suggestion():
    with pytest.raises(Refusal, match="did you mean quick"):
        load("quikc")


def nodes(tree, path=()):
    """Yield the path of every value below ``tree``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from nodes(value, (*path, key))


ODD = (None, True, -1, 0, 1e300, 10**30, "", "x", "1e5", [], {}, [[]], {"x": 1}, ["gn"])
PLACES = list(nodes(yaml.safe_load(GOOD)))


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_no_mutant_is_refused_in_any_other_way(tmp_path, path):
    for odd in ODD:
        tree = copy.deepcopy(yaml.safe_load(GOOD))
        inner = tree
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = odd
        try:
            assert loaded(tmp_path, yaml.safe_dump(tree)).cases
        except ProfileError as error:
            assert str(error).startswith("p.yaml:")  # noqa: PT017


def convolution(options):
    return f"{HEAD}defaults: {{input: 2x8x9x9}}\nstones:\n  - {{stone: weight-norm, options: {{{options}}}}}\n"


@pytest.mark.parametrize("spelt", ["[3, 5]", "[3,5]"])
def test_an_option_may_be_a_list_of_one_number_per_axis(tmp_path, spelt):
    (case,) = loaded(tmp_path, convolution(f"kernel_size: {spelt}, padding: 1")).cases
    assert (case.subject.options["kernel_size"], case.subject.options["padding"]) == ((3, 5), (1, 1))


@pytest.mark.parametrize(
    "spelt", ["[]", "[3]", "[3, 5, 7]", "[3, x]", "[3, [5]]", "[3, 1.5]", "[3, true]", "[0, 3]", "{a: 1}", "'3x'"]
)
def test_a_list_that_is_no_value_of_the_option_is_refused_where_it_stands(tmp_path, spelt):
    message = refusal(tmp_path, convolution(f"kernel-size: {spelt}"))
    assert message.startswith("p.yaml:4:")
    assert "kernel_size" in message


def test_an_option_that_takes_one_number_takes_no_list(tmp_path):
    assert "groups" in refusal(tmp_path, convolution("groups: [1, 2]"))
