"""What works on one weight runs, is counted and is timed as a module; the command line speaks its language."""

import json

import pytest
import torch
from command_line import invoke
from roles import ON_WEIGHTS

from layers import catalog
from layers.card import OptionError
from profiles.adapters import state_of
from profiles.counting import facts
from profiles.errors import Refusal
from profiles.speed import cases
from profiles.subject import Setup, subject

SHAPES = ((12, 5), (6, 8, 3, 3), (12, 2, 3, 3))
EXAMPLES = [
    pytest.param(stone, options, id=f"{stone.name}-{number}")
    for stone in ON_WEIGHTS
    for number, options in enumerate(stone.card.examples)
]


def refusal(stone, options, shape):
    """What the card says against a weight of ``shape``; empty when it admits it."""
    try:
        stone.card.check(stone.card.sizes(shape), options)
    except OptionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("stone", "options"), EXAMPLES)
def test_every_number_of_a_card_is_what_is_measured(stone, options):
    admitted = [shape for shape in SHAPES if not refusal(stone, options, shape)]
    assert admitted
    for shape in admitted:
        record = facts.inspect(subject(stone, options, Setup(shape)), fvcore=False)
        assert record["checks"]
        assert [check for check in record["checks"] if not check["ok"]] == []
        for name in ("forward", "backward"):
            assert record["flops"][name]["uncounted"] == {}
        assert record["params"]["total"] == 0


@pytest.mark.parametrize("stone", [pytest.param(stone, id=stone.name) for stone in ON_WEIGHTS])
def test_an_adapter_registers_nothing_and_leaves_its_input_alone(stone):
    what = subject(stone, {}, Setup((12, 5)))
    module, x = what.build(), what.input()
    before = x.detach().clone()
    y = what.run(module, x)
    assert list(module.parameters()) == list(module.buffers()) == []
    assert torch.equal(x, before)
    assert y.requires_grad == what.has_backward == (stone.card.role == "penalty")
    assert y.shape == (() if stone.card.role == "penalty" else x.shape)
    assert set(state_of(module)) == {stat.name for stat in stone.card.state if stat.at(what.symbols) is not None}


def test_the_clock_of_an_optimizer_gives_it_the_same_gradient_and_makes_one_step_a_call():
    what = subject(catalog.stone("adam-g"), {}, Setup((12, 5)))
    module, x = what.build(), what.input()
    steps = float(state_of(module)["step"])
    module(x)
    module(x)
    assert float(state_of(module)["step"]) == steps + 2


def test_the_state_of_an_optimizer_is_stated_and_measured():
    record = facts.inspect(subject(catalog.stone("sgd-g"), {}, Setup((12, 5))), fvcore=False)
    (row,) = record["state"]
    assert (row["card"], row["observed"], row["bytes"]) == ([12, 5], [12, 5], 240)
    assert {"what": "state.momentum_buffer.shape", "card": [12, 5], "measured": [12, 5], "ok": True} in record["checks"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("inspect svb -i 12", "--input 12: 2 to 5 sizes are needed, O x …, a weight, such as 64x64x3x3"),
        ("inspect svb -i 0x5", "--input 0x5: a weight needs at least 1 element"),
        ("inspect svb --eval", "--eval is for layers; svb works on a weight, which has no mode"),
        ("inspect weight-standardization -i 8x64", "--input 8x64: weight-standardization needs 4 sizes"),
        ("inspect weight-standardization --kernel-size 3x3x3", "is not an integer ≥ 1, or 2 of them"),
        ("bench svb --backward -i 8x8", "svb has no backward: a projection is not differentiated"),
        ("bench svb --vs svb:methd=svd -i 8x8", "svb has no option 'methd'; did you mean method?"),
        ("bench svb --vs nosuch -i 8x8", "no stone is called 'nosuch'"),
        ("bench svb --vs bn -i 8x8", "svb works on a weight, bn on a layer's input"),
        ("bench svb --vs svb:method=foo -i 8x8", "svb:method=foo beside svb: method='foo' is not one of"),
        ("bench gn --no-affine --vs ln -i 2x32x9x9", "ln beside gn: affine=False is not one of"),
        ("bench svb --vs torch.optim:SGD -i 8x8", "torch.optim:SGD is an optimizer, svb is not"),
        ("bench adax --vs torch.optim:Adam:fusd=true -i 8x8", "has no option 'fusd'; did you mean fused?"),
        ("bench adax --vs torch.optim:Adam:lr=-1 -i 8x8", "Invalid learning rate"),
        ("inspect torch.optim:Adam", "torch.optim:Adam is an optimizer, not a layer"),
        ("bench orthogonal --both -i 8x8", "an initializer is not differentiated"),
        ("check-invariance adam-g", "adam-g is no layer but an optimizer: it has no output that could be checked"),
        ("check-gradients omd", "omd is no layer but a penalty: it has no output that could be checked"),
        ("inspect svb -i 4000x4000", "svb would take 1.8e+12 operations; give smaller sizes, or --no-measure"),
        ("inspect weight-norm --kernel-size 3x3x3", "'--kernel-size': '3x3x3' is not an integer ≥ 1, or 2 of them"),
        ("inspect weight-norm --kernel-size 3x-1", "'--kernel-size': '3x-1' is out of range"),
        ("inspect weight-norm --kernel-size 3x", "'--kernel-size': '3x' is not an integer"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(line, words):
    result = invoke(*line.split())
    assert result.exit_code == 2
    assert words in result.stderr


def test_options_that_take_more_memory_than_there_is_are_refused_before_anything_is_allocated():
    result = invoke("inspect", "weight-norm", "--out-channels", 10**12)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "weight-norm needs about" in result.stderr
    assert invoke("inspect", "weight-norm", "--out-channels", 10**12, "--no-measure").exit_code == 0


def test_a_class_that_takes_what_the_peer_of_a_convolution_takes_is_built_like_it():
    what = subject(catalog.stone("weight-norm"), {"kernel_size": (3, 5)}, Setup((2, 8, 9, 9)))
    made = cases.reference(what, "torch.nn:ConvTranspose2d").build()
    assert (made.in_channels, made.out_channels, made.kernel_size) == (8, 8, (3, 5))


def test_a_stone_beside_another_is_refused_before_anything_is_built():
    with pytest.raises(Refusal, match="has no option 'methd'"):
        cases.case(subject(catalog.stone("svb"), {}, Setup((8, 8))), vs=["svb:methd=svd"])


def test_inspect_of_an_optimizer_speaks_of_steps_and_has_no_backward():
    text = invoke("inspect", "sgd-g", "-i", "12x5").output
    assert "FLOPs per step" in text
    assert "State per parameter" in text
    assert "backward" not in text


@pytest.mark.parametrize("size", ["3x5", "3,5"])
def test_an_option_with_one_number_per_axis(size):
    result = invoke("inspect", "weight-standardization", "--kernel-size", size, "-i", "2x8x9x9", "--json")
    assert json.loads(result.stdout)["technique"]["options"]["kernel_size"] == [3, 5]


def test_a_stone_beside_itself_with_other_options():
    what = subject(catalog.stone("svb"), {"method": "gram"}, Setup((12, 5)))
    other = cases.reference(what, "svb:method=svd,factor=2")
    assert (other.options["method"], other.options["factor"]) == ("svd", 2.0)


def test_the_convolution_beside_one_with_other_weights_is_a_yardstick():
    made = cases.case(subject(catalog.stone("weight-standardization"), {}, Setup((2, 8, 6, 6))))
    assert [made.role(name) for name in (made.label, *made.references, "copy")] == ["stone", "yardstick", "copy"]


def test_a_transform_is_not_timed():
    with pytest.raises(Refusal, match="no forward to time"):
        cases.case(subject(catalog.stone("bn-only"), {}, Setup()))


@pytest.mark.parametrize("name", ["adax", "adaxw", "adabound", "amsbound", "lars"])
def test_an_optimizer_stands_beside_torchs(name):
    record = json.loads(invoke("bench", name, "-i", "64x64", "--budget", "0.01", "--json").stdout)
    roles = {each["name"]: each["role"] for each in record["cases"][0]["candidates"]}
    assert roles == {name: "stone", "torch.optim:Adam": "yardstick", "copy": "copy"}


def test_a_reference_among_torchs_optimizers_takes_options():
    adax = subject(catalog.stone("adax"), {}, Setup(shape=(4, 4)))
    found = cases.reference(adax, "torch.optim:Adam:foreach=true,lr=0.5")
    assert (found.role, found.options) == ("optimizer", {"foreach": True, "lr": 0.5})
    assert found.build().optimizer.param_groups[0]["foreach"] is True
