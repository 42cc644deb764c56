"""Which parameters of a model a technique on weights is for, with what state and how many operations."""

import json

import pytest
from command_line import invoke

from layers import catalog
from profiles.counting import touched
from profiles.errors import Refusal
from profiles.subject import Setup, subject
from profiles.target import Foreign, resolve

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


ODD = """
import torch
from torch import nn
class Silent(nn.Linear):
    def named_parameters(self, *args, **kwargs): raise ValueError("no parameters for you")
class Grouped(nn.Linear):
    groups = "three"
def silent(): return Silent(3, 3)
def grouped(): return Grouped(3, 3)
def lazy(): return nn.Sequential(nn.LazyLinear(4))
def huge(): return nn.Linear(10**7, 10**7)
def sparse():
    made = nn.Linear(3, 3)
    made.weight = nn.Parameter(torch.eye(3).to_sparse())
    return made
def empty(): return nn.Sequential(nn.ReLU())
def tied():
    made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    made[1].weight = made[0].weight
    return made
def half(): return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).half()
def loud():
    print("loud")
    return nn.Linear(3, 3)
"""


@pytest.fixture
def odd(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    return lambda name: f"{file}:{name}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("silent", "no parameters for you"),
        ("grouped", "its parameters cannot be read: unsupported operand"),
        ("sparse", "its parameters cannot be read"),
        ("lazy", "0.weight has no shape yet: run the model once first"),
    ],
)
def test_a_model_whose_parameters_cannot_be_read_is_refused_in_one_line(odd, name, words):
    result = invoke("inspect", "svb", "--model", odd(name))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--model {odd(name)}" in result.stderr
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_does_not_fit_the_memory_is_no_mistake_of_the_user(odd):
    result = invoke("inspect", "svb", "--model", odd("huge"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "out of memory" in result.stderr


def test_what_a_factory_prints_is_no_part_of_the_result(odd):
    result = invoke("inspect", "svb", "--model", odd("loud"), "--json")
    assert json.loads(result.stdout)["touched"]["parameters"] == 1
    assert "loud" in result.stderr


def test_a_weight_that_two_layers_share_is_one_parameter(odd):
    found = touched.inspect(subject(catalog.stone("svb"), {}, Setup((8, 8))), resolve(odd("tied")))
    assert [row["name"] for row in found["params"]["tensors"]] == ["0.weight", "0.bias", "1.bias"]


def test_a_model_without_parameters_has_nothing_to_touch(odd):
    result = invoke("inspect", "svb", "--model", odd("empty"), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["touched"] == {
        "parameters": 0,
        "elements": 0,
        "share": None,
        "state_bytes": 0,
        "flops": None,
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["sgd-g", "adam-g"])
@pytest.mark.parametrize("manifold", [True, False])
def test_the_bytes_of_state_are_those_that_the_optimizer_takes(name, dtype, manifold):
    import torch
    from torch import nn

    stone = catalog.stone(name)
    kernel = nn.Conv2d(4, 8, 3, bias=False, dtype=getattr(torch, dtype))
    found = touched.inspect(subject(stone, {"manifold": manifold}, Setup((8, 8))), Foreign("m:f", lambda: kernel, ()))
    optimizer = stone.load()([kernel.weight], manifold=manifold)
    kernel.weight.grad = torch.ones_like(kernel.weight)
    optimizer.step()
    state = optimizer.state[kernel.weight]
    assert found["touched"]["state_bytes"] == sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("svb --groups 2", "--groups"),
        ("weight-norm --kernel-size 5", "--kernel-size"),
        ("weight-norm --no-bias", "--bias"),
    ],
)
def test_sizes_that_the_layers_of_the_model_have_are_no_options_beside_it(line, flag):
    name, *options = line.split()
    result = invoke("inspect", name, *options, "--model", MODEL)
    assert result.exit_code == 2
    assert f"{flag} has no meaning beside --model, whose layers have their own" in result.stderr
    record = json.loads(invoke("inspect", name, "--model", MODEL, "--json").stdout)
    assert flag.removeprefix("--").replace("-", "_") not in record["technique"]["options"]


def test_a_projection_costs_a_call_and_an_optimizer_a_step():
    assert "FLOPs per call" in invoke("inspect", "svb", "--model", MODEL).stdout
    text = invoke("inspect", "adam-g", "--model", MODEL).stdout
    assert "FLOPs per step" in text
    assert "state: what is kept for each parameter touched, step, m_buffer, v_buffer." in text


def test_where_the_table_is_too_wide_every_reason_stands_once():
    from stones_cli.report.transformation import touched as report

    found = record("svb")
    (wide,) = (part for part in report(found).parts if part.title == "Each parameter")
    short, why = wide.narrow
    assert len(short.rows) == len(wide.rows) == len(found["params"]["tensors"])
    reasons = [row["reason"] for row in found["params"]["tensors"] if row["reason"]]
    assert [(row[0], row[2]) for row in why.rows] == [(reasons.count(each), each) for each in dict.fromkeys(reasons)]


@pytest.mark.parametrize("name", ["svb", "''", "cifar_resnet"])
def test_a_model_is_a_factory(name):
    result = invoke("inspect", "weight-norm", "--model", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is no factory; give pkg.mod:factory or file.py:factory" in result.stderr
