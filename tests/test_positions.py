"""The engine under the norms of one position: its fast passes are its definition, at any mean, in any layout."""

import itertools
import math

import pytest
import torch
from compared import LAYOUTS, error, gradients, randn

from layers import positions
from layers.positions import Recipe

SHAPE = (4, 6, 5, 3)
RECIPES = [
    Recipe(1e-3, mode, unbiased, detach)
    for mode, unbiased, detach in itertools.product(("var", "std"), (False, True), ("none", "mean", "std", "both"))
] + [Recipe(1e-3, mode, center=False) for mode in ("var", "std")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_passes_compute_what_the_definition_says(recipe, layout):
    x = LAYOUTS[layout](randn(*SHAPE) + 2).requires_grad_()
    weight, bias = randn(SHAPE[1], seed=1).requires_grad_(), randn(SHAPE[1], seed=2).requires_grad_()
    results = [positions.standardize(x, weight, bias, recipe), positions._define(x, weight, bias, recipe)]
    assert all(outputs[1].requires_grad is recipe.center for outputs in results)

    sides = []
    for outputs in results:
        live = [(y, randn(*y.shape, seed=3 + i)) for i, y in enumerate(outputs) if y.requires_grad]
        sides.append([*outputs, *torch.autograd.grad([y for y, _ in live], (x, weight, bias), [g for _, g in live])])
    for left, right in zip(*sides, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.detach == "none"], ids=str)
def test_the_passes_are_differentiable_twice(recipe):
    x = randn(2, 3, 2, 2).requires_grad_()
    weight, bias = randn(3, seed=1).requires_grad_(), randn(3, seed=2).requires_grad_()

    def run(*inputs):
        return positions.standardize(*inputs, recipe)

    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.detach != "none"], ids=str)
def test_a_detached_statistic_stays_detached_in_double_backward(recipe):
    x, upstream = randn(2, 3, 2, 2).requires_grad_(), randn(2, 3, 2, 2, seed=1).requires_grad_()
    second = []
    for run in (positions.standardize, positions._define):
        (first,) = torch.autograd.grad(run(x, None, None, recipe)[0], x, upstream, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), (x, upstream), materialize_grads=True))

    for left, right in zip(*second, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_where_the_batch_is_cut_makes_no_difference(monkeypatch):
    x, weight, bias = (randn(*shape, seed=3).requires_grad_() for shape in (SHAPE, SHAPE[1:2], SHAPE[1:2]))
    results = []
    for step in (SHAPE[0], 3, 1):
        monkeypatch.setattr(positions, "SLICE", math.ceil(step * x[0].numel() / torch.get_num_threads()))
        assert positions._step(x) == step
        y = positions.standardize(x, weight, bias, Recipe(1e-5))[0]
        results.append((y, *gradients(y, (x, weight, bias), randn(*SHAPE, seed=4))))

    for tensors in results[1:]:
        for left, right in zip(tensors, results[0], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gain", [(1.0, 0.0), (2.0, 0.1), (2.0, 0.0)], ids=str)
def test_a_gain_multiplies_and_is_a_constant_in_backward(gain, layout):
    x = LAYOUTS[layout](randn(*SHAPE) + 2).requires_grad_()
    recipe = Recipe(1e-3, "std", unbiased=True, gain=gain)
    sides = []
    for outputs in (positions.standardize(x, None, None, recipe), positions._define(x, None, None, recipe)):
        upstreams = [randn(*output.shape, seed=1) for output in outputs]
        sides.append([*outputs, *torch.autograd.grad(outputs, x, upstreams, retain_graph=True)])
        sides[-1] += torch.autograd.grad(outputs[0], x, upstreams[0])  # alone, which rows leave to a kernel

    for left, right in zip(*sides, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_error_does_not_grow_with_the_mean(layout, ratio):
    x = LAYOUTS[layout]((randn(4, 64, 8, 8) + ratio).float()).requires_grad_()
    exact = x.detach().double().requires_grad_()
    upstream = randn(*x.shape, seed=1)
    y, expected = (positions.standardize(t, None, None, Recipe(1e-5))[0] for t in (x, exact))

    assert error(y, expected) < 8 * torch.finfo(torch.float32).eps
    (found,), (wanted,) = gradients(y, [x], upstream.float()), gradients(expected, [exact], upstream)
    assert error(found, wanted) < 8 * torch.finfo(torch.float32).eps


def test_an_outlying_first_channel_costs_no_digits():
    x = randn(4, 64, 8, 8).float()
    x[:, 0] += 1e4

    y, expected = (positions.standardize(t, None, None, Recipe(1e-5))[0] for t in (x, x.double()))

    assert (y - expected).abs().max() < 64 * torch.finfo(torch.float32).eps
