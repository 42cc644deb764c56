"""`stones diff` of two techniques: counters as inspected, claims as on the cards, its command line."""

from __future__ import annotations

import json

import pytest
from command_line import invoke, process
from jsonschema import Draft202012Validator
from test_startup import HEAVY, imported

from profiles.checks.diff import claim_for, techniques
from profiles.schemas import schema
from profiles.subject import Setup, subject
from profiles.target import resolve
from stones_cli.status import Status

SMALL = ("-i", "4x12x3x5")


def made(name, shape=(4, 12, 3, 5), train=True, **options):
    return subject(resolve(name), options, Setup(shape, train=train))


def rows(record):
    return {row["name"]: (row["left"], row["right"], row["same"]) for row in record["rows"]}


def test_counters_are_those_that_inspect_measures_on_the_same_input():
    record = techniques(made("gn", groups=3), made("ln", affine="elementwise", height=3, width=5))
    found = rows(record)
    assert found["parameters"] == (24, 2 * 12 * 15, False)
    Draft202012Validator(schema("diff")).validate(json.loads(json.dumps(record)))
    for number, side in enumerate((record["left"], record["right"])):
        assert side["measured"]
        assert found["flops-forward-executed"][number] == side["flops"]["forward"]["executed"]
        assert found["saved-bytes"][number] == side["memory"]["saved"]["measured"]
    assert found["mean"] == ("N×C/K (4x3)", "N×1 (4x1)", False)
    assert record["differing"] == sum(not row["same"] for row in record["rows"])


def test_a_technique_beside_itself_does_not_differ():
    record = techniques(made("bn"), made("bn"))
    assert record["differing"] == 0
    assert [row["name"] for row in record["rows"] if not row["same"]] == []


def test_an_option_that_one_lacks_is_no_option_of_it():
    record = techniques(made("gn", groups=3), made("ln"), measure=False)
    found = rows(record)
    assert found["groups"] == (3, None, False)
    assert found["channels_per_group"] == ("none", None, False)


def test_a_truth_value_is_not_the_same_as_a_number_or_a_word():
    assert rows(techniques(made("gn", groups=3), made("ln"), measure=False))["affine"] == (True, "channel", False)


def test_ratios_are_of_counters_only():
    record = techniques(made("gn", groups=3), made("gn", groups=6), measure=False)
    ratios = {row["name"]: row["ratio"] for row in record["rows"]}
    assert ratios["parameters"] == 1
    assert ratios["groups"] is None
    forward = rows(record)["flops-forward-definition"]
    assert ratios["flops-forward-definition"] == pytest.approx(forward[1] / forward[0], rel=1e-4)


def test_invariances_are_those_of_the_claim_for_the_options_and_the_mode():
    assert claim_for(made("ln")).row.startswith("axes=chw")
    assert claim_for(made("ln", axes="channel")).row.startswith("axes=channel")
    assert claim_for(made("bn", train=False)).mode == "eval"
    assert claim_for(made("lars")) is None
    trained, evaluated = rows(techniques(made("bn"), made("bn", train=False), measure=False))["w-scale"][:2]
    assert (trained, evaluated) == ("yes", "no")
    assert rows(techniques(made("bn"), made("gn", groups=3), measure=False))["x-recenter"][0] == "on linear, conv"


def test_a_class_is_compared_by_what_is_measured():
    record = techniques(made("torch.nn:GroupNorm", num_groups=3), made("gn", groups=3))
    found = rows(record)
    assert found["parameters"] == (24, 24, True)
    assert found["flops-forward-definition"][0] is None
    assert found["w-scale"] == (None, "yes", False)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [("gn", "svb", "no input for both"), ("bn-only", "gn", "is a transform"), ("gn", "autoaugment", "augmentation")],
)
def test_what_takes_another_input_is_refused(left, right, words):
    result = invoke("diff", left, right)
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert words in result.stderr


def test_only_what_differs_is_shown_unless_all_is_asked_for():
    line = ("diff", "gn:groups=3", "gn:groups=4", *SMALL)
    few, many = invoke(*line).stdout, invoke(*line, "--all").stdout
    assert "parameters" not in few
    assert "parameters" in many
    assert "--all" in few
    assert "--all" not in many
    assert "gn:groups=3" in few.splitlines()[3]


def test_options_that_both_have_are_given_to_both_and_spelt_ones_to_one():
    line = ("diff", "gn:groups=3", "gn", "--groups", "6", "--no-measure", *SMALL, "--json")
    record = json.loads(invoke(*line).stdout)
    assert [record[side]["technique"]["options"]["groups"] for side in ("left", "right")] == [3, 6]
    assert record["names"] == ["gn:groups=3", "gn"]


def test_expectations_are_about_both_sides_and_the_rows():
    line = ("diff", "gn:groups=3", "ln", *SMALL, "--no-measure")
    assert invoke(*line, "--expect", "left.params=24", "--expect", "rows.parameters.ratio=1").exit_code == Status.DONE
    assert invoke(*line, "--expect", "rows.flops-forward-definition.ratio<=1").exit_code == Status.DONE
    assert invoke(*line, "--expect", "right.params=25").exit_code == Status.FAILED


@pytest.mark.parametrize(
    "pair", [("gn", "bn"), ("lars", "adax"), ("mpn-cov", "bilinear"), ("weight-norm", "scaled-ws")]
)
def test_every_row_can_be_named_in_an_expectation(pair):
    for row in json.loads(invoke("diff", *pair, "--no-measure", "--json").stdout)["rows"]:
        assert not set(" .=<>!") & set(row["name"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("diff", "not 0"),
        ("diff gn", "not 1"),
        ("diff gn bn ln", "not 3"),
        ("diff a.json", "not 1"),
        ("diff gn a.json", "a.json is a saved result, gn is none"),
        ("diff a.json gn", "a.json is a saved result, gn is none"),
        ("diff gn ./a", "is a saved result"),
        ("diff gn bn --gate", "--gate is for two saved results"),
        ("diff gn bn --anyway", "--anyway is for two saved results"),
        ("diff a.json b.json --dtype float64", "--dtype is for techniques"),
        ("diff a.json b.json --no-measure", "is for techniques"),
        ("diff a.json b.json --groups 3", "no such option --groups"),
        ("diff a.json b.json", "a.json: cannot be read: No such file"),
        ("diff gm gn", "did you mean gn?"),
        ("diff gn ln --groups 4", "an option of gn, not of ln"),
        ("diff gn:gruops=4 ln", "did you mean groups?"),
        ("diff gn:groups=7 ln", "gn: groups=7 does not divide 64"),
        ("diff gn:groups=x ln", "groups='x' is not an integer"),
        ("diff torch.nn:GroupNorm gn --no-measure", "--num-groups"),
        ("diff torch.nn:ReLU gn --no-measure", "is a class and has none"),
        ("diff torch.optim:SGD lars", "is an optimizer"),
        ("diff gn bn -i 8x", "not a shape"),
    ],
)
def test_a_bad_command_line_is_status_2_with_the_remedy(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert words in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) <= 2


def test_help_fits_80_columns():
    for line in (("diff", "--help"), ("diff", "gn", "gn", "--help"), ("doctor", "--help")):
        printed = process(*line, COLUMNS="80").stdout
        assert "Exit status" in printed
        assert max(map(len, printed.splitlines())) <= 80


SAMPLES = '{"name": "gn", "samples_ns": [1, 2, 3]}'
TIMED = f'{{"schema": "stones.bench/1", "cases": [{{"name": "gn", "candidates": [{SAMPLES}]}}]}}'


def test_results_are_compared_without_torch(tmp_path):
    files = {"a": '{"schema": "stones.list/1"}', "b": '{"schema": "stones.list/1", "x": 1}', "c": TIMED}
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text)
    a, b, c = (str(tmp_path / f"{name}.json") for name in files)
    lines = [
        ["diff", "--help"], ["diff", "gn", "ln", "--help"], ["diff", a, b, "--gate"], ["diff", c, c], ["diff", a, "gn"],
        ["diff", a, "missing.json"], ["diff", "gn", "ln", "--no-measure"], ["diff", "gn", "svb"], ["diff", "gn"],
        ["doctor", "--help"], ["doctor", "--budget", "0"], ["doctor", "--budget", "9999"], ["doctor", "gn"],
    ]  # fmt: skip
    found = imported(lines, HEAVY)
    assert len(found) == len(lines)
    assert {(modules, line) for _, modules, line in found if modules != "[]"} == set()
