"""`inspect --peers`: what others count, said in their units, with a reason wherever it is not what is executed."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from command_line import invoke
from disagreements import CASES, UNCOUNTED
from harness import STONES
from rich.cells import cell_len
from torch import nn
from torch.nn import functional as F

from layers.card import OptionError
from profiles import inspecting
from profiles.counting import facts
from profiles.counting.peer_tools import TOOLS
from profiles.errors import Refusal
from profiles.subject import Setup, subject
from profiles.target import resolve
from stones_cli.status import Status

SHAPES = [(4, 12, 4, 4), (4, 12, 3, 4), (8, 12, 5, 3), (4, 12, 7), (4, 12)]
HERE = ("fvcore", "fvcore, our handles", "FlopCounterMode")


def record_of(name, options=None, shape=(3, 8, 6, 6), **more):
    return facts.inspect(subject(resolve(name), options or {}, Setup(shape=shape)), peers=True, **more)


def peers_of(record):
    return {peer["name"]: peer for peer in record["peers"]}


def smallest(stone):
    """The first small input that the stone admits with the first of its examples."""
    for shape in SHAPES:
        if len(shape) in stone.card.ranks:
            try:
                return subject(stone, stone.card.examples[0], Setup(shape=shape))
            except OptionError:
                continue
    raise AssertionError(f"{stone.name} admits none of the inputs")


def assert_explained(record):
    """Whatever is not what is executed has a reason, and no 0 passes for a count."""
    assert [peer["name"] for peer in record["peers"]] == list(TOOLS)
    for peer in record["peers"]:
        assert "\n" not in peer["why"]
        if peer["error"] or not peer["installed"]:
            assert peer["forward"] is peer["backward"] is None
            assert peer["why"] == (f"no number: {peer['error']}" if peer["error"] else "not installed")
            continue
        passes = [(peer[name], record["flops"][name]) for name in ("forward", "backward") if peer[name]]
        same = all(said["as_flops"] == (ours["executed"] or 0) for said, ours in passes)
        lower = any(ours["uncounted"] for _, ours in passes)
        assert (peer["why"] == "equal") == (same and not lower)
        zeros = [said for said, ours in passes if said["value"] == 0 and (ours["executed"] or ours["uncounted"])]
        assert peer["why"].count("its 0 is no count") == len(zeros)
        assert "does not tell" not in peer["why"]
        assert ("ours is a lower bound" in peer["why"]) == lower


@pytest.mark.parametrize("stone", STONES, ids=lambda stone: stone.name)
def test_every_layer_is_counted_completely_as_its_card_says_and_each_peer_has_a_reason(stone):
    record = facts.inspect(smallest(stone), peers=True)
    assert record["ok"]
    checked = {check["what"] for check in record["checks"]}
    assert {"flops.forward.executed", "flops.backward.executed"} <= checked
    for name in ("forward", "backward"):
        assert record["flops"][name]["uncounted"] == {}
        assert record["flops"][name]["executed"] == record["flops"][name]["executed_card"]
    assert_explained(record)
    assert all(peers_of(record)[name]["installed"] for name in HERE)
    assert peers_of(record)["FlopCounterMode"]["error"] == ""


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_where_counters_disagree_ours_is_complete_or_says_what_is_missing(name, options):
    record = record_of(name, options)
    missing = {op for each in ("forward", "backward") for op in record["flops"][each]["uncounted"]}
    assert missing == UNCOUNTED.get(options.get("how", name.partition(":")[2]), set())
    assert_explained(record)
    assert [peers_of(record)[peer]["error"] for peer in HERE] == ["", "", ""]


def test_the_units_are_told_apart():
    products = peers_of(record_of("torch.nn:Conv2d", {"out_channels": 6, "kernel_size": 3, "bias": False}))
    macs = 3 * 6 * 4 * 4 * 8 * 9
    assert products["fvcore"]["forward"] == {"value": macs, "unit": "MAC", "as_flops": 2 * macs}
    assert products["FlopCounterMode"]["forward"] == {"value": 2 * macs, "unit": "FLOP", "as_flops": 2 * macs}
    assert products["FlopCounterMode"]["backward"]["value"] == 4 * macs
    assert {products[name]["why"] for name in HERE} == {"equal"}
    norm = peers_of(record_of("torch.nn:GroupNorm", {"num_groups": 4}))["fvcore"]
    elements = 3 * 8 * 6 * 6
    assert norm["forward"] == {"value": 5 * elements, "unit": "element", "as_flops": 5 * elements}
    assert norm["why"] == "group_norm 5 per element, ours 7.028 per element"
    assert (norm["params"], norm["backward"]) == (16, None)


@pytest.mark.parametrize(
    ("name", "options", "tool", "words"),
    [
        ("disagreements:NormByHand", {}, "fvcore", "its 0 is no count, as it warns; it gives nothing to mean (1,728)"),
        ("disagreements:NormByHand", {}, "fvcore, our handles", "equal"),
        ("torch.nn:ReLU", {}, "fvcore", "its 0 is no count, and silent; it gives nothing to relu (864)"),
        ("torch.nn:ReLU", {}, "FlopCounterMode", "backward: its 0 is no count, and silent"),
        ("torch.nn:PixelShuffle", {"upscale_factor": 2}, "FlopCounterMode", "equal"),
        ("disagreements:Unfolded", {}, "fvcore", "15,552 multiply-adds, 46,656 are executed (its matmul forgets"),
        ("disagreements:BilinearEinsum", {}, "fvcore", "(it reads four digits of numpy's einsum_path)"),
        ("disagreements:NewtonSchulz", {}, "fvcore", "(it does not see those whose result is not used)"),
        ("disagreements:Vectors", {}, "FlopCounterMode", "it gives nothing to addmv (645), mv (640), dot (128)"),
        ("im2col", {"out_channels": 4}, "FlopCounterMode", "it gives nothing to baddbmm_ (in place, "),
        ("torch.nn:Conv2d", {"out_channels": 8, "kernel_size": 1, "groups": 4}, "FlopCounterMode", "by the groups)"),
    ],
)
def test_a_known_fault_is_found_by_its_numbers(name, options, tool, words):
    assert words in peers_of(record_of(name, options))[tool]["why"]


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Hidden(nn.Module):
    def forward(self, x):
        return Own.apply(x) + x


class Fails(nn.Module):
    """Refuses to be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("there is only one")

    def forward(self, x):
        return x + 1


def test_what_is_hidden_in_a_custom_function_is_named():
    found = peers_of(record_of(f"{__file__}:Hidden"))["fvcore"]
    assert "it does not see inside the custom Function Own" in found["why"]
    assert any("Own" in name for name in found["uncounted"])


def test_a_tool_that_fails_is_a_line_and_no_failure():
    found = peers_of(record_of(f"{__file__}:Fails"))
    assert found["fvcore"]["why"] == "no number: there is only one"
    assert found["FlopCounterMode"]["error"] == ""


@pytest.mark.parametrize(("name", "shape"), [("bn", (4, 12, 5, 3)), ("actnorm", (4, 12, 5, 3)), ("meprop", (4, 12))])
def test_asking_others_changes_nothing_else(name, shape):
    kept, state = (F.conv2d, torch.matmul), torch.random.get_rng_state()
    with_peers = facts.inspect(subject(resolve(name), {}, Setup(shape=shape)), peers=True)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (F.conv2d, torch.matmul) == kept
    without = facts.inspect(subject(resolve(name), {}, Setup(shape=shape)))
    assert without["peers"] is None
    assert {**with_peers, "peers": None} == without


def pretended(monkeypatch, name, **functions):
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def test_tools_that_may_be_installed_are_asked_as_their_documents_say(monkeypatch):
    macs, added = 3 * 6 * 4 * 4 * 8 * 9, 3 * 6 * 4 * 4

    def summary(model, *, input_data, mode, device, verbose):
        assert (mode, verbose, input_data[0].shape, device) == ("train", 0, (3, 8, 6, 6), torch.device("cpu"))
        return SimpleNamespace(total_mult_adds=macs + added, total_params=438)

    def profile(model, inputs, verbose):
        assert (verbose, inputs[0].shape) == (False, (3, 8, 6, 6))
        model.eval()
        model.weight.data.zero_()
        return 0.0, 0.0

    def complexity(model, input_res, as_strings, print_per_layer_stat, input_constructor, backend):
        assert (input_res, as_strings, print_per_layer_stat) == ((8, 6, 6), False, False)
        assert input_constructor(input_res).shape == (3, 8, 6, 6)
        if backend == "aten":
            print("not finished because of the following exception: \nit is too hard")
            return None, None
        return (macs + added) // 3, 438

    pretended(monkeypatch, "torchinfo", summary=summary)
    pretended(monkeypatch, "thop", profile=profile)
    pretended(monkeypatch, "ptflops", get_model_complexity_info=complexity)
    record = record_of("torch.nn:Conv2d", {"out_channels": 6, "kernel_size": 3})
    assert_explained(record)
    found = peers_of(record)
    assert "additions to products (biases) are multiply-adds in it" in found["torchinfo"]["why"]
    assert found["torchinfo"]["forward"] == {"value": macs + added, "unit": "MAC", "as_flops": None}
    assert "its 0 is no count, and silent" in found["thop"]["why"]
    assert found["thop"]["why"].endswith("0 parameters, ours 438")
    assert "it is of one of the 3 samples" in found["ptflops pytorch"]["why"]
    assert found["ptflops aten"]["why"] == "no number: it is too hard"
    assert found["fvcore"]["forward"]["value"] == macs


def test_what_a_tool_needs_and_is_missing_is_said_not_taken_for_the_tool(monkeypatch):
    def summary(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'colour'", name="colour")

    pretended(monkeypatch, "torchinfo", summary=summary)
    monkeypatch.setitem(sys.modules, "thop", None)
    found = peers_of(record_of("torch.nn:ReLU"))
    assert found["torchinfo"]["why"] == "no number: No module named 'colour'"
    assert (found["thop"]["installed"], found["thop"]["version"]) == (False, None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("svb --peers", "--peers is for layers; svb is a projection"),
        ("adax --peers", "--peers is for layers; adax is an optimizer"),
        ("bn-only --peers", "--peers is for layers; bn-only transforms a model"),
        ("autoaugment --peers", "--peers is for layers; autoaugment works on"),
        ("gn --peers --no-measure", "--peers has no meaning beside --no-measure"),
    ],
)
def test_what_others_cannot_count_is_refused(line, words):
    result = invoke("inspect", *line.split())
    assert result.exit_code == Status.MISUSE
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["bn-only", "autoaugment", "svb"])
def test_the_library_refuses_the_same(name):
    target = resolve(name)
    with pytest.raises(Refusal, match=f"--peers is for layers; {name} is a"):
        inspecting.inspect(subject(target, {}, Setup(shape=inspecting.usual_shape(target))), peers=True)


def test_the_table_fits_a_terminal_and_says_every_reason(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    seen = invoke("inspect", "torch.nn:Conv2d", "--out-channels", "64", "--kernel-size", "3", "--peers").output
    lines = seen.partition("What others count")[2].partition("not installed")[0].splitlines()
    assert any(
        line.split() == ["executed", "here", "531,302,400", "FLOP", "531,302,400", "1,062,143,936"] for line in lines
    )
    table = lines[: lines.index("", 2)]
    assert len(table) >= 5
    assert max(map(cell_len, table)) <= 80
    assert "without the 460,800 additions to products (biases)" in seen
    assert "What others count" not in invoke("inspect", "gn").output
