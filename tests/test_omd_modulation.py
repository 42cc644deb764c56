"""Backward error modulation: the growth of errors that it removes, when points act, and how they are linked."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from harness import assert_near, assert_same, normal
from modulated import images, loss, network, parametric, rms, watched
from torch import nn

from layers.backward.omd_modulation import ErrorModulation, modulate
from layers.error_chain import Chain
from layers.init.orthogonal import orthogonal_

GAIN = math.sqrt(math.pi / (math.pi - 1))


# What the stone is for.


@pytest.mark.parametrize("start", [orthogonal_, nn.init.kaiming_normal_], ids=["orthonormal", "He"])
def test_errors_grow_by_the_root_of_pi_over_pi_minus_1_per_block_and_modulation_removes_it(start):
    """Linear-BN-ReLU: BN divides the error by σ = √(½ − 1/2π), the standard deviation of what ReLU passed, ReLU halves
    its power. At width and batch 512 a block's gain has a spread of 0.4 %; 2 % are admitted, 0.5 % for their mean."""
    width, blocks = 512, 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = []
        for _ in range(blocks + 1):
            parts += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, eps=1e-12), nn.ReLU()]
            start(parts[-3].weight)
        model, x, upstream = nn.Sequential(*parts), torch.randn(512, width), torch.randn(512, width)

    def errors():
        found, _ = watched(model, x, lambda model, x: (model(x) * upstream).sum())
        return found[1:]  # the lowest layer sees Gaussian data, not what a ReLU has passed

    grown = errors()
    gains = [below / above for below, above in itertools.pairwise(grown)]
    assert len(gains) == blocks - 1
    assert gains == pytest.approx([GAIN] * len(gains), rel=0.02)
    assert math.prod(gains) ** (1 / len(gains)) == pytest.approx(GAIN, rel=0.005)
    modulate(model)
    assert errors() == pytest.approx([grown[-1]] * blocks, rel=1e-5)


def test_each_weight_gradient_is_the_plain_one_times_the_product_of_rho():
    model = network()
    plain_rms, plain = watched(model)
    modulate(model)
    found_rms, found = watched(model)
    assert found_rms == pytest.approx([plain_rms[-1]] * 4, rel=1e-12)
    assert plain_rms != pytest.approx(found_rms, rel=0.1)
    for ours, theirs, own in zip(found, plain, plain_rms, strict=True):
        assert_near(ours, plain_rms[-1] / own * theirs, 1e-12, what="weight gradient")


def test_with_a_target_every_layer_gets_it():
    model = network()
    modulate(model, target=0.25)
    assert watched(model)[0] == pytest.approx([0.25] * 4, rel=1e-12)


def test_inside_the_band_an_error_is_left_alone_and_measured():
    model = network()
    plain, gradients = watched(model)
    rho = [above / below for below, above in itertools.pairwise(plain)]
    handle = modulate(model, low=min(*rho, 1.0) / 1.01, high=1.01 * max(*rho, 1.0))
    found, same = watched(model)
    assert found == pytest.approx(plain, rel=1e-12)
    for ours, theirs in zip(same, gradients, strict=True):
        assert_same(ours, theirs, what="weight gradient")
    handle.remove()
    low = min(max(rho), 1.0) / 1.01
    modulate(model, low=low, high=max(*rho, 1.0) * 1.01)
    wanted = plain[-1:]
    for below, above in zip(reversed(plain[:-1]), reversed(plain[1:]), strict=True):
        now = below * wanted[0] / above
        wanted.insert(0, wanted[0] if wanted[0] / now < low else now)
    assert watched(model)[0] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("every", "until"), [(1, None), (2, None), (3, 5), (1, 2), (1, 0)])
def test_every_and_until_step_count_training_forwards(every, until):
    model, handle = network(), modulate(network(), 1.0)
    handle.remove()
    plain, _ = watched(model)
    handle = modulate(model, every=every, until_step=until)
    for step in range(7):
        acts = step % every == 0 and (until is None or step < until)
        model.eval()
        model(images())
        model.train()
        assert (watched(model)[0] == pytest.approx([plain[-1]] * 4, rel=1e-9)) == acts, step
        assert handle.steps == step + 1


@pytest.mark.parametrize(("every", "until"), [(2, None), (3, 5), (1, 2), (1, 0)])
def test_a_layer_counts_training_forwards_in_its_buffer(every, until):
    layer, x = ErrorModulation(3, 0.5, every, until, dtype=torch.float64), images().requires_grad_()
    for step in range(7):
        layer.eval()(x)
        (gradient,) = torch.autograd.grad(layer.train()(x), x, normal(x.shape, seed=2))
        acts = step % every == 0 and (until is None or step < until)
        assert (rms(gradient) == pytest.approx(0.5, rel=1e-12)) == acts, step
    assert layer.state_dict()["steps"] == 7


# Chains.


def test_points_are_linked_in_the_order_of_the_forward_not_of_the_backward():
    """Two branches that autograd visits in either order: the second is above the first."""
    chain = Chain()
    lower, left, right = (ErrorModulation(3, chain=chain) for _ in range(3))
    x = images().requires_grad_()
    found = {}

    def seen(name, y):
        y.register_hook(lambda error: found.__setitem__(name, rms(error)))
        return y

    for swap in (False, True):
        with chain:
            y = 2 * lower(x)
            first = left(seen("first", 3 * y))
            second = right(seen("second", 5 * y))
            parts = [first.square().sum(), second.square().sum()]
        (gradient,) = torch.autograd.grad(parts[swap] + parts[not swap], x)
        above = rms(2 * 10 * x)  # the derivative of the square of the second branch, 10 x
        assert found["second"] == pytest.approx(above, rel=1e-12)
        assert found["first"] == pytest.approx(above, rel=1e-12)
        assert rms(gradient) == pytest.approx(above, rel=1e-12)


def test_outside_of_a_pass_a_linked_point_is_alone():
    layer, x = ErrorModulation(3, chain=Chain()), images().requires_grad_()
    upstream = normal(x.shape, seed=2)
    assert_same(torch.autograd.grad(layer(layer(x)), x, upstream)[0], upstream, what="the error")


def test_passes_may_be_nested_and_of_several_chains():
    outer, inner, x = Chain(), Chain(), images().requires_grad_()
    a, b = (ErrorModulation(3, chain=outer) for _ in range(2))
    c, d = (ErrorModulation(3, chain=inner) for _ in range(2))
    with outer:
        y = a(x)
        with inner:
            y = d(7 * c(5 * y))
        y = b(3 * y)
    (gradient,) = torch.autograd.grad(y, x, normal(x.shape, seed=2))
    assert rms(gradient) == pytest.approx(rms(normal(x.shape, seed=2)), rel=1e-12)
    assert outer.current() is None
    assert inner.current() is None


def test_a_point_without_an_error_passes_on_what_is_above_it():
    """A head that the loss does not see lies between two points."""
    chain = Chain()
    low, unused, top = (ErrorModulation(3, chain=chain) for _ in range(3))
    x = images().requires_grad_()
    with chain:
        y = 9 * low(x)
        unused(0 * y)
        z = top(y)
    (gradient,) = torch.autograd.grad(z, x, normal(x.shape, seed=2))
    assert rms(gradient) == pytest.approx(rms(normal(x.shape, seed=2)), rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_an_error_without_a_size_passes_unchanged(bad):
    layer, x = ErrorModulation(3, 0.5), images().requires_grad_()
    upstream = normal(x.shape, seed=2)
    upstream[1, 2] = bad
    upstream = upstream if bad else torch.zeros_like(upstream)
    (gradient,) = torch.autograd.grad(layer(x), x, upstream)
    assert torch.equal(gradient.nan_to_num(9, 8, 7), upstream.nan_to_num(9, 8, 7))


def test_frozen_layers_below_are_passed_by():
    model = network()
    for parameter in model[:3].parameters():
        parameter.requires_grad_(False)
    modulate(model)
    found, gradients = watched_trained(model)
    assert gradients[0] is None
    assert found == pytest.approx([found[-1]] * 3, rel=1e-12)


def watched_trained(model):
    """As `watched`, of the layers that are trained."""
    found = []
    for layer in parametric(model)[1:]:
        layer.register_forward_hook(
            lambda layer, inputs, y: (y.register_hook(lambda error: found.insert(0, rms(error))), None)[1], prepend=True
        )
    loss(model).backward()
    return found, [layer.weight.grad for layer in parametric(model)]


def test_no_gradient_flows_through_rho():
    """The second derivative is that of an upstream gradient times a constant."""
    layer, x = ErrorModulation(3, 0.5), images().requires_grad_()
    upstream = normal(x.shape, seed=2).requires_grad_()
    (first,) = torch.autograd.grad(layer(x), x, upstream, create_graph=True)
    (second,) = torch.autograd.grad(first, upstream, torch.ones_like(x))
    assert_near(second, torch.full_like(x, 0.5 / rms(upstream)), 1e-12, what="second derivative")
