"""Torch's kernels of batch normalization are taken where they suit, and nothing but the time tells."""

from __future__ import annotations

import copy

import pytest
import torch
from batches import C, N, data, double, near
from harness import run

from layers import batch_kernels, dimensions
from layers import moments as engine
from layers.catalog import stone
from layers.norm.bn import BatchNorm
from profiles.counting.facts import inspect
from profiles.subject import Setup, subject
from profiles.target import resolve

LAST = {"memory_format": torch.channels_last}


def results(layer, x, upstream):
    """Output, the gradients of one and two derivatives, and the buffers."""
    x = x.clone().requires_grad_()
    y = layer(x)
    wanted = [x, layer.weight, layer.bias]
    first = torch.autograd.grad(y, wanted, upstream, create_graph=True)
    second = torch.autograd.grad(first[0].sin().sum(), wanted[:2])
    return [y.detach(), *(t.detach() for t in (*first, *second)), layer.running_mean, layer.running_var]


@pytest.mark.parametrize("slices", [1, 7, 1 << 17])
@pytest.mark.parametrize("layout", [{}, LAST], ids=["contiguous", "channels_last"])
def test_large_maps_are_normalized_as_small_ones(monkeypatch, slices, layout):
    x = data().to(**layout)
    wanted = results(torch.nn.BatchNorm2d(C).double(), x, x.cos())
    for small in (True, False):
        if not small:
            monkeypatch.setattr(engine, "CHUNK", slices)
            monkeypatch.setattr(dimensions, "SMALL", 0)
            monkeypatch.setattr(batch_kernels, "CHAIN", 0)
        assert batch_kernels.suits_torch(x) == small
        for mine, theirs in zip(results(double(BatchNorm), x, x.cos()), wanted, strict=True):
            near(mine, theirs)


@pytest.mark.parametrize("first", [0.0, 1e4], ids=["like the others", "far from the others"])
@pytest.mark.parametrize("layout", [{}, LAST], ids=["contiguous", "channels_last"])
def test_many_values_with_a_large_mean_keep_their_digits(layout, first):
    x = (data(shape=(2, C, 128, 128)) + 1e4).float()
    x[0, :, 64, 64] += first
    x = x.to(**layout)
    layer = BatchNorm(C, momentum=1.0)
    wide = run(copy.deepcopy(layer).double(), x.double())
    found = run(layer, x)
    for name, within in (("y", 1e-3), ("gradient of x", 1e-3), ("buffer running_var", 1e-3)):
        near(found.tensors()[name].double(), wide.tensors()[name], within * float(wide.tensors()[name].abs().max()))


def test_forwards_of_other_sizes_and_layouts_may_come_between_a_forward_and_its_backward(monkeypatch):
    monkeypatch.setattr(dimensions, "SMALL", 1000)
    layer, x = BatchNorm(C), data(shape=(6, C, 5, 4)).float().requires_grad_()
    alone = torch.autograd.grad(copy.deepcopy(layer)(x).sin().sum(), x)[0]
    y = layer(x)
    for other in (data(shape=(6, C, 9, 8)).float(), data(seed=1).float().to(**LAST), data(seed=2).float()):
        layer(other)
    assert torch.equal(torch.autograd.grad(y.sin().sum(), x)[0], alone)


@pytest.mark.parametrize("layout", [{}, LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_narrow_running_statistics_are_moved_in_float32_and_rounded_once(dtype, kept, layout):
    layer = BatchNorm(C, momentum=0.25, dtype=kept)
    x = data(seed=3).to(dtype).to(**layout)
    wide = copy.deepcopy(layer).double()
    layer(x), wide(x.double())
    for name in ("running_mean", "running_var"):
        found, wanted = getattr(layer, name), getattr(wide, name)
        assert found.dtype == kept
        near(found.double(), wanted, 2**-8 * float(wanted.abs().max()))


FAMILY = ["batch-renorm", "bcn", "bn-gn", "ghost-bn", "iew", "mabn"]
TINY = ["actnorm", "mean-only-bn", "pixel-norm"]  # which differ on tiny maps only, or there too


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name in (*FAMILY, *TINY) for options in stone(name).card.examples],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
@pytest.mark.parametrize("limits", [("TINY",), ("TINY", "SMALL")], ids=["small", "large"])
def test_small_and_large_maps_are_normalized_as_tiny_ones(monkeypatch, name, options, limits):
    layer, x = stone(name).load()(12, dtype=torch.float64, **options), data(shape=(4, 12, 5, 4))
    wanted = run(copy.deepcopy(layer), x).tensors()
    for limit in limits:
        monkeypatch.setattr(dimensions, limit, 0)
    found = run(layer, x).tensors()
    assert found.keys() == wanted.keys()
    for what, tensor in wanted.items():
        near(found[what], tensor)


@pytest.mark.parametrize("value", [0.5, torch.inf, torch.nan])
def test_running_statistics_that_are_lent_come_back_and_are_in_no_moment(value):
    x, lent = data(shape=(4, 12, 5, 4)), [torch.full((12,), value, dtype=torch.float64) for _ in range(2)]
    wanted, found = (batch_kernels.normalize(x, None, None, 1e-5, given) for given in (None, lent))
    for what, tensor in zip(found, wanted, strict=True):
        near(what, tensor)
    assert all(torch.equal(t, torch.full_like(t, value)) or (t.isnan().all() and value != value) for t in lent)


def test_running_statistics_that_are_lent_come_back_though_it_is_interrupted(monkeypatch):
    def interrupted(x, weight, bias, mean, var, *rest):
        mean.fill_(7)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_kernels, "normalize_by_torch", interrupted)
    lent = torch.zeros(12, dtype=torch.float64), torch.ones(12, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt):
        batch_kernels.normalize(data(shape=(4, 12, 5, 4)), None, None, 1e-5, lent)
    assert torch.equal(lent[0], torch.zeros_like(lent[0]))


def test_bcn_of_a_shift_a_thousand_times_its_scale_has_its_digits_on_channels_last():
    layer, x = stone("bcn").load()(64, 4), data(shape=(4, 64, 7, 7)).float().to(**LAST).requires_grad_()
    torch.nn.init.constant_(layer.bias, 1000.0)
    exact, wide = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    y, wanted = layer(x), exact(wide)
    near(y.double(), wanted, 1e-3)
    near(torch.autograd.grad(y.sin().sum(), x)[0].double(), torch.autograd.grad(wanted.sin().sum(), wide)[0], 1e-3)


def test_a_training_step_may_come_between_an_evaluation_by_bcn_and_its_backward():
    layer, x = stone("bcn").load()(12, 3, dtype=torch.float64), data(shape=(4, 12, 5, 4)).requires_grad_()
    wanted = torch.autograd.grad(layer.eval()(x).sin().sum(), x)[0]
    y = layer(x)
    layer.train()(data(seed=1, shape=(4, 12, 5, 4)))
    near(torch.autograd.grad(y.sin().sum(), x)[0], wanted)


@pytest.mark.parametrize("size", [10, 48])
@pytest.mark.parametrize(
    "name",
    [
        "actnorm",
        "cen-conv",
        "mean-only-bn",
        "pixel-norm",
        "bn",
        "dsg",
        "mixed-pooling",
        "mpn-cov",
        "ppm",
        "strip-pooling",
        *FAMILY,
    ],
)
def test_the_card_states_what_is_executed_on_large_maps_too(name, size):
    options = {"dim_reduction": 16} if name == "mpn-cov" else {}
    record = inspect(subject(resolve(name), options, Setup(shape=(8, 64, size, size))), fvcore=False)
    assert [check for check in record["checks"] if not check["ok"]] == []


@pytest.mark.parametrize("name", ["bn", "batch-renorm", "ghost-bn"])
def test_a_mean_a_million_deviations_away_is_taken_out_again_until_the_spread_has_its_digits(name):
    x = torch.randn(8, C, 128, 128, generator=torch.Generator().manual_seed(0)) + 1.01e6
    x, layer = x.to(**LAST), stone(name).load()(C, momentum=1.0)
    found, wanted = copy.deepcopy(layer), copy.deepcopy(layer).double()
    near(found(x).double(), wanted(x.double()), 0.05)  # half a last digit of the mean is 0.03
    spread = "running_std" if name == "batch-renorm" else "running_var"
    near(getattr(found, spread).double(), getattr(wanted, spread), 0.01)


@pytest.mark.parametrize("value", [0.0, 3.3])
def test_channels_of_equal_values_are_well_conditioned_once_they_are_shifted(monkeypatch, value):
    calls, kernel = [], batch_kernels.well_found
    monkeypatch.setattr(batch_kernels, "well_found", lambda *given: calls.append(kernel(*given)) or calls[-1])
    x = torch.full((N, C, 9, 8), value).to(**LAST)
    mean, var = batch_kernels.channel_moments(x)
    assert calls == ([True] if value == 0 else [False, True])
    near(mean, torch.full_like(mean, value), 1e-6)
    near(var, torch.zeros_like(var), 1e-10)


@pytest.mark.parametrize("layout", [{}, LAST], ids=["contiguous", "channels_last"])
def test_a_training_step_between_an_evaluation_and_its_backward_is_refused_as_by_torch(layout):
    layer, x = BatchNorm(C).eval(), data(shape=(N, C, 5, 4)).float().to(**layout).requires_grad_()
    y = layer(x)
    layer.train()(x.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_running_statistics_of_ghosts_in_turn_keep_their_digits_under_autocast():
    layer, x = stone("ghost-bn").load()(C, 2, running="sequential"), data().float()
    plain = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    plain(x)
    assert torch.equal(layer.running_mean, plain.running_mean)
    assert torch.equal(layer.running_var, plain.running_var)
