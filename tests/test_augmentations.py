"""Augmentations as a role: the promises that hold for every one, and what `inspect` and `bench` say of them."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import pickle
import subprocess
import sys

import pytest
import torch
from command_line import ROOT, environment, invoke
from PIL import Image
from test_card_options import refused_values

from layers import catalog, image_operations
from layers.card import OptionError
from profiles import augmentations
from profiles.errors import Refusal
from profiles.pillow import Pillow, pixels
from profiles.speed import cases
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case, reference
from profiles.speed.jobs import jobs
from profiles.speed.timing import Plan
from profiles.subject import Setup, subject
from profiles.target import resolve

STONES = [stone for stone in catalog.stones().values() if stone.card.role == "augmentation"]
ids = [pytest.param(stone, id=stone.name) for stone in STONES]
examples = [
    pytest.param(stone, options, id=f"{stone.name}-{number}")
    for stone in STONES
    for number, options in enumerate(stone.card.examples)
]
options = [pytest.param(s, option, id=f"{s.name}-{option.name}") for s in STONES for option in s.card.options]


def images(n=48, height=14, width=11):
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def augmented(stone, given, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stone.load()(**given)(images())


def record_of(stone, given=None, measure=True, **setup):
    return augmentations.inspect(
        subject(stone, given or {}, Setup(**{"shape": (32, 3, 9, 8), **setup})), measure=measure
    )


def test_there_are_some():
    assert STONES


@pytest.mark.parametrize("stone", ids)
def test_the_constructor_takes_the_options_of_the_card(stone):
    parameters = list(inspect.signature(stone.load()).parameters.values())
    taken = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert taken == {option.name: option.default for option in stone.card.options}
    assert all(p.default is None for p in parameters if p.name not in taken)
    assert issubclass(stone.load(), torch.nn.Module)


@pytest.mark.parametrize(
    ("stone", "option", "value"),
    [
        pytest.param(stone, option, value, id=f"{stone.name}-{option.name}={value!r}")
        for stone in STONES
        for option in stone.card.options
        for value in refused_values(option)
    ],
)
def test_a_bad_option_is_refused_by_name(stone, option, value):
    with pytest.raises(OptionError) as refusal:
        stone.load()(**{option.name: value})
    assert str(refusal.value).startswith(f"{option.name}={value!r} is ")
    assert option.expected() in str(refusal.value)
    assert refusal.value.option == option.name


@pytest.mark.parametrize("stone", ids)
def test_an_unknown_option_is_refused(stone):
    with pytest.raises(TypeError, match="surplus"):
        stone.load()(surplus=1)


@pytest.mark.parametrize(("stone", "option"), options)
def test_every_option_changes_something(stone, option):
    values = option.choices or (0, 255, (1, 2, 3))
    found = [augmented(stone, {option.name: value}) for value in values]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(found, 2))


@pytest.mark.parametrize(("stone", "given"), examples)
def test_it_keeps_shape_and_dtype_changes_images_and_leaves_those_given_alone(stone, given):
    found = augmented(stone, given)
    assert (found.shape, found.dtype) == (images().shape, torch.uint8)
    changed = (found != images()).flatten(1).any(1)
    assert 0 < changed.sum() < len(changed)
    assert torch.equal(augmented(stone, given), found)
    assert not torch.equal(augmented(stone, given, seed=1), found)


@pytest.mark.parametrize(("stone", "given"), examples)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_it_has_nothing_to_train_and_is_copied(stone, given, copied):
    module = stone.load()(**given)
    assert not [*module.parameters(), *module.buffers()]
    assert repr(copied(module)) == repr(module)


@pytest.mark.parametrize(("stone", "given"), examples)
@pytest.mark.parametrize("shape", [(32, 3, 9, 8), (7, 3, 33, 65), (5, 3, 1, 1), (0, 3, 8, 8), (2, 3, 0, 4)], ids=str)
def test_what_inspect_states_is_measured(stone, given, shape):
    state = torch.get_rng_state()
    record = record_of(stone, given, shape=shape)
    assert record["ok"]
    assert len(record["checks"]) == 5
    assert record["output"]["shape"] == list(shape)
    assert torch.equal(state, torch.get_rng_state())
    drawn = record["drawn"]
    assert sum(drawn["images_by_operations"].values()) == shape[0]
    applied = sum(number * count for number, count in drawn["images_by_operations"].items())
    assert sum(drawn["operations"].values()) == applied
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("stone", ids)
def test_the_policy_is_told_in_degrees_pixels_and_factors(stone):
    record = record_of(stone, shape=(4, 3, 64, 331))
    steps = [step for sub_policy in record["policy"] for step in sub_policy]
    assert {"operation": "Rotate", "probability": 0.6, "magnitude": 9, "values": [30, -30]} in steps
    assert {"operation": "Posterize", "probability": 0.4, "magnitude": 8, "values": [4]} in steps
    assert {"operation": "Contrast", "probability": 1.0, "magnitude": 8, "values": [1.8, 0.2]} in steps
    svhn = [step for sub in record_of(stone, {"policy": "svhn"}, shape=(4, 3, 64, 331))["policy"] for step in sub]
    assert {"operation": "TranslateX", "probability": 0.9, "magnitude": 3, "values": [50, -50]} in svhn
    assert record["expected"]["operations"] == pytest.approx(sum(record["expected"]["shares"].values()))
    assert record["expected"]["bytes"] == round(2 * 1.24 * 4 * 3 * 64 * 331)


def test_sub_policies_that_differ_in_an_unused_magnitude_are_the_same():
    stone = catalog.stone("autoaugment")
    found = {policy: record_of(stone, {"policy": policy})["different"] for policy in ("imagenet", "cifar10", "svhn")}
    assert found == {"imagenet": 20, "cifar10": 25, "svhn": 23}


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        ("Equalize", lambda images, values, fill: images.clone()),
        ("Solarize", lambda images, values, fill: image_operations.solarize(images, [v + 1 for v in values], fill)),
        ("Rotate", lambda images, values, fill: image_operations.rotate(images, [-v for v in values], fill)),
    ],
)
def test_an_operation_that_is_wrong_is_found_out(monkeypatch, operation, wrong):
    honest = record_of(STONES[0], {"policy": "svhn"}, shape=(64, 3, 30, 31))
    monkeypatch.setitem(image_operations.OPERATIONS, operation, wrong)
    record = record_of(STONES[0], {"policy": "svhn"}, shape=(64, 3, 30, 31))
    assert honest["ok"]
    assert not record["ok"]
    assert [check["what"] for check in record["checks"] if not check["ok"]] == ["images equal to Pillow's"]


def test_without_measuring_the_card_answers_alone_and_torch_is_not_imported():
    record = record_of(STONES[0], measure=False, shape=(10**6, 3, 10**4, 10**4))
    assert (record["measured"], record["ok"], record["output"]) == (False, True, None)
    assert len(record["policy"]) == 25


def test_without_pillow_nothing_is_compared_with_it(monkeypatch):
    monkeypatch.setattr(augmentations, "find_spec", lambda name: None)
    record = record_of(STONES[0])
    assert record["pillow"] is None
    assert record["ok"]
    assert len(record["checks"]) == 4


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({"shape": (4, 1, 8, 8)}, "images of 1 channels: red, green and blue are needed"),
        ({"shape": (4, 3, 8)}, "needs 4 sizes"),
        ({"dtype": "float64"}, "--dtype float64 is for layers; autoaugment works on uint8 images"),
        ({"train": False}, "--eval is for layers"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(setup, words):
    with pytest.raises((Refusal, OptionError), match=words):
        record_of(catalog.stone("autoaugment"), **setup)


@pytest.mark.parametrize(("stone", "given"), examples)
def test_the_peer_makes_the_same_images(stone, given):
    what = subject(stone, given, Setup(shape=(48, 3, 14, 11)))
    peer = reference(what, cases.peer_name(what)).build()
    assert isinstance(peer, Pillow)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counts = peer(images())
    assert torch.equal(torch.stack([pixels(picture) for picture in peer.pictures]), augmented(stone, given))
    assert all(isinstance(picture, Image.Image) for picture in peer.pictures)
    assert counts.shape == (48,)


def test_bench_puts_pillow_beside_it_and_counts_images():
    what = case(subject(resolve("autoaugment"), {}, Setup(shape=(8, 3, 8, 8))))
    (record,) = bench(Bench((what,), Plan(seconds=0.1, block=1e-5, rounds=8)))["cases"]
    assert [(row["name"], row["role"]) for row in record["candidates"]] == [
        ("autoaugment", "stone"),
        ("profiles.pillow:Pillow", "reference"),
        ("copy", "copy"),
    ]
    assert record["input"]["dtype"] == "uint8"
    for row in record["candidates"]:
        assert row["images_per_s"] == pytest.approx(8e3 / row["ms"], rel=1e-3)
    layer = case(subject(resolve("gn"), {"groups": 2}, Setup(shape=(2, 4, 3, 3))))
    (record,) = bench(Bench((layer,), Plan(seconds=0.1, block=1e-5, rounds=8)))["cases"]
    assert {row["images_per_s"] for row in record["candidates"]} == {None}


def test_bench_without_pillow_has_no_peer(monkeypatch):
    monkeypatch.setattr(cases, "find_spec", lambda name: None)
    what = subject(resolve("autoaugment"), {}, Setup(shape=(8, 3, 8, 8)))
    assert not case(what).references
    with pytest.raises(Refusal, match="no peer"):
        case(what, vs=["peer"])


def test_bench_refuses_what_does_not_compare():
    ours = subject(resolve("autoaugment"), {}, Setup(shape=(8, 3, 8, 8)))
    layer = subject(resolve("gn"), {"groups": 1}, Setup(shape=(8, 3, 8, 8)))
    with pytest.raises(Refusal, match="works on images, gn on a layer's input"):
        case(ours, vs=["gn"])
    with pytest.raises(Refusal, match="works on a layer's input, autoaugment on images"):
        case(layer, vs=["autoaugment"])
    with pytest.raises(Refusal, match="an augmentation is not differentiated"):
        jobs(case(ours, "backward"))


def test_the_command_line_prints_the_policy_and_the_verdict():
    result = invoke("inspect", "autoaugment", "-i", "16x3x224x224")
    assert result.exit_code == 0
    for words in ("Rotate ±30°", "Posterize 4 bits", "Color × 0.6 or 1.4", "Solarize from 170", "ShearX ±0.1667"):
        assert words in result.stdout
    assert "20 of the 25 sub-policies are different" in result.stdout
    assert "bit for bit, of 16 of 16 images" in result.stdout
    assert "TranslateY ±101 px" in invoke("inspect", "autoaugment", "--policy", "cifar10", "-i", "2x3x224x224").stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--no-fvcore"], "--no-fvcore is for layers"),
        (["--dtype", "float32"], "--dtype is for layers"),
        (["--model", "layers.resnet:cifar_resnet"], "autoaugment is an augmentation"),
        (["-i", "2x4x8x8"], "images of 4 channels"),
    ],
)
def test_the_command_line_refuses_what_is_for_layers(line, words):
    result = invoke("inspect", "autoaugment", *line)
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_command_line_shows_and_inspects_by_the_card_without_torch():
    for line in (["show", "autoaugment"], ["inspect", "autoaugment", "--no-measure", "--json"]):
        code = f"import sys; from stones_cli.commands import run; run({line!r}); assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True, capture_output=True)
