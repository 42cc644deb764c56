"""Jacobians of poolings whose backward is written by hand."""

from __future__ import annotations

import pytest
import torch

from layers.pool.ppm import PyramidPooling
from layers.pool.split_merge import SplitMerge
from layers.pool.spp import SpatialPyramidPooling


@pytest.mark.parametrize(
    "layer",
    [SpatialPyramidPooling(4, mode="avg"), PyramidPooling(4).eval(), SplitMerge(4), SplitMerge(4, merge=True)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_jacobian_is_the_same_of_all_rows_at_once(layer):
    x, jacobian = torch.randn(4, 4, 6, 6, dtype=torch.float64), torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(layer.double(), x, vectorize=True), jacobian(layer, x))
