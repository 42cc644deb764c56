"""What is special about ghost-bn, bn-gn, iew and bcn: whose statistics they take, and what their buffers follow."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from batches import C, N, data, double, near

from layers.norm.bcn import BatchChannelNorm
from layers.norm.bn import BatchNorm
from layers.norm.bn_gn import BatchGroupNorm
from layers.norm.ghost_bn import GhostBatchNorm
from layers.norm.gn import GroupNorm
from layers.norm.iew import InferenceExampleWeighing
from layers.observe import observing

# Ghost batch normalization.


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_sequential_ghosts_move_the_statistics_as_bn_does_on_one_ghost_after_the_other(momentum):
    ghosts, bn = (
        double(GhostBatchNorm, 2, running="sequential", momentum=momentum),
        double(BatchNorm, momentum=momentum),
    )
    for seed in range(3):
        x = data(seed)
        near(ghosts(x), torch.cat([bn(ghost) for ghost in x.split(2)]))
    for name, buffer in bn.named_buffers():
        near(dict(ghosts.named_buffers())[name], buffer)


def test_whole_batch_statistics_are_those_of_bn():
    ghosts, bn = double(GhostBatchNorm, 3), double(BatchNorm)
    for seed in range(3):
        assert not torch.allclose(ghosts(data(seed)), bn(data(seed)))
    near(dict(ghosts.named_buffers()), dict(bn.named_buffers()))


def test_ghosts_of_two_values_give_plus_and_minus_one():
    y = double(GhostBatchNorm, 2, eps=1e-30)(data(shape=(N, C)))
    near(y.abs(), torch.ones_like(y))


def test_ghosts_are_consecutive_samples():
    layer, x = double(GhostBatchNorm, 2), data().requires_grad_()
    layer(x)[1].sin().sum().backward()
    assert [bool(sample.any()) for sample in x.grad] == [True, True, False, False, False, False]


# BN+GN and inference example weighing: averages of E[x] and E[x²].


def moments(x):
    values = x.transpose(0, 1).flatten(1)
    return values.mean(1), values.square().mean(1)


@pytest.mark.parametrize("momentum", [0.01, 0.5, 1.0, None])
@pytest.mark.parametrize(
    "make", [lambda **o: double(BatchGroupNorm, 2, **o), lambda **o: double(InferenceExampleWeighing, **o)]
)
def test_the_stored_variance_is_that_of_the_averaged_moments(make, momentum):
    layer, (first, second) = make(momentum=momentum), (torch.zeros(C).double(), torch.ones(C).double())
    for step in range(5):
        layer(data(step))
        weight = 1 / (step + 1) if momentum is None else momentum
        new = moments(data(step))
        first, second = (1 - weight) * first + weight * new[0], (1 - weight) * second + weight * new[1]
        near(layer.running_mean, first)
        near(layer.running_var, second - first**2)
    assert int(layer.num_batches_tracked) == 5


def test_averages_of_squares_in_float32_would_lose_the_variance_that_is_kept():
    """The buffers of the authors' code, E[x] and E[x²], beside ours at mean ≫ std."""
    layer = InferenceExampleWeighing(C, 0.3, momentum=0.5)
    true = InferenceExampleWeighing(C, 0.3, momentum=0.5).double()
    first, second = torch.zeros(C), torch.ones(C)
    for step in range(40):
        x = (torch.randn(N, C, 8, 8, generator=torch.Generator().manual_seed(step)) + 1e4).float()
        layer(x), true(x.double())
        new = moments(x)
        first, second = (first + new[0]) / 2, (second + new[1]) / 2

    def worst(found):
        return ((found.double() - true.running_var) / true.running_var).abs().max().item()

    assert worst(layer.running_var) < 1e-3
    assert worst(second - first**2) > 1
    y, wanted = layer.eval()(x), true.eval()(x.double())
    assert (y - wanted).abs().max() < 3e-2 * wanted.abs().max()


@pytest.mark.parametrize("spread", [1e-6, 1e4])
@pytest.mark.parametrize("make", [lambda: InferenceExampleWeighing(C, groups=2), lambda: BatchGroupNorm(C, 2)])
def test_the_variance_of_blocks_that_is_observed_has_its_digits_beside_any_eps(make, spread):
    layer, x = make(), (spread * data()).float()
    with observing() as seen:
        layer(x)
    with observing() as wanted:
        copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(seen["var"].double(), wanted["var"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 0.1, 1 / 32])
def test_weighing_bounds_the_output_of_one_value_per_channel(alpha):
    layer = double(InferenceExampleWeighing, alpha, eps=1e-30).eval()
    bound = math.sqrt((1 - alpha) / alpha)
    for scale in (1.0, 1e3, 1e6):
        assert layer(scale * data(shape=(N, C))).abs().max() <= bound * (1 + 1e-9)
    assert layer(1e6 * data(shape=(N, C))).abs().max() >= 0.999 * bound


@pytest.mark.parametrize("make", [lambda: double(InferenceExampleWeighing), lambda: double(BatchGroupNorm, 4)])
def test_alpha_may_be_chosen_after_training_of_a_bn(make):
    trained, layer = double(BatchNorm), make()
    trained(data())
    layer.load_state_dict(trained.state_dict(), strict=True)
    for module in (trained, layer):
        module.eval()
    near(layer(data(1)), trained(data(1)))
    layer.alpha = 1.0
    instance = double(GroupNorm, channels_per_group=1)
    near(layer(data(1)), instance(data(1)))


def test_weighing_reads_each_example_alone():
    layer, x = double(InferenceExampleWeighing, 0.3).eval(), data()
    near(layer(x)[2:3], layer(x[2:3]))


@pytest.mark.parametrize("shape", [(N, C), (N, C, 3), (N, C, 3, 2)])
@pytest.mark.parametrize(
    "make", [lambda: double(InferenceExampleWeighing, groups=1), lambda: double(BatchGroupNorm, 1)]
)
def test_one_group_of_all_channels_has_the_gradients_of_its_formula_in_evaluation(make, shape):
    """One number for all channels, stretched without a copy, made torch's backward read beyond it."""
    layer, x = make(), data(1, shape).requires_grad_()
    layer(data(0, shape))
    layer.eval()
    mean = layer.running_mean.mean()
    z = (x - mean) / ((layer.running_var + (layer.running_mean - mean) ** 2).mean() + layer.eps).sqrt()
    z = z * layer.weight.view(-1, *[1] * (x.dim() - 2))
    inputs = (x, layer.weight)
    near(torch.autograd.grad(layer(x), inputs, data(2, shape)), torch.autograd.grad(z, inputs, data(2, shape)))


def test_own_statistics_of_one_value_are_refused_only_where_nothing_else_counts():
    x = data(shape=(N, C))
    assert double(InferenceExampleWeighing, 0.9).eval()(x).isfinite().all()
    with pytest.raises(ValueError, match="alpha=1 needs more than 1 value"):
        double(InferenceExampleWeighing, 1.0).eval()(x)


# Batch-channel normalization.


@pytest.mark.parametrize("estimate", [False, True])
def test_bcn_leaves_no_channel_dead(estimate):
    """A channel far below its group is dead after a ReLU under GN (and under estimates that never move), not here."""
    x = torch.randn(16, 12, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 5] -= 10

    def alive(layer):
        return (layer.double()(x)[:, 5] > 0).double().mean().item()

    assert alive(GroupNorm(12, 3)) == 0
    assert 0.4 < alive(BatchChannelNorm(12, 3, estimate=estimate, moving_speed=1.0)) < 0.6
    assert alive(BatchChannelNorm(12, 3, estimate=True, moving_speed=0.0)) == 0


def test_estimates_move_around_the_old_mean_and_before_they_are_used():
    layer, x = double(BatchChannelNorm, 2, estimate=True, moving_speed=0.3), data(3)
    values = x.transpose(0, 1).flatten(1)
    for _ in range(3):
        mean, var = layer.running_mean.clone(), layer.running_var.clone()
        around = (values - mean[:, None]).square().mean(1)
        y = layer(x)
        near(layer.running_mean, 0.7 * mean + 0.3 * values.mean(1))
        near(layer.running_var, 0.7 * var + 0.3 * around)
        near(y, copy.deepcopy(layer).eval()(x))
    assert int(layer.num_batches_tracked) == 0


def test_a_trainer_may_change_the_moving_speed():
    layer = double(BatchChannelNorm, 2, estimate=True, moving_speed=0.5)
    layer.moving_speed = 0.0
    layer(data())
    assert not layer.running_mean.any()


@pytest.mark.parametrize(("group_affine", "size"), [("group", 2), ("channel", C)])
def test_bcn_learns_two_affine_maps_and_resets_both(group_affine, size):
    layer = BatchChannelNorm(C, 2, group_affine=group_affine)
    assert [len(p) for p in layer.parameters()] == [C, C, size, size]
    for parameter in layer.parameters():
        parameter.data.uniform_()
    layer.reset_parameters()
    assert all(torch.equal(p, torch.full_like(p, float("weight" in name))) for name, p in layer.named_parameters())
