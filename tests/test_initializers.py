"""Initializers: they write into their tensor and nowhere else, torch's generator decides; what orthogonal_ draws."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
import torch
from harness import assert_near, assert_same
from roles import uses, weight
from torch import nn

from layers.card import OptionError
from layers.init.orthogonal import excludes, orthogonal_
from layers.weights import as_matrices, weights

USES = uses("initializer")


def seeded(call, *arguments, seed=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call(*arguments)


# What every initializer promises beside what holds for everything that works on weights.


@pytest.mark.parametrize("use", USES)
def test_a_part_of_a_tensor_is_filled_and_the_rest_left_alone(use):
    for shape in use.shapes():
        whole = torch.full((2, *shape), 7.0, dtype=torch.float64)
        found = seeded(use.call, whole[1])
        assert found.data_ptr() == whole[1].data_ptr()
        assert_same(whole[1], seeded(use.call, weight(shape)), what="the part")
        assert whole[0].eq(7.0).all()


@pytest.mark.parametrize("use", USES)
def test_values_from_before_do_not_matter_and_no_other_generator_is_used(use):
    others = random.getstate()
    for shape in use.shapes():
        found = [seeded(use.call, torch.full(shape, value)) for value in (0.0, torch.nan)]
        assert_same(*found, what="the tensor")
    assert random.getstate() == others


@pytest.mark.parametrize("use", USES)
def test_a_graph_that_holds_the_tensor_notices_and_a_new_one_starts_from_it(use):
    leaf = nn.Parameter(weight(use.shapes()[0]))
    loss = leaf.square().sum()
    seeded(use.call, leaf)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    (slope,) = torch.autograd.grad(leaf.square().sum(), leaf)
    assert_same(slope, 2 * leaf.detach(), what="the gradient")


@pytest.mark.parametrize("use", USES)
def test_gradients_inference_mode_and_autocast_change_nothing(use):
    shape = use.shapes()[0]
    wanted = seeded(use.call, weight(shape, dtype=torch.float32))
    with torch.inference_mode():
        assert_same(seeded(use.call, weight(shape, dtype=torch.float32)), wanted, what="in inference mode")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(seeded(use.call, weight(shape, dtype=torch.float32)), wanted, what="under autocast")


@pytest.mark.parametrize("use", USES)
def test_on_meta_nothing_is_drawn(use):
    before = torch.get_rng_state()
    with torch.device("meta"):
        made = use.call(nn.Parameter(torch.empty(use.shapes()[0])))
    assert made.is_meta
    assert made.requires_grad
    assert_same(torch.get_rng_state(), before, what="the state of the random numbers")


@pytest.mark.parametrize("use", USES)
def test_what_is_not_real_and_floating_is_refused_and_left_alone(use):
    for dtype in (torch.int64, torch.bool, torch.complex64):
        tensor = torch.ones(use.shapes()[0], dtype=dtype)
        with pytest.raises(OptionError, match=str(dtype)):
            use.call(tensor)
        assert tensor.eq(1).all()


# orthogonal_.


def gram(rows):
    """Rows of fewer outputs than inputs, or columns, times each other."""
    rows = rows if rows.shape[-2] <= rows.shape[-1] else rows.mT
    return rows @ rows.mT


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(6, 4, 3, 2), (12, 1), (6, 6), (24, 2, 2)])
def test_every_group_is_orthonormal_by_itself(shape, groups, gain):
    made = as_matrices(orthogonal_(torch.empty(shape, dtype=torch.float64), gain, groups), groups)
    found = gram(made)
    assert_near(found, gain**2 * torch.eye(found.shape[-1]).double().expand_as(found), 1e-12, what="W Wᵀ")


@pytest.mark.parametrize("make", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_outputs_of_a_transposed_convolution_are_orthonormal(make, groups):
    layer = make(8, 6, 2, groups=groups, dtype=torch.float64)
    assert orthogonal_(layer.weight, groups=groups, transposed=True) is layer.weight
    found = gram(as_matrices(layer.weight.detach(), groups, transposed=True))
    assert_near(found, torch.eye(found.shape[-1]).double().expand_as(found), 1e-12, what="W Wᵀ")


def test_torch_mixes_groups_where_this_does_not():
    kernel = torch.empty(12, 2, 2, 2, dtype=torch.float64)
    theirs, ours = nn.init.orthogonal_(kernel.clone()), orthogonal_(kernel.clone(), groups=3)

    def worst(made):
        return (gram(as_matrices(made, 3)) - torch.eye(4, dtype=torch.float64)).abs().max()

    assert worst(ours) < 1e-12
    assert worst(theirs) > 0.1


@pytest.mark.parametrize("shape", [(6, 4, 3, 2), (24, 6), (7, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_groups_it_draws_what_torch_draws(shape, dtype):
    ours, theirs = (
        seeded(partial(call, gain=1.3), torch.empty(shape, dtype=dtype)) for call in (orthogonal_, nn.init.orthogonal_)
    )
    assert_near(ours, theirs, 8 * torch.finfo(dtype).eps, what="the weight")


def test_a_generator_of_ones_own_decides_and_torchs_is_not_touched():
    before = torch.get_rng_state()
    first, second, other = (
        orthogonal_(torch.empty(4, 6), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert_same(first, second, what="the weight")
    assert not torch.equal(first, other)
    assert_same(torch.get_rng_state(), before, what="the state of torch's generator")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    narrow = seeded(orthogonal_, torch.empty(8, 16, dtype=dtype))
    assert_same(narrow, seeded(orthogonal_, torch.empty(8, 16)).to(dtype), what="the weight")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_distribution_is_uniform_over_orthogonal_matrices(size):
    """Moments of the Haar measure: E Q = 0, E Q_ij² = 1/n, E Q_ij⁴ = 3/(n(n + 2)), E tr(Q)² = 1; det ±1 alike.

    Every bound is five standard errors of the mean of so many draws.
    """
    count = 20_000
    q = seeded(orthogonal_, torch.empty(count * size, size, dtype=torch.float64), 1.0, count, seed=0)
    q = q.view(count, size, size)
    trace = q.diagonal(dim1=1, dim2=2).sum(1)
    n = size
    samples = {
        "Q": (q, 0.0),
        "Q²": (q.square(), 1 / n),
        "Q⁴": (q**4, 3 / (n * (n + 2))),
        "trace²": (trace.square(), 1.0),
        "det": (torch.linalg.det(q), 0.0),
    }
    for what, (values, mean) in samples.items():
        bound = 5 * values.std(0) / count**0.5 + 1e-9
        assert ((values.mean(0) - mean).abs() <= bound).all(), what


def test_without_the_signs_it_would_not_be_uniform():
    """The same moments tell: LAPACK's Q of a matrix has its own signs on the diagonal of R."""
    drawn = torch.randn(20_000, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = torch.linalg.qr(drawn)[0]
    assert (raw.mean(0).abs() > 5 * raw.std(0) / len(raw) ** 0.5).any()


def test_the_result_is_the_same_seen_from_any_basis():
    """W V for a fixed rotation V is distributed as W: each entry's cumulative distribution, five standard errors."""
    drawn = seeded(orthogonal_, torch.empty(2 * 20_000, 3, dtype=torch.float64), 1.0, 20_000, seed=1)
    drawn = drawn.view(-1, 2, 3)
    turned = drawn @ seeded(orthogonal_, torch.empty(3, 3, dtype=torch.float64), seed=2)
    for at in (-0.8, -0.3, 0.0, 0.4, 0.7):
        ours, theirs = ((made < at).double().mean(0) for made in (drawn, turned))
        assert ((ours - theirs).abs() <= 5 * (0.5 / len(drawn)) ** 0.5).all(), at
        assert ((ours - (1 + at) / 2).abs() <= 5 * (0.25 / len(drawn)) ** 0.5).all(), at  # uniform on the sphere


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 2, 0)])
def test_an_empty_weight_stays_empty(shape):
    tensor = torch.empty(shape)
    assert orthogonal_(tensor) is tensor


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((6, 4), {"groups": 4}, "groups=4 does not divide 6"),
        ((6, 4), {"gain": 0.0}, "gain=0.0 is out of range"),
        ((6,), {}, r"needs a weight \(O, …\) of 2 axes"),
        ((6, 4), {"gain": math.nan}, "gain=nan"),
    ],
)
def test_a_bad_call_is_refused_before_anything_is_drawn(shape, options, message):
    tensor, before = torch.ones(shape), torch.get_rng_state()
    with pytest.raises(OptionError, match=message):
        orthogonal_(tensor, **options)
    assert tensor.eq(1).all()
    assert_same(torch.get_rng_state(), before, what="the state of the random numbers")


def test_kernels_are_initialized_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3), nn.Linear(5, 6))
    said = {each.name: excludes(each) for each in weights(model)}
    assert [name for name, reason in said.items() if not reason] == ["0.weight", "2.weight", "3.weight"]
    assert said["1.weight"] == "γ of a normalization"
