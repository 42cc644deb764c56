"""Mean-only batch normalization: what is special about it."""

from __future__ import annotations

import copy

import pytest
import references
import torch
from alike import SHAPES, C, assert_like_reference, data, derivatives

from layers.card import OptionError
from layers.norm.mean_only_bn import MeanOnlyBatchNorm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"affine": False, "momentum": 1.0}, {"track_running_stats": False}])
def test_mean_only_bn_equals_its_reference(shape, options):
    layer = MeanOnlyBatchNorm(C, **options, dtype=torch.float64)
    for seed in range(2):
        assert_like_reference(layer, references.mean_only_bn, data(*shape, seed=seed))
    assert_like_reference(layer.eval(), references.mean_only_bn, data(*shape, seed=2))


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_only_bn_has_right_second_derivatives(shape):
    layer = MeanOnlyBatchNorm(C, dtype=torch.float64)
    x = data(*shape).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, bias: torch.func.functional_call(layer, {"bias": bias}, x).sin(), (x, layer.bias)
    )


def test_mean_only_bn_saves_nothing_for_backward():
    saved = []
    layer, x = MeanOnlyBatchNorm(C, dtype=torch.float64), data().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None):
        layer(x)

    assert saved == []


def test_mean_only_bn_compiled_equals_eager():
    eager, x = MeanOnlyBatchNorm(C, dtype=torch.float64), data().requires_grad_()
    module = copy.deepcopy(eager)
    y, expected = torch.compile(module, backend="aot_eager", fullgraph=True)(x), eager(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(derivatives(y, x, module), derivatives(expected, x, eager))
    torch.testing.assert_close(module.running_mean, eager.running_mean)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("offset", "within"), [(1e3, 3e-3), (1e4, 3e-2)])
def test_mean_only_bn_keeps_its_digits_far_from_zero(layout, offset, within):
    x = (data(8, C, 32, 32).float() + offset).contiguous(memory_format=layout)
    y, expected = MeanOnlyBatchNorm(C)(x).double(), x.double() - x.double().mean((0, 2, 3), keepdim=True)
    assert y.is_contiguous(memory_format=layout)
    assert (y - expected).abs().max() < within * expected.abs().max()


def test_mean_only_bn_of_an_empty_batch_moves_nothing():
    layer = MeanOnlyBatchNorm(C)
    layer(torch.ones(2, C))
    before = layer.running_mean.clone()
    layer(torch.ones(0, C, 2, 2)).sum().backward()
    assert torch.equal(layer.running_mean, before)
    assert before.any()
    assert not layer.bias.grad.any()


def test_mean_only_bn_refuses_a_momentum_beyond_one():
    with pytest.raises(OptionError, match=r"momentum=1\.5 is out of range"):
        MeanOnlyBatchNorm(C, momentum=1.5)
