"""Plug-ins: techniques of other distributions, found without running their code, and held to the same as ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from command_line import ROOT, invoke
from harness import STONES
from jsonschema import Draft202012Validator
from plugged import CARD, example, installed, run
from torch.nn import functional as F

from layers import catalog
from layers.convert import convert
from layers.plugins import OFF
from profiles import kinds, run_profiles
from profiles.checks import cells, identities
from profiles.schemas import schema
from stones_cli.status import Status

ORIGIN = {"distribution": "stones-example", "version": "1.0"}
QUICK = ("-i", "4x12x6x6", "--rounds", "5", "--budget", "0.01")


@pytest.fixture
def rms(site, see):
    see(example(site))
    return catalog.stone("rms-norm")


def test_processes_list_show_explain_and_complete_a_plug_in(site):
    example(site)
    (site / "stones_example/norm/__init__.py").write_text("print('imported'); raise SystemExit")
    listed = run(site, "list", "rms")
    assert (listed.returncode, listed.stderr) == (Status.DONE, "")
    assert listed.stdout.split()[-2:] == ["stones-example", "1.0"]
    shown = run(site, "show", "rms-norm", COLUMNS="40")
    assert (shown.returncode, shown.stderr) == (Status.DONE, "")
    assert f"of stones-example 1.0, in {site}/stones_example/norm/rms_norm.py" in shown.stdout.replace("\n", "")
    assert "rms-norm" in run(site, "inspect", "--help").stdout
    assert "--affine" in run(site, "inspect", "rms-norm", "--help").stdout
    for words, offered in (("stones inspect rm", "rms-norm"), ("stones bench rms-norm --af", "--affine")):
        count = str(len(words.split()) - 1)
        told = run(site, _STONES_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
        assert (offered in told.stdout.split(), told.stderr) == (True, "")


def test_the_readme_shows_what_is_listed(site):
    listed = run(example(site), "list", "rms").stdout
    shown = "".join(f"    {line}\n" for line in listed.splitlines())
    assert f"    $ stones list rms\n{shown}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_process_runs_its_code_where_it_is_named(site, tmp_path):
    found = run(example(site), "inspect", "rms-norm", "-i", "4x12x6x6", "--json", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (Status.DONE, "")
    assert (json.loads(found.stdout)["technique"]["name"], json.loads(found.stdout)["ok"]) == ("rms-norm", True)


def test_a_switch_turns_plug_ins_off(site):
    refused = run(example(site), "show", "rms-norm", **{OFF: "1"})
    assert refused.returncode == Status.MISUSE
    assert "no stone is called 'rms-norm'" in refused.stderr


def test_neither_finding_nor_reading_imports_anything_of_it_or_torch(site):
    code = (
        "import sys; from layers import catalog; s = catalog.stone('rms-norm'); s.card; catalog.stones();"
        "print(s.module, [n for n in sys.modules if n.startswith(('stones_example', 'torch', 'importlib.metadata'))])"
    )
    path = os.pathsep.join([str(ROOT), str(example(site))])
    environment = {**{k: v for k, v in os.environ.items() if k != OFF}, "PYTHONPATH": path}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "stones_example.norm.rms_norm []\n"


def test_its_stone_is_like_any_other_and_knows_its_origin(rms):
    assert (rms.kind, rms.module, rms.origin._asdict()) == ("norm", "stones_example.norm.rms_norm", ORIGIN)
    assert rms.card == rms.imported().card
    norms = [name for name, stone in catalog.stones().items() if stone.kind == "norm"]
    assert norms == [name for name, stone in catalog.built_in().items() if stone.kind == "norm"] + ["rms-norm"]
    assert list(catalog.stones())[: len(norms)] == norms
    assert catalog.broken() == ()


def test_the_example_is_root_mean_square_normalization(rms):
    layer, x = rms.load()(12, eps=0.1).double(), torch.randn(4, 12, 3, 5, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(layer.weight)
    expected = F.rms_norm(x.movedim(1, -1), (12,), layer.weight, 0.1).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("options", ["", "--no-affine", "--eps 0.1 --eval"])
@pytest.mark.parametrize("shape", ["4x12", "3x12x6x5", "2x6x3x2x3"])
def test_what_its_card_says_is_what_is_measured(rms, shape, options):
    result = invoke("inspect", "rms-norm", "-i", shape, *options.split(), "--no-fvcore", "--json")
    assert (result.exit_code, result.stderr) == (Status.DONE, "")
    document = json.loads(result.stdout)
    assert document["ok"]
    assert "executed" in document["flops"]["forward"]


def test_a_lie_on_its_card_is_found(site, see):
    see(installed(site, stones_example__norm__rms_norm=CARD.replace('params="C if affine else 0"', 'params="C + 1"')))
    assert invoke("inspect", "rms-norm", "-i", "4x12x6x6", "--no-fvcore").exit_code == Status.FAILED


def test_every_check_holds_it_to_its_claims(rms):
    found = json.loads(invoke("check-invariance", "rms-norm", "--json").stdout)
    assert found["ok"]
    assert {row["carrier"] for row in found["rows"]} == {"linear", "conv", "conv-padded"}
    assert {row["property"] for row in found["rows"] if row["holds"]} == set(rms.card.claims[0].holds)
    for command in ("check-gradients", "check-identities"):
        assert invoke(command, "rms-norm").exit_code == Status.DONE


def test_bench_diff_draw_and_convert_take_it(rms):
    assert "rms-norm" in invoke("bench", "rms-norm", "--vs", "pixel-norm", *QUICK).stdout
    assert invoke("diff", "rms-norm", "pixel-norm", "--no-measure").exit_code == Status.DONE
    assert json.loads(invoke("draw", "rms-norm", "--json").stdout)["stone"] == "rms-norm"
    model = convert(torch.nn.Sequential(torch.nn.BatchNorm2d(4)), "rms-norm")
    assert type(model[0]) is rms.load()
    assert "rms-norm" in [stone.name for stone in catalog.stones().values() if stone.kind == "norm"]


def test_documents_with_it_are_as_their_schemas_say(rms):
    for line in ("list", "show rms-norm", "show gn"):
        document = json.loads(invoke(*line.split(), "--json").stdout)
        Draft202012Validator(schema(document["schema"])).validate(document)
        of = {entry["name"]: entry["origin"] for entry in document.get("techniques", [document])}
        assert of.get("rms-norm", ORIGIN) == ORIGIN
        assert {origin is None for name, origin in of.items() if name != "rms-norm"} <= {True}


def test_a_profile_may_name_it_but_all_is_all_of_ours(rms, tmp_path):
    file = tmp_path / "mine.yaml"
    checks = "check-invariance: all\ncheck-gradients: all\ncheck-identities: all\n"
    file.write_text(f"schema: stones.run/1\ninspect: all\n{checks}")
    names = {
        item.subject.name if hasattr(item, "subject") else item.stone.name for item in run_profiles.load(file).items
    }
    assert names == set(catalog.built_in())
    file.write_text(
        "schema: stones.run/1\ninspect: [rms-norm]\nbench: {stones: [rms-norm], rounds: 5, seconds: 0.05}\n"
    )
    assert invoke("run", file).exit_code == Status.DONE
    assert "rms-norm" not in json.dumps(schema("run"))


def test_a_check_without_names_is_about_all_that_is_installed(rms):
    assert all(rms in found for found in (cells.claiming(), identities.stating(), kinds.timeable("norm")))


def test_of_one_distribution_in_two_places_the_first_counts(site, see, tmp_path):
    new, old = example(tmp_path / "new"), installed(site, "Stones.Example", "0.1", ["gone = gone.norm.gone"])
    see(new, old, shutil.make_archive(str(tmp_path / "packed"), "zip", old))
    assert catalog.broken() == ()
    assert str(catalog.stone("rms-norm").origin) == "stones-example 1.0"


@pytest.mark.parametrize("is_namespace", [False, True])
def test_editable_installs_and_namespace_packages_are_found(site, see, tmp_path, is_namespace):
    """What an editable install leaves: metadata in one folder, and the sources in another that is on the path."""
    source = tmp_path / "src"
    file = source / "other/deep/norm/rms_norm.py"
    file.parent.mkdir(parents=True)
    file.write_text(CARD)
    if is_namespace:
        (tmp_path / "more/other").mkdir(parents=True)
    else:
        (source / "other/__init__.py").write_text("raise SystemExit")
    see(installed(site, points=["rms-norm = other.deep.norm.rms_norm"]), tmp_path / "more", source)
    assert (catalog.stone("rms-norm").path, catalog.broken()) == (file, ())
    if is_namespace:
        assert catalog.stone("rms-norm").load()(3).channels == 3


def test_metadata_of_older_installers_and_without_a_name_is_read(site, see):
    example(site)
    (site / "stones_example-1.0.dist-info").rename(site / "stones_example-1.0-py3.11.egg-info")
    (site / "stones_example-1.0-py3.11.egg-info" / "METADATA").unlink()
    see(site, site / "nosuch")
    assert catalog.stone("rms-norm").origin.distribution == "stones_example"


def test_these_tests_see_no_plug_ins_of_the_machine():
    assert {stone.origin for stone in STONES} == {None}
