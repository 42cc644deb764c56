"""Models converted and folded back to plain torch layers: outputs stay."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from networks import images, near, settled, small_resnet, unchanged
from torch import nn
from torch.nn.utils import parametrize, prune

from layers import catalog
from layers.card import OptionError
from layers.convert import convert, fold
from layers.convolution import Convolution
from layers.norm.gn import GroupNorm
from layers.resnet import cifar_resnet
from layers.weight.weight_norm import WeightNormConv2d
from layers.weight.weight_standardization import WSConv2d

WEIGHTS = ("weight-norm", "weight-standardization", "scaled-ws", "cen-conv")


def test_a_small_resnet_goes_from_bn_to_gn_and_ws_and_back_in_one_line_each():
    model = settled(small_resnet())
    theirs = copy.deepcopy(model)
    assert convert(convert(model, "gn", groups=4), "weight-standardization") is model

    for module in theirs.modules():  # the same by hand
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                made = nn.GroupNorm(4, child.num_features).double()
                made.load_state_dict({"weight": child.weight, "bias": child.bias})
                setattr(module, name, made)
            elif isinstance(child, nn.Conv2d):
                rows = child.weight.detach().flatten(1)
                rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)
                child.weight.data = rows.view_as(child.weight)
    near(model(images()), theirs(images()))

    before = model(images())
    assert fold(model) is model
    near(model(images()), before)
    assert {type(m) for m in model.modules()} >= {nn.Conv2d, nn.Linear, GroupNorm}
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    near(pickle.loads(pickle.dumps(model))(images()), before)
    assert list(model.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("train", [True, False])
def test_a_whole_cifar_resnet_is_reparametrized_trained_and_folded(name, train):
    model = convert(settled(cifar_resnet(8, width=4).double()), name)
    model(images(8)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.train(train)
    before, states = copy.deepcopy(model)(images(8)), {n: b.clone() for n, b in model.named_buffers()}
    assert all(parameter.grad is not None for parameter in model.parameters())
    fold(model)
    assert all(torch.equal(buffer, states[n]) for n, buffer in model.named_buffers())
    assert all(module.training == train for module in model.modules())
    near(model(images(8)), before)
    cifar_resnet(8, width=4).double().load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(6, 4),
        lambda: nn.Conv1d(6, 4, 3, groups=2),
        lambda: nn.Conv2d(6, 4, (3, 2), bias=False),
        lambda: nn.Conv3d(6, 4, 2),
        lambda: nn.ConvTranspose1d(6, 4, 3),
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
        lambda: nn.ConvTranspose3d(6, 4, 2),
    ],
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_layer_with_a_kernel_can_be_parametrized_and_folded(make, name):
    torch.manual_seed(0)
    layer = make().double()
    kind = type(layer)
    x = torch.randn(2, 6, *[5] * (layer.weight.dim() - 2), dtype=torch.float64)
    model = nn.ModuleDict({"layer": layer})
    assert convert(model, name, only="layer") is model
    before = layer(x)
    before.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    fold(model)
    assert type(layer) is kind
    assert list(dict(layer.named_parameters())) == list(dict(make().named_parameters()))
    near(layer(x), before)


def test_a_frozen_layer_stays_frozen_through_converting_and_folding():
    for name in WEIGHTS:
        layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
        convert(layer, name)
        assert not any(parameter.requires_grad for parameter in layer.parameters()), name
        fold(layer)
        assert list(dict(layer.named_parameters())) == ["weight", "bias"], name
        assert not any(parameter.requires_grad for parameter in layer.parameters()), name


def test_a_shared_layer_is_converted_and_folded_once():
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    model = nn.Sequential(conv, nn.ReLU(), conv, WSConv2d(4, 4, 1, dtype=torch.float64))
    model.append(model[3])
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = convert(model, "weight-norm")(x)
    assert len(conv.parametrizations["weight"]) == 1
    fold(model)
    assert model[0] is model[2]
    assert model[3] is model[4]
    assert type(model[3]) is nn.Conv2d
    near(model(x), before)


def test_tied_weights_stay_tied_or_are_refused():
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
        model[1].weight = model[0].weight
        return model

    x, model = torch.randn(2, 4, dtype=torch.float64), convert(tied(), "weight-standardization", only=["0", "1"])
    before = model(x)
    near(fold(model)(x), before)
    assert model[0].weight is model[1].weight
    equal = nn.Sequential(model[0], copy.deepcopy(model[0]), copy.deepcopy(model[0]))
    for name in ("weight-norm", "weight-standardization"):
        fold(convert(equal, name, only=["0", "1", "2"]))
        assert len({id(layer.weight) for layer in equal}) == 3, name
    half = convert(tied(), "weight-standardization", only="0")
    before = half(x)
    near(fold(half)(x), before)
    with pytest.raises(OptionError, match=r"^0: its weight is also that of 1"):
        convert(tied(), "weight-norm")


def test_convolutions_that_share_parameters_share_them_when_folded():
    model = nn.Sequential(*(WSConv2d(4, padding=1) for _ in range(3))).double()
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    biases, x = [layer.bias for layer in model], torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = model(x)
    near(fold(model)(x), before)
    assert model[0].weight is model[1].weight is not model[2].weight
    assert all(layer.bias is bias for layer, bias in zip(model, biases, strict=True))


def test_a_weight_that_a_hook_makes_is_refused_as_it_is_out_of_date_between_calls():
    model = nn.Sequential(prune.l1_unstructured(WSConv2d(3), "weight", 5), WSConv2d(3))
    with pytest.raises(OptionError, match="0: the weight of this WSConv2d is made by a hook: remove that first"):
        fold(model)
    assert type(model[1]) is WSConv2d
    prune.remove(model[0], "weight")
    assert [type(layer) for layer in fold(model)] == [nn.Conv2d, nn.Conv2d]


def test_the_layer_itself_may_be_the_model():
    x = torch.randn(2, 4, 5, 5)
    conv = nn.Conv2d(4, 4, 3)
    assert convert(conv, "weight-norm") is conv
    before = conv(x)
    assert fold(conv) is conv
    assert torch.equal(conv(x), before)
    stone = WeightNormConv2d(4)
    plain = fold(stone)
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain(x), stone(x))
    assert isinstance(convert(nn.BatchNorm2d(4), "gn", groups=2), GroupNorm)


def test_convolution_stones_inside_a_model_are_folded_with_their_parametrizations():
    model = nn.Sequential(WSConv2d(3, 4, padding=1), nn.Sequential(WeightNormConv2d(4, norm="tensor"))).double().eval()
    model[0].weight.requires_grad_(False)
    x = images()
    before = convert(model, "cen-conv", only="1.0")(x)
    fold(model)
    assert [type(m) for m in model.modules()] == [nn.Sequential, nn.Conv2d, nn.Sequential, nn.Conv2d]
    assert not any(module.training for module in model.modules())
    assert [model[0].weight.requires_grad, model[1][0].weight.requires_grad] == [False, True]
    near(model(x), before)


class Windowed(Convolution):
    """A convolution whose outputs depend on the input in more than one way."""

    def forward(self, x):
        return super().forward(x) / x.square().mean((1, 2, 3), keepdim=True)


def test_a_layer_that_is_more_than_a_convolution_stays_and_is_refused_as_the_model():
    card = catalog.stone("weight-standardization").card
    model = nn.Sequential(Windowed(card, 3, {"padding": (1, 1)}), WSConv2d(3)).double()
    before = convert(model, "weight-norm", only="0")(images())
    assert [type(layer) for layer in fold(model)] == [Windowed, nn.Conv2d]
    near(model(images()), before)
    with pytest.raises(OptionError, match="Windowed is more than a convolution by a weight"):
        fold(model[0])


def test_parametrizations_of_others_are_left_alone_or_refused():
    model = small_resnet()
    nn.utils.parametrizations.weight_norm(model[0])
    fold(convert(model, "cen-conv", only="2"))
    assert parametrize.is_parametrized(model[0])
    with pytest.raises(OptionError, match=r"^0: its weight has parametrizations of others"):
        fold(nn.Sequential(nn.utils.parametrizations.spectral_norm(WSConv2d(3))))
    convert(model, "cen-conv", only="0")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=r"^0: its weight has parametrizations of others"):
        fold(model)
    assert unchanged(model, before)
