"""The engine under the weights of filters: its passes are its definition, in every dtype and for rows of any length."""

import pytest
import torch
from compared import error, randn

from layers import rows
from layers.rows import Rows


def made(w, gain, centred):
    moments = Rows(w, centred=centred)
    return moments.scaled(gain / (moments.var + 1e-3).sqrt())


def defined(w, gain, centred):
    w = w - w.mean(1, keepdim=True) if centred else w
    return gain.unsqueeze(1) * w / (w.square().mean(1, keepdim=True) + 1e-3).sqrt()


def inputs(dtype=torch.float64, size=40):
    return (randn(6, size) + 0.5).to(dtype).requires_grad_(), randn(6, seed=1).to(dtype).requires_grad_()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("long", [False, True])
def test_the_passes_compute_what_the_definition_says(monkeypatch, centred, long):
    monkeypatch.setattr(rows, "LONG", 8 if long else 1 << 13)
    w, gain = inputs()
    upstream = randn(6, 40, seed=2)
    sides = [(y, *torch.autograd.grad(y, (w, gain), upstream)) for y in (f(w, gain, centred) for f in (made, defined))]

    for left, right in zip(*sides, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
def test_the_passes_are_differentiable_twice(centred):
    w, gain = inputs(size=5)
    assert torch.autograd.gradcheck(made, (w, gain, centred))
    assert torch.autograd.gradgradcheck(made, (w, gain, centred))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once_and_float32_is_exact(monkeypatch, centred, dtype):
    monkeypatch.setattr(rows, "CHUNK", 600)  # two rows at a time
    w, gain = inputs(dtype, size=300)
    wide = [t.detach().double().requires_grad_() for t in (w, gain)]
    upstream = randn(6, 300, seed=2).to(dtype)
    y, exact = made(w, gain.to(torch.float32), centred), defined(*wide, centred)
    found, _ = torch.autograd.grad(y, (w, gain), upstream)
    expected, _ = torch.autograd.grad(exact, wide, upstream.double())

    assert y.dtype == found.dtype == dtype
    for left, right in ((y, exact), (found, expected)):
        assert error(left, right) < 4 * torch.finfo(dtype).eps


def test_a_row_of_equal_weights_is_zero_and_has_no_variance():
    w = torch.full((2, 7), 0.7)
    moments = Rows(w)
    assert not moments.var.any()
    assert not moments.scaled(torch.ones(2)).any()
