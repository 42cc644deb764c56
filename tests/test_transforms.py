"""The transforms of models, bn-only and bn-affine-decay, and the residual networks that they are stated for."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from layers.card import OptionError
from layers.norm.bn import BatchNorm
from layers.norm.bn_affine_decay import bn_affine_decay, param_groups
from layers.norm.bn_only import bn_only
from layers.norm.gn import GroupNorm
from layers.resnet import cifar_resnet, imagenet_resnet

NORMS = [BatchNorm, nn.BatchNorm2d, nn.SyncBatchNorm]


def network(norm=BatchNorm):
    torch.manual_seed(0)
    return cifar_resnet(14, width=4, norm=norm)


def images(count=8):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, (*NORMS, GroupNorm))]


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def steps(model, count=5, lr=0.05):
    """Train on random labels with everything that an optimizer can get hold of; return the losses."""
    x, labels = images(), torch.arange(8) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


# Residual networks. Totals and batch-normalization parameters as published for arXiv 2003.00152.

CIFAR_WIDTHS = {32: 696618, 64: 2777674, 128: 11093130, 256: 44337418, 512: 177279498}
IMAGENET = {18: (11689512, 9600), 34: (21797672, 17024), 50: (25557032, 53120), 101: (44549160, 105344)}


@pytest.mark.parametrize("width", CIFAR_WIDTHS)
def test_a_wider_resnet_14_has_the_published_parameters(width):
    with torch.device("meta"):
        model = bn_only(cifar_resnet(14, width))
    assert sum(p.numel() for p in model.parameters()) == CIFAR_WIDTHS[width]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 14 * width * (2 * 2 + 1)


@pytest.mark.parametrize("norm", [BatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("depth", IMAGENET)
def test_an_imagenet_resnet_has_the_published_parameters(depth, norm):
    with torch.device("meta"):
        model = bn_only(imagenet_resnet(depth, norm=norm))
        scores = model(torch.empty(2, 3, 64, 64))
    total, trained = IMAGENET[depth]
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert scores.shape == (2, 1000)


def test_every_convolution_has_a_norm_of_its_channels_and_no_bias():
    made = []

    def norm(channels):
        made.append(channels)
        return GroupNorm(channels, groups=2)

    model = network(norm)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(made) == sorted(convolution.out_channels for convolution in convolutions)
    assert all(convolution.bias is None for convolution in convolutions)
    assert model(images()).shape == (8, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cifar_resnet(15), "depth=15 is not 6b"),
        (lambda: cifar_resnet(2), "the nearest depth is 8"),
        (lambda: cifar_resnet(14, width=0), "width=0"),
        (lambda: cifar_resnet(14, classes=0), "classes=0"),
        (lambda: imagenet_resnet(19), "depth=19 is not one of 18, 34"),
        (lambda: imagenet_resnet(18, classes=-1), "classes=-1"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(build, message):
    with pytest.raises(OptionError, match=message):
        build()


# bn-only.


@pytest.mark.parametrize("norm", NORMS)
def test_bn_only_trains_gamma_and_beta_of_every_batch_norm(norm):
    model = network(norm)
    assert bn_only(model) is model
    owned = {id(parameter) for module in norms_of(model) for parameter in module.parameters()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == owned


def test_bn_only_moves_gamma_beta_and_running_statistics_and_nothing_else():
    model = network()
    steps(model, 1)  # leaves gradients and moved statistics behind
    bn_only(model)
    before = copy.deepcopy(model.state_dict())
    losses, optimizer = steps(model, 20)
    trained = trainable(model)
    for name, tensor in model.state_dict().items():
        moves = name in trained or "running" in name or "tracked" in name
        assert torch.equal(tensor, before[name]) != moves, name
    assert {id(parameter) for parameter in optimizer.state} == {
        id(parameter) for parameter in model.parameters() if parameter.requires_grad
    }
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("init", "low", "high", "beta"),
    [("uniform", 0, 1, 0), ("positivenegative", -1, 1, 0), ("fixed", 1, 1, 0), ("oneone", 1, 1, 1)],
)
def test_bn_only_starts_gamma_and_beta_as_asked(init, low, high, beta):
    model = bn_only(network(), init=init)
    gammas = torch.cat([module.weight for module in norms_of(model)])
    assert low <= gammas.min() <= gammas.max() <= high
    assert (low == high) == (gammas.min() == gammas.max())
    assert (gammas.min() < 0) == (low < 0)
    assert all((module.bias == beta).all() for module in norms_of(model))


def test_bn_only_keeps_gamma_and_beta_on_request():
    model = network()
    steps(model, 1)
    before = copy.deepcopy(model.state_dict())
    bn_only(model, init="keep")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_bn_only_spares_the_output_layer_and_exceptions():
    alone = trainable(bn_only(network()))
    assert trainable(bn_only(network(), train_output=True)) == alone | {"head.weight", "head.bias"}
    assert trainable(bn_only(network(), exceptions=["head.bias", "stem.0"])) == alone | {"head.bias", "stem.0.weight"}
    assert trainable(bn_only(network(), exceptions="stem.0")) == alone | {"stem.0.weight"}


@pytest.mark.parametrize("norm", [BatchNorm, nn.BatchNorm2d])
def test_bn_only_freezes_running_statistics_through_train_and_copies(norm):
    model = network(norm)
    steps(model, 1)
    bn_only(model, freeze_stats=True)
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = {name: buffer.clone() for name, buffer in made.named_buffers()}
        expected = made.eval()(images())
        assert torch.equal(made.train()(images()), expected)
        steps(made, 2)
        assert all(torch.equal(buffer, before[name]) for name, buffer in made.named_buffers())


def without_affine():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNorm(4, affine=False))


def untracked():
    return nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm(4, track_running_stats=False))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: network(lambda channels: GroupNorm(channels, 2)), {}, "ResNet has no batch normalization"),
        (without_affine, {}, "2 has no γ and β"),
        (network, {"exceptions": ["haed"]}, "'haed'; did you mean head"),
        (network, {"exceptions": [""]}, "no module or parameter ''"),
        (network, {"init": "zeros"}, "init='zeros' is not one of uniform"),
        (network, {"freeze_stats": 1}, "freeze_stats=1"),
        (untracked, {"freeze_stats": True}, "1 keeps no running statistics"),
        (lambda: nn.Sequential(BatchNorm(3)), {"train_output": True}, "no linear or convolution layer"),
    ],
)
def test_bn_only_refuses_before_it_changes_anything(model, options, message):
    made = model()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(OptionError, match=message):
        bn_only(made, **options)
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


# bn-affine-decay.


def moved(norm=BatchNorm):
    model = bn_only(network(norm), init="positivenegative")
    with torch.no_grad():
        for module in norms_of(model):
            module.bias.normal_()
    return model.requires_grad_(True).double()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", [1.0, 0.0, -0.5])
def test_the_penalty_is_its_formula(norm, target):
    model = moved(norm)
    gamma = sum(((module.weight - target) ** 2).sum() for module in norms_of(model)) * 0.3 / 2
    beta = sum((module.bias**2).sum() for module in norms_of(model)) * 0.3 / 2
    for apply_to, expected in (("gamma", gamma), ("beta", beta), ("both", gamma + beta)):
        torch.testing.assert_close(bn_affine_decay(model, 0.3, target, apply_to), expected)


def test_sgd_on_the_penalty_shrinks_the_distance_from_the_targets_geometrically():
    model, rate, decay, count = moved(), 0.1, 0.3, 7
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(count):
        optimizer.zero_grad()
        bn_affine_decay(model, decay).backward()
        optimizer.step()
    factor = (1 - rate * decay) ** count
    for after, first in zip(norms_of(model), norms_of(before), strict=True):
        torch.testing.assert_close(after.weight - 1, factor * (first.weight - 1))
        torch.testing.assert_close(after.bias, factor * first.bias)
    assert torch.equal(model.head.weight, before.head.weight)


def test_param_groups_hold_every_parameter_once_and_spare_gamma_and_beta():
    model = network()
    model.twin = model.stem[1]  # a shared layer counts once
    others, affine = param_groups(model, weight_decay=0.01)
    held = [id(parameter) for group in (others, affine) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert {id(parameter) for parameter in affine["params"]} == {
        id(parameter) for module in norms_of(model) for parameter in module.parameters()
    }
    assert (others["weight_decay"], affine["weight_decay"]) == (0.01, 0.0)
    torch.testing.assert_close(bn_affine_decay(model), bn_affine_decay(network()))


def test_param_groups_and_penalty_with_target_zero_train_like_plain_weight_decay():
    decay, penalized = 0.1, moved()
    plain, x = copy.deepcopy(penalized), images().double()
    split = torch.optim.SGD(param_groups(penalized, decay), lr=0.1, momentum=0.9)
    whole = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    for _ in range(3):
        for model, optimizer in ((penalized, split), (plain, whole)):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            (loss + bn_affine_decay(model, decay, 0.0) if model is penalized else loss).backward()
            optimizer.step()
    for found, expected in zip(penalized.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001 is out of range"),
        ({"gamma_target": float("nan")}, "gamma_target=nan"),
        ({"apply_to": "weight"}, "apply_to='weight' is not one of gamma, beta, both"),
    ],
)
def test_the_penalty_refuses_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        bn_affine_decay(network(), **options)


def test_the_penalty_refuses_models_without_gamma_and_beta():
    for made in (nn.Linear(2, 2), without_affine()):
        with pytest.raises(OptionError, match=r"batch normalization|γ and β"):
            bn_affine_decay(made)
        with pytest.raises(OptionError, match=r"batch normalization|γ and β"):
            param_groups(made)
