"""The penalties on weights as functions: shifted-l2 and omd; what svb refuses with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import references_weights as references
import torch
from compared import randn
from torch import nn

from layers.card import OptionError
from layers.regularize.omd import omd, omd_gradient
from layers.regularize.shifted_l2 import excludes, param_groups, shifted_l2, shifted_l2_gradient
from layers.regularize.svb import svb
from layers.weight.weight_standardization import WSConv2d
from layers.weights import weights

SHAPES = [(6, 4, 3, 2), (6, 2), (12, 1, 3, 3), (6, 6), (24, 2, 2, 2, 2), (1, 5)]
SHIFTED = [{}, {"lam": 0.3, "eps": 0.7}, {"lam": 0.3, "eps": 0.7, "statistic": "norm"}]
PENALTIES = [
    *((shifted_l2, shifted_l2_gradient, options) for options in SHIFTED),
    *((omd, omd_gradient, options) for options in ({}, {"lam": 0.3, "groups": 2}, {"lam": 2.0, "groups": 3})),
]


def of_options(**options):
    return SimpleNamespace(**{"lam": 1e-4, "eps": 1e-3, "statistic": "std", "groups": 1, "factor": 1.5, **options})


# Penalties.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("penalty", "gradient", "options"), PENALTIES)
def test_a_penalty_and_both_its_gradients_equal_the_reference(penalty, gradient, options, shape):
    options = {**options, **({"groups": 1} if shape[0] == 1 and "groups" in options else {})}
    weight = randn(*shape).requires_grad_()
    expected = getattr(references, penalty.__name__)(weight, of_options(**options))
    found = penalty(weight, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(expected, weight)[0]
    torch.testing.assert_close(torch.autograd.grad(found, weight)[0], wanted, rtol=1e-11, atol=1e-13)
    closed = gradient(weight, **options)
    torch.testing.assert_close(closed, wanted, rtol=1e-11, atol=1e-13)
    assert not closed.requires_grad


@pytest.mark.parametrize(("penalty", "gradient", "options"), PENALTIES)
def test_a_penalty_has_right_second_derivatives(penalty, gradient, options):
    weight = randn(6, 2, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda weight: penalty(weight, **options), weight)


@pytest.mark.parametrize("function", [shifted_l2, omd, svb])
def test_functorch_maps_over_weights(function):
    kernels = randn(3, 6, 4)

    def gradient(weight):
        return torch.func.grad(lambda weight: function(weight).sum())(weight)

    for f in (function, gradient) if function is not svb else (function,):
        torch.testing.assert_close(torch.vmap(f)(kernels), torch.stack([f(weight) for weight in kernels]))


@pytest.mark.parametrize(("penalty", "gradient", "options"), PENALTIES)
def test_a_compiled_penalty_equals_eager(penalty, gradient, options):
    eager, compiled = (randn(6, 4, 3, 2).requires_grad_() for _ in range(2))
    penalty(eager, **options).backward()
    torch.compile(penalty, backend="aot_eager", fullgraph=True)(compiled, **options).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("penalty", "gradient", "options"), PENALTIES)
def test_a_penalty_of_half_precision_is_that_of_the_rounded_weight(penalty, gradient, options, dtype):
    weight, options = randn(24, 16, 3, 3, dtype=dtype), {**options, "lam": 0.1}
    found, slope = penalty(weight, **options), gradient(weight, **options)
    assert (found.dtype, slope.dtype, slope.shape) == (dtype, dtype, weight.shape)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), penalty(weight.double(), **options), rtol=eps, atol=0)
    wanted = gradient(weight.double(), **options)
    torch.testing.assert_close(slope.double(), wanted, rtol=eps, atol=eps * wanted.abs().max().item())


@pytest.mark.parametrize(("penalty", "gradient", "options"), PENALTIES)
def test_autocast_changes_no_penalty(penalty, gradient, options):
    weight = randn(24, 16, 3, 3, dtype=torch.float32)
    expected = penalty(weight, **options), gradient(weight, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = penalty(weight, **options), gradient(weight, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("penalty", "gradient", "options"), PENALTIES)
def test_a_penalty_of_a_meta_weight_has_its_shape(penalty, gradient, options):
    weight = torch.empty(6, 4, 3, 2, device="meta")
    assert penalty(weight, **options).shape == ()
    assert gradient(weight, **options).shape == weight.shape


def test_a_penalty_takes_any_layout_of_its_weight():
    weight = randn(6, 4, 3, 2)
    for other in (weight.contiguous(memory_format=torch.channels_last), weight.transpose(0, 1).clone().transpose(0, 1)):
        torch.testing.assert_close(shifted_l2_gradient(other), shifted_l2_gradient(weight))
        torch.testing.assert_close(omd_gradient(other, groups=2), omd_gradient(weight, groups=2))


@pytest.mark.parametrize(
    ("penalty", "options", "message"),
    [
        (shifted_l2, {"eps": 0.0}, r"eps=0\.0 is out of range: it must be a finite number > 0"),
        (shifted_l2, {"eps": -1.0}, "eps=-1"),
        (shifted_l2, {"lam": -1e-4}, "lam=-0.0001 is out of range"),
        (shifted_l2, {"lam": float("nan")}, "lam=nan is not a finite number"),
        (shifted_l2, {"statistic": "var"}, "statistic='var' is not one of std, norm"),
        (omd, {"lam": -1.0}, "lam=-1"),
        (omd, {"groups": 4}, "groups=4 does not divide 6 output channels; its divisors are 1, 2, 3, 6"),
        (omd, {"groups": 0}, "groups=0 is out of range"),
        (svb, {"factor": 0.99}, "factor=0.99 is out of range: it must be a finite number ≥ 1"),
        (svb, {"groups": 4}, "groups=4 does not divide 6"),
        (svb, {"method": "qr"}, "method='qr' is not one of auto, gram, svd"),
    ],
)
def test_bad_options_are_refused(penalty, options, message):
    with pytest.raises(OptionError, match=message):
        penalty(randn(6, 4, 3, 2), **options)


@pytest.mark.parametrize("function", [shifted_l2, shifted_l2_gradient, omd, omd_gradient, svb])
def test_a_weight_of_one_axis_is_refused(function):
    with pytest.raises(OptionError, match=r"2 axes or more, not \(6,\)"):
        function(randn(6))


@pytest.mark.parametrize("function", [shifted_l2, shifted_l2_gradient, omd, omd_gradient, svb])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_a_weight_that_is_not_real_and_floating_is_refused(function, dtype):
    with pytest.raises(OptionError, match=f"needs a real floating-point weight, not {dtype}"):
        function(torch.ones(6, 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3, 3), (4, 0, 3)])
def test_an_empty_weight_stays_empty_and_costs_nothing_but_what_its_shape_costs(shape):
    weight = torch.empty(shape)
    assert omd_gradient(weight).shape == omd_gradient(weight, transposed=True).shape == svb(weight).shape == shape
    assert omd(weight, lam=2.0) == shape[0]  # no filter is as long as 1
    norm = {"statistic": "norm"}
    assert shifted_l2_gradient(weight, **norm).shape == shape
    if not shape[0]:
        assert shifted_l2(weight, **norm) == 0
        assert shifted_l2_gradient(weight).shape == shape


# The shifted decay.


def test_a_filter_of_one_weight_has_no_standard_deviation():
    with pytest.raises(OptionError, match="filters of 2 weights or more, these have 1; use statistic=norm"):
        shifted_l2(randn(6, 1))
    assert shifted_l2(randn(6, 1), statistic="norm") > 0


def test_a_filter_without_variance_is_named():
    weight = randn(6, 4)
    weight[3] = 0.25
    with pytest.raises(OptionError, match="filter 3 has no variance"):
        shifted_l2(weight)
    assert shifted_l2(weight, statistic="norm") > 0
    weight[2] = 0
    with pytest.raises(OptionError, match="filter 2 has no length"):
        shifted_l2(weight, statistic="norm")


@pytest.mark.parametrize("statistic", ["std", "norm"])
def test_where_nobody_can_look_a_dead_filter_decays_plainly(statistic):
    weight = randn(6, 4)
    weight[3] = 0.25 if statistic == "std" else 0.0
    torch.testing.assert_close(shifted_l2_gradient(weight, statistic=statistic)[3], 1e-4 * weight[3])
    leaf = weight.clone().requires_grad_()
    torch.compile(shifted_l2, backend="aot_eager")(leaf, statistic=statistic).backward()
    torch.testing.assert_close(leaf.grad[3], 1e-4 * weight[3])


def test_plain_decay_makes_a_filter_without_gradient_vanish_and_the_shifted_one_stop_at_eps():
    plain, shifted = randn(4, 3, 3, 3), randn(4, 3, 3, 3)
    for _ in range(3000):
        plain -= 0.01 * plain
        shifted -= 0.1 * shifted_l2_gradient(shifted, lam=0.1, eps=0.05)
    assert plain.abs().max() < 1e-12
    torch.testing.assert_close(shifted.flatten(1).std(1), torch.full((4,), 0.05, dtype=torch.float64))
    assert shifted.flatten(1).mean(1).abs().max() < 1e-12


def test_decay_and_a_scale_invariant_loss_settle_at_the_known_length():
    weight, rate, lam = torch.tensor([1.0, 0.0], dtype=torch.float64), 0.1, 0.05
    for _ in range(4000):  # the gradient of unit size, orthogonal to the weight, as that of a scale-invariant loss
        turned = torch.stack([-weight[1], weight[0]]) / weight.norm()
        weight = (1 - rate * lam) * weight - rate * turned / weight.norm()
    assert weight.norm().item() == pytest.approx((rate**2 / (1 - (1 - rate * lam) ** 2)) ** 0.25, rel=1e-7)


def network():
    """One parameter of every kind."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        WSConv2d(6, 6),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def test_the_shifted_decay_is_for_kernels_of_several_input_channels():
    reasons = {weight.name: excludes(weight) for weight in weights(network())}
    assert [name for name, reason in reasons.items() if not reason] == ["0.weight", "3.weight", "5.weight"]
    assert reasons["2.weight"].startswith("one input channel per group")
    assert reasons["4.weight"].startswith("a transposed convolution")
    assert all(reason.endswith("keeps its ordinary weight decay") for reason in reasons.values() if reason)


def test_the_groups_of_parameters_split_the_decay():
    model = network()
    plain, shifted = param_groups(model, weight_decay=0.1)
    assert (plain["weight_decay"], shifted["weight_decay"]) == (0.1, 0.0)
    assert list(map(id, shifted["params"])) == [id(model[i].weight) for i in (0, 3, 5)]
    assert len(plain["params"]) + 3 == len(list(model.parameters()))
    with pytest.raises(OptionError, match="weight_decay=-1"):
        param_groups(model, weight_decay=-1)
