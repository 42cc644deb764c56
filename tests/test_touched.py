"""Which parameters of a model a technique on weights is for, with what state and how many operations."""

import json

import pytest
from command_line import invoke

from layers import catalog
from profiles import touched
from profiles.errors import Refusal
from profiles.subject import Setup, subject
from profiles.target import resolve

MODEL = "layers.resnet:cifar_resnet"


def record(name, **options):
    stone = catalog.stone(name)
    shape = (8, 8, 8, 8) if stone.card.ranks == (4,) else (8, 8)
    return touched.inspect(subject(stone, options, Setup(shape)), resolve(MODEL))


def test_the_totals_are_those_of_the_rows():
    found = record("sgd-g")
    rows = [row for row in found["params"]["tensors"] if row["touched"]]
    assert 0 < found["touched"]["parameters"] == len(rows) < len(found["params"]["tensors"])
    assert found["touched"]["elements"] == sum(row["elements"] for row in rows)
    assert found["touched"]["state_bytes"] == 4 * found["touched"]["elements"]
    assert found["touched"]["flops"] == sum(row["flops"] for row in rows)
    assert all(bool(row["reason"]) != row["touched"] for row in found["params"]["tensors"])


@pytest.mark.parametrize("name", ["weight-standardization", "normalized-conv"])
def test_convert_takes_the_layers_that_are_said_to_be_touched(name):
    from layers.convert import convert
    from layers.resnet import cifar_resnet

    model = cifar_resnet(14)
    before = {key: type(module) for key, module in model.named_modules()}
    convert(model, name)
    changed = {key for key, module in model.named_modules() if before.get(key, type(module)) is not type(module)}
    rows = record(name)["params"]["tensors"]
    assert {row["name"].rpartition(".")[0] for row in rows if row["touched"] and row["kind"] != "bias"} == changed


def test_a_layer_has_no_parameters_of_a_model():
    with pytest.raises(Refusal, match="bn is not for the weights"):
        record("bn")


def test_the_command_takes_expectations_and_every_format():
    expected = record("svb")["touched"]["elements"]
    line = ["inspect", "svb", "--model", MODEL]
    result = invoke(*line, "--json", "--expect", f"touched.elements={expected}")
    assert (result.exit_code, json.loads(result.stdout)["schema"]) == (0, "stones.touched/1")
    assert invoke(*line, "--expect", "touched.elements=1").exit_code == 1
    assert "no: a bias" in invoke(*line, "--format", "csv").stdout
    assert invoke(*line, "-i", "8x8").exit_code == 2
