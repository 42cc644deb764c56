"""The projections as functions: svb bounds singular values, bbn the γ of batch normalization."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import references_weights as references
import torch
from compared import randn
from torch import nn

from layers.card import OptionError
from layers.norm.bn import BatchNorm
from layers.regularize.bbn import bbn, bounded
from layers.regularize.omd import omd, omd_gradient
from layers.regularize.svb import WELL_CONDITIONED, svb, svb_
from layers.resnet import cifar_resnet

SHAPES = [(6, 4, 3, 2), (6, 2), (12, 1, 3, 3), (6, 6), (24, 2, 2, 2, 2), (1, 5)]


def of_options(**options):
    return SimpleNamespace(**{"groups": 1, "factor": 1.5, **options})


def of_singular_values(values, height, width, seed=0, dtype=torch.float64):
    """A matrix of random singular vectors."""
    left, right = (
        torch.linalg.qr(randn(size, len(values), seed=seed + i))[0] for i, size in enumerate((height, width))
    )
    return ((left * torch.as_tensor(values, dtype=torch.float64)) @ right.T).to(dtype)


# Singular values.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["auto", "gram", "svd"])
@pytest.mark.parametrize("options", [{}, {"factor": 1.05}, {"factor": 1.0}])
def test_svb_equals_the_reference(shape, method, options):
    weight = 0.4 * randn(*shape)
    torch.testing.assert_close(svb(weight, method=method, **options), references.svb(weight, of_options(**options)))


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_svb_bounds_each_group_by_itself(groups):
    weight, p = randn(6, 4, 3, 2), of_options(groups=groups)
    torch.testing.assert_close(svb(weight, groups=groups), references.svb(weight, p))
    for rows in svb(weight, groups=groups).flatten(1).chunk(groups):
        values = torch.linalg.svdvals(rows)
        assert values.max() < 1.5 + 1e-9
        assert values.min() > 1 / 1.5 - 1e-9


def test_svb_of_a_depthwise_kernel_bounds_the_length_of_each_filter():
    weight = randn(5, 1, 3, 3) * torch.tensor([0.01, 0.3, 1.0, 3.0, 100.0]).view(-1, 1, 1, 1)
    norms = weight.flatten(1).norm(dim=1)
    expected = weight * (norms.clamp(1 / 1.5, 1.5) / norms).view(-1, 1, 1, 1)
    torch.testing.assert_close(svb(weight, groups=5), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_of_a_transposed_convolution_the_outputs_lie_on_the_second_axis(groups):
    weight = 0.4 * randn(6, 4, 3, 2)

    def straight(weight):
        parts = weight.chunk(groups)
        return torch.cat([part.transpose(0, 1) for part in parts])

    turned = straight(weight)
    torch.testing.assert_close(straight(svb(weight, groups=groups, transposed=True)), svb(turned, groups=groups))
    torch.testing.assert_close(omd(weight, 1.0, groups, transposed=True), omd(turned, 1.0, groups))
    found = omd_gradient(weight, 1.0, groups, transposed=True)
    torch.testing.assert_close(straight(found), omd_gradient(turned, 1.0, groups))


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_matrix_gets_singular_values_at_the_lower_end(method, dtype):
    found = svb(torch.zeros(4, 3, 2, 2, dtype=dtype), method=method)
    expected = torch.full((4,), 1 / 1.5, dtype=dtype)
    torch.testing.assert_close(torch.linalg.svdvals(found.flatten(1)), expected)
    torch.testing.assert_close(svb(torch.zeros(4, 3, 2, 2, dtype=dtype), method=method), found, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("least", [0.0, 1e-30, 1e-12, 1e-6, 1e-4, 1e-3, 1e-2, 1 / 40, 1 / 25, 0.1, 0.5])
def test_svb_is_accurate_for_every_condition(dtype, least):
    before = torch.linspace(3.0, 3 * least, 20, dtype=torch.float64)
    weight = of_singular_values(before, 20, 60, dtype=dtype)
    found = svb(weight).double()
    values = torch.linalg.svdvals(found)
    within = 2e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(values, before.clamp(1 / 1.5, 1.5), rtol=within, atol=0)
    if least >= 1e-4:  # else the singular vectors of the smallest are lost in the rounding of the weight itself
        wanted = of_singular_values(before.clamp(1 / 1.5, 1.5), 20, 60)
        assert (found - wanted).norm() < (1e-3 if dtype == torch.float32 else 1e-9) * wanted.norm()


def test_the_gram_matrix_is_left_where_it_would_be_wrong():
    weight = of_singular_values(torch.linspace(3.0, 3e-3, 20), 20, 60, dtype=torch.float32)
    lowest = {method: torch.linalg.svdvals(svb(weight, method=method)).min().item() for method in ("gram", "auto")}
    assert abs(lowest["gram"] * 1.5 - 1) > 1e-3
    assert abs(lowest["auto"] * 1.5 - 1) < 1e-5
    assert WELL_CONDITIONED[torch.float32] > 1e-3


def test_svb_gives_the_nearest_matrix_of_the_band():
    weight = of_singular_values([4.0, 1.2, 0.9, 0.1], 4, 9)
    distance = (svb(weight) - weight).norm()
    for seed in range(200):
        size, turn = 10.0 ** (-(seed % 5)), 100 + 3 * seed
        near = svb(weight) + size * randn(4, 9, seed=turn)
        left, values, right = torch.linalg.svd(near, full_matrices=False)
        other = (left * values.clamp(1 / 1.5, 1.5)) @ right
        assert (other - weight).norm() >= distance - 1e-12


def test_svb_does_not_make_a_convolution_isometric():
    kernel = svb(randn(4, 4, 3, 3), factor=1.0)
    image = torch.eye(4 * 36, dtype=torch.float64).view(-1, 4, 6, 6)
    operator = nn.functional.conv2d(nn.functional.pad(image, (1, 1, 1, 1), mode="circular"), kernel).flatten(1)
    values = torch.linalg.svdvals(operator)
    assert values.max() > 1.2
    assert values.max() < 3
    assert values.min() < 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_svb_of_half_precision_is_computed_in_single(dtype):
    weight = randn(6, 4, 3, 2, dtype=dtype)
    found = svb(weight)
    assert found.dtype == dtype
    torch.testing.assert_close(found, svb(weight.float()).to(dtype), rtol=0, atol=0)


def test_svb_keeps_no_graph_and_its_twin_writes_in_place():
    weight = nn.Parameter(randn(6, 4, 3, 2))
    before = weight.detach().clone()
    found = svb(weight)
    assert not found.requires_grad
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0)
    assert svb_(weight) is weight
    assert weight.requires_grad
    torch.testing.assert_close(weight.detach(), found, rtol=0, atol=0)


def test_svb_is_not_changed_by_autocast():
    weight = randn(6, 4, 3, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = svb(weight)
    torch.testing.assert_close(found, svb(weight), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["auto", "svd", "gram"])
def test_svb_compiles_and_has_a_shape_without_values(method):
    weight = randn(6, 4, 3, 2)
    compiled = torch.compile(svb, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weight, method=method), svb(weight))
    assert svb(weight.to("meta"), method=method).shape == weight.shape


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_svb_refuses_a_weight_that_is_not_finite(method):
    with pytest.raises(OptionError, match="is it finite"):
        svb(torch.full((3, 4), float("nan")), method=method)


# γ of batch normalization.


def gamma_by_hand(gamma, factor, std=None):
    std = torch.ones_like(gamma) if std is None else std
    alpha = sum(g / s for g, s in zip(gamma, std, strict=True)) / len(gamma)
    kept = [min(max(g / (s * alpha), 1 / factor), factor) * s * alpha for g, s in zip(gamma, std, strict=True)]
    return torch.stack(kept)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("factor", [1.0, 1.1, 2.0, 50.0])
def test_bounded_gamma_equals_the_formula(factor, sign):
    gamma, std = sign * (randn(12) + 0.8), randn(12, seed=1).exp()
    torch.testing.assert_close(bounded(gamma, factor), gamma_by_hand(gamma, factor))
    torch.testing.assert_close(bounded(gamma, factor, std), gamma_by_hand(gamma, factor, std))
    assert (bounded(gamma, factor) * sign > 0).all()  # the sign of their mean, whatever that of each
    assert (gamma * sign < 0).any()


@pytest.mark.parametrize("norm", [BatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("type", ["rel", "bbn"])
def test_bbn_bounds_every_batch_normalization(norm, type):
    model = cifar_resnet(8, width=4, norm=norm)
    layers = [module for module in model.modules() if isinstance(module, norm)]
    for seed, layer in enumerate(layers):
        nn.init.uniform_(layer.weight, 0.01, 4, generator=torch.Generator().manual_seed(seed))
        nn.init.uniform_(layer.running_var, 0.1, 4, generator=torch.Generator().manual_seed(99 + seed))
    before = copy.deepcopy(model.state_dict())
    expected = [
        gamma_by_hand(layer.weight.detach(), 2.0, (layer.running_var + layer.eps).sqrt() if type == "bbn" else None)
        for layer in layers
    ]
    assert bbn(model, type=type) is model
    for layer, gamma in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), gamma)
        assert layer.weight.requires_grad
    gammas = {name for name in before if name.endswith("weight") and before[name].dim() == 1}
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= gammas


def test_a_second_bounding_finds_another_mean():
    gamma = torch.tensor([10.0, 1.0, 1.0, 1.0])
    once = bounded(gamma)
    assert (bounded(once) - once).abs().max() > 0.1


def test_gammas_that_cancel_are_refused_before_anything_is_changed():
    model = cifar_resnet(8, width=4)
    last = [module for module in model.modules() if isinstance(module, BatchNorm)][-1]
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, BatchNorm)):
            norm.weight[0] = 100.0
        last.weight.copy_(torch.tensor([1.0, -1.0]).repeat(last.channels // 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=r"shortcut.1: the mean of γ is 0 where that of \|γ\| is 1"):
        bbn(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    nn.init.zeros_(last.weight)
    with pytest.raises(OptionError, match="until γ has left 0"):
        bbn(model)


@pytest.mark.parametrize(("dtype", "rest"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gammas_that_cancel_but_for_rounding_are_refused(dtype, rest):
    with pytest.raises(OptionError, match="keep its signs alike"):
        bounded(torch.tensor([1.0 + rest, -1.0], dtype=dtype))
    assert (bounded(torch.tensor([1.01, -1.0], dtype=dtype)) > 0).all()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(4)), {"factor": 0.5}, "factor=0.5 is out of range"),
        (nn.Sequential(nn.BatchNorm2d(4)), {"type": "abs"}, "type='abs' is not one of rel, bbn"),
        (nn.Sequential(nn.BatchNorm2d(4, affine=False)), {}, "0 has no γ and β"),
        (nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), {"type": "bbn"}, "0 keeps no running variance"),
        (nn.Sequential(nn.Linear(4, 4)), {}, "no batch normalization"),
    ],
)
def test_bbn_refuses(model, options, message):
    with pytest.raises(OptionError, match=message):
        bbn(model, **options)
