"""Statistics per sample and group of channels: every way that channels_last takes gives what contiguous data do."""

from __future__ import annotations

import copy

import pytest
import torch
from batches import C, N, data, near
from harness import run

from layers import channels_last, dimensions, group_norm, moments
from layers.norm.bn_gn import BatchGroupNorm
from layers.norm.gn import GroupNorm
from layers.norm.iew import InferenceExampleWeighing
from layers.norm.in_ import InstanceNorm
from layers.norm.ln import LayerNorm
from layers.observe import observing

LARGE = 64  # positions along each axis of a large map
MAKE = {
    "gn": lambda: GroupNorm(C, groups=2),
    "in": lambda: InstanceNorm(C, affine=True),
    "ln": lambda: LayerNorm(C),
    "ln-simple": lambda: LayerNorm(C, affine="none"),
}


WAYS = {
    "torch's kernel": {"VECTOR": 0},
    "its forward alone": {"VECTOR": 1 << 20, "MAP": 0},
    "the moments of planes": {"VECTOR": 1 << 20, "MAP": 1 << 20},
    "a kernel for each sample": {"VECTOR": 1 << 20, "MAP": 1 << 20, "ALONE": 0},
    "slices": {"VECTOR": 1 << 20, "MAP": 1 << 20, "ALONE": 1 << 20, "CHUNK": 7},
    "torch's kernel refused": {"VECTOR": 0, "FAR": 0},
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in WAYS[request.param].items():
        module = next(each for each in (group_norm, channels_last, moments) if hasattr(each, name))
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", MAKE)
def test_channels_last_gives_what_contiguous_data_give(name):
    layer, x = MAKE[name]().double(), data(seed=1)
    seen = []
    for each in (x, x.contiguous(memory_format=torch.channels_last)):
        with observing() as statistics:
            found = run(copy.deepcopy(layer), each)
        seen.append({**statistics, **found.tensors()})
    assert seen[1]["y"].is_contiguous(memory_format=torch.channels_last)
    for what, tensor in seen[0].items():
        near(seen[1][what], tensor)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_with_a_large_mean_keeps_its_digits(name, dtype):
    mean, within = (1e4, 1e-2) if dtype == torch.float32 else (32, 2**-5)
    x = (data(shape=(2, C, 64, 64)) + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    layer = MAKE[name]()
    wide = run(copy.deepcopy(layer).double(), x.double())
    found = run(layer, x)
    for what in ("y", "gradient of x"):
        near(found.tensors()[what].double(), wide.tensors()[what], within * float(wide.tensors()[what].abs().max()))


LOOKING = {
    **MAKE,
    "ln of elements": lambda: LayerNorm(C, affine="elementwise", height=LARGE, width=LARGE),
    "iew": lambda: InferenceExampleWeighing(C, groups=2),
    "bn-gn": lambda: BatchGroupNorm(C, groups=2),
}


def large(mean, seed=1):
    """A large map of numbers that every dtype has."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, C, LARGE, LARGE, generator=generator) + mean).bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", [-1000.0, 100.0])
@pytest.mark.parametrize("name", LOOKING)
def test_on_a_large_map_a_mean_far_above_the_spread_costs_no_digit_of_any_gradient(name, mean, dtype):
    x, layer = large(mean), LOOKING[name]()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    if name == "ln of elements" and dtype == torch.bfloat16:
        layer = layer.bfloat16()  # torch's kernel takes no others
    upstream = large(1.0, seed=2)  # a mean of ∂L/∂y multiplies what the mean of x is off
    found = run(copy.deepcopy(layer), x.to(dtype), upstream.to(dtype))
    wanted = run(copy.deepcopy(layer).double(), x.double(), upstream.double())
    for what, tensor in wanted.tensors().items():
        if not what.startswith("buffer"):
            kept = torch.finfo(found.tensors()[what].dtype).eps
            near(found.tensors()[what].double(), tensor, max(1e-5, 4 * kept) * float(tensor.abs().max()))


@pytest.mark.parametrize("name", LOOKING)
def test_normalized_again_less_its_mean_a_map_has_the_same_derivatives_and_statistics(name, monkeypatch):
    layer, x = LOOKING[name]().double(), large(0.5).double()
    seen = []
    for far in (channels_last.FAR, 0.0):
        monkeypatch.setattr(channels_last, "FAR", far)
        monkeypatch.setattr(group_norm, "_sums_lose_digits", lambda x, values: values > 8)
        with observing() as statistics:
            made = derivatives(layer, x, x.cos())
        seen.append([*made, *statistics.values()])
    for mine, theirs in zip(*seen, strict=True):
        near(mine, theirs, 1e-8)


@pytest.mark.parametrize("mean", [0, 3, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_kernel_is_well_conditioned_only_where_it_is_right(mean, dtype):
    x = (data(shape=(2, C, 64, 64)) + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    _, center, rstd = group_norm._by_kernel(x, 2, None, None, 1e-5)
    assert channels_last.well_conditioned(center, rstd) == (mean < 4)
    if mean < 4:
        wide = x.double().reshape(2, 2, -1)
        near(rstd.double() ** -2 - 1e-5, wide.var(2, correction=0), 1e-5 if dtype == torch.float32 else 5e-4)


def test_what_is_not_a_number_is_not_well_conditioned():
    one = torch.ones(3)
    for value in (float("nan"), float("inf")):
        assert not channels_last.well_conditioned(one * value, one)
    assert channels_last.well_conditioned(one, one)


def derivatives(layer, x, upstream):
    """The output, and the gradients of one and two derivatives."""
    x = x.clone().requires_grad_()
    y = layer(x)
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(y, wanted, upstream, create_graph=True)
    second = torch.autograd.grad(sum(t.sin().sum() for t in first), wanted[:2])
    return [y.detach(), *(t.detach() for t in (*first, *second))]


@pytest.mark.parametrize("shape", [(N, C, 5), (N, C, 5, 4), (N, C, 3, 4, 2)])
@pytest.mark.parametrize("make", [GroupNorm, lambda *given, **options: GroupNorm(*given, affine=False, **options)])
def test_large_planes_are_differentiated_as_small_ones(make, shape, monkeypatch):
    layer, x = make(C, channels_per_group=1, dtype=torch.float64), data(shape=shape)
    for parameter in layer.parameters():
        parameter.data += torch.linspace(0, 1, C)
    wanted = derivatives(layer, x, x.cos())
    monkeypatch.setattr(dimensions, "SMALL", 0)
    assert group_norm._is_faster_by_planes(x, C)
    for mine, theirs in zip(derivatives(layer, x, x.cos()), wanted, strict=True):
        near(mine, theirs)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", MAKE)
def test_channels_last_may_be_differentiated_twice(name):
    layer, x = MAKE[name]().double(), data(seed=1)
    wanted = derivatives(layer, x, x.cos())
    rows = x.contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(derivatives(layer, rows, rows.cos()), wanted, strict=True):
        near(mine, theirs)


@pytest.mark.parametrize("shape", [(1, C, 5, 4), (1, C, 3, 4, 2)])
def test_one_sample_of_channels_last_is_normalized_by_its_channels(shape):
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = data(shape=shape)
    layer = InstanceNorm(C, affine=True).double()
    wanted, found = (run(copy.deepcopy(layer), each).tensors() for each in (x, x.contiguous(memory_format=layout)))
    for what, tensor in wanted.items():
        near(found[what], tensor)


@pytest.mark.parametrize("asked", ["weight", "bias"])
@pytest.mark.parametrize("frozen", [True, False], ids=["x is a constant", "x is not asked for"])
def test_channels_last_differentiates_its_parameters_alone(asked, frozen):
    layer, x = GroupNorm(64, groups=4), data(shape=(2, 64, 6, 5)).float()
    with torch.no_grad():
        layer.weight.add_(torch.linspace(-1, 1, 64))
    found = []
    for each in (x.clone(), x.to(memory_format=torch.channels_last)):
        y = layer(each.requires_grad_(not frozen))
        found += torch.autograd.grad(y, getattr(layer, asked), x.cos())
    near(found[1], found[0], 1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 64, 6, 5), (2, 64, 48, 48)], ids=["small", "large"])
@pytest.mark.parametrize("groups", [4, 64])
def test_parameters_of_another_dtype_are_taken_as_batch_normalization_takes_them(layout, dtype, shape, groups):
    layer, x = GroupNorm(64, groups=groups, dtype=dtype), data(shape=shape).float().to(memory_format=layout)
    found, wanted = run(layer, x), run(copy.deepcopy(layer).double(), x.double())
    assert found.y.dtype == torch.float32
    near(found.y.double(), wanted.y, 1e-4)
    near(layer.weight.grad.double(), wanted.tensors()["gradient of weight"].double(), 0.02)


def test_vmap_takes_channels_last():
    layer, x = GroupNorm(C, groups=2), data().float().to(memory_format=torch.channels_last)
    near(torch.vmap(layer)(torch.stack([x, x + 1]))[0], layer(x), 1e-5)


def test_a_first_value_far_from_the_others_costs_no_digits():
    x = torch.randn(1, C, 256, 256, generator=torch.Generator().manual_seed(0))
    x[:, 1, 0, 0] = 1e5
    x = x.to(memory_format=torch.channels_last)
    mean, var = moments.plane_moments(x)
    wide = x.double()
    near(mean.double(), wide.mean((2, 3)), 1e-2)
    near(var.double(), wide.var((2, 3), correction=0), 1e-4)
