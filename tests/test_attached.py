"""Penalties attached to optimizers: when, to what, with which rate, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from attaching import LAM, OPTIMIZERS, RATE, loss_of, network, of, train

from layers.regularize import omd, svb


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decoupled_every_optimizer_starts_from_decayed_weights(name):
    left, right = network(), network()
    attached, plain = (OPTIMIZERS[name](model.parameters(), lr=RATE) for model in (left, right))
    handle = omd.attach(attached, left, lam=LAM)

    @torch.no_grad()
    def decay():
        for parameter in right.parameters():
            parameter -= RATE * omd.omd_gradient(parameter, LAM)

    assert handle.names == ("0.weight", "2.weight")
    torch.testing.assert_close(train(left, attached), train(right, plain, before=decay), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_every_optimizer_sees_the_gradient_of_the_sum(name):
    left, right = network(), network()
    attached, plain = (OPTIMIZERS[name](model.parameters(), lr=RATE) for model in (left, right))
    omd.attach(attached, left, lam=LAM, decoupled=False)
    found, expected = train(left, attached), train(right, plain, penalty=lambda: of(right))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decoupled", [True, False])
def test_a_closure_gives_the_same_steps(name, decoupled):
    models, returned = (network(), network()), []
    for model in models:
        optimizer = OPTIMIZERS[name](model.parameters(), lr=RATE)
        omd.attach(optimizer, model, lam=LAM, decoupled=decoupled)
        if model is models[0]:
            train(model, optimizer)
            continue
        for step in range(3):
            penalty = 0.0 if decoupled else of(model).item()

            def closure(optimizer=optimizer, model=model, step=step):
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            value = loss_of(model, step).item() + penalty
            returned.append(optimizer.step(closure).item() - value)
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=0, atol=0)
    assert max(map(abs, returned)) < 1e-12


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_minimizes_the_sum(search):
    models = network(), network()
    for i, model in enumerate(models):
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.2, line_search_fn=search)
        if i == 0:
            omd.attach(optimizer, model, lam=LAM, decoupled=False)

        def closure(optimizer=optimizer, model=model, penalized=i == 1):
            optimizer.zero_grad()
            loss = loss_of(model) + (of(model) if penalized else 0)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=1e-7, atol=1e-8)


def test_decoupled_lbfgs_decays_once_a_step():
    models, calls = (network(), network()), []
    for i, model in enumerate(models):
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
        if i == 0:
            omd.attach(optimizer, model, lam=LAM)

        def closure(optimizer=optimizer, model=model, by_hand=i == 1):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            calls.append(by_hand)
            if by_hand and sum(calls) == 1:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.1 * omd.omd_gradient(parameter, LAM)
            return loss

        optimizer.step(closure)
    assert calls.count(False) == calls.count(True) == 5
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()))


def test_the_gradients_are_afterwards_what_they_were():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    omd.attach(optimizer, model, lam=LAM, decoupled=False)
    loss_of(model).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    optimizer.step()
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    torch.testing.assert_close(gradients, values, rtol=0, atol=0)


@pytest.mark.parametrize("then", ["step", "remove"])
def test_a_step_that_fails_keeps_no_gradient(then):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    handle = omd.attach(optimizer, model, lam=LAM, decoupled=False)
    broken = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    loss_of(model).backward()
    gradient = model[0].weight.grad
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    broken.remove()
    assert model[0].weight.grad is not gradient
    weight = model[0].weight.detach().clone()
    optimizer.step() if then == "step" else handle.remove()
    assert model[0].weight.grad is gradient
    once = RATE * (gradient + omd.omd_gradient(weight, LAM)) if then == "step" else 0
    torch.testing.assert_close(model[0].weight.detach(), weight - once)


def test_a_penalty_is_minimized_where_the_loss_is_maximized():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, maximize=True)
    omd.attach(optimizer, model, lam=LAM, decoupled=False)
    weight = model[0].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), weight - RATE * omd.omd_gradient(weight, LAM))


def test_the_rate_is_that_of_the_group_at_each_step():
    model = network()
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[2].weight], "lr": torch.tensor(0.01)}]
    optimizer = torch.optim.SGD(groups)
    omd.attach(optimizer, model, lam=LAM)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    for rates in ((0.1, 0.01), (0.02, 0.3)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        expected = [w - rate * omd.omd_gradient(w, LAM) for w, rate in zip(expected, rates, strict=True)]
    torch.testing.assert_close([parameter.detach() for parameter in model.parameters()], expected)


@pytest.mark.parametrize("decoupled", [True, False])
def test_what_has_no_gradient_or_is_frozen_is_left_alone(decoupled):
    model = network()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    omd.attach(optimizer, model, lam=LAM, decoupled=decoupled)
    svb.attach(optimizer, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    torch.testing.assert_close(model[2].weight.detach(), before[1], rtol=0, atol=0)
    torch.testing.assert_close(model[0].weight.detach(), svb.svb(before[0]), rtol=0, atol=0)
