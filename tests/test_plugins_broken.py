"""Plug-ins that are broken or clash: named with their remedy, and nothing else breaks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

import pytest
from command_line import invoke
from plugged import CARD, example, installed, run

from layers import catalog
from layers.card import Card, Identity
from layers.fitting import misfit
from layers.stone import PluginError
from profiles.checks import identities
from profiles.speed.findings import about_plugins
from stones_cli.handlers import checks
from stones_cli.status import Status


def test_a_check_without_names_warns_of_what_it_cannot_be_about(site, see, monkeypatch):
    see(installed(site, "broken-one", points=["x = nowhere.norm.x"]))
    few = [catalog.stone("pixel-norm")]
    monkeypatch.setattr(checks, "claiming", lambda: few)
    monkeypatch.setattr(identities, "stating", lambda: few)
    for command in ("check-invariance", "check-gradients", "check-identities"):
        alone, named = invoke(command), invoke(command, "pixel-norm")
        assert (alone.exit_code, alone.stdout) == (Status.DONE, named.stdout)
        assert (alone.stderr, named.stderr) == (f"warning: {catalog.broken()[0]}\n", "")


BROKEN = {
    "no file": ("x = other.norm.x", {"other__norm__y": ""}, r"there is no file .*norm/x\.py; reinstall"),
    "no package": ("x = nowhere.norm.x", {}, "Python finds no package 'nowhere'; reinstall or uninstall broken-one"),
    "a module": ("x = other.norm.x", {"other": ""}, "Python finds no package 'other'"),
    "no card": ("x = other.norm.x", {"other__norm__x": "x = 1\n"}, r"x\.py: expected one statement .*, found 0"),
    "two cards": ("x = other.norm.x", {"other__norm__x": "card = Card()\n" * 2}, r"x\.py:2: .* found 2"),
    "no end": (
        "x = other.norm.x",
        {"other__norm__x": "\ncard = Card(\n"},
        r"x\.py:2: the card cannot be read: .*never",
    ),
    "own name": (
        "x = other.norm.x",
        {"other__norm__x": CARD.replace("default=1e-8", "default=TINY")},
        r"x\.py:\d+: .*'TINY' is no name of layers\.card or layers\.shared, and no other is known: write it out",
    ),
    "code": (
        "x = other.norm.x",
        {"other__norm__x": "card = Card(title=open('x'))\n"},
        r"x\.py:1: .*\"open\('x'\)\" is no",
    ),
    "role": (
        "x = other.norm.x",
        {"other__norm__x": CARD.replace('impl="RMSNorm"', 'impl="RMSNorm", role="layre"')},
        r"x\.py:\d+: .*role='layre' is not one of layer, transform",
    ),
    "no such field": ("x = other.norm.x", {"other__norm__x": "card = Card(titel=1)\n"}, r"x\.py:1: .*'titel'"),
    "symbol": ("x = other.norm.x", {"other__norm__x": CARD.replace('"C if', '"Z if')}, r"x\.py:\d+: .*unknown Z"),
    "operator": (
        "x = other.norm.x",
        {"other__norm__x": CARD.replace('"C if', '"C^2 if')},
        r"x\.py:\d+: .*uses BitXor, which formulas do not have: write a power as \*\*",
    ),
    "type": (
        "x = other.norm.x",
        {"other__norm__x": CARD.replace("year=2019", "year='2019'")},
        r"x\.py:\d+: card\.paper\.year = '2019' is not of type int",
    ),
    "not text": ("x = other.norm.x", {"other__norm__x": b"\xff\xfe"}, r"x\.py: cannot be read: 'utf-8'"),
    "nested": ("x = other.norm.x", {"other__norm__x": "card = Card(" + "(" * 5000}, "plug-in x of broken-one 1.0: .+"),
    "kind": ("x = other.norms.x", {"other__norms__x": CARD}, "the folder 'norms' is none of the kinds norm, weight"),
    "name": ("x = other.norm.y_z", {"other__norm__y_z": CARD}, r"the file y_z\.py is of the name y-z; make them agree"),
    "attribute": ("x = other.norm.x:card", {"other__norm__x": CARD}, r"package\.kind\.module is due"),
    "short": ("x = norm.x", {"norm__x": CARD}, r"package\.kind\.module is due"),
    "nothing": ("x", {}, r"x = '': package\.kind\.module is due"),
}


@pytest.mark.parametrize("sort", BROKEN)
def test_a_broken_plug_in_is_named_with_its_remedy_and_breaks_nothing_else(site, see, sort):
    point, files, words = BROKEN[sort]
    example(site)
    see(installed(site, "broken-one", points=[point], **files))
    (broken,) = catalog.broken()
    assert re.search(words, str(broken))
    assert "\n" not in str(broken)
    listed = invoke("list")
    assert (listed.exit_code, listed.stderr) == (Status.DONE, f"warning: {broken}\n")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == list(catalog.stones())
    assert {*catalog.built_in(), "rms-norm"} == {*catalog.stones()}
    named = invoke("inspect", "x")
    assert (named.exit_code, named.stderr) == (Status.MISUSE, f"error: {broken}\n")
    sound = invoke("show", "rms-norm")
    assert (sound.exit_code, sound.stderr) == (Status.DONE, "")


def test_what_lies_in_an_archive_is_said_to(site, see, tmp_path):
    see(shutil.make_archive(str(tmp_path / "packed"), "zip", example(site)))
    (broken,) = catalog.broken()
    assert str(broken).startswith("plug-in rms-norm of stones-example 1.0: ")
    assert f"it lies in the archive {tmp_path}/packed.zip, but cards are read from files; install it unpacked" in str(
        broken
    )


def test_a_plug_in_called_as_one_of_ours_leaves_ours_and_is_told_of(site, see):
    see(installed(site, points=["gn = other.norm.gn"], other__norm__gn=CARD))
    assert catalog.stone("gn") is catalog.built_in()["gn"] is catalog.stones()["gn"]
    for line in ("show gn", "inspect gn --groups 4 -i 4x12x3x3 --no-fvcore", "list"):
        result = invoke(*line.split())
        assert result.exit_code == Status.DONE
        (told,) = result.stderr.splitlines()
        assert told.startswith("warning: plug-in gn of stones-example 1.0: gn is a technique of stones itself")
        assert told.endswith("`pip uninstall stones-example`")
    assert invoke("show", "ln").stderr == ""


def test_of_two_plug_ins_of_one_name_none_is_meant(site, see):
    example(site)
    see(installed(site, "rival", "2.1", ["rms-norm = other.norm.rms_norm"], other__norm__rms_norm=CARD))
    assert "rms-norm" not in catalog.stones()
    result = invoke("show", "RMS_norm")
    assert result.exit_code == Status.MISUSE
    said = "plug-in rms-norm of rival 2.1 and stones-example 1.0: they have one name, and none of them is meant"
    assert result.stderr == f"error: {said}; `pip uninstall rival` or `pip uninstall stones-example`\n"


def test_the_sound_one_of_two_stands(site, see):
    example(site)
    see(installed(site, "rival", "2.1", ["rms-norm = other.norm.rms_norm"]))
    assert str(catalog.stone("rms-norm").origin) == "stones-example 1.0"
    assert invoke("show", "rms-norm").stderr.startswith("warning: plug-in rms-norm of rival 2.1: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("import torch\n", "import nosuch_library\n"),
            "cannot be imported: ModuleNotFoundError: No module named 'nosuch",
        ),
        (("import torch\n", "import torch\n1 / 0\n"), "cannot be imported: ZeroDivisionError: division by zero"),
        (("class RMSNorm(", "class Other("), "has no class or function 'RMSNorm', which its card calls impl"),
    ],
)
def test_code_that_cannot_be_imported_is_the_plug_ins_fault(site, see, change, words):
    see(
        installed(site, stones_example__norm__rms_norm=CARD.replace(*change).replace("layer: RMSNorm", "layer: object"))
    )
    assert invoke("show", "rms-norm").exit_code == Status.DONE
    with pytest.raises(PluginError, match=re.escape(words)):
        catalog.stone("rms-norm").load()
    result = invoke("inspect", "rms-norm", "-i", "4x12x6x6")
    assert result.exit_code == Status.ENVIRONMENT
    assert re.fullmatch(rf"error: .*rms_norm\.py: plug-in rms-norm of stones-example 1\.0 {words}.*\n", result.stderr)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("        self.check_input(x)\n", "        {}['missing']\n"),
            "refuses an input of 4x12x6x6: KeyError: 'missing'",
        ),
        (("        affine: bool = True,\n", "        afine: bool = True,\n"), "cannot be built: .* argument 'affine'"),
        (
            ("        super().__init__(", "        {}['missing']\n        super().__init__("),
            "cannot be built: KeyError: .*",
        ),
    ],
)
def test_code_that_fails_is_a_refusal(site, see, change, words):
    see(installed(site, stones_example__norm__rms_norm=CARD.replace(*change)))
    result = invoke("inspect", "rms-norm", "-i", "4x12x6x6")
    assert result.exit_code == Status.MISUSE
    assert re.search(f"^error: rms-norm {words}", result.stderr)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("C / 0", "cannot be evaluated: division by zero"),
        ("C ** C ** C", "cannot be evaluated: .* is too large"),
        ("1e400", "comes to inf"),
    ],
)
def test_a_formula_that_comes_to_nothing_is_named(site, see, number, words):
    see(installed(site, stones_example__norm__rms_norm=CARD.replace('"C if affine else 0"', f'"{number}"')))
    result = invoke("inspect", "rms-norm", "-i", "4x12x6x6")
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert re.fullmatch(f"error: formula '{re.escape(number)}' {words}\n", result.stderr)


def test_a_bug_of_a_plug_in_is_laid_at_its_door(site):
    paper = "Paper(authors='A', title='B', year=2026)"
    card = f"card = Card(title='T', paper={paper}, impl='t', formula='f', summary='s', role='transform')\n"
    code = "from layers.card import Card, Paper\n\n" + card + "\n\ndef t(model):\n    {}['missing']\n"
    told = run(installed(site, "other", points=["t = other.norm.t"], other__norm__t=code), "inspect", "t")
    assert told.returncode == Status.INTERNAL
    assert told.stderr.endswith("KeyError: 'missing'\nthis is a bug in the plug-in t of other 1.0, please report it\n")


def test_doctor_counts_plug_ins_and_says_what_is_broken(site, see):
    assert about_plugins(catalog.stones().values(), catalog.broken()) is None
    example(site)
    see(installed(site, "broken-one", points=["x = nowhere.norm.x"]))
    row = about_plugins(catalog.stones().values(), catalog.broken())
    assert (row.found, row.verdict) == ("1 technique of stones-example 1.0; 1 broken or clashing", "ok")
    assert "nowhere" in row.advice


def test_every_card_of_ours_has_the_types_that_plug_ins_must_have():
    assert [wrong for stone in catalog.built_in().values() if (wrong := misfit(stone.card, Card, stone.name))] == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.5, int), (True, float), ("a", tuple[str, ...]), (None, int | str), ((1, 2, 3), tuple[int, int])],
)
def test_a_value_of_another_type_is_a_misfit(value, kind):
    assert misfit(value, kind, "it").startswith(f"it = {value!r} is not of type ")


def test_a_misfit_names_the_part_that_does_not_fit():
    assert misfit((1, "b"), tuple[int, ...], "it") == "it[1] = 'b' is not of type int"
    assert misfit({1: 2}, Mapping[str, int], "it") == "a key of it = 1 is not of type str"
    assert misfit({"a": "b"}, Mapping[str, int], "it") == "it['a'] = 'b' is not of type int"
    assert misfit(Identity(says=3), Identity, "it") == "it.says = 3 is not of type str"
