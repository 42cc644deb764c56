"""What tests of the second-order poolings share: seeded gradients and a relative comparison."""

from __future__ import annotations

import torch
from harness import normal, scale

DOUBLE = torch.float64


def gradient(f, x, upstream=None):
    leaf = x.detach().requires_grad_()
    y = f(leaf)
    (found,) = torch.autograd.grad(y, leaf, normal(y.shape, seed=7).to(y.dtype) if upstream is None else upstream)
    return found


def assert_near(found, wanted, within=1e-12):
    assert found.shape == wanted.shape
    assert scale(found - wanted) <= within * scale(wanted)
