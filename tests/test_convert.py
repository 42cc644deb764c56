"""Models converted in one line: what is converted, what stays, and nothing changed where something is refused."""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from networks import images, near, settled, small_resnet, unchanged
from torch import nn
from torch.nn.utils import parametrize, prune

from layers import catalog
from layers.card import OptionError
from layers.convert import convert, fold
from layers.norm.bn import BatchNorm
from layers.norm.gn import GroupNorm
from layers.norm.ln import LayerNorm
from layers.resnet import cifar_resnet
from layers.weight.weight_norm import WeightNorm
from layers.weight.weight_standardization import WeightStandardization, WSConv2d, standardize

WEIGHTS = ("weight-norm", "weight-standardization", "scaled-ws", "cen-conv")


def test_weight_norm_leaves_every_output_as_it_was():
    model = settled(cifar_resnet(8, width=4).double()).eval()
    before = model(images(8))
    near(convert(model, "weight-norm")(images(8)), before)


@pytest.mark.parametrize("make", [lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), lambda: nn.ConvTranspose2d(6, 4, 3)])
def test_a_filter_of_a_transposed_convolution_is_one_output_of_its_group(make):
    torch.manual_seed(0)
    layer = make().double()
    groups, outputs = layer.groups, layer.out_channels // layer.groups
    used = convert(layer, "weight-standardization", convention="paper").weight.detach()
    for group, part in enumerate(used.chunk(groups)):
        for output in range(outputs):
            filter_ = part[:, output]
            assert abs(filter_.sum()) < 1e-12, (group, output)
            assert filter_.square().mean() == pytest.approx(1, abs=1e-2)


def test_a_converted_model_keeps_its_state_through_state_dict_deepcopy_and_training_mode():
    model = convert(settled(small_resnet()).eval(), "weight-norm")
    assert not any(module.training for module in model.modules())
    twin = convert(small_resnet(), "weight-norm").eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images()), model(images()))
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images()), model(images()))
    fold(copied)
    assert parametrize.is_parametrized(model[0], "weight")


def test_parametrizations_live_where_the_weight_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.bfloat16), nn.Conv2d(4, 4, 3, device="meta"))
    convert(model, "scaled-ws")
    convert(nn.Conv2d(4, 4, 3, device="meta"), "weight-norm")
    gains = [layer.parametrizations["weight"][0].gain for layer in model]
    assert [(g.dtype, g.device.type) for g in gains] == [(torch.bfloat16, "cpu"), (torch.float32, "meta")]


def test_depthwise_1x1_and_linear_layers_are_left_alone_unless_they_are_named():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    convert(model, "weight-standardization")
    assert [parametrize.is_parametrized(layer) for layer in model] == [False, True, False, False]
    convert(model, "weight-standardization", only="3")
    assert parametrize.is_parametrized(model[3])
    with pytest.raises(OptionError, match=r"^0: a filter of 1 weight"):
        convert(model, "weight-standardization", only="0")


def test_only_takes_names_and_patterns_and_everything_inside():
    for only, expected in (
        ("0", {"0"}),
        ("2", {"2.conv1", "2.conv2"}),
        (["2.conv1", "3.*2"], {"2.conv1", "3.conv2"}),
        ("*conv1", {"2.conv1", "3.conv1"}),
    ):
        model = convert(small_resnet(), "cen-conv", only=only)
        assert {name for name, module in model.named_modules() if parametrize.is_parametrized(module)} == expected
    model = convert(small_resnet(), "gn", groups=2, only="2.bn1")
    assert {name for name, module in model.named_modules() if isinstance(module, GroupNorm)} == {"2.bn1"}


REFUSED = [
    ("weight-nrom", {}, "weight-norm"),
    ("bn-only", {}, "transform"),
    ("weight-norm", {"only": "2.conv3"}, r"no module '2\.conv3'; did you mean 2\.conv"),
    ("weight-norm", {"only": "2.bn1"}, r"only: '2\.bn1' has no layer for weight-norm"),
    ("weight-norm", {"only": ["2.conv1", "8*"]}, r"no module '8\*'"),
    ("weight-norm", {"only": []}, "no layer"),
    ("weight-norm", {"only": 2}, "only=2 is not the name of a module"),
    ("weight-norm", {"norm": "row"}, "0: norm='row' is not one of output, tensor"),
    ("weight-norm", {"nrom": "tensor"}, "did you mean norm"),
    ("weight-norm", {"stride": 2}, "stride: every layer of the model keeps its own"),
    ("scaled-ws", {"gamma": 1.5, "activation": "relu"}, "0: gamma=1.5 and activation=relu contradict"),
    ("gn", {"groups": 3}, "1: groups=3 does not divide 8 channels"),
    ("gn", {"groops": 3}, "did you mean groups"),
    ("pono", {"only": "0"}, "only: '0' has no batch normalization for pono"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_what_is_refused_is_refused_in_words_before_anything_is_changed(name, options, words):
    model = settled(small_resnet())
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises(ValueError, match=words):
        convert(model, name, **options)
    assert unchanged(model, before)
    assert list(model.modules()) == modules


def test_a_model_without_such_a_layer_is_refused():
    with pytest.raises(OptionError, match="Sequential has no batch normalization for gn"):
        convert(nn.Sequential(nn.ReLU()), "gn")
    with pytest.raises(OptionError, match=r"Linear has no layer for cen-conv \(Linear: not the weight of a convol"):
        convert(nn.Linear(3, 4), "cen-conv")
    with pytest.raises(OptionError, match="0 has no shapes yet: run the model once"):
        convert(nn.Sequential(nn.LazyConv2d(3, 3)), "weight-norm")
    hooked = nn.Sequential(nn.Linear(3, 4))
    hooked[0].weight_v = nn.Parameter(hooked[0].weight.data)
    del hooked[0].weight
    hooked[0].weight = 2 * hooked[0].weight_v
    with pytest.raises(OptionError, match="its weight is no parameter"):
        convert(hooked, "weight-norm")
    with pytest.raises(OptionError, match="0: Linear has no weight: a weight of 2 or more axes, none empty, is needed"):
        convert(hooked, "weight-norm", only="0")
    with pytest.raises(OptionError, match="weights of its own making"):
        convert(WSConv2d(3), "weight-standardization")


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_layer_is_not_parametrized_twice(name):
    model = convert(settled(small_resnet()), name, only="2")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=r"^2\.conv1: .*already"):
        convert(model, name)
    assert unchanged(model, before)
    file = importlib.import_module(catalog.stone(name).module)
    with pytest.raises(OptionError, match="already"):
        file.parametrization(model[2].conv1)


def test_two_techniques_follow_each_other_but_weight_norm_must_be_first():
    layer = nn.Conv2d(3, 4, 3).double()
    convert(convert(layer, "weight-norm"), "cen-conv")
    assert layer.weight.flatten(1).sum(1).abs().max() < 1e-12
    used = layer.weight.detach().clone()
    near(fold(layer).weight, used)
    with pytest.raises(OptionError, match="remove that first"):
        convert(convert(nn.Conv2d(3, 4, 3), "cen-conv"), "weight-norm")
    with pytest.raises(OptionError, match="remove that first"):
        convert(convert(nn.Conv2d(3, 4, 3), "weight-norm"), "cen-conv", init="normal")


def test_bn_becomes_a_stone_with_its_options_statistics_and_mode():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3, momentum=None)).double()
    before = settled(model).eval()(images())
    near(convert(model, "bn")(images()), before)
    assert isinstance(model[1], BatchNorm)
    assert (model[1].eps, model[1].momentum, model[1].training) == (1e-3, None, False)
    model[1].weight.requires_grad_(False)
    γ = model[1].weight.clone()
    convert(model, "gn", groups=2, eps=1e-4)
    assert torch.equal(model[1].weight, γ)
    assert (model[1].eps, model[1].training, model[1].weight.requires_grad) == (1e-4, False, False)
    assert model[1].weight.dtype == torch.float64


def test_what_a_bn_has_by_default_is_the_default_of_the_stone():
    for name, defaults in (("batch-renorm", (1e-3, 0.01)), ("in", (1e-5, 0.1))):
        model = convert(nn.Sequential(nn.BatchNorm2d(8)), name)
        assert (model[0].eps, model[0].momentum, model[0].affine) == (*defaults, True), name
    assert list(dict(model.named_buffers())) == []
    assert convert(nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False)), "bn")[0].running_mean is None


def test_a_bn_without_γ_and_β_and_every_norm_that_takes_its_place():
    plain = convert(nn.Sequential(nn.BatchNorm2d(8, affine=False)), "gn", groups=2)
    assert plain[0].weight is None
    assert isinstance(convert(nn.Sequential(nn.BatchNorm1d(8)), "ln", affine="channel")[0], LayerNorm)
    for stone in catalog.stones().values():
        if stone.kind == "norm" and stone.card.role == "layer":
            model = convert(nn.Sequential(nn.BatchNorm2d(12)), stone.name, **stone.card.examples[0])
            assert type(model[0]) is stone.load()
            assert model(torch.randn(4, 12, 3, 4)).shape == (4, 12, 3, 4)


@pytest.fixture
def convolution(monkeypatch):
    """A stone that the catalogue has among the convolutions: weight standardization, moved there."""
    moved = SimpleNamespace(name="moved", kind="conv", card=catalog.stone("weight-standardization").card)
    moved.load = lambda: WSConv2d
    monkeypatch.setattr(catalog, "stone", lambda name: moved)


def test_convolutions_become_a_stone_of_convolutions_with_the_same_parameters(convolution):
    model = small_resnet()
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    model[2].conv1.padding = "same"
    assert convert(model.eval(), "moved", eps=1e-3) is model
    assert dict(model.named_parameters()) == parameters
    assert list(model.state_dict()) == keys
    convs = [model[0], model[2].conv1, model[2].conv2, model[3].conv1, model[3].conv2]
    assert [type(conv) for conv in convs] == [WSConv2d] * 5
    assert [(conv.groups, conv.padding) for conv in convs] == [(1, (0, 0)), *[(1, (1, 1)), (2, (1, 1))] * 2]
    assert all((conv.eps, conv.training) == (1e-3, False) for conv in convs)
    assert model(images()).shape == (4, 5)
    alone = convert(nn.Conv2d(3, 4, 2, padding="valid", padding_mode="circular", bias=False), "moved")
    assert (type(alone), alone.padding, alone.padding_mode, alone.bias) == (WSConv2d, (0, 0), "circular", None)


def test_what_a_stone_of_convolutions_cannot_take_the_place_of(convolution):
    with pytest.raises(OptionError, match="padding='same' adds unequal sides for a kernel_size of"):
        convert(nn.Conv2d(3, 4, 2, padding="same"), "moved")
    with pytest.raises(OptionError, match="0: a filter of 1 weight"):
        convert(nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)), "moved")
    with pytest.raises(OptionError, match=r"a WSConv2d, not torch\.nn.Conv2d itself"):
        convert(WSConv2d(3), "moved")
    with pytest.raises(OptionError, match=r"^0: a WSConv2d, not torch\.nn.Conv2d itself"):
        convert(nn.Sequential(WSConv2d(3)), "moved", only="0")
    with pytest.raises(OptionError, match="stride: every layer of the model keeps its own"):
        convert(nn.Conv2d(3, 4, 2), "moved", stride=2)
    pruned = prune.l1_unstructured(nn.Conv2d(3, 4, 2), "weight", 5)
    for only in (None, "0"):
        with pytest.raises(OptionError, match="0: it has weight_mask, weight_orig beside weight and bias"):
            convert(nn.Sequential(pruned), "moved", only=only)


def test_assigning_a_weight_sets_what_is_learnt():
    torch.manual_seed(0)
    layer = convert(nn.Conv2d(3, 4, 3).double(), "weight-norm")
    wanted = torch.randn_like(layer.weight)
    layer.weight = wanted
    near(layer.weight, wanted)
    standard = convert(nn.Conv2d(3, 4, 3).double(), "weight-standardization", eps=0.0)
    standard.weight = wanted
    near(standard.weight.flatten(1), standardize(wanted.flatten(1), "qiao", 0.0))
    assert isinstance(standard.parametrizations["weight"][0], WeightStandardization)


def test_a_refusal_leaves_the_power_iteration_of_a_spectral_norm_where_it_was():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match="0: the weight has a parametrization already, _SpectralNorm: remove that"):
        convert(model, "weight-norm")
    assert unchanged(model, before)


def test_a_filter_of_zeros_is_refused_by_weight_norm_naming_layer_and_channel():
    model = small_resnet()
    model[2].conv1.weight.data[[1, 5]] = 0
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=r"^2\.conv1: the weights of output channel 1, 5 are all 0"):
        convert(model, "weight-norm")
    assert unchanged(model, before)
    convert(model, "weight-norm", eps=1e-6)
    assert model[2].conv1.weight.isfinite().all()
    layer = convert(nn.Conv2d(3, 4, 3), "weight-norm")
    with pytest.raises(OptionError, match="output channel 0, 1, 2, 3"):
        layer.weight = torch.zeros(4, 3, 3, 3)
    assert isinstance(layer.parametrizations["weight"][0], WeightNorm)
