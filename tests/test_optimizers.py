"""What every optimizer promises: right steps, groups, learning rates, gradients that are missing, odd or refused."""

import importlib
import inspect
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from harness import function
from stepping import STONES, Case, assert_equal, attempt, cases, gradient, named, normal, run, twins, weights

from layers.card import OptionError
from layers.formula import evaluate
from profiles.counting.flops import Counting

ids = [pytest.param(stone, id=stone.name) for stone in STONES]
PULLS = ("omega", "weight_decay")  # options that move a parameter whatever its gradient
BAD = {float: (float("nan"), float("inf"), "much"), int: (1.5, True, "many"), bool: (1, "yes"), str: (3, "nonsense")}


@pytest.mark.parametrize("stone", ids)
def test_the_constructor_has_the_options_of_the_card(stone):
    params, *rest = inspect.signature(stone.load()).parameters.values()
    assert (params.name, params.default) == ("params", inspect.Parameter.empty)
    stated = [(option.name, option.default, type(option.default)) for option in stone.card.options]
    assert [(p.name, p.default, type(p.default)) for p in rest] == stated


@pytest.mark.parametrize("case", cases())
def test_steps_are_those_of_the_naive_reference(case: Case):
    params = weights()
    start = [parameter.detach().clone() for parameter in params]
    gradients = [[gradient(parameter, i, step) for i, parameter in enumerate(params)] for step in range(5)]
    expected = function(case.stone)(start, gradients, SimpleNamespace(**case.full))
    assert_equal(run(case.make(params), params, 5), expected, 1e-12)


@pytest.mark.parametrize(
    ("stone", "identity"),
    [pytest.param(s, identity, id=f"{s.name}-{identity.proof}") for s in STONES for identity in s.card.identities],
)
def test_the_identities_of_the_card_hold(stone, identity):
    proof = getattr(importlib.import_module(stone.module), identity.proof)
    assert_equal(*([side] for side in proof(partial(stone.load(), **identity.options), normal((6, 4, 3, 2), 0))), 1e-9)


@pytest.mark.parametrize("case", cases())
def test_the_executed_operations_are_those_of_the_card(case: Case):
    """Where the card states them."""
    for shape in ((6, 4, 3, 2), (8, 5), (10, 8, 3)):
        params = weights(torch.float32, shapes=(shape,))
        optimizer = case.make(params)
        run(optimizer, params, 1)
        with Counting() as counting:
            optimizer.step()
        values = case.stone.card.symbols(shape, case.full)
        assert not counting.count.uncounted
        assert evaluate(case.stone.card.flops.forward, values) > 0
        assert not evaluate(case.stone.card.stated, values) or counting.count.flops == evaluate(
            case.stone.card.executed.forward, values
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", cases())
def test_the_loss_goes_the_right_way_within_fifty_steps(case: Case, dtype):
    params = weights(dtype, unit=True)
    goals = [goal.detach().flip(0) for goal in weights(dtype, unit=True)]
    optimizer, losses = case.make(params), []
    for _ in range(50):
        optimizer.zero_grad()
        loss = sum((p - goal).square().sum() for p, goal in zip(params, goals, strict=True))
        (-loss if case.full.get("maximize") else loss).backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("case", cases(1))
def test_a_closure_runs_once_with_gradients_and_its_value_comes_back(case: Case):
    params, calls = weights(), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum(parameter.square().sum() + parameter.sum() for parameter in params)
        loss.backward()
        return loss

    optimizer = case.make(params)
    before = sum(parameter.square().sum() + parameter.sum() for parameter in params).item()
    assert optimizer.step(closure).item() == before
    assert calls == [True]
    with torch.no_grad():
        optimizer.step(closure)
    assert calls == [True, True]
    assert optimizer.step() is None


@pytest.mark.parametrize("case", cases())
def test_groups_are_separate_optimizers(case: Case):
    lr = case.full["lr"]
    params, apart = weights(), weights()
    joint = case.make([{"params": params[:2], "lr": lr / 2}, {"params": params[2:]}])
    first, second = case.make(apart[:2], lr=lr / 2), case.make(apart[2:])
    for step in range(3):
        for i, (p, q) in enumerate(zip(params, apart, strict=True)):
            p.grad, q.grad = gradient(p, i, step), gradient(p, i, step)
        joint.step(), first.step(), second.step()
    assert_equal(params, apart)


@pytest.mark.parametrize("case", cases())
def test_a_group_that_is_added_later_begins_then(case: Case):
    params, apart = weights(), weights()
    joint, first, second = case.make(params[:2]), case.make(apart[:2]), case.make(apart[2:])
    run(joint, params[:2]), run(first, apart[:2])
    joint.add_param_group({"params": params[2:]})
    run(joint, params), run(first, apart[:2])
    for step in range(3):
        for i, parameter in enumerate(apart[2:], 2):
            parameter.grad = gradient(parameter, i, step)
        second.step()
    assert_equal(params, apart)


@pytest.mark.parametrize("case", cases())
def test_the_learning_rate_is_read_at_every_step(case: Case):
    (params, optimizer), (other, twin) = twins(case)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for step in range(4):
        run(optimizer, params, 1, step)
        scheduler.step()
    unscheduled = run(twin, list(other), 2)
    twin.param_groups[0]["lr"] = case.full["lr"] / 2
    assert_equal(params, run(twin, other, 2, 2))
    assert all((p - q).abs().max() > 0 for p, q in zip(params, unscheduled, strict=True))


@pytest.mark.parametrize("case", cases())
def test_a_learning_rate_of_zero_moves_nothing(case: Case):
    params = weights()
    before = [parameter.detach().clone() for parameter in params]
    assert_equal(run(case.make(params, lr=0.0, base_lr=1e-3), params), before)
    (params, optimizer), _ = twins(case)
    before = [parameter.detach().clone() for parameter in params]
    optimizer.param_groups[0]["lr"] = 0.0
    assert_equal(run(optimizer, params), before)


@pytest.mark.parametrize("case", cases())
def test_the_learning_rate_may_be_a_tensor(case: Case):
    params, other = weights(), weights()
    lr = torch.tensor(case.full["lr"], dtype=torch.float64)
    assert_equal(run(case.make(params, lr=lr), params), run(case.make(other), other), 1e-12)
    assert lr == case.full["lr"]
    with pytest.raises(ValueError, match="lr="):
        case.make(weights(), lr=torch.tensor(-1.0))
    with pytest.raises(ValueError, match="lr="):
        case.make(weights(), lr=torch.ones(2))


@pytest.mark.parametrize("case", [case for case in cases() if case.values[0].has("foreach")])
def test_joined_parameters_step_like_single_ones(case: Case):
    """Also with a missing gradient, mixed dtypes and a parameter that began later."""
    results = []
    for foreach in (False, True):
        params = [*weights(), *weights(torch.float32)]
        optimizer = case.make(params, foreach=foreach)
        run(optimizer, params[2:], 2)
        params[3].grad, missing = None, params[3]
        run(optimizer, [parameter for parameter in params if parameter is not missing], 2)
        results.append(params)
    assert_equal(results[1][:4], results[0][:4], 1e-12)
    assert_equal(results[1][4:], results[0][4:], 1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 4), (4, 1), (1, 5)])
@pytest.mark.parametrize("case", cases())
def test_odd_shapes_are_stepped_or_refused_in_words(case: Case, shape):
    results = []
    for foreach in (False, True):
        params = [normal(shape, 1).requires_grad_(), *weights()]
        optimizer, refusal = attempt(partial(case.make, named(params), foreach=foreach), OptionError)
        if refusal:
            assert "p0" in refusal
            return
        results.append(run(optimizer, params))
    assert all(tensor.isfinite().all() for tensor in results[0])
    assert_equal(results[1], results[0], 1e-12)


@pytest.mark.parametrize("case", cases(1))
def test_sparse_gradients_step_like_dense_ones_or_are_refused_in_words(case: Case):
    params, dense = weights(shapes=((4, 5),)), weights(shapes=((4, 5),))
    params[0].grad = gradient(params[0], 0, 0).to_sparse()
    optimizer, before = case.make(params), params[0].detach().clone()
    _, refusal = attempt(optimizer.step, RuntimeError)
    assert not refusal or "sparse" in refusal
    assert_equal(params, [before] if refusal else run(case.make(dense), dense, 1), 1e-12)


@pytest.mark.parametrize("case", cases(1))
def test_complex_parameters_step_like_their_real_view_or_are_refused_in_words(case: Case):
    parameter = torch.view_as_complex(normal((4, 5, 2), 1)).requires_grad_()
    real = normal((4, 5, 2), 1).requires_grad_()
    optimizer, refusal = attempt(partial(case.make, [parameter]))
    assert not refusal or "complex" in refusal
    if not refusal:
        real.grad = gradient(real, 0, 0)
        parameter.grad = torch.view_as_complex(real.grad)
        optimizer.step(), case.make([real]).step()
        assert_equal([torch.view_as_real(parameter)], [real], 1e-12)


@pytest.mark.parametrize("case", [case for case in cases() if case.values[0].has("maximize")])
def test_maximizing_is_minimizing_along_negated_gradients(case: Case):
    params, other = weights(), weights()
    climbed = run(case.make(params, maximize=True), params)
    assert_equal(climbed, run(case.make(other, maximize=False), other, sign=-1))


@pytest.mark.parametrize("case", cases())
def test_a_parameter_without_gradient_is_left_alone_and_has_no_state(case: Case):
    params = weights()
    before = params[1].detach().clone()
    optimizer = case.make(params)
    run(optimizer, [params[0], *params[2:]])
    assert_equal([params[1]], [before])
    assert params[1] not in optimizer.state or not optimizer.state[params[1]]


@pytest.mark.parametrize("case", cases())
def test_gradients_of_zero_move_nothing_once_nothing_else_pulls(case: Case):
    params = weights(unit=True)
    before = [parameter.detach().clone() for parameter in params]
    optimizer = case.make(params, **dict.fromkeys(PULLS, 0.0))
    for _ in range(3):
        for parameter in params:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert_equal(params, before, 1e-15)


@pytest.mark.parametrize("case", cases())
def test_parameters_of_zero_stay_finite_or_are_refused_by_name(case: Case):
    params = weights()
    with torch.no_grad():
        params[1].zero_()
    optimizer, refusal = attempt(partial(case.make, named(params)), OptionError)
    assert not refusal or ("p1" in refusal and "zero" in refusal)
    if not refusal:
        assert all(tensor.isfinite().all() for tensor in run(optimizer, params))


def bad_values(option):
    values = [*BAD[option.type], *([] if option.optional else [None])]
    values += [bound for bound in (option.gt, option.lt) if bound is not None]
    values += [bound - 1 for bound in (option.ge, option.gt) if bound is not None]
    return values + [bound + 1 for bound in (option.le, option.lt) if bound is not None]


@pytest.mark.parametrize(
    ("stone", "option"),
    [pytest.param(s, option, id=f"{s.name}-{option.name}") for s in STONES for option in s.card.options],
)
def test_bad_options_are_refused_by_name_everywhere(stone, option):
    for value in bad_values(option):
        bad = {option.name: value}
        with pytest.raises(ValueError, match=f"{option.name}="):
            stone.load()(weights(), **bad)
        with pytest.raises(ValueError, match=f"{option.name}="):
            stone.load()([{"params": weights(), **bad}])
        optimizer = stone.load()(weights())
        with pytest.raises(ValueError, match=f"{option.name}="):
            optimizer.add_param_group({"params": weights(), **bad})
        assert len(optimizer.param_groups) == 1
