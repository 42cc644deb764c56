"""The published schemas say what the commands write: every document of every command, nothing more, nothing less."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import pytest
import yaml
from command_line import ROOT, environment, invoke
from jsonschema import Draft202012Validator as Validator
from typer.main import get_command

from layers import catalog
from profiles.document import read
from profiles.expect import foresee, parse
from profiles.loading import parse as parse_bench
from profiles.run_profiles import parse as parse_run
from profiles.schemas import SCHEMAS, named, schema
from stones_cli.app import app
from stones_cli.status import Status

SMALL = ("-i", "4x12x6x6")
QUICK = ("--rounds", "5", "--budget", "0.01")
YAML = sorted((ROOT / "profiles").rglob("*.yaml"))
LINES = [
    "list",
    "list --expect techniques.gn.year=2018",
    "schema",
    *(f"show {name}" for name in catalog.stones()),
    *(f"inspect {name} --no-measure" for name, stone in catalog.stones().items() if stone.card.role != "transform"),
    *(f"inspect {name} -i 4x12x6x6 --no-fvcore" for name in ("bn --eval", "in", "batch-renorm", "bn --dtype bfloat16")),
    "inspect gn --groups 3 -i 4x12x3x5 --expect params=24 --expect stats.mean.shape=3",
    "inspect torch.nn:GroupNorm --num-groups 4 -i 4x12x6x6",
    "inspect torch.nn:Softplus -i 4x12x6x6",
    "inspect mpn-cov -i 2x6x4x4",
    "inspect im2col --peers -i 4x12x6x6",
    "inspect layers.resnet:cifar_resnet -i 2x3x8x8 --modules --module-depth 2 --no-fvcore",
    "inspect torch.nn:Softplus -i 4x12x6x6 --modules --eval --expect modules.total.params=0",
    *(f"inspect {name} -i 8x4x3x3" for name in ("svb", "icnr", "adam-g", "omd", "adax")),
    *(f"inspect {name}" for name in ("bn-only", "bbn", "data-dependent", "autoaugment", "autoaugment --policy svhn")),
    *(f"inspect {name} --model layers.resnet:cifar_resnet" for name in ("svb", "adam-g", "weight-norm", "im2col")),
    "check-invariance --list",
    "check-invariance ln bn --carrier linear",
    "check-invariance torch.nn:Softplus --carrier linear --expect ok=true",
    "check-invariance weight-norm --property w-scale",
    "check-gradients --list",
    "check-gradients weight-norm ln --carrier linear",
    "check-identities gn in orthogonal",
    "bench gn --groups 3 -i 4x12x6x6 --rounds 5 --budget 0.01",
    "bench in -i 4x12x6x6 --both --max-ratio 0.001 --rounds 5 --budget 0.01 --expect cases.in.stone=in",
    "bench --kind init -i 8x4x3x3 --rounds 5 --budget 0.01",
    "bench autoaugment -i 4x3x8x8 --rounds 5 --budget 0.01",
    "race adax",
    "race adax torch.optim:SGD:lr=1000 --problem quadratic --steps 20",
    "race adax torch.optim:SGD:lr=1e30 --problem digits --steps 1 --batch 700",
    *(
        f"draw {name}"
        for name in ("in", "im2col", "subpixel", "hdc", "spp", "autoaugment", "autoaugment --policy svhn")
    ),
    "draw bcn --groups 2 --path",
    "diff gn ln --no-measure",
    "diff svb omd -i 8x4x3x3 --expect differing>1",
]


def violations(document):
    """What the schema that the document names has against it, with the places."""
    found = Validator(schema(document["schema"])).iter_errors(document)
    return [f"{error.json_path}: {error.message[:300]}" for error in found]


def written(line):
    result = invoke(*line.split(), "--json")
    assert result.exit_code in (Status.DONE, Status.FAILED), result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one_and_says_what_it_is_of(name):
    found = schema(name)
    Validator.check_schema(found)
    assert found["$schema"] == Validator.META_SCHEMA["$id"]
    assert found["title"] == name
    assert named(found) == f"stones.{name}/1"
    assert schema(named(found)) is found
    assert found["description"].endswith(".")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_object_is_closed(name):
    open_ = [path for path, node in objects(schema(name)) if "properties" in node and not closes(node)]
    assert open_ == []


def closes(node):
    """Whether the node admits no other properties than it lists, itself or by each of its forms."""
    return node.get("additionalProperties") is False or all(closes(form) for form in node.get("anyOf", [{}]))


def objects(node, path="$"):
    """Yield the nodes of a schema that are about objects."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for name, inner in node.items():
            yield from objects(inner, f"{path}.{name}")
    elif isinstance(node, list):
        for number, inner in enumerate(node):
            yield from objects(inner, f"{path}[{number}]")


@pytest.mark.parametrize("line", LINES)
def test_what_a_command_writes_is_as_its_schema_says(line):
    document = written(line)
    assert violations(document) == []
    foresee([parse(f"{key}=1") for key in keys(document)], [schema(document["schema"])])


def keys(value, path=""):
    """Yield the key of everything in a document, as an expectation names it."""
    entries = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
    for name, inner in entries.items():
        if not re.search(r"[.\s=!<>]", str(name)):
            yield f"{path}{name}"
            yield from keys(inner, f"{path}{name}.")


def test_a_run_and_a_diff_of_its_results_are_as_their_schemas_say(tmp_path):
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "schema: stones.run/1\n"
        "inspect: [gn, bn-only, autoaugment, icnr, {stone: in, expect: [params=3]}]\ncheck-identities: [in]\n"
        "bench: {stones: [in, {stone: orthogonal, directions: [backward]}], rounds: 5, seconds: 0.01,\n"
        "        defaults: {input: 4x64x3x3}, gates: [{of: in, vs: peer, max_ratio: 1.0e-3}]}\n"
    )
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for file in (old, new):
        assert invoke("run", profile, "-o", file).exit_code == Status.FAILED
        assert violations(json.loads(file.read_text())) == []
    assert violations(written(f"diff {old} {new}")) == []
    for file in (old, new):
        invoke("bench", "in", *SMALL, *QUICK, "-o", file)
    assert violations(written(f"diff {old} {new}")) == []


def test_every_command_that_writes_a_document_is_held_to_it():
    tried = {line.split()[0] for line in LINES} | {"run", "doctor", "report"}  # these two in their own files
    assert tried == set(get_command(app).commands)


def test_every_schema_that_the_sources_name_is_published_and_the_reverse():
    sources = [path for part in ("profiles", "stones_cli") for path in (ROOT / part).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.parent.name != "schemas")
    assert set(re.findall(r'"(stones\.[a-z-]+/\d+)"', text)) == {named(found) for found in SCHEMAS.values()}


@pytest.mark.parametrize("line", ["show gn", "inspect gn --no-measure", "check-identities in", "draw in", "list"])
def test_a_field_more_or_less_is_noticed_wherever_it_stands(line):
    document = written(line)
    checked = 0
    for path in places(document):
        for change in (added, removed):
            mutant = copy.deepcopy(document)
            inner = mutant
            for step in path:
                inner = inner[step]
            change(inner)
            checked += bool(violations(mutant))
    assert checked >= 2
    for change in (added, removed):
        mutant = copy.deepcopy(document)
        change(mutant)
        assert violations({"schema": document["schema"], **mutant})


def places(value, path=()):
    """Yield where the first objects of every kind stand, lists by their first entry; not what has names of its own."""
    if isinstance(value, dict) and path[-1:] != ("options",):
        yield path
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def added(node):
    node["something new"] = 1


def removed(node):
    for name in [name for name in node if name != "schema"][:1]:
        del node[name]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
def test_the_profiles_that_come_with_it_are_as_their_schemas_say(path):
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert violations(document) == []
    assert violations({**document, "something": 1})


GOOD = """
schema: stones.run/1
inspect: [all, {stone: gn, options: {groups: 8}, input: 8x64x8x8, memory-format: contiguous, expect: [params=128]}]
check-invariance: all
check_gradients: [{stone: ln, properties: [orthogonal], carriers: [linear]}]
bench: {stones: [{stone: gn, name: a, directions: [forward]}], gates: [{of: a, vs: copy, max-ratio: 3}]}
"""
BAD = [
    ("inspect: [all", "inspect: [1"),
    ("groups: 8", "groups: {}"),
    ("8x64x8x8", "8x"),
    ("memory-format: contiguous", "memory-format: sideways"),
    ("expect: [params=128]", "expect: params=128"),
    ("check-invariance: all", "check-invariance: {}"),
    ("properties: [orthogonal]", "properties: [w-scale]"),
    ("carriers: [linear]", "carriers: [line]"),
    ("directions: [forward]", "directions: [sideways]"),
    ("max-ratio: 3", "max-ratio: 0"),
    (", max-ratio: 3", ""),
    ("stones: [{", "stone: [{"),
    ("check_gradients", "check_gradient"),
]


@pytest.mark.parametrize(("old", "new"), [("", ""), *BAD])
def test_schema_and_loader_agree_on_a_profile(tmp_path, old, new):
    text = GOOD.replace(old, new, 1) if old else GOOD
    path = tmp_path / "p.yaml"
    path.write_text(text)
    refused = None
    try:
        parse_run(read(path, "p.yaml"))
    except ValueError as error:
        refused = str(error)
    assert bool(refused) == bool(old), refused
    assert bool(violations(yaml.safe_load(text))) == bool(old)


def test_a_bench_profile_that_loads_is_as_its_schema_says(tmp_path):
    from test_profiles_yaml import GOOD as bench

    path = tmp_path / "p.yaml"
    path.write_text(bench)
    assert parse_bench(read(path, "p.yaml")).cases
    assert violations(yaml.safe_load(bench)) == []


def test_the_command_prints_the_schema_and_nothing_else(tmp_path):
    for name in ("inspect", "stones.inspect/1"):
        result = invoke("schema", name)
        assert (result.exit_code, json.loads(result.stdout)) == (Status.DONE, schema("inspect"))
    file = tmp_path / "inspect.json"
    assert invoke("schema", "inspect", "-o", file).exit_code == Status.DONE
    assert json.loads(file.read_text()) == schema("inspect")
    listed = invoke("schema").stdout
    assert all(re.search(rf"^{name} +stones\.{name}/1 ", listed, re.MULTILINE) for name in SCHEMAS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspct"], "did you mean inspect?"),
        (["stones.inspect/2"], "there is no schema 'stones.inspect/2'"),
        (["zzz"], "there are list, show"),
        (["inspect", "--format", "csv"], "a schema is JSON"),
        (["inspect", "-o", "x.md"], "a schema is JSON"),
    ],
)
def test_what_is_no_schema_is_refused(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("schema", *arguments)
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_schemas_import_no_torch():
    for line in (["schema"], ["schema", "inspect"], ["schema", "nosuch"], ["run", "--help"], ["run", "nosuch"]):
        script = f"import sys; from stones_cli.commands import run; run({line!r}); sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True)
        assert done.returncode == 0, line
