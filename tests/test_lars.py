"""What is special to LARS: which tensors are scaled, guards, orders of momentum, norms in half precision, clipping."""

import math

import pytest
import torch
from stepping import assert_equal, gradient, normal, run, weights
from torch import nn

from layers.card import OptionError
from layers.optim.lars import LARS, excludes
from layers.weights import weights as weights_of

PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "eps": 0.0}


def stepped(parameter, given, **options):
    """By how much one step moves a copy of ``parameter``."""
    copy = parameter.detach().clone().requires_grad_()
    copy.grad = given.clone()
    LARS([copy], **options).step()
    return copy.detach() - parameter.detach()


@pytest.mark.parametrize(
    ("exclude", "decay", "scaled"),
    [
        ("none", 0.1, (True, True, True)),
        ("none", 0.0, (True, True, True)),
        ("ndim<=1", 0.1, (True, False, False)),
        ("ndim<=1", 0.0, (True, False, False)),
        ("no_decay", 0.1, (True, True, True)),
        ("no_decay", 0.0, (False, False, False)),
    ],
)
def test_what_is_excluded_is_said_by_the_option(exclude, decay, scaled):
    for shape, adapted in zip([(3, 4), (4,), ()], scaled, strict=True):
        w, g = normal(shape, 1), normal(shape, 2)
        found = stepped(w, g, lr=0.3, momentum=0.0, weight_decay=decay, eps=0.0, exclude=exclude)
        ratio = 1e-3 * w.norm() / (g.norm() + decay * w.norm()) if adapted else 1.0
        kept = 0.0 if exclude == "ndim<=1" and w.dim() <= 1 else decay
        torch.testing.assert_close(found, -0.3 * ratio * (g + kept * w), rtol=1e-12, atol=1e-15)


def test_exclusion_is_a_matter_of_each_group():
    kernel, bias = normal((3, 4), 1).requires_grad_(), normal((3,), 2).requires_grad_()
    kernel.grad, bias.grad = torch.ones(3, 4).double(), torch.ones(3).double()
    before = bias.detach().clone(), kernel.detach().clone()
    LARS([{"params": [bias], "exclude": "none"}, {"params": [kernel], "exclude": "no_decay"}], **PLAIN).step()
    torch.testing.assert_close((bias.detach() - before[0]).norm(), 1e-3 * before[0].norm())
    torch.testing.assert_close(kernel.detach(), before[1] - 1)


def test_weights_of_zero_train_and_decay_remains_where_the_gradient_is_zero():
    zero, w, g = torch.zeros(3, 4).double(), normal((3, 4), 1), normal((3, 4), 2)
    torch.testing.assert_close(stepped(zero, g, lr=0.5), -0.5 * g)
    torch.testing.assert_close(stepped(w, zero, lr=0.5, weight_decay=0.1), -0.05 * w)
    parameter = zero.clone().requires_grad_()
    optimizer = LARS([parameter], lr=0.1)
    for _ in range(200):
        parameter.grad = parameter.detach() - g
        optimizer.step()
    assert (parameter - g).norm() < 0.95 * g.norm()


def test_after_a_drop_of_the_rate_steps_are_short_at_once_or_over_the_next_twenty():
    lengths = {}
    for order in ("torch", "paper"):
        w = normal((6, 5), 1).requires_grad_()
        optimizer = LARS([w], momentum=0.9, weight_decay=0.0, momentum_order=order)
        lengths[order] = []
        for step in range(90):
            optimizer.param_groups[0]["lr"] = 1.0 if step < 60 else 0.1
            before = w.detach().clone()
            w.grad = torch.ones_like(w)
            optimizer.step()
            lengths[order].append((w.detach() - before).norm().item())
    torch_, paper = lengths["torch"], lengths["paper"]
    assert paper[:60] == pytest.approx(torch_[:60], rel=1e-9)
    assert torch_[60] == pytest.approx(0.1 * torch_[59], rel=0.05)
    assert paper[60] > 0.85 * paper[59]
    assert paper[60] > paper[65] > paper[75] > paper[85]
    assert paper[85] == pytest.approx(torch_[85], rel=0.6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, False])
def test_norms_of_half_precision_are_accumulated_in_float32(dtype, foreach):
    """In float16 the square of 300 is infinite, and of 1e-5 zero: the ratio would be 0, or 1."""
    for scale in (300.0, 1e-5):
        w, g = torch.full((64, 64), 0.5, dtype=dtype), torch.full((64, 64), scale, dtype=dtype)
        found = stepped(w, g, lr=100.0, foreach=foreach, **PLAIN)
        torch.testing.assert_close(found, torch.full_like(w, -0.05), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_too_short_for_half_precision_gather_in_the_momentum(dtype):
    w = torch.ones(4, 4, dtype=dtype, requires_grad=True)
    optimizer = LARS([w], lr=1.0, weight_decay=0.0, momentum=0.5)
    w.grad = torch.ones_like(w)
    for _ in range(3):
        optimizer.step()
    buffer = optimizer.state[w]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    torch.testing.assert_close(buffer, torch.full((4, 4), 1.75e-3), rtol=0.01, atol=0)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_clipping_keeps_every_step_within_that_of_gradient_descent(factor):
    w, g = normal((5, 4), 1), factor * normal((5, 4), 2)
    options = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.1, "trust_coefficient": 0.02, "eps": 0.0}
    found = stepped(w, g, clip=True, **options)
    rate = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm())
    torch.testing.assert_close(found, -min(0.01, rate.item()) * (g + 0.1 * w), rtol=1e-12, atol=1e-15)
    assert found.norm() <= 0.01 * (g + 0.1 * w).norm() * (1 + 1e-12)


@pytest.mark.parametrize("order", ["torch", "paper"])
def test_clipping_at_a_rate_of_zero_moves_nothing_and_stays_finite(order):
    params = weights()
    optimizer = LARS(params, lr=0.0, clip=True, momentum_order=order)
    before = [parameter.detach().clone() for parameter in params]
    assert_equal(run(optimizer, params, 2), before)
    optimizer.param_groups[0]["lr"] = 0.1
    assert all(tensor.isfinite().all() for tensor in run(optimizer, params, 2, 2))


def test_a_gradient_that_is_not_a_number_is_seen_in_the_whole_tensor():
    """Not taken for a gradient of zero, by which the rest would make an unscaled step."""
    w, g = normal((3, 4), 1), normal((3, 4), 2)
    g[1, 1] = math.nan
    assert stepped(w, g).isnan().all()


def test_gradients_accumulate_over_steps_as_they_are():
    """What others write the scaled gradient into."""
    w = normal((3, 4), 1).requires_grad_()
    optimizer, total = LARS([w]), torch.zeros(3, 4).double()
    for step in range(3):
        (gradient(w, 0, step) * w).sum().backward()
        total += gradient(w, 0, step)
        optimizer.step()
        assert_equal([w.grad], [total])


def test_the_first_step_of_a_long_gradient_is_as_long_as_of_a_short_one():
    w = normal((8, 8), 3)
    for factor in (1e-6, 1.0, 100.0, 1e6):
        assert stepped(w, factor * w, momentum=0.9, weight_decay=0.0).norm() == pytest.approx(
            1e-3 * w.norm().item(), rel=1e-2 if factor < 1 else 1e-6
        )


def test_large_rates_train_a_network_that_gradient_descent_does_not():
    losses = {}
    x, target = normal((64, 10), 5), normal((64, 4), 6)
    for name, make in {
        "sgd": lambda params: torch.optim.SGD(params, lr=50.0, momentum=0.9),
        "lars": lambda params: LARS(params, lr=50.0, weight_decay=0.0),
    }.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(10, 20, bias=False), nn.Tanh(), nn.Linear(20, 20, bias=False), nn.Tanh(),
                nn.Linear(20, 4, bias=False),
            ).double()  # fmt: skip
        optimizer = make(model.parameters())
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["lars"] < 0.2
    assert not losses["sgd"] < 1e9


@pytest.mark.parametrize(
    "options", [{"momentum": 0.0}, {"dampening": 0.1}, {"momentum": 0.0, "dampening": 0.1}], ids=str
)
def test_the_momentum_of_nesterov_needs_momentum_undamped(options):
    with pytest.raises(OptionError, match=r"nesterov=true needs momentum > 0 and dampening=0; not momentum="):
        LARS(weights(), nesterov=True, **options)


def test_matrices_and_kernels_are_what_it_is_for():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model.phase = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    reasons = {weight.name: excludes(weight) for weight in weights_of(model)}
    assert [name for name, reason in reasons.items() if not reason] == ["0.weight", "2.weight"]
    assert reasons["1.weight"].startswith("a vector: trained by plain SGD")
    assert reasons["phase"].startswith("complex")


def test_parameters_of_several_dtypes_share_a_group():
    params = [normal((3, 4), 1).requires_grad_(), normal((2, 5), 2).float().requires_grad_()]
    params += [normal((4, 2), 3).bfloat16().requires_grad_(), torch.zeros(0, 3, requires_grad=True)]
    apart = [parameter.detach().clone().requires_grad_() for parameter in params]
    joint, each = LARS(params), [LARS([parameter]) for parameter in apart]
    run(joint, params)
    for step in range(3):
        for i, parameter in enumerate(apart):
            parameter.grad = gradient(parameter, i, step)
            each[i].step()
    assert_equal(params, apart)


@pytest.mark.parametrize("scale", [1.0, 1e12])  # of the second the share of the gradient is too small for the kernel
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0, "maximize": True},
        {"weight_decay": 0.2, "maximize": True, "momentum_order": "paper", "lr": 0.3},
        {"dampening": 0.5, "clip": True, "lr": 1e-3},
        {"nesterov": True},
    ],
)
def test_the_steps_of_float32_are_those_of_float64(options, scale, monkeypatch):
    calls, kernel = [], torch._fused_sgd_

    def counted(*args, **kwargs):
        calls.append(1)
        kernel(*args, **kwargs)

    monkeypatch.setattr(torch, "_fused_sgd_", counted)
    start = normal((20, 30), 1)
    narrow, wide = start.float().requires_grad_(), start.float().double().requires_grad_()
    steps = [LARS([parameter], **options) for parameter in (narrow, wide)]
    for step in range(5):
        given = (scale * normal((20, 30), 2 + step)).float()
        narrow.grad, wide.grad = given, given.double()
        for optimizer in steps:
            optimizer.step()
    torch.testing.assert_close(narrow.double() - start, wide - start, rtol=1e-4, atol=2e-6)  # w rounds
    kept = [optimizer.state[p]["momentum_buffer"] for optimizer, p in zip(steps, (narrow, wide), strict=True)]
    torch.testing.assert_close(kept[0].double(), kept[1], rtol=1e-5, atol=1e-7 * float(kept[1].abs().max()))
    assert len(calls) == (5 if scale == 1 and not options.get("nesterov") else 0)
