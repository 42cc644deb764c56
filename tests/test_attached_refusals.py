"""What is refused when a technique is attached to an optimizer, and at its steps."""

from __future__ import annotations

import pytest
import torch
from attaching import LAM, RATE, convolutions, loss_of, network, step_on_nothing
from torch import nn

from layers.card import OptionError
from layers.regularize import bbn, omd, shifted_l2, svb


@pytest.mark.parametrize("module", [svb, omd, shifted_l2, bbn])
@pytest.mark.parametrize(
    ("every", "message"), [(0, "every=0 is out of range: it must be an integer ≥ 1"), (1.5, "every=1.5")]
)
def test_a_count_of_steps_below_one_is_refused(module, every, message):
    model = convolutions()
    with pytest.raises(OptionError, match=message):
        module.attach(torch.optim.SGD(model.parameters(), lr=RATE), model, every=every)


@pytest.mark.parametrize("module", [svb, omd, shifted_l2, bbn])
def test_an_optimizer_of_another_model_is_refused(module):
    with pytest.raises(OptionError, match="the optimizer holds no parameter of this Sequential"):
        module.attach(torch.optim.SGD(convolutions().parameters(), lr=RATE), convolutions())


def test_a_model_with_nothing_to_touch_is_refused_with_the_reason():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with pytest.raises(OptionError, match=r"is to be touched \(0\.weight: a linear layer"):
        shifted_l2.attach(optimizer, model)
    optimizer.step()


def test_two_decays_of_one_parameter_are_refused_by_name():
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=1e-4)
    with pytest.raises(OptionError, match=r"0\.weight would decay twice: its group has weight_decay=0\.0001"):
        shifted_l2.attach(optimizer, model)
    optimizer.param_groups[0]["weight_decay"] = 0
    shifted_l2.attach(optimizer, model)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(OptionError, match="decay twice"):
        step_on_nothing(optimizer)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
@pytest.mark.parametrize(("module", "lam", "limit"), [(shifted_l2, 20.0, "2"), (omd, 5.0, "0.5")])
def test_a_rate_that_overshoots_is_refused_at_once_and_later(module, lam, limit, lr):
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with pytest.raises(OptionError, match=rf"lr=0.1 × lam={lam:g} is not below {limit}: 0.weight would overshoot"):
        module.attach(optimizer, model, lam=lam)
    module.attach(optimizer, model, lam=lam / 2)
    optimizer.param_groups[0]["lr"] = 10.0
    with pytest.raises(OptionError, match="overshoot"):
        step_on_nothing(optimizer)


def test_below_the_limit_the_penalty_of_orthonormality_settles_and_above_it_does_not():
    def distance(rate):
        weight = torch.eye(3, dtype=torch.float64) * 1.01
        for _ in range(2000):
            weight -= rate * omd.omd_gradient(weight, 1.0)
        return omd.omd(weight, 1.0).item()

    assert distance(0.45) < 1e-20
    assert distance(0.55) > 1e-3


def test_a_filter_without_variance_is_refused_by_name_and_number():
    model = convolutions()
    nn.init.zeros_(model[3].weight[2])
    with pytest.raises(OptionError, match=r"3\.weight: filter 2 has no variance"):
        shifted_l2.attach(torch.optim.SGD(model.parameters(), lr=RATE), model)


def test_gammas_that_cancel_are_refused_by_name():
    model = convolutions()
    nn.init.zeros_(model[1].weight)
    with pytest.raises(OptionError, match="1: the mean of γ is 0"):
        bbn.attach(torch.optim.SGD(model.parameters(), lr=RATE), model)


def test_scaled_gradients_are_refused():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    omd.attach(optimizer, model, lam=LAM, decoupled=False)
    loss_of(model).backward()
    optimizer.grad_scale = torch.tensor(1024.0)  # as a GradScaler does for a fused optimizer
    with pytest.raises(OptionError, match=r"scaler\.unscale_\(optimizer\)"):
        optimizer.step()


@pytest.mark.parametrize("state", [{}, {"steps": -1}, {"steps": 1.5}, {"steps": 1, "lr": 2}])
def test_a_foreign_state_is_refused(state):
    handle = svb.attach(torch.optim.SGD((model := network()).parameters(), lr=RATE), model)
    with pytest.raises(OptionError, match="is no state of an attached technique"):
        handle.load_state_dict(state)
