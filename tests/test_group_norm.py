"""Statistics per sample and group of channels: every way that channels_last takes gives what contiguous data do."""

from __future__ import annotations

import copy

import pytest
import torch
from batches import C, data, near
from harness import run

from layers import channels_last, group_norm, moments
from layers.norm.gn import GroupNorm
from layers.norm.in_ import InstanceNorm
from layers.norm.ln import LayerNorm
from layers.observe import observing

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


@pytest.mark.parametrize("shape", [(1, C, 5, 4), (1, C, 3, 4, 2)])
def test_one_sample_of_channels_last_is_normalized_by_its_channels(shape):
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = data(shape=shape)
    layer = InstanceNorm(C, affine=True).double()
    wanted, found = (run(copy.deepcopy(layer), each).tensors() for each in (x, x.contiguous(memory_format=layout)))
    for what, tensor in wanted.items():
        near(found[what], tensor)
