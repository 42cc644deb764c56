"""The table by module adds up to the whole, which is counted elsewhere, and nothing of the model changes."""

import copy
import io
import json

import pytest
import torch
from command_line import invoke
from counted_models import MODELS, built
from torch import nn
from torch.nn.modules import module as hooks

from layers import catalog
from layers.resnet import imagenet_resnet
from profiles import inspecting
from profiles.counting import by_module, facts
from profiles.counting.backward import counted
from profiles.counting.flops import Counting
from profiles.counting.saved import saving
from profiles.errors import Refusal
from profiles.outputs import first_tensor
from profiles.subject import Setup, subject
from profiles.target import Foreign
from stones_cli.report.inspection import inspection
from stones_cli.report.tables import Table
from stones_cli.report.terminal import drawn
from stones_cli.status import Status


def whole(model, x):
    """The numbers of the whole model, by the counts that know of no modules."""
    made, x = copy.deepcopy(model), x.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with saving(made) as saved, Counting() as forward:
            y = first_tensor(made(x), "")
        backward = counted(y)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "flops_forward": forward.count.flops,
        "macs_forward": forward.count.macs,
        "flops_backward": backward.flops,
        "macs_backward": backward.macs,
        "saved": saved.bytes,
    }, (forward.count, backward)


def rows_of(record):
    return {row["name"]: row for row in record["rows"]}


def sums(rows):
    rows = list(rows)
    return {name: sum(row[name] for row in rows) for name in by_module.NUMBERS}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_rows_add_up_to_the_whole_at_every_depth(name, train):
    model, x = built(name)
    model.train(train)
    expected, passes = whole(model, x)
    for depth in (None, 0, 1, 2):
        record = by_module.inspect(model, x, depth=depth)
        assert sums(record["rows"]) == record["total"] == expected
        for pass_, count in zip(by_module.PASSES, passes, strict=True):
            found = [row["uncounted"][pass_] for row in record["rows"]]
            assert {op: sum(row.get(op, 0) for row in found) for row in found for op in row} == dict(count.uncounted)
        assert count.flops or count.uncounted


def test_a_two_layer_perceptron_is_as_counted_by_hand():
    model, x = built("mlp")
    rows = rows_of(by_module.inspect(model, x))
    n, first, second = 4, 6 * 5, 5 * 3
    expected = {
        # type, calls, output, parameters; 2 n I O + n O; MACs; both gradients and the sum over n for the bias; bytes
        "": ("Sequential", 1, [n, 3], 0, 0, 0, 0, 0),
        "0": ("Linear", 1, [n, 5], first + 5, n * (2 * first + 5), n * first, 4 * n * first + 3 * 5, 4 * n * 6),
        "1": ("ReLU", 1, [n, 5], 0, n * 5, 0, n * 5, 4 * n * 5),
        # its input is what ReLU kept already
        "2": ("Linear", 1, [n, 3], second + 3, n * (2 * second + 3), n * second, 4 * n * second + 3 * 3, 0),
    }
    keys = ("type", "calls", "outputs", "params", "flops_forward", "macs_forward", "flops_backward", "saved")
    assert rows.keys() == expected.keys()
    for name, numbers in expected.items():
        found = [rows[name][key] for key in keys]
        assert found == [*numbers[:2], [numbers[2]], *numbers[3:]], name


def test_a_module_called_twice_has_one_row_and_a_shared_parameter_counts_once():
    model, x = built("doubled")
    rows = rows_of(by_module.inspect(model, x))
    assert [(name, row["calls"], row["params"]) for name, row in rows.items()] == [
        ("", 1, 0),
        ("inner", 2, 42),
        ("tied", 1, 0),
    ]
    assert rows["inner"]["also"] == ["alias"]
    assert rows["inner"]["flops_forward"] == 2 * 3 * (2 * 36 + 6)
    assert rows["tied"]["flops_forward"] == 2 * 3 * 36
    assert rows[""]["flops_forward"] == 3 * 6  # relu


def test_the_sum_of_gradients_is_of_the_innermost_module_around_all_uses():
    model, x = built("branching")
    rows = rows_of(by_module.inspect(model, x))
    elements = 3 * 6
    # ∂h of three uses are two sums, ∂x = 2 ∂h; the additions of the forward cost nothing here
    assert rows[""]["flops_backward"] == 2 * elements + elements
    # within Split 3 x is used three times: sin' and its product, cos' with its sign, relu', two sums, and 3 ∂
    assert rows["both.0"]["flops_backward"] == (2 + 3 + 1 + 2 + 1) * elements
    assert rows["both.0"]["outputs"] == [[3, 6]] * 3
    assert rows[""]["outputs"] == [[3, 6]] * 3
    assert rows["both"]["flops_backward"] == 0


def test_a_shortcut_is_of_its_block():
    model, x = built("cifar_resnet")
    rows = rows_of(by_module.inspect(model, x))
    block = rows["stages.0.0"]
    elements = 2 * 4 * 8 * 8
    assert block["flops_forward"] == 2 * elements  # the sum, and ReLU after it
    assert block["flops_backward"] == 2 * elements  # ReLU's, and the sum of the gradients of body and shortcut


def test_what_is_run_again_in_the_backward_is_of_who_runs_it_there():
    model, x = built("reentrant")
    rows = rows_of(by_module.inspect(model, x))
    assert rows["inner"]["calls"] == 1
    assert sum(row["flops_backward"] for name, row in rows.items() if name) == 0
    assert rows[""]["flops_backward"] > rows["inner.0"]["flops_forward"]


def test_within_a_module_is_all_that_lies_below_it():
    model, x = built("cifar_resnet")
    record = by_module.inspect(model, x)
    rows = rows_of(record)
    assert rows[""]["within"] == record["total"]
    assert rows["stages"]["within"] == sums(row for name, row in rows.items() if name.split(".")[0] == "stages")
    folded = rows_of(by_module.inspect(model, x, depth=1))
    assert list(folded) == ["", "stem", "stages", "head"]
    assert {key: folded["stages"][key] for key in by_module.NUMBERS} == rows["stages"]["within"]
    assert [row["folded"] for row in folded.values()] == [False, True, True, False]


def state(model, x):
    """Everything that a run could change, by its bytes."""
    stream = io.BytesIO()
    torch.save((model.state_dict(), [p.grad for p in model.parameters()], x, x.grad, torch.get_rng_state()), stream)
    modes = [(m.training, list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()]
    ours = [list(hooks._global_forward_hooks), list(hooks._global_forward_pre_hooks)]
    return stream.getvalue(), modes, ours, [p._version for p in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("name", ["cifar_resnet", "transformer", "lstm", "doubled"])
def test_nothing_about_the_model_changes(name):
    model, x = built(name)
    first_tensor(model(x), "").sum().backward()
    list(model.modules())[-1].eval()
    before = state(model, x)
    by_module.inspect(model, x)
    assert state(model, x) == before


def test_a_module_that_fails_leaves_no_hooks_behind():
    model, x = built("mlp")
    before = state(model, x)
    with pytest.raises(RuntimeError):
        by_module.inspect(model, x[:, :5])
    assert state(model, x) == before


def test_a_call_that_fails_and_is_caught_ends_there():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError

    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.failing = nn.Sequential(Failing())

        def forward(self, x):
            try:
                return self.failing(x)
            except ValueError:
                return x.sin()

    rows = rows_of(by_module.inspect(Catching(), torch.randn(3, 6)))
    assert [row["flops_forward"] for row in rows.values()] == [18, 0, 0]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["cifar_resnet", "transformer", "mlp"])
def test_the_record_by_modules_is_that_without_and_the_table(name, train):
    make, shape = MODELS[name]
    made = subject(Foreign(name, make, ()), {}, Setup(shape, train=train))
    plain, record = (facts.inspect(made, fvcore=False, modules=modules) for modules in (False, True))
    table = record.pop("modules")
    assert plain.pop("modules") is None
    assert record == plain
    assert table["total"] == {
        "params": plain["params"]["total"],
        **{f"flops_{name}": plain["flops"][name]["executed"] for name in by_module.PASSES},
        **{f"macs_{name}": plain["flops"][name]["macs"] for name in by_module.PASSES},
        "saved": plain["memory"]["saved"]["measured"],
    }


def test_without_a_backward_its_numbers_are_unknown():
    made = subject(Foreign("signs", lambda: Signs(), ()), {}, Setup((3, 6)))
    table = facts.inspect(made, fvcore=False, modules=True)["modules"]
    assert (table["total"]["flops_backward"], table["rows"][0]["macs_backward"]) == (None, None)


class Signs(nn.Module):
    def forward(self, x):
        return x.detach().sign()


def test_the_table_fits_80_columns_and_says_all(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    made = subject(Foreign("net", lambda: imagenet_resnet(18), ()), {}, Setup((2, 3, 32, 32)))
    report = inspection(facts.inspect(made, fvcore=False, modules=True))
    lines = drawn(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.startswith("  FLOPs") for line in lines)
    whole = next(part for part in report.parts if isinstance(part, Table) and part.title == "By module")
    cells = [{cell for row in part.texts() for cell in row if cell} for part in (whole, *whole.narrow)]
    assert set().union(*cells[1:]) == cells[0]


def test_the_command_line_shows_a_factory_by_module():
    line = (
        "inspect",
        "layers.resnet:cifar_resnet",
        "--depth",
        8,
        "--width",
        4,
        "-i",
        "2x3x8x8",
        "--no-fvcore",
        "--modules",
    )
    result = invoke(
        *line, "--module-depth", 1, "--json", "--expect", "modules.rows.head.params=170", "--fail-uncounted"
    )
    assert result.exit_code == Status.DONE, result.output
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["modules"]["rows"]] == ["", "stem", "stages", "head"]
    assert sums(document["modules"]["rows"])["params"] == document["params"]["total"]


def test_an_operation_that_is_not_counted_fails_where_that_is_asked_for(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Odd(nn.Module):\n"
        "    def forward(self, x):\n        return torch.digamma(x)\n\ndef model():\n    return nn.Sequential(Odd())\n"
    )
    line = ("inspect", f"{tmp_path / 'odd.py'}:model", "-i", "2x3", "--no-fvcore", "--modules")
    lenient, strict = invoke(*line), invoke(*line, "--fail-uncounted")
    assert (lenient.exit_code, strict.exit_code) == (Status.DONE, Status.ENVIRONMENT)
    assert lenient.stdout == strict.stdout
    assert "Not counted by module" in strict.stdout
    assert "flops.forward is incomplete: not counted digamma" in strict.stderr
    failing = invoke(*line, "--fail-uncounted", "--expect", "params=1")
    assert failing.exit_code == Status.FAILED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gn", "--module-depth", "1"], "--module-depth 1 is of the table by module; give --modules too"),
        (["gn", "--modules", "--no-measure"], "--modules has no meaning beside --no-measure"),
        (["gn", "--modules", "--module-depth", "-1"], "is not an integer ≥ 0"),
        (["svb", "--modules"], "--modules is for layers and models; svb is a projection"),
        (["bn-only", "--modules"], "--modules is for layers and models; bn-only is a transform"),
        (["autoaugment", "--modules"], "--modules is for layers and models; autoaugment is an augmentation"),
        (
            ["svb", "--modules", "--model", "layers.resnet:cifar_resnet"],
            "--modules is for layers and models; svb is a projection",
        ),
        (["gn", "--fail-uncounted", "--no-measure"], "--fail-uncounted has no meaning beside --no-measure"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_line(words, message):
    result = invoke("inspect", *words)
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert message in result.stderr
    assert result.stderr.count("error: ") == 1


def test_a_depth_that_is_none_is_refused():
    made = subject(catalog.stone("gn"), {}, Setup((2, 64, 2, 2)))
    with pytest.raises(Refusal, match="--module-depth -1"):
        inspecting.inspect(made, modules=True, depth=-1)
