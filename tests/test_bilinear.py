"""Bilinear pooling: what the general promises do not reach: the root at 0, two streams, the sketch."""

from __future__ import annotations

import pytest
import torch
from harness import normal
from slopes import DOUBLE, assert_near, gradient

from layers.pool.bilinear import BilinearPool
from layers.second_order import gram, signed_root, sketched

# The signed root.


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
def test_the_root_and_its_slope_are_0_at_0_and_right_elsewhere(eps):
    g = torch.tensor([0.0, -0.0, 4.0, -9.0, 1e-300], dtype=DOUBLE)
    wanted = torch.tensor([0.0, 0.0, (4 + eps) ** 0.5, -((9 + eps) ** 0.5), (1e-300 + eps) ** 0.5], dtype=DOUBLE)
    assert_near(signed_root(g, eps), wanted)
    slopes = gradient(lambda leaf: signed_root(leaf, eps), g, torch.ones_like(g))
    assert slopes[:2].eq(0).all()
    assert_near(slopes[2:], 0.5 / wanted[2:].abs())


def test_second_derivatives_of_the_root_are_finite_at_0():
    g = torch.tensor([0.0, 4.0], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(signed_root(g).sum(), g, create_graph=True)
    assert_near(torch.autograd.grad(slope.sum(), g)[0], torch.tensor([0.0, -1 / 32], dtype=DOUBLE))


ROOTS = pytest.mark.parametrize("options", [{}, {"eps": 0.0}, {"vec": "triu", "eps": 0.0}, {"sketch": 20, "eps": 0.0}])


@ROOTS
def test_a_dead_sample_has_a_second_derivative_of_0_and_leaves_those_of_others_alone(options):
    x = normal((2, 6, 5), seed=1)
    x[1] = 0
    layer = BilinearPool(6, **options, dtype=DOUBLE)

    def curvature(batch):
        leaf = batch.detach().requires_grad_()
        y = layer(leaf)
        (slope,) = torch.autograd.grad(y, leaf, normal((2, *y.shape[1:]), seed=7)[: len(y)], create_graph=True)
        return torch.autograd.grad(slope.cos().sum(), leaf)[0]

    found = curvature(x)
    assert found[1].eq(0).all()
    assert_near(found[:1], curvature(x[:1]))
    assert found[0].any()


@ROOTS
def test_dead_channels_and_dead_samples_leave_gradients_finite(options):
    x = normal((4, 6, 5), seed=1)
    x[:, 2] = 0
    x[1] = 0
    layer = BilinearPool(6, **options, dtype=DOUBLE)
    assert layer(x)[1].eq(0).all()
    found = gradient(layer, x)
    assert found.isfinite().all()
    assert found[1].eq(0).all()
    assert found[0, 2].eq(0).all() or "sketch" in options


@pytest.mark.parametrize(("eps", "moved"), [(1e-8, 1e-7), (1e-5, 1e-4)])
def test_eps_moves_outputs_as_the_card_says(eps, moved):
    x = torch.randn(16, 64, 49, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    distance = (BilinearPool(64, eps=eps)(x) - BilinearPool(64, eps=0.0)(x)).norm(dim=1)
    assert moved / 2 < distance.median() < 2 * moved


# Two streams and the sketch.


def test_two_streams_are_the_products_of_their_channels():
    x, other = normal((3, 4, 2, 3), seed=1), normal((3, 5, 2, 3), seed=2)
    product = torch.einsum("nahw,nbhw->nab", x, other).flatten(1) / 6
    z = product.sign() * (product.abs() + 1e-8).sqrt()
    assert_near(BilinearPool(4)(x, other), z / z.norm(dim=1, keepdim=True))
    assert_near(BilinearPool(4)(x, x), BilinearPool(4)(x))
    found = gradient(lambda leaf: BilinearPool(5)(other, leaf), x)
    assert_near(found, gradient(lambda leaf: BilinearPool(4)(leaf, other).view(3, 4, 5).mT.flatten(1), x))


def test_two_streams_of_different_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"torch\.float32 and torch\.float64"):
        BilinearPool(4)(torch.ones(3, 4, 2), torch.ones(3, 5, 2, dtype=DOUBLE))
    assert BilinearPool(4)(torch.ones(3, 4, 2).half(), torch.ones(3, 5, 2)).dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (3, 4, 3, 2), "same batch and positions"),
        ({}, (2, 4, 2, 3), "same batch and positions"),
        ({"vec": "triu"}, (3, 4, 2, 3), "vec='full'"),
        ({"sketch": 9}, (3, 4, 2, 3), "no sketch"),
    ],
)
def test_a_second_stream_that_does_not_fit_is_refused(options, shape, words):
    with pytest.raises(ValueError, match=words):
        BilinearPool(4, **options)(torch.ones(3, 4, 2, 3), torch.ones(shape))


def test_a_sketch_keeps_inner_products_in_the_mean():
    product = gram(normal((2, 5, 7), seed=3), mean=False)
    wanted, total, draws = (product[0] * product[1]).sum(), 0.0, 1500
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        hashes = torch.randint(64, (2, 5), generator=generator)
        signs = 2.0 * torch.randint(2, (2, 5), generator=generator) - 1
        made = sketched(product, hashes, signs, 64)
        total += (made[0] @ made[1]).item()
    assert abs(total / draws - wanted) <= 0.1 * product[0].norm() * product[1].norm()


def test_a_sketch_is_drawn_by_the_generator_of_torch_and_saved():
    torch.manual_seed(3)
    layer, random = BilinearPool(8, sketch=30), torch.get_rng_state()
    torch.manual_seed(3)
    twin = BilinearPool(8, sketch=30)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(layer.hashes, twin.hashes)
    assert torch.equal(layer.signs, twin.signs)
    assert 0 <= layer.hashes.min() <= layer.hashes.max() < 30
    other = BilinearPool(8, sketch=30)
    assert not torch.equal(other.hashes, layer.hashes)
    other.load_state_dict(layer.state_dict())
    x = normal((2, 8, 6), dtype=torch.float32)
    assert torch.equal(other(x), layer(x))


def test_a_sketch_built_on_meta_is_drawn_when_it_is_reset():
    layer = BilinearPool(500, sketch=30, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    twin = BilinearPool(500, sketch=30)
    assert torch.equal(layer.hashes, twin.hashes)
    assert torch.equal(layer.signs, twin.signs)
    assert layer.hashes.unique().tolist() == list(range(30))
    assert layer.signs.unique().tolist() == [-1, 1]
