"""Gradients that are taken to be differentiated again are those that are not, where parameters are made from the data.

A custom backward that differentiates a definition of its forward must stop at the tensors it was given: past them lies
the graph of whoever made one from the other, which autograd goes through by itself.
"""

import pytest
import torch
from compared import randn
from harness import Case, assert_near, cases, normal, pure

from layers import positions, windows
from layers.region_factors import Maker
from layers.region_passes import Windows
from layers.regions import choice, region_convolution


@pytest.mark.parametrize("case", [c for c in cases(True) if c.values[0].stone.card.params != "0"])
def test_a_gradient_to_be_derived_is_that_of_parameters_made_from_the_data(case: Case):
    layer = case.layer()
    f, x, parameters = pure(layer), normal(case.shape(), seed=1).requires_grad_(), list(layer.parameters())
    made = [parameter.detach() * (1 + 0.3 * (x * (k + 1)).cos().mean()) for k, parameter in enumerate(parameters)]
    y = f(x, *made)
    upstream = normal(y.shape, seed=7)
    (wanted,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
    (found,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    assert_near(found, wanted, 1e-11)


def filters(x, *shape):
    """Numbers of ``shape`` made from ``x``."""
    return randn(*shape, seed=1) * (1 + x.cos().mean())


def standardized_windows(x):
    recipe = windows.Recipe((2, 2), (1, 1), (1, 0), (1, 1), 1, True, 1e-3)
    return windows.normalized_convolution(x, filters(x, 2, 3, 2, 2), filters(x, 2), recipe)[0]


def standardized_positions(x):
    y, _, rstd = positions.standardize(x, filters(x, 3), filters(x, 3), positions.Recipe(1e-3, "var"))
    return y * rstd


def regions(x):
    guide = filters(x, 1, 2, 2, 2) * x[:, :2, 1:, 1:]
    sizes = Windows((2, 2), (1, 1), (0, 0), (1, 1))
    maker = Maker(filters(x, 2, 4, 2, 2), filters(x, 12, 2, 1, 1), filters(x, 12))
    return region_convolution(x, maker, guide, choice(guide), sizes)


@pytest.mark.parametrize("f", [standardized_windows, standardized_positions, regions])
def test_an_engine_differentiates_parameters_made_from_the_data_once(f):
    x = randn(2, 3, 3, 3).requires_grad_()
    y = f(x)
    upstream = randn(*y.shape, seed=3)
    pair = [torch.autograd.grad(y, x, upstream, retain_graph=True, create_graph=again)[0] for again in (False, True)]
    assert_near(pair[1], pair[0], 1e-12)


@pytest.mark.parametrize("f", [standardized_windows, standardized_positions])
def test_derivatives_and_second_ones_are_right_where_parameters_are_made_from_the_data(f):
    x = randn(2, 3, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


def test_a_statistic_that_gets_the_only_gradient_is_differentiated_once():
    x = randn(2, 3, 3, 3).requires_grad_()
    _, mean, rstd = positions.standardize(x * filters(x, 1), filters(x, 3), filters(x, 3), positions.Recipe(1e-3))
    pair = [
        torch.autograd.grad((mean * rstd).sum(), x, retain_graph=True, create_graph=again)[0] for again in (False, True)
    ]
    assert_near(pair[1], pair[0], 1e-12)
