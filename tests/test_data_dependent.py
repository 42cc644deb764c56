"""Data-dependent initialization: what it sets in which layers, in one pass through any model, and leaves alone."""

from __future__ import annotations

import pytest
import torch
from harness import assert_near, assert_same
from initialized import assert_same_state, assert_standard, batch, images, moments, network, ours, seeded, state
from torch import nn
from torch.nn.utils import parametrizations as of_torch

from layers.init.data_dependent import data_dependent
from layers.norm.actnorm import ActNorm
from layers.norm.bn import BatchNorm
from layers.norm.mean_only_bn import MeanOnlyBatchNorm
from layers.weight.weight_norm import WeightNormConv2d

# What it sets.


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_every_layer_comes_out_standardized_on_the_batch_and_on_no_other(scale, train):
    model = seeded(network).train(train)
    assert data_dependent(model, images(), scale) is model
    found = moments(model, images())
    assert len(found) == 4
    assert_standard(found, scale)
    for mean, var in moments(model, images(seed=5)):
        assert mean.abs().max() > 1e-3
        assert (var - scale**2).abs().max() > 1e-3


def test_directions_stay_and_the_lengths_take_the_scale():
    model, before = seeded(network), state(seeded(network))
    data_dependent(model, images())
    after = state(model)
    stay = ("0.weight", "2.parametrizations.weight.original1", "4.parametrizations.weight.original1")
    for name in stay:
        assert_same(after[name], before[name], what=name)
    assert all(not torch.equal(after[name], before[name]) for name in after if name not in stay)


@pytest.mark.parametrize("wrap", [lambda layer: layer, ours], ids=["plain", "weight-norm"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
)
def test_the_channels_of_every_convolution_are_its_outputs(kind, groups, wrap):
    layer = seeded(lambda: wrap(kind(4, 6, 2, groups=groups).double()))
    x = batch(5, 4, *(3,) * (int(kind.__name__[-2])))
    data_dependent(layer, x)
    (found,) = moments(layer, x)
    assert found[0].shape == (6,)
    assert_standard([found])


@pytest.mark.parametrize("shape", [(7, 4), (3, 5, 4), (2, 3, 2, 4)])
@pytest.mark.parametrize("wrap", [lambda layer: layer, ours, of_torch.weight_norm])
def test_a_linear_layer_may_have_any_number_of_axes_before_its_features(shape, wrap):
    layer = seeded(lambda: wrap(nn.Linear(4, 6).double()))
    x = batch(*shape)
    assert_standard(moments(data_dependent(layer, x), x))


def test_an_unbatched_convolution_has_its_channels_first():
    layer, x = seeded(lambda: nn.Conv2d(3, 4, 2).double()), batch(3, 6, 6)
    y = data_dependent(layer, x)(x).detach().flatten(1)
    assert_standard([torch.var_mean(y, 1, correction=0)[::-1]])


def test_a_layer_without_bias_keeps_its_mean():
    layer, x = seeded(lambda: nn.Conv2d(3, 4, 2, bias=False).double()), images()
    ((before, power),) = moments(layer, x)
    ((mean, var),) = moments(data_dependent(layer, x), x)
    assert_near(mean, before / power.sqrt(), 1e-12, what="mean")
    assert_near(var, torch.ones_like(var), 1e-12, what="variance")


def test_eps_is_added_to_the_variance():
    layer, x = seeded(lambda: nn.Conv2d(3, 4, 2).double()), images()
    ((_, before),) = moments(layer, x)
    ((mean, var),) = moments(data_dependent(layer, x, eps=0.5), x)
    assert_near(var, before / (before + 0.5), 1e-12, what="variance")
    assert mean.abs().max() < 1e-12


def test_a_second_pass_of_the_same_batch_changes_nothing():
    model = data_dependent(seeded(network), images())
    before = state(model)
    for name, tensor in state(data_dependent(model, images())).items():
        assert_near(tensor, before[name], 1e-12, what=name)


def test_signs_of_lengths_are_kept():
    model = seeded(network)
    with torch.no_grad():
        model[0].gain[::2] *= -1
    signs = model[0].gain.sign()
    data_dependent(model, images())
    assert_same(model[0].gain.sign(), signs, what="the signs")
    assert_standard(moments(model, images()))


def test_only_weight_normalized_layers_are_taken_when_asked_for():
    model, before = seeded(network), state(seeded(network))
    data_dependent(model, images(), layers="weight-norm")
    *normalized, (_, var) = moments(model, images())
    assert_standard(normalized)
    assert (var - 1).abs().max() > 0.1
    for name in ("6.weight", "6.bias"):
        assert_same(state(model)[name], before[name], what=name)


def test_float32_and_bfloat16_reach_what_their_digits_allow():
    for dtype, within in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = seeded(network).to(dtype)
        data_dependent(model, images().to(dtype))
        found = [tuple(moment.double() for moment in pair) for pair in moments(model, images().to(dtype))]
        assert_standard(found, within=within)


def test_under_autocast_later_calls_use_the_new_weights():
    model, x = seeded(network).float(), images().float()
    for parameter in model.parameters():
        parameter.data *= 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        data_dependent(model, x)
        found = moments(model, x)
    assert_standard([tuple(moment.double() for moment in pair) for pair in found], within=0.05)


# In one pass, through any model.


def test_the_model_runs_once():
    model, calls = seeded(network), []
    for module in (model, model[1], model[3], model[5]):
        module.register_forward_hook(lambda module, given, y: calls.append(type(module).__name__))
    data_dependent(model, images())
    assert sorted(calls) == ["Flatten", "ReLU", "ReLU", "Sequential"]


class Calls(nn.Module):
    """Uses its layers in another order than it holds them, one of them twice, with arguments by name."""

    def __init__(self):
        super().__init__()
        self.last, self.twice = nn.Linear(4, 3), nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight

    def forward(self, x, *, shift):
        y = self.twice(x + shift).relu()
        return self.last(self.tied(self.twice(y)).tanh())


def test_a_layer_used_twice_is_set_at_its_first_use_and_shared_weights_once():
    model, x, shift = seeded(Calls).double(), batch(9, 4), batch(4, seed=2)
    bias = model.tied.bias.detach().clone()
    data_dependent(model, {"x": x, "shift": shift})
    found = []
    for layer in (model.twice, model.last):
        layer.register_forward_hook(lambda *seen: found.append(torch.var_mean(seen[2], 0, correction=0)[::-1]))
    with torch.no_grad():
        model(x, shift=shift)
    assert_standard([found[0], found[2]])
    assert (found[1][1] - 1).abs().max() > 0.1
    assert_same(model.tied.bias.detach(), bias, what="the bias of the layer that shares a weight")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


def test_several_inputs_are_a_tuple_or_list():
    for kind in (tuple, list):
        model, inputs = seeded(Two).double(), kind((batch(9, 4), batch(9, 5)))
        assert_standard(moments(data_dependent(model, inputs), *inputs))


def test_before_mean_only_bn_only_the_length_is_set_and_running_means_stay():
    for train in (True, False):
        parts = [WeightNormConv2d(3, 4, 3), MeanOnlyBatchNorm(4), nn.ReLU(), WeightNormConv2d(4, 5, 3)]
        model = seeded(lambda parts=parts: nn.Sequential(*parts).double())
        with torch.no_grad():
            model[0].bias += 1.5
            model[1].running_mean += 0.5
        model.train(train)
        before = state(model)
        data_dependent(model, images())
        assert_same_state(state(model), before, but=("0.gain", "3.gain", "3.bias"))
        (_, var), last = moments(model, images())
        assert_near(var, torch.ones_like(var), 1e-12, what="variance")
        assert_standard([last])


def test_actnorm_gets_its_first_batch_after_the_layers_below_and_before_those_above():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), ActNorm(4, eps=0.0, variance="biased"), nn.Conv2d(4, 5, 3))
    )
    model.double()
    data_dependent(model, images())
    assert model[1].initialized
    assert model[1].loc.abs().max() < 1e-12
    assert (model[1].scale - 1).abs().max() < 1e-12
    assert_standard(moments(model, images()))
    before = state(model)
    for name, tensor in state(data_dependent(model, images())).items():
        assert (tensor.double() - before[name].double()).abs().max() < 1e-12, name


def test_buffers_modes_gradients_and_hooks_are_left_alone():
    model = seeded(lambda: nn.Sequential(*network()[:2], BatchNorm(8), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).double())
    model[2].eval()
    model(images(seed=4)).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    data_dependent(model, images())
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert_same(buffer, buffers[name][1], what=name)
    for name, parameter in model.named_parameters():
        assert_same(parameter.grad, gradients[name], what=name)
        assert parameter.requires_grad
        assert parameter.grad_fn is None
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_dropout_acts_in_training_as_it_does():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double())
    x = batch(64, 4)
    seeded(data_dependent, model, x, seed=3)
    assert_standard(seeded(moments, model, x, seed=3))
    assert (moments(model.eval(), x)[1][1] - 1).abs().max() > 0.1


def test_the_hooks_of_others_see_what_is_passed_on():
    model, seen = seeded(network), []
    model[0].register_forward_hook(lambda layer, given, y: seen.append(y))
    data_dependent(model, images())
    assert_same(seen[0], model[0](images()).detach(), what="the output")
