"""Normalized convolution on the edge cases of a window: large means, equal numbers, borders, groups, memory."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import references_weights as references
import torch
from harness import assert_near
from torch import nn
from torch.nn import functional as F

from layers import windows
from layers.card import OptionError
from layers.conv.normalized_conv import NormalizedConv2d
from layers.convert import fold
from layers.observe import observing
from layers.windows import Recipe, normalized_convolution
from profiles.counting.saved import saving

GEOMETRIES = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "groups": g}
    for k, s, p, d, g in (
        (1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (2, 2, 1, 1, 3),
        ((3, 2), (2, 3), (0, 4), (1, 2), 2), ((1, 5), 1, (4, 2), 1, 2),
    )
]  # fmt: skip


def layer(channels=6, outputs=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return NormalizedConv2d(channels, outputs, **options, dtype=dtype)


def data(*shape, mean=0.0, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype)


def by_reference(module, x):
    options = {**module.options, "weight": module.weight, "bias": module.bias}
    return references.normalized_conv(x, SimpleNamespace(**options))


def first_derivatives(module, y, x, upstream):
    return torch.autograd.grad(y, [x, *module.parameters()], upstream)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("center", "scale"), list(itertools.product((True, False), repeat=2)))
def test_outputs_and_gradients_are_those_of_the_unfolded_definition(geometry, center, scale):
    for mode, lay in (("zeros", torch.contiguous_format), ("replicate", torch.channels_last)):
        module = layer(6, 12, **geometry, padding_mode=mode, center=center, scale=scale)
        x = data(3, 6, 7, 8, mean=10.0).contiguous(memory_format=lay).requires_grad_()
        y, wanted = module(x), by_reference(module, x)
        assert_near(y, wanted, 1e-11)
        upstream = data(*y.shape, seed=2)
        gradients = zip(*(first_derivatives(module, each, x, upstream) for each in (y, wanted)), strict=True)
        for found, due in gradients:
            assert_near(found, due, 1e-10)


@pytest.mark.parametrize("center", [True, False])
def test_the_fast_backward_is_that_of_the_definition_in_plain_operations(center):
    x, weight, bias = data(2, 6, 5, 6).requires_grad_(), data(4, 3, 3, 2).requires_grad_(), data(4).requires_grad_()
    recipe = Recipe((3, 2), (2, 1), (1, 1), (1, 2), 2, center, 1e-3)
    fast = normalized_convolution(x, weight, bias, recipe)
    plain = windows._define(x, weight, bias, recipe)
    for found, due in zip(fast, plain, strict=True):
        assert_near(found, due, 1e-14)
    upstream = data(*fast[0].shape, seed=2)
    for kept in ((x, weight, bias), (x,), (weight,), (bias,)):
        pair = (torch.autograd.grad(y, kept, upstream, retain_graph=True) for y in (fast[0], plain[0]))
        for found, due in zip(*pair, strict=True):
            assert_near(found, due, 1e-13)


@pytest.mark.parametrize("center", [True, False])
def test_first_and_second_derivatives(center):
    module = layer(4, kernel_size=2, padding=1, groups=2, center=center, eps=1e-2)
    tensors = [data(2, 4, 3, 3).requires_grad_(), *(p.detach().clone().requires_grad_() for p in module.parameters())]

    def call(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("ratio", [0, 10, 100, 1000])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_mean_far_above_the_spread_costs_no_digits_of_float32(ratio, padding):
    module = layer(32, padding=padding, dtype=torch.float32)
    wide = copy.deepcopy(module).double()
    x = data(2, 32, 12, 10, mean=ratio, dtype=torch.float32).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, wanted = module(x), by_reference(wide, exact)
    assert_near(y, wanted, 1.5e-6, "y")
    upstream = data(*y.shape, seed=2, dtype=torch.float32)
    found = first_derivatives(module, y, x, upstream)
    for tensor, due in zip(found, first_derivatives(wide, wanted, exact, upstream.double()), strict=True):
        assert_near(tensor, due, 5e-6, "a gradient")


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, 1e4])
def test_windows_of_equal_numbers_give_small_outputs_and_gradients(value):
    module = layer(64, bias=False, dtype=torch.float32)
    x = torch.full((2, 64, 6, 5), value, requires_grad=True)
    y = module(x)
    assert y.abs().max() <= 1e-3
    y.sum().backward()
    assert x.grad.abs().max() <= 1e3
    assert module.weight.grad.abs().max() <= 1e-1


def test_without_gradients_the_outputs_and_statistics_are_the_same():
    for options in ({}, {"padding": 1, "groups": 2, "center": False, "bias": False}):
        module, x = layer(6, **options), data(2, 6, 5, 5)
        with observing() as seen:
            y = module(x)
        with observing() as unseen, torch.no_grad():
            assert torch.equal(module(x), y)
        assert all(torch.equal(unseen[name], seen[name]) for name in ("mean", "var"))


def test_without_eps_a_window_of_equal_numbers_has_no_output():
    assert layer(eps=0)(torch.zeros(1, 6, 3, 3, dtype=torch.float64)).isnan().all()


def test_zeros_of_the_padding_take_part_in_the_statistics():
    module = layer(6, padding=1)
    with observing() as seen:
        y = module(torch.full((1, 6, 4, 4), 3.0, dtype=torch.float64))
    corner = torch.tensor([3.0] * 4 + [0.0] * 5, dtype=torch.float64)
    assert_near(seen["mean"][0, 0, 0, 0], corner.mean(), 1e-14)
    assert_near(seen["var"][0, 0, 0, 0], corner.var(correction=0), 1e-14)
    assert_near(y[..., 1:3, 1:3] - module.bias.view(-1, 1, 1) + 1, torch.ones_like(y[..., 1:3, 1:3]), 1e-9)
    assert (y[..., 0, 0] - module.bias).abs().max() > 0.1


def test_statistics_are_those_of_every_window_and_group():
    module = layer(6, 9, kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), groups=3)
    x = data(4, 6, 5, 4, mean=2.0)
    with observing() as seen:
        y = module(x)
    rows = F.unfold(x, (3, 2), 1, (1, 0), (2, 1)).view(4, 3, 12, *y.shape[2:])
    assert_near(seen["mean"], rows.mean(2), 1e-14)
    assert_near(seen["var"], rows.var(2, correction=0), 1e-13)
    with observing() as seen:
        layer(6, scale=False)(x)
    assert seen == {}


def test_without_scale_and_center_it_is_the_plain_convolution():
    module = layer(6, 9, padding=1, padding_mode="circular", groups=3, center=False, scale=False)
    plain = nn.Conv2d(6, 9, 3, padding=1, padding_mode="circular", groups=3, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    x = data(2, 6, 5, 4)
    assert torch.equal(module(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_a_few_roundings_away_from_float64(dtype):
    for ratio in (0.0, 16.0):
        module = layer(32, 16, padding=1, dtype=dtype)
        x = data(2, 32, 8, 8, mean=ratio, dtype=dtype).requires_grad_()
        with observing() as seen:
            y = module(x)
        assert (y.dtype, seen["mean"].dtype, seen["var"].dtype) == (dtype, torch.float32, torch.float32)
        wanted = by_reference(copy.deepcopy(module).double(), x.detach().double())
        assert_near(y.double(), wanted, 3 * torch.finfo(dtype).eps)
        y.float().square().sum().backward()
        assert {t.grad.dtype for t in (x, *module.parameters())} == {dtype}


def test_what_is_kept_for_backward_is_the_input_the_convolution_and_two_numbers_per_window():
    module = layer(64, padding=1, dtype=torch.float32)
    x = torch.randn(8, 64, 32, 32, requires_grad=True)
    with saving(module) as saved:
        module(x)
    assert saved.holds(x)
    assert saved.bytes == 4 * (2 * x.numel() + 2 * 8 * 32 * 32 + 8)
    assert saved.bytes <= 5 << 20


def test_an_operation_in_place_may_follow_and_inputs_of_any_layout_are_right():
    module = layer(6, padding=1, groups=2)
    x = data(4, 5, 6, 6).transpose(1, 3)
    leaf = x.detach().requires_grad_()
    module(leaf).relu_().sum().backward()
    other = x.detach().contiguous().requires_grad_()
    by_reference(module, other).relu().sum().backward()
    assert_near(leaf.grad, other.grad, 1e-12)


def test_samples_do_not_see_each_other_and_an_empty_batch_is_fine():
    module = layer(6, padding=1)
    x = data(3, 6, 5, 5)
    poisoned = x.clone()
    poisoned[1] = torch.nan
    assert_near(module(poisoned)[[0, 2]], module(x)[[0, 2]], 1e-14)
    for center in (True, False):
        module = layer(6, 4, center=center)
        empty = torch.zeros(0, 6, 5, 5, dtype=torch.float64, requires_grad=True)
        y = module(empty)
        assert y.shape == (0, 4, 3, 3)
        y.sum().backward()
        assert all((p.grad == 0).all() for p in module.parameters())


@pytest.mark.parametrize("options", [{}, {"groups": 2, "center": False, "padding": 1, "dilation": 2}])
def test_it_compiles_whole_and_its_samples_can_be_mapped(options):
    module = layer(6, **options)
    x = data(3, 6, 6, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_near(compiled(x), module(x), 1e-13)
    assert_near(torch.vmap(lambda each: module(each[None])[0])(x), module(x), 1e-13)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_compiles_it_for_any_size():
    torch._dynamo.reset()
    module = layer(4)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for shape in ((2, 4, 6, 5), (3, 4, 7, 9)):
        x = data(*shape).requires_grad_()
        outputs = [call(x) for call in (compiled, module)]
        found, wanted = ([y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])] for y in outputs)
        for mine, theirs in zip(found, wanted, strict=True):
            assert_near(mine, theirs, 1e-12)


def test_several_gradients_may_be_computed_at_once():
    module, x = layer(4, kernel_size=2, padding=1), data(1, 4, 3, 3).requires_grad_()
    y = module(x)
    each = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in torch.eye(y.numel()).view(-1, *y.shape)]
    upstream = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    at_once = torch.autograd.grad(y, [x, *module.parameters()], upstream, is_grads_batched=True)
    assert_near(at_once[0], torch.stack(each), 1e-12)


def test_gradients_go_through_autocast():
    module = layer(6, padding=1, dtype=torch.float32)
    x = data(2, 6, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        assert {kind(6, 6, 3).double()(x.double()).dtype for kind in (NormalizedConv2d, nn.Conv2d)} == {torch.float64}
    assert y.dtype == torch.bfloat16
    assert_near(y.float(), module(x), 0.03)
    y.float().sum().backward()
    assert module.weight.grad.dtype == torch.float32
    assert module.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1e-5}, r"eps=-1e-05 is out of range"),
        ({"kernel_size": 1, "groups": 6}, r"a window of 1 number .* use a larger kernel or fewer groups"),
        ({"kernel_size": 1, "groups": 6, "scale": False}, r"a window of 1 number"),
        ({"kernel_size": 1, "groups": 6, "center": False}, r"a window of 1 number"),
        ({"groups": 4}, r"groups=4 does not divide 6 channels"),
        ({"out_channels": 4, "groups": 3}, r"groups=3 does not divide out_channels=4"),
        ({"padding": -1}, r"padding=-1 is out of range"),
        ({"center": 1}, r"center=1 is not true or false"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        NormalizedConv2d(6, **options)


def test_a_window_of_one_number_is_admitted_where_nothing_is_standardized():
    module = layer(6, kernel_size=1, groups=6, center=False, scale=False)
    assert module(data(2, 6, 3, 3)).shape == (2, 6, 3, 3)


def test_inputs_that_do_not_fit_are_refused():
    module = layer(6)
    for shape, message in (((2, 6, 5), "takes"), ((2, 5, 5, 5), "built for 6"), ((2, 6, 2, 5), "larger than")):
        with pytest.raises(ValueError, match=message):
            module(torch.zeros(shape, dtype=torch.float64))


def test_it_cannot_be_folded_into_a_plain_convolution():
    module = layer(6)
    with pytest.raises(OptionError, match="more than a convolution by a weight"):
        module.fold()
    model = nn.Sequential(module)
    assert [type(each) for each in fold(model)] == [NormalizedConv2d]
