"""Covariance pooling and what the second-order poolings share: what the general promises do not reach."""

from __future__ import annotations

import pytest
import torch
from harness import normal
from references_second_order import symmetric_power
from slopes import DOUBLE, assert_near, gradient

from layers.card import OptionError
from layers.matrix_power import divided_differences, newton_schulz, power
from layers.pool.bilinear import BilinearPool
from layers.pool.factorized_bilinear import FactorizedBilinear
from layers.pool.mpn_cov import MPNCOV
from layers.second_order import covariance, triangle
from profiles.counting.saved import saving

METHODS = ({"iters": 1}, {"iters": 5}, {"method": "eig"}, {"method": "eig", "alpha": 0.3, "norm": "l2"},
           {"method": "eig", "norm": "fro"})  # fmt: skip


def matrices(values, seed=0):
    """Symmetric matrices with these eigenvalues (N, C)."""
    basis = torch.linalg.qr(normal((*values.shape, values.shape[-1]), seed=seed)).Q
    return basis @ torch.diag_embed(values) @ basis.mT


@pytest.mark.parametrize("options", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_input_gives_0_and_a_gradient_of_0(options, value):
    x = normal((3, 6, 4, 4), seed=1, dtype=torch.float32)
    x[1] = value * torch.arange(6.0).view(6, 1, 1)
    layer = MPNCOV(6, **options)
    assert layer(x)[1].eq(0).all()
    found = gradient(layer, x)
    assert found[1].eq(0).all()
    assert found.isfinite().all()
    assert found[0].any()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 1.0])
def test_repeated_eigenvalues_have_a_finite_and_right_gradient(alpha):
    values = torch.tensor([[2.0, 2, 2, 2], [1, 1, 3, 3], [1, 1 + 1e-9, 2, 5]], dtype=DOUBLE)
    sigma = matrices(values)
    upstream = normal(sigma.shape, seed=2)
    upstream = upstream + upstream.mT
    found = gradient(lambda leaf: power(leaf, alpha)[0], sigma, upstream)
    step, direction = 1e-4, normal(sigma.shape, seed=3)
    direction = direction + direction.mT
    ahead, behind = (symmetric_power(sigma + sign * step * direction, alpha) for sign in (1, -1))
    slopes = ((ahead - behind) / (2 * step) * upstream).sum((1, 2))
    assert_near((found * direction).sum((1, 2)), slopes, 1e-6)


def test_autograd_through_the_eigenvectors_has_no_gradient_there():
    leaf = (2 * torch.eye(4, dtype=DOUBLE)).unsqueeze(0).requires_grad_()
    found = torch.autograd.grad(symmetric_power(leaf, 0.5), leaf, normal(leaf.shape))
    assert not found[0].isfinite().all()


def test_divided_differences_are_those_of_lyapunov_for_the_root():
    values = torch.tensor([[0.0, 0, 1e-12, 1, 1, 4, 1e8]], dtype=DOUBLE)
    roots = values.sqrt()
    wanted = roots.unsqueeze(1) + roots.unsqueeze(2)
    wanted = torch.where(wanted == 0, torch.inf, wanted).reciprocal()
    found = divided_differences(values, 0.5)
    assert ((found - wanted).abs() <= 1e-12 * wanted).all()


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_fewer_positions_than_channels_are_no_trouble(rank, dtype):
    x = normal((2, 32, rank + 1), seed=1)
    for options, within in (({"method": "eig"}, 3e-4), ({"iters": 16}, 3e-2)):
        layer = MPNCOV(32, **options)
        y, truth = layer(x.to(dtype)), layer(x)
        assert y.isfinite().all()
        assert_near(y.double(), truth, within if dtype == torch.float32 else 1e-12)
        found = gradient(layer, x.to(dtype))
        assert_near(found.double(), gradient(layer, x), within if dtype == torch.float32 else 1e-12)


def test_more_steps_than_are_admitted_explode_on_a_covariance_without_full_rank():
    sigma, _ = covariance(normal((2, 32, 10), seed=1, dtype=torch.float32))
    assert newton_schulz(sigma, 16)[0].isfinite().all()
    assert not newton_schulz(sigma, 40)[0].isfinite().all()
    with pytest.raises(OptionError, match="iters=40"):
        MPNCOV(32, iters=40)


@pytest.mark.parametrize(("iters", "share", "of_root"), [(5, 0.05, 0.967), (5, 0.01, 0.659), (3, 0.01, 0.328)])
def test_small_eigenvalues_are_far_from_their_roots(iters, share, of_root):
    """As the card says."""
    sigma = torch.tensor([share, 1 - share], dtype=DOUBLE).diag().unsqueeze(0)
    q, trace = newton_schulz(sigma, iters)
    assert trace.item() == pytest.approx(1)
    assert (q[0, 0, 0] / share**0.5).item() == pytest.approx(of_root, abs=5e-4)


@pytest.mark.parametrize("options", [o for o in METHODS if "method" in o])
def test_the_second_derivative_by_eigenvectors_is_refused(options):
    x = normal((2, 5, 9), seed=1).requires_grad_()
    y = MPNCOV(5, **options)(x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert_near(first.detach(), gradient(MPNCOV(5, **options), x, torch.ones_like(y)))
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(first.square().sum(), x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.3}, "method='eig'"),
        ({"norm": "l2"}, "method='eig'"),
        ({"iters": 0}, "iters=0"),
        ({"method": "eig", "alpha": 0.0}, "alpha=0.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        MPNCOV(8, **options)


def test_one_position_has_no_covariance():
    with pytest.raises(OptionError, match="2 positions"):
        MPNCOV(8)(torch.ones(2, 8, 1, 1))


def test_triangles_come_row_by_row_and_give_gradients_back():
    matrix = torch.arange(9.0).view(1, 3, 3)
    assert triangle(matrix).tolist() == [[0, 1, 2, 4, 5, 8]]
    assert triangle(matrix, 2.0).tolist() == [[0, 2, 4, 4, 10, 8]]
    found = gradient(lambda leaf: triangle(leaf, 2.0), matrix, torch.ones(1, 6))
    assert found.tolist() == [[[1, 2, 2], [0, 1, 2], [0, 0, 1]]]


LAYERS = [
    *(MPNCOV(6, **options) for options in METHODS),
    *(BilinearPool(6, **options) for options in ({}, {"vec": "triu", "eps": 0.0}, {"sketch": 9})),
    FactorizedBilinear(6, 3, kernel_size=2, num_factors=4, self_interaction=False),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_functorch_maps_over_layers_and_their_gradients(layer):
    layer = layer.double()
    x = normal((3, 2, 6, 3, 4), seed=1)

    def slope(batch):
        return torch.func.grad(lambda leaf: layer(leaf).cos().sum())(batch)

    for f in (layer, slope):
        assert_near(torch.vmap(f)(x), torch.stack([f(batch) for batch in x]))


@pytest.mark.filterwarnings("ignore")  # of the tracer, about sizes that it takes for constants
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_traced_layer_is_the_layer(layer):
    layer = layer.double()
    traced = torch.jit.trace(layer, normal((2, 6, 3, 4), seed=1))
    x = normal((2, 6, 3, 4), seed=2)
    assert_near(traced(x), layer(x))


def test_steps_are_not_kept_for_backward():
    x = normal((2, 16, 30), dtype=torch.float32).requires_grad_()
    for iters in (1, 5, 16):
        layer = MPNCOV(16, iters=iters)
        with saving(layer) as saved:
            layer(x)
        assert saved.bytes == 4 * (2 * 16 * 30 + 2 * 16 * 16)
