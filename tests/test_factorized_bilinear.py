"""The factorized bilinear layer, beyond the general promises: dropped factors, published sizes, half precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from harness import normal
from references_second_order import factorized_bilinear
from slopes import DOUBLE, assert_near
from torch.nn import functional as F

from layers.card import OptionError
from layers.pool.factorized_bilinear import FactorizedBilinear
from profiles.counting.flops import Counting


def namespace(layer, training):
    return SimpleNamespace(**{**layer.options, **dict(layer.named_parameters())}, training=training)


@pytest.mark.parametrize("self_interaction", [True, False])
def test_dropped_factors_are_the_others_alone(self_interaction):
    torch.manual_seed(0)
    options = {"num_factors": 7, "drop": 0.5, "self_interaction": self_interaction, "kernel_size": 2}
    layer = FactorizedBilinear(6, 4, **options, dtype=DOUBLE)
    x = normal((3, 6, 4, 4), seed=1).requires_grad_()
    torch.manual_seed(5)
    kept = torch.rand(7) >= 0.5
    assert 0 < kept.sum() < 7
    torch.manual_seed(5)
    y = layer(x)
    fewer = FactorizedBilinear(6, 4, **{**options, "num_factors": int(kept.sum()), "drop": 0.0}, dtype=DOUBLE)
    fewer.load_state_dict({**layer.state_dict(), "factors": layer.factors[:, kept]})
    assert_near(y, fewer(x))
    upstream = normal(y.shape, seed=7)
    ours = torch.autograd.grad(y, (x, layer.factors), upstream)
    theirs = torch.autograd.grad(fewer(x), (x, fewer.factors), upstream)
    assert_near(ours[0], theirs[0])
    assert_near(ours[1][:, kept], theirs[1])
    assert not ours[1][:, ~kept].any()


def test_evaluation_is_training_in_the_mean():
    torch.manual_seed(1)
    layer = FactorizedBilinear(6, 4, kernel_size=1, num_factors=6, drop=0.3, dtype=DOUBLE)
    x = normal((2, 6, 3, 3), seed=1)
    with torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(6000)]).mean(0)
        assert_near(mean, layer.eval()(x), 0.03)
        assert_near(layer(x), factorized_bilinear(x, namespace(layer, False)))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_functorch_maps_over_a_layer_that_drops_factors(randomness):
    layer = FactorizedBilinear(6, 4, kernel_size=1, num_factors=9, drop=0.5, linear=False, bias=False, dtype=DOUBLE)
    x = normal((1, 2, 6, 3, 3), seed=1).expand(8, -1, -1, -1, -1)
    torch.manual_seed(2)
    y = torch.vmap(layer, randomness=randomness)(x)
    kept = torch.linalg.lstsq(terms(layer, x[0]), y.flatten(1).mT).solution.mT
    assert_near(kept, kept.round())
    assert torch.equal(kept.round().unique(), torch.tensor([0.0, 1.0], dtype=DOUBLE))
    assert (len(kept.round().unique(dim=0)) == 1) == (randomness == "same")


def terms(layer, x):
    """What each factor adds to all outputs, one column per factor."""
    z = torch.einsum("ofc,nchw->fnohw", layer.factors.detach(), x)
    return z.square().flatten(1).mT


def test_all_factors_may_be_dropped():
    layer = FactorizedBilinear(6, 4, kernel_size=1, num_factors=1, drop=0.999, dtype=DOUBLE)
    x = normal((2, 6, 3, 3), seed=1)
    y = layer(x)
    assert_near(y, F.conv2d(x, layer.weight, layer.bias))
    y.sum().backward()
    assert not layer.factors.grad.any()


def test_dropping_draws_one_number_per_factor_and_evaluation_none():
    layer = FactorizedBilinear(6, 4, num_factors=9, drop=0.5)
    x = torch.ones(5, 6, 4, 4)
    torch.manual_seed(2)
    layer(x)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    torch.rand(9)
    assert torch.equal(after, torch.get_rng_state())
    layer.eval()(x)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch instantiates autograd.Function itself
def test_a_compiled_layer_drops_the_same_factors_as_its_mask():
    torch._dynamo.reset()
    layer = FactorizedBilinear(6, 4, num_factors=9, drop=0.5, dtype=DOUBLE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = normal((2, 6, 4, 4), seed=1).requires_grad_()
    torch.manual_seed(2)
    y = compiled(x)
    torch.manual_seed(2)
    assert_near(y, layer(x))
    y.sum().backward()
    assert layer.factors.grad.flatten(2).abs().sum((0, 2)).eq(0).any()


def test_dropped_factors_are_not_computed():
    layer = FactorizedBilinear(8, 8, kernel_size=1, num_factors=40, drop=0.75)
    x = torch.ones(2, 8, 6, 6)
    counts = []
    for train in (True, False):
        with Counting() as counting:
            layer.train(train)(x)
        counts.append(counting.count.macs)
    assert counts[0] < 0.5 * counts[1]


@pytest.mark.parametrize(("classes", "channels", "more"), [(100, 256, 512_000), (100, 336, 672_000)])
def test_the_parameters_of_the_published_networks(classes, channels, more):
    """A classifier of 20 factors behind ResNet-164 and Inception-BN, beyond the linear one."""
    layer = FactorizedBilinear(channels, classes, kernel_size=1)
    plain = torch.nn.Conv2d(channels, classes, 1)
    assert sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in plain.parameters()) == more


def test_squares_of_half_precision_do_not_overflow_before_they_are_scaled():
    layer = FactorizedBilinear(4, 1, kernel_size=1, num_factors=1, drop=0.9, linear=False, bias=False)
    with torch.no_grad():
        layer.factors.fill_(100.0)
    layer = layer.half().eval()
    assert layer(torch.ones(1, 4, 1, 1, dtype=torch.float16)).item() == pytest.approx(16000, rel=1e-3)


def test_a_layer_without_a_linear_part_can_be_reset():
    layer = FactorizedBilinear(6, 4, linear=False, num_factors=3)
    before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
    assert before.keys() == {"bias", "factors"}
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        assert parameter.ne(before[name]).any()
        assert parameter.abs().max() <= 1
    for drop in (1.0, -0.1):
        with pytest.raises(OptionError, match="drop"):
            FactorizedBilinear(6, drop=drop)
