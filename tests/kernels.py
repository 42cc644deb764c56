"""The stones of weights by name, a kernel for them, and their parametrizations put on layers, for tests."""

from __future__ import annotations

import importlib

import torch
from torch.nn.utils import parametrize

from layers import catalog
from layers.weight.cen_conv import CenConv2d
from layers.weight.scaled_ws import ScaledWSConv2d
from layers.weight.weight_norm import WeightNormConv2d
from layers.weight.weight_standardization import WSConv2d

STONES = {
    "weight-norm": WeightNormConv2d,
    "weight-standardization": WSConv2d,
    "scaled-ws": ScaledWSConv2d,
    "cen-conv": CenConv2d,
}
SHAPE = (8, 6, 3, 2)


def kernel(shape=SHAPE, scale=0.3, shift=0.1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64) + shift).to(dtype)


def with_weight(layer, w):
    layer = layer.to(w.dtype)
    layer.weight.data = w.clone()
    return layer


def reparametrized(name, layer, **options):
    file = importlib.import_module(catalog.stone(name).module)
    return parametrize.register_parametrization(layer, "weight", file.parametrization(layer, **options))
