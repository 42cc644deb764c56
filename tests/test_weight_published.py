"""The stones of weights beside what was published for them, written out, and beside torch's weight_norm."""

from __future__ import annotations

import pytest
import torch
from harness import assert_near
from kernels import kernel, reparametrized, with_weight
from torch import nn
from torch.nn.utils import parametrizations

from layers.weight.scaled_ws import GAMMAS, ScaledWSConv2d
from layers.weight.weight_norm import WeightNorm
from layers.weight.weight_standardization import WSConv2d, standardize


def used_and_gradient(function, w):
    leaf = w.clone().requires_grad_()
    used = function(leaf)
    return used.detach(), torch.autograd.grad(used.sin().sum(), leaf)[0]


# What the five publications compute, in the order and with the functions of their code.


def qiao(w):
    mean = w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    w = w - mean
    std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return w / std.expand_as(w)


def qiao_tf(w):
    w = w.permute(2, 3, 1, 0)  # H W I O
    w = w - w.mean((0, 1, 2), keepdim=True)
    return (w / (w.std((0, 1, 2), correction=0, keepdim=True) + 1e-5)).permute(3, 2, 0, 1)


def bcn(w):
    w = w - w.mean((1, 2, 3), keepdim=True)
    return w / (w.view(w.size(0), -1).var(dim=1) + 1e-5).sqrt().view(-1, 1, 1, 1)


def paper(w):
    rows = w.flatten(1)
    mean, square = rows.mean(1, keepdim=True), (rows**2).mean(1, keepdim=True)
    return ((rows - mean) / (square - mean**2 + 1e-5).sqrt()).view_as(w)


def timm(w):
    flat = w.reshape(1, w.shape[0], -1)
    return nn.functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


CONVENTIONS = {"qiao": qiao, "qiao-tf": qiao_tf, "bcn": bcn, "paper": paper, "timm": timm}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_published_convention_is_met_with_its_gradient(convention):
    def ours(w):
        return standardize(w.flatten(1), convention).view_as(w)

    published = used_and_gradient(CONVENTIONS[convention], kernel())
    for found, wanted in zip(used_and_gradient(ours, kernel()), published, strict=True):
        assert_near(found, wanted, 1e-12)
    layer = with_weight(WSConv2d(6, 8, (3, 2), convention=convention), kernel())
    assert_near(layer.effective_weight(), published[0], 1e-12)


def test_the_conventions_differ_as_the_card_says():
    for count, percent in ((576, 0.09), (9, 6)):
        rows = kernel((4, count))
        unbiased, biased = standardize(rows, "qiao", 0.0), standardize(rows, "qiao-tf", 0.0)
        assert 100 * (biased / unbiased - 1).abs().max() == pytest.approx(percent, rel=0.05)
    rows = kernel((64, 576), scale=(2 / 576) ** 0.5, shift=0)
    for convention, percent in (("qiao", 0.15), ("timm", 1.3), ("bcn", 11)):
        moved = standardize(0.1 * rows, convention) - standardize(rows, convention)
        assert 100 * moved.norm() / standardize(rows, convention).norm() == pytest.approx(percent, rel=0.1), convention


def test_scaled_ws_is_the_published_class():
    layer = ScaledWSConv2d(6, 8, (3, 2), gamma=1.7139588594436646, eps=1e-5).double()
    layer.gain.data = torch.linspace(-1, 2, 8, dtype=torch.float64).view(-1, 1, 1, 1)
    w, scale = kernel(), 1.7139588594436646 * 36**-0.5
    gains = (layer.gain.detach() * scale).view(-1)
    flat = w.reshape(1, 8, -1)
    wanted = nn.functional.batch_norm(flat, None, None, gains, training=True, momentum=0.0, eps=1e-5).reshape_as(w)
    assert_near(with_weight(layer, w).effective_weight(), wanted, 1e-12)


def test_the_gammas_are_those_of_the_published_table_to_the_accuracy_of_its_sampling():
    table = {"gelu": 1.7015043, "leaky_relu": 1.7059034, "relu": 1.7139589, "silu": 1.7881293, "tanh": 1.5939118}
    assert all(GAMMAS[name] == pytest.approx(gamma, rel=1e-3) for name, gamma in table.items())
    assert all(GAMMAS[name] != pytest.approx(gamma, rel=1e-5) for name, gamma in table.items())
    assert GAMMAS["relu"] == pytest.approx((2 / (1 - 1 / torch.pi)) ** 0.5, rel=1e-15)


def test_scaled_ws_keeps_the_variance_that_the_activation_saw():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(64, 256, 6, 6, generator=generator)
    layer = ScaledWSConv2d(256, 64, bias=False, activation="relu")
    assert layer(z.relu()).var().item() == pytest.approx(1, abs=0.05)
    plain = ScaledWSConv2d(256, 64, bias=False)
    plain.load_state_dict(layer.state_dict())
    assert plain(z.relu()).var().item() < 0.5


LAYERS = {
    "linear": lambda: nn.Linear(6, 8),
    "conv": lambda: nn.Conv2d(6, 8, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 8, 3),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("norm", ["output", "tensor"])
def test_weight_norm_loads_and_computes_what_torch_does(kind, norm):
    torch.manual_seed(0)
    theirs, ours = LAYERS[kind]().double(), LAYERS[kind]().double()
    dim = None if norm == "tensor" else 1 if kind == "transposed" else 0
    parametrizations.weight_norm(theirs, dim=dim)
    reparametrized("weight-norm", ours, norm=norm)
    for parameter in theirs.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    state = theirs.state_dict()
    assert {name: t.shape for name, t in ours.state_dict().items()} == {name: t.shape for name, t in state.items()}
    ours.load_state_dict(state)
    assert_near(ours.weight, theirs.weight, 1e-14)
    for layer in (ours, theirs):
        layer.weight.sin().sum().backward()
    for found, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        if wanted.grad is not None:
            assert_near(found.grad, wanted.grad, 1e-12)


def test_weight_norm_of_grouped_transposed_convolutions_has_a_length_per_output_of_each_group():
    layer = reparametrized("weight-norm", nn.ConvTranspose2d(6, 8, 3, groups=2).double())
    gain = layer.parametrizations["weight"].original0
    assert gain.shape == (1, 8, 1, 1)
    gain.data = torch.arange(1.0, 9, dtype=torch.float64).view(1, 8, 1, 1)
    lengths = [torch.linalg.vector_norm(part, dim=(0, 2, 3)) for part in layer.weight.chunk(2)]
    assert_near(torch.cat(lengths), gain.flatten(), 1e-12)


def test_the_second_derivative_is_right_where_that_of_torch_is_not():
    gain, v = torch.linspace(0.5, 2, 4, dtype=torch.float64).view(4, 1), kernel((4, 6))
    ours = WeightNorm(nn.Linear(6, 4, dtype=torch.float64))
    inputs = [gain.requires_grad_(), v.requires_grad_()]
    assert torch.autograd.gradgradcheck(ours, inputs)

    def curvature(w):
        (first,) = torch.autograd.grad(w.sin().sum(), v, create_graph=True)
        return torch.autograd.grad(first.square().sum(), v)[0]

    plain = curvature(gain * v / v.norm(dim=1, keepdim=True))
    assert_near(curvature(ours(gain, v)), plain, 1e-12)
    theirs = curvature(torch._weight_norm(v, gain, 0))
    assert (theirs - plain).norm() > 0.3 * plain.norm()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_constant_filter_becomes_zero_with_a_finite_gradient(convention):
    w = kernel()
    w[2] = 0.7
    used, gradient = used_and_gradient(lambda v: standardize(v.flatten(1), convention).view_as(v), w)
    assert used[2].abs().max() < 1e-6
    assert gradient.isfinite().all()
    assert abs(gradient[2].sum()) < 1e-6 * gradient[2].abs().sum().clamp(min=1)
