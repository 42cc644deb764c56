"""Statistics per sample and group of channels: every way that channels_last takes gives what contiguous data do."""

from __future__ import annotations

import copy

import pytest
import torch
from batches import C, data, near
from harness import run

from layers import group_norm
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


@pytest.fixture(params=["copied", "by the engine"])
def way(request, monkeypatch):
    if request.param == "by the engine":
        monkeypatch.setattr(group_norm, "SMALL_BYTES", 0)


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
