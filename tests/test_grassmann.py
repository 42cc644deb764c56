"""What SGD-G and Adam-G have to themselves: rows of norm one, which parameters of a model have them, refusals."""

import copy

import pytest
import torch
from harness import assert_near
from stepping import normal, run
from torch import nn

from layers import grassmann, grassmann_optimizer
from layers.card import OptionError
from layers.grassmann import clipping, excludes, grassmann_groups, lengths, tangent, unit_rows_
from layers.optim.adam_g import AdamG
from layers.optim.sgd_g import SGDG
from layers.resnet import cifar_resnet
from layers.weights import weights

OPTIMIZERS = pytest.mark.parametrize("optimizer", [SGDG, AdamG])


def rows(shape=(5, 7), seed=0):
    made = normal(shape, seed)
    return made / lengths(made)


def leaf(*shape, seed=0, dtype=torch.float64):
    return normal(shape, seed).to(dtype).requires_grad_()


def kinds():
    """A model with every kind of parameter that is treated in its own way."""
    linear = (nn.Flatten(), nn.Linear(36, 10))
    grouped = (nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 4, 3))
    wide = (nn.Conv2d(4, 36, 3), nn.Conv2d(36, 36, 3, groups=36))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *grouped, *wide, *linear)


def test_a_kernel_is_on_the_grassmannian_when_it_has_fewer_filters_than_weights_per_filter():
    chosen = {weight.name: excludes(weight) for weight in weights(kinds()) if weight.name.endswith("weight")}
    assert [name for name, why in chosen.items() if not why] == ["0.weight", "2.weight", "6.weight"]
    assert "not undercomplete: 8 filters of 8 weights" in chosen["3.weight"]
    assert "transposed" in chosen["4.weight"]
    assert "not undercomplete: 36 filters of 36 weights" in chosen["5.weight"]
    assert "linear" in chosen["8.weight"]
    assert "no kernel" in chosen["1.weight"]


def test_every_parameter_is_in_one_group_under_its_name():
    model = kinds()
    groups = grassmann_groups(model, lr=0.3, momentum=0.8, weight_decay=0.02)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert [([name for name, _ in g["params"]], g["groups"]) for g in groups if g["manifold"]] == [
        (["0.weight"], 1),
        (["2.weight"], 4),
        (["6.weight"], 36),
    ]
    decayed, affine = (group for group in groups if not group["manifold"])
    assert [name for name, _ in affine["params"]] == ["1.weight", "1.bias"]
    assert (decayed["lr"], decayed["momentum"], decayed["weight_decay"]) == (0.3, 0.8, 0.02)
    assert (affine["lr"], affine["momentum"], affine["weight_decay"]) == (0.3, 0.8, 0.0)


@OPTIMIZERS
def test_the_groups_of_a_model_train_it_and_name_its_parameters(optimizer):
    torch.manual_seed(0)
    model = unit_rows_(cifar_resnet(8, width=4).double())
    made = optimizer(grassmann_groups(model))
    x, target = normal((8, 3, 16, 16), 1), torch.arange(8)
    losses = []
    for _ in range(25):
        made.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        losses.append(loss.item())
        made.step()
    assert losses[-1] < losses[0] / 2
    on = {name for group in made.param_groups if group["manifold"] for name in group["param_names"]}
    parameters = dict(model.named_parameters())
    assert on
    for name in on:
        assert_near(lengths(parameters[name].flatten(1)), torch.ones(len(parameters[name]), 1), 1e-15)


def test_another_choice_of_kernels_may_be_given():
    model = kinds()
    groups = grassmann_groups(model, excludes=lambda weight: excludes(weight) or "first" * (weight.name == "0.weight"))
    assert [name for group in groups if group["manifold"] for name, _ in group["params"]] == ["2.weight", "6.weight"]


def test_the_choice_among_the_kernels_of_a_resnet_is_the_published_one():
    found = {weight.name: excludes(weight) for weight in weights(cifar_resnet(8, width=64)) if weight.kind == "conv"}
    assert "not undercomplete: 64 filters of 27 weights" in found["stem.0.weight"]
    wide = [name for name, why in found.items() if why]
    assert len(wide) == 3  # the stem and the 1×1 kernels of two shortcuts
    assert len(found) - len(wide) == 6


def test_unit_rows_changes_no_other_parameter_and_no_output_of_a_normalized_network():
    model = cifar_resnet(8, width=4).double().train()
    for module in model.modules():
        if isinstance(module, nn.Module) and hasattr(module, "eps"):
            module.eps = 1e-30
    before, x = copy.deepcopy(model), normal((4, 3, 16, 16), 0)
    assert unit_rows_(model) is model
    assert_near(model(x), before(x), 1e-9)
    for weight, old in zip(weights(model), weights(before), strict=True):
        if excludes(weight):
            assert torch.equal(weight.parameter, old.parameter)
        else:
            assert_near(lengths(weight.parameter.flatten(1)), torch.ones(len(old.parameter), 1), 1e-15)
            assert not torch.equal(weight.parameter, old.parameter)


def test_unit_rows_refuses_a_filter_of_zeros_by_name_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[1].weight[2] = 0
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match=r"1\.weight: row 2 is zero"):
        unit_rows_(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@OPTIMIZERS
@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (4, 1, 1, 1), (4, 0)])
def test_parameters_without_rows_to_turn_are_refused_with_the_remedy(optimizer, shape):
    odd = torch.ones(shape, requires_grad=True)
    with pytest.raises(OptionError, match=r"bias .*no rows of two or more weights.*manifold=False"):
        optimizer([("bias", odd)])
    made = optimizer([leaf(3, 4)])
    with pytest.raises(OptionError, match=r"parameter 0 .*manifold=False"):
        made.add_param_group({"params": [odd]})
    assert len(made.param_groups) == 1
    optimizer([{"params": [odd], "manifold": False}])


@OPTIMIZERS
def test_rows_of_zero_are_refused_by_parameter_and_row(optimizer):
    parameter = leaf(5, 4)
    parameter.data[3] = 0
    with pytest.raises(OptionError, match="kernel: row 3 is zero"):
        optimizer([("kernel", parameter)])
    made = optimizer([leaf(3, 4)])
    with pytest.raises(OptionError, match="parameter 1: row 3 is zero"):
        made.add_param_group({"params": [leaf(2, 4), parameter]})
    assert len(made.param_groups) == 1


@OPTIMIZERS
def test_what_is_not_offered_is_refused_in_words(optimizer):
    for name in ("differentiable", "capturable", "fused"):
        with pytest.raises(OptionError, match=f"{name}=True.*does not offer"):
            optimizer([{"params": [leaf(3, 4)], name: True}])
    with pytest.raises(OptionError, match=r"weight_decay=0\.1: rows on the Grassmannian.*manifold=False"):
        optimizer([leaf(3, 4)], weight_decay=0.1)
    with pytest.raises(OptionError, match="groups=2 does not divide the 3 rows of kernel"):
        optimizer([("kernel", leaf(3, 4))], groups=2)
    with pytest.raises(OptionError, match="kernel is complex: give its real view"):
        optimizer([("kernel", torch.ones(3, 4, dtype=torch.complex64))])
    sparse = leaf(3, 4)
    sparse.grad = torch.ones(3, 4, dtype=torch.float64).to_sparse()
    with pytest.raises(RuntimeError, match="does not take sparse gradients"):
        optimizer([sparse]).step()
    with pytest.raises(OptionError, match=r"parameter 0 is torch\.int64"):
        optimizer([torch.ones(3, 4, dtype=torch.int64)])


@OPTIMIZERS
def test_a_refused_option_of_the_constructor_is_refused_even_where_groups_overrule_it(optimizer):
    with pytest.raises(OptionError, match="omega=-1"):
        optimizer([{"params": [leaf(3, 4)], "omega": 0.1}], omega=-1.0)


@OPTIMIZERS
def test_groups_of_a_convolution_do_not_know_each_other(optimizer):
    joint, apart = leaf(6, 5, 2), [leaf(6, 5, 2).detach()[i : i + 3].clone().requires_grad_() for i in (0, 3)]
    together, one, two = optimizer([joint], groups=2), optimizer(apart[:1]), optimizer(apart[1:])
    for step in range(3):
        joint.grad = normal(joint.shape, step)
        for part, half in zip(apart, joint.grad.split(3), strict=True):
            part.grad = half
        together.step(), one.step(), two.step()
    assert_near(joint, torch.cat(apart), 1e-14)


@OPTIMIZERS
def test_the_penalty_makes_filters_orthogonal(optimizer):
    parameter = leaf(4, 9)
    made = optimizer([parameter], omega=1.0)
    for _ in range(300):
        parameter.grad = torch.zeros_like(parameter)
        made.step()
        made.param_groups[0]["lr"] *= 0.98
    gram = parameter @ parameter.mT
    assert (gram - torch.eye(4)).abs().max() < 0.02


@OPTIMIZERS
def test_orthonormal_filters_are_left_alone_by_the_penalty(optimizer):
    parameter = torch.eye(4, 9, dtype=torch.float64).requires_grad_()
    made = optimizer([parameter], omega=1.0)
    parameter.grad = torch.zeros_like(parameter)
    made.step()
    assert torch.equal(parameter, torch.eye(4, 9, dtype=torch.float64))


@OPTIMIZERS
def test_without_starting_at_norm_one_the_first_gradient_carries_the_norm(optimizer):
    """Once rows have norm one, the scale that they began with is forgotten."""
    found = []
    for scale in (1.0, 100.0):
        parameter = (scale * rows((4, 6)).detach()).requires_grad_()
        made = optimizer([parameter], grad_clip=None, lr=1e-3)
        for _ in range(3):
            made.zero_grad()
            (parameter / lengths(parameter)).pow(3).sum().backward()
            made.step()
        found.append(parameter.detach())
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_a_rotation_is_the_exponential_and_the_transport_at_any_angle():
    y, a = rows(), tangent(normal((5, 7), 1), rows())
    for angle in (0.0, 1e-12, 0.3, -0.3, 1.57, 3.14159, -6.0, 100.0):
        p, moved = torch.empty_like(y), a.clone()
        grassmann.rotate_(p, y, moved, lengths(a), torch.full((5, 1), angle, dtype=y.dtype))
        d = angle * a / lengths(a)
        assert_near(p, grassmann.exponential(y, d), 1e-13)
        assert_near(moved, grassmann.transport(a, y, d), 1e-13)


def test_a_tangent_of_zero_moves_nothing():
    y = rows()
    zero = torch.zeros_like(y)
    assert torch.equal(grassmann.exponential(y, zero), y)
    assert torch.equal(grassmann.transport(y.flip(1), y, zero), y.flip(1))
    assert torch.equal(grassmann.sinc(torch.zeros(2)), torch.ones(2))


def test_short_rows_are_not_clipped_and_long_ones_are_as_long_as_admitted():
    h = torch.tensor([[0.0, 0.0], [0.03, 0.04], [3.0, 4.0], [float("nan"), 1.0]], dtype=torch.float64)
    clipped = h * clipping(lengths(h), 0.1)
    assert torch.equal(clipped[:2], h[:2])
    assert_near(clipped[2], torch.tensor([0.06, 0.08], dtype=torch.float64), 1e-15)
    assert clipped[3].isnan().all()
    assert torch.equal(clipping(lengths(h[:3]), None), torch.ones(3, 1, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_gradients_leave_a_filter_finite(size):
    parameter = leaf(4, 6, dtype=torch.float32)
    parameter.grad = torch.full_like(parameter, size)
    SGDG([parameter], omega=0.0).step()
    assert parameter.isfinite().all()


@OPTIMIZERS
def test_more_bytes_than_are_worth_joining_are_stepped_in_parts(optimizer, monkeypatch):
    found, advance, steps = [], optimizer._advance, []
    monkeypatch.setattr(optimizer, "_advance", lambda *given: steps.append(len(given[2])) or advance(*given))
    for most in (0, 24, 50, 1000):
        monkeypatch.setitem(grassmann_optimizer.JOINED, "cpu", most * 8)
        params = [leaf(4, 6, seed=seed) for seed in range(5)]
        found.append(torch.stack(run(optimizer(params), params)))
    assert len(steps) == 3 * (5 + 5 + 3 + 1)
    for other in found[1:]:
        assert_near(other, found[0], 1e-14)


@OPTIMIZERS
def test_half_precision_is_computed_in_float32(optimizer):
    """Squares of these gradients do not fit into float16."""
    parameter = leaf(4, 6, dtype=torch.float16)
    wide = parameter.detach().double().requires_grad_()
    parameter.grad = (1000 * normal((4, 6), 1)).half()
    wide.grad = parameter.grad.double()
    optimizer([parameter]).step(), optimizer([wide]).step()
    assert_near(parameter, wide, torch.finfo(torch.float16).eps)


@OPTIMIZERS
def test_autocast_does_not_round_a_step(optimizer):
    found = []
    for enabled in (False, True):
        parameter = leaf(4, 6, dtype=torch.float32)
        made = optimizer([parameter])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found += run(made, [parameter], 2)
    assert torch.equal(*found)


def test_gradients_below_the_clip_are_steps_of_gradient_descent_to_first_order():
    parameter, step = rows((4, 6)).requires_grad_(), 1e-6
    start, slope = parameter.detach().clone(), normal((4, 6), 3)
    made = SGDG([parameter], lr=step, grad_clip=None, omega=0.0)
    parameter.grad = slope
    made.step()
    assert_near((parameter - start) / -step, tangent(slope, start), 1e-5)
