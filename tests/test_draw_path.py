"""`stones draw --path`: the data path of a running layer, against what is known of it and what moves with what."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from command_line import invoke
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_draw_files import SMALL
from torch import nn
from torch.nn import functional as F

from layers import catalog
from layers.norm.bcn import BatchChannelNorm
from layers.observe import observe, observing
from profiles.errors import Refusal
from profiles.pictures import figures, picture
from profiles.pictures.probe import data_path, drawing, has_path
from profiles.pictures.probe_path import path
from profiles.pictures.probe_sharing import Run, nothing
from profiles.target import resolve
from stones_cli.status import Status

STATE = [["running_mean", "running_var"], ["running_mean", "running_var"]]


def followed(name, shape=None, **options):
    train = options.pop("train", None)
    return data_path(drawing(resolve(name), options, shape, train=train, path=True))


def steps_of(name, shape=None, **options):
    """The steps as (kind, names, shape, names of what is read)."""
    (panel,) = followed(name, shape, **options)["panels"]
    return read(panel["steps"])


def read(steps):
    names = [[tensor["name"] for tensor in step["tensors"]] for step in steps]
    return [
        (step["kind"], names[i], step["tensors"][0]["shape"], [names[j] for j in step["reads"]])
        for i, step in enumerate(steps)
    ]


@pytest.mark.parametrize(("n", "c", "groups"), [(3, 4, 2), (2, 6, 3), (4, 8, 1)])
def test_bcn_normalizes_channels_by_the_batch_then_groups_and_only_writes_its_state(n, c, groups):
    moments, of_groups = ["mean", "var"], ["group_mean", "group_var"]
    affine, of_group = ["weight", "bias"], ["group_weight", "group_bias"]
    assert steps_of("bcn", (n, c, 3, 2), groups=groups) == [
        ("input", ["input"], [n, c, 3, 2], []),
        ("statistic", moments, [c], [["input"]]),
        ("state", ["num_batches_tracked"], [], []),
        ("update", ["num_batches_tracked"], [], [["num_batches_tracked"]]),
        ("state", STATE[0], [c], []),
        ("update", STATE[0], [c], [moments, STATE[0]]),
        ("parameter", affine, [c], []),
        ("statistic", of_groups, [n, groups], [["input"], moments, affine]),
        ("parameter", of_group, [groups], []),
        ("output", ["output"], [n, c, 3, 2], [["input"], moments, affine, of_groups, of_group]),
    ]


def test_estimates_are_moved_first_the_variance_around_the_old_mean_and_then_normalize():
    found = steps_of("bcn", (3, 4, 2, 2), groups=2, estimate=True)
    assert [(kind, names) for kind, names, *_ in found] == [
        ("input", ["input"]),
        ("statistic", ["mean"]),
        ("state", ["running_mean"]),
        ("statistic", ["var"]),
        ("update", ["running_mean"]),
        ("state", ["running_var"]),
        ("update", ["running_var"]),
        ("parameter", ["weight", "bias"]),
        ("statistic", ["group_mean", "group_var"]),
        ("parameter", ["group_weight", "group_bias"]),
        ("output", ["output"]),
    ]
    (panel,) = followed("bcn", (3, 4, 2, 2), groups=2, estimate=True)["panels"]
    assert panel["steps"][3]["reads"] == [0, 1, 2]
    assert panel["steps"][8]["reads"] == [0, 4, 6, 7], "the estimates as they were written, not the batch"


def test_in_evaluation_state_is_read_and_nothing_written():
    found = steps_of("bcn", (3, 4, 2, 2), groups=2, train=False)
    assert [kind for kind, *_ in found] == ["input", "parameter", "state", "statistic", "parameter", "output"]
    assert found[3] == (
        "statistic", ["group_mean", "group_var"], [3, 2], [["input"], ["weight", "bias"], STATE[0]],
    )  # fmt: skip


def test_estimates_that_all_batches_average_forget_what_they_were_at_the_first():
    found = steps_of("bcn", (3, 4, 2, 2), groups=2, momentum=None)
    assert ("update", STATE[0], [4], [["mean", "var"], ["num_batches_tracked"]]) in found
    assert "running_mean" not in [name for kind, names, *_ in found if kind == "state" for name in names]


class GroupsFirst(BatchChannelNorm):
    """Batch-channel normalization the wrong way round."""

    def forward(self, x):
        groups = x.unflatten(1, (self.groups, -1))
        mean, var = groups.mean((2, 3, 4)), groups.var((2, 3, 4), correction=0)
        observe(group_mean=mean, group_var=var)
        u = ((groups - mean[:, :, None, None, None]) / (var[:, :, None, None, None] + self.eps).sqrt()).flatten(1, 2)
        mean, var = u.mean((0, 2, 3)), u.var((0, 2, 3), correction=0)
        observe(mean=mean, var=var)
        return (u - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()


def test_the_path_is_of_the_running_layer_not_of_its_card(monkeypatch):
    monkeypatch.setattr(catalog.Stone, "load", lambda stone: GroupsFirst)
    found = steps_of("bcn", (3, 4, 2, 2), groups=2)
    assert [(names, reads) for _, names, _, reads in found] == [
        (["input"], []),
        (["group_mean", "group_var"], [["input"]]),
        (["mean", "var"], [["input"], ["group_mean", "group_var"]]),
        (["output"], [["input"], ["group_mean", "group_var"], ["mean", "var"]]),
    ]


class Layer(nn.Module):
    """A layer that computes as ``function`` says: of itself and the input."""

    function = None

    def __init__(self, channels, *options, **more):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float64))
        self.register_buffer("kept", torch.ones(channels, dtype=torch.float64))
        self.register_buffer("other", torch.ones(channels, dtype=torch.float64))

    def forward(self, x):
        return type(self).function(self, x)


def of(function, monkeypatch):
    monkeypatch.setattr(Layer, "function", function)
    monkeypatch.setattr(catalog.Stone, "load", lambda stone: Layer)
    return [
        (kind, names, reads) for kind, names, _, reads in read(path(drawing(resolve("bn"), {}, path=True))["steps"])
    ]


def test_writes_in_a_row_are_one_step(monkeypatch):
    def average(layer, x):
        layer.kept.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
        return x * layer.kept[:, None, None]

    assert of(average, monkeypatch) == [
        ("input", ["input"], []),
        ("state", ["kept"], []),
        ("update", ["kept"], [["input"], ["kept"]]),
        ("output", ["output"], [["input"], ["kept"]]),
    ]


def test_a_kernel_that_writes_state_without_saying_so_is_seen(monkeypatch):
    def torchs(layer, x):
        return F.batch_norm(x, layer.kept, layer.other, layer.weight, None, True)

    found = of(torchs, monkeypatch)
    assert ("update", ["kept", "other"], [["input"], ["kept", "other"]]) in found
    assert found[-1] == ("output", ["output"], [["input"], ["weight"]]), "the state is given, not used"


def test_what_is_written_over_is_not_read(monkeypatch):
    def replace(layer, x):
        layer.kept.copy_(x.mean((0, 2, 3)))
        layer.other.zero_()
        return x + layer.kept[:, None, None] + layer.other[:, None, None]

    assert of(replace, monkeypatch) == [
        ("input", ["input"], []),
        ("update", ["kept"], [["input"]]),
        ("update", ["other"], []),
        ("output", ["output"], [["input"], ["kept"], ["other"]]),
    ]


def test_state_as_it_was_and_as_it_is_are_told_apart(monkeypatch):
    def both(layer, x):
        before = layer.kept.clone()
        layer.kept.add_(1)
        return x * before[:, None, None]

    assert of(both, monkeypatch) == [
        ("input", ["input"], []),
        ("state", ["kept"], []),
        ("update", ["kept"], [["kept"]]),
        ("output", ["output"], [["input"], ["kept"]]),
    ]
    (panel,) = [path(drawing(resolve("bn"), {}, path=True))]
    assert panel["steps"][3]["reads"] == [0, 1]


def test_one_memory_of_two_statistics_is_both(monkeypatch):
    def halves(layer, x):
        moments = torch.stack([x.mean((0, 2, 3)), x.amax((0, 2, 3))])
        observe(mean=moments[0], most=moments[1])
        return x - moments[0][:, None, None]

    assert of(halves, monkeypatch)[1:] == [
        ("statistic", ["mean", "most"], [["input"]]),
        ("output", ["output"], [["input"], ["mean", "most"]]),
    ]


def test_a_statistic_that_is_made_of_the_one_in_use_stands_in_its_place(monkeypatch):
    def spread(layer, x):
        var = x.var((0, 2, 3))
        observe(std=var.sqrt())
        return x / (var + 1e-5).sqrt()[:, None, None]

    assert of(spread, monkeypatch)[1:] == [
        ("statistic", ["std"], [["input"]]),
        ("output", ["output"], [["input"], ["std"]]),
    ]


PATHS = [name for name, stone in catalog.stones().items() if has_path(stone)]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", PATHS)
def test_what_moves_when_a_source_does_is_drawn_behind_it(name, train):
    options = {**SMALL, "iew": {"groups": 2}}.get(name, {})
    subject = drawing(resolve(name), options, (2, 4, 7, 7) if name == "ppm" else None, train=train, path=True)
    if name == "actnorm" and not train:
        with pytest.raises(Refusal, match="not initialized"):
            path(subject)
        return
    steps = path(subject)["steps"]
    behind = [{i} for i in range(len(steps))]
    for i, step in enumerate(steps):
        for j in step["reads"]:
            assert j < i
            for each in behind[: i + 1]:
                each.update({i} if j in each else ())
    run = Run(subject, nothing)

    def values(changed=""):
        module, x = copy.deepcopy(run.module), run.input.clone()
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers()), "input": x}
        with torch.no_grad(), observing() as seen, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if changed:
                tensors[changed] += 1 if tensors[changed].dim() == 0 else 0.7 * torch.rand(tensors[changed].shape)
            output = subject.run(module, x)
        return {**{("statistic", k): v for k, v in seen.items()}, ("output", "output"): output}

    base = values()
    names = [(step["kind"], tensor["name"]) for step in steps for tensor in step["tensors"]]
    drawn = {(s["kind"], t["name"]): i for i, s in enumerate(steps) for t in s["tensors"]}
    assert set(base) <= {*drawn}
    sources = [key for key in names if key[0] in ("input", "parameter", "state") and key[1] != "initialized"]
    for source in sources:
        found = values(source[1])
        for key in base:
            if names.count(key) == 1 and not torch.equal(base[key], found[key]):
                assert drawn[key] in behind[drawn[source]], (source, key)


@pytest.mark.parametrize("name", PATHS)
def test_every_path_fits_its_picture(name):
    record = followed(name, (2, 4, 7, 7) if name == "ppm" else None, **{**SMALL, "iew": {"groups": 2}}.get(name, {}))
    assert json.loads(json.dumps(record)) == record
    assert (record["picture"], record["caption"].count("Probed")) == ("path", 1)
    with figures.drawing():
        drawn = picture.figure(record)
        renderer = FigureCanvasAgg(drawn).get_renderer()
        right, top = (side * drawn.dpi for side in drawn.get_size_inches())
        for text in [*drawn.texts, *(text for axes in drawn.axes for text in axes.texts)]:
            box = text.get_window_extent(renderer)
            assert 0 <= box.x0 <= box.x1 <= right, text.get_text()
            assert 0 <= box.y0 <= box.y1 <= top, text.get_text()


def test_every_step_is_a_box_with_a_dot_for_each_of_its_readings():
    record = followed("bcn", (3, 4, 2, 2), groups=2)
    (panel,) = record["panels"]
    stair = picture.figure(record).axes[0]
    texts = [text.get_text() for text in stair.texts]
    for step in panel["steps"]:
        assert ", ".join(tensor["name"] for tensor in step["tensors"]) in texts
    assert {"3×4×2×2", "4", "3×2", "4; parameter", "2; parameter", "4; before", "4; written"} <= {*texts}
    assert [text for text in texts if text in "12345"].count("5") == 1
    dots = [line for line in stair.lines if line.get_marker() == "o"]
    assert len(dots) == sum(len(step["reads"]) for step in panel["steps"]) == 12


def test_the_command_writes_the_picture_and_the_data(tmp_path):
    file = tmp_path / "bcn.svg"
    result = invoke("draw", "bcn", "--groups", "2", "--path", "-o", file, "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == Status.DONE
    assert record == followed("bcn", groups=2)
    assert record["input"] == [3, 4, 2, 2], "so that N, C and G are told apart"
    assert file.read_bytes() == picture.render(record)


WRONG = {
    "draw svb --path -o s.svg": "no data path can be followed of svb",
    "draw torch.nn:BatchNorm2d --path -o s.svg": "it names no statistics; actnorm,",
    "draw autoaugment --path -o s.svg": "no data path can be followed of autoaugment",
    "draw bcn --groups 3 --path -o s.svg": "drawn is 3x4x2x2 unless --input says another",
    "draw bcn --groups 2 --path -i 0x4x2x2 -o s.svg": "without elements",
    "draw bcn --groups 2 --path -i 640x640x640x640 -o s.svg": "more than can be read",
    "draw mixed-pooling --pool-sizes 3x2 --train --path -o s.svg": "fewer: --eval",
    "draw bcn --groups 2 --path": "give -o file.svg",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_use_is_refused_in_one_line_and_writes_nothing(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*line.split())
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert WRONG[line] in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())
