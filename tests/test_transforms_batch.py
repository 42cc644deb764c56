"""Transformations of a model that look at a batch: its shape and dtype are options, what does not fit is refused."""

import json

import pytest
from command_line import invoke

from layers import catalog
from profiles import transforms
from profiles.subject import Setup, subject

NAME = "data-dependent"


def test_the_default_batch_is_said_and_fits_the_default_model():
    result = invoke("inspect", NAME, "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 0
    assert record["batch"] == list(transforms.BATCH) == [16, 3, 32, 32]
    assert 0 < record["params"]["set"] < record["params"]["total"]
    assert "batch 16x3x32x32" in invoke("inspect", NAME).stdout


def test_only_transformations_of_a_batch_take_its_shape():
    assert transforms.takes_batch(subject(catalog.stone(NAME), {}, Setup()))
    assert not transforms.takes_batch(subject(catalog.stone("bn-only"), {}, Setup()))
    assert not transforms.takes_batch(subject(catalog.stone("bn"), {}, Setup()))
    for flag, value in (("-i", "4x3x8x8"), ("--dtype", "float64")):
        result = invoke("inspect", "bn-only", flag, value)
        assert result.exit_code == 2
        assert "bn-only transforms a model, which --model names" in result.stderr


def test_another_batch_sets_other_values():
    one, other = (invoke("inspect", NAME, "-i", shape, "--json").stdout for shape in ("8x3x16x16", "4x3x32x32"))
    assert json.loads(one)["batch"] == [8, 3, 16, 16]
    assert json.loads(other)["batch"] == [4, 3, 32, 32]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("0x3x32x32", "needs 2 or more"),
        ("1x3x1x1", "needs 2 or more"),
        ("16x4x32x32", "4 channels"),
        ("16x3", "with --input 16x3"),
        ("3", "--input 3: 2 to 5 sizes are needed"),
        ("16x3x-1", "is not a shape"),
    ],
)
def test_a_batch_that_the_model_cannot_take_is_refused(shape, words):
    result = invoke("inspect", NAME, "-i", shape)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_a_batch_that_does_not_fit_the_memory_is_refused_before_it_is_drawn():
    result = invoke("inspect", NAME, "-i", "100000x3x3200x3200")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "data-dependent needs about" in result.stderr


def test_the_batch_may_have_the_dtype_of_the_model(tmp_path):
    file = tmp_path / "halves.py"
    file.write_text("from torch import nn\ndef model(): return nn.Conv2d(3, 4, 3).double()\n")
    model = ["--model", f"{file}:model"]
    assert invoke("inspect", NAME, *model).exit_code == 2
    assert invoke("inspect", NAME, *model, "--dtype", "float64").exit_code == 0
    assert "--device is for layers" in invoke("inspect", NAME, "--device", "cpu").stderr
