"""`modulate`: points behind the layers of a whole model, as a handle that can be removed, copied, saved and shared."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from harness import assert_near, assert_same, normal
from modulated import images, loss, network, rms, watched
from torch import nn
from torch.utils.checkpoint import checkpoint

from layers.backward.omd_modulation import ErrorModulation, modulate
from layers.card import OptionError


def test_a_modulated_model_gives_the_same_outputs_and_state():
    model, plain = network(), network()
    modulate(model)
    assert_same(model(images()), plain(images()), what="y")
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_where_no_error_comes_back_nothing_is_copied():
    model, seen = network(), []
    modulate(model)
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output), prepend=True)
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        model(images())
    assert seen[0] is seen[1]


def test_removed_it_is_the_model_that_it_was():
    model = network()
    plain, gradients = watched(model)
    handle = modulate(model)
    watched(model)
    handle.remove()
    handle.remove()
    assert handle.names == ("0", "3", "6", "10")
    found, same = watched(model)
    assert found == plain
    for ours, theirs in zip(same, gradients, strict=True):
        assert_same(ours, theirs, what="weight gradient")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_second_backward_gives_the_same_and_nothing_is_kept_alive():
    model = network()
    modulate(model)
    value = loss(model)
    first = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(value, list(model.parameters())), first, strict=True):
        assert_same(ours, theirs, what="gradient")
    gc.disable()
    try:
        x = images().requires_grad_()
        y = model(x)
        alive = weakref.ref(x), weakref.ref(y)
        y.sum().backward()
        del x, y
        assert [each() for each in alive] == [None, None]
    finally:
        gc.enable()


def test_two_forwards_before_their_backwards_do_not_meet():
    model = network()
    wanted = []
    handle = modulate(model)
    for seed in (1, 2):
        wanted.append(torch.autograd.grad(loss(model, images(seed)), list(model.parameters())))
    values = [loss(model, images(seed)) for seed in (1, 2)]
    for value, theirs in zip(values, wanted, strict=True):
        for ours, gradient in zip(torch.autograd.grad(value, list(model.parameters())), theirs, strict=True):
            assert_same(ours, gradient, what="gradient")
    assert handle.steps == 4


def test_threads_that_share_a_modulated_model_do_not_meet():
    model = network().eval()
    modulate(model)
    parameters, found = list(model.parameters()), {}
    wanted = [torch.autograd.grad(loss(model, images(seed)), parameters) for seed in range(4)]

    def work(seed):
        torch.set_num_threads(1)
        for _ in range(5):
            found[seed] = torch.autograd.grad(loss(model, images(seed)), parameters)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, gradients in enumerate(wanted):
        for ours, theirs in zip(found[seed], gradients, strict=True):
            assert_same(ours, theirs, what="gradient")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_modulated_by_itself(copied):
    model = network()
    handle = modulate(model)
    twin = copied(model)
    handle.remove()
    found, _ = watched(twin)
    assert found == pytest.approx([found[-1]] * 4, rel=1e-12)
    assert handle.steps == 0


def test_an_error_in_the_forward_closes_the_pass():
    model = network()
    modulate(model)
    with pytest.raises(RuntimeError):
        model(images()[:, :2])
    plain = network()
    plain(images())
    found, _ = watched(model)
    assert found == pytest.approx([found[-1]] * 4, rel=1e-12)


def test_a_layer_that_is_called_by_itself_is_not_modulated():
    model, plain = network(), network()
    modulate(model)
    for ours, theirs in zip(
        torch.autograd.grad(loss(model[:6]), list(model[:6].parameters())),
        torch.autograd.grad(loss(plain[:6]), list(plain[:6].parameters())),
        strict=True,
    ):
        assert_same(ours, theirs, what="gradient")


def test_an_operation_in_place_may_follow_a_layer():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1)).double()
    modulate(model)
    found, _ = watched(model)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_checkpointed_point_does_what_its_own_forward_said():
    """The forward that is run again counts, and would not act; what it says is not what the error meets."""
    layer, x = ErrorModulation(3, 0.5, every=2), images().requires_grad_()
    for step in range(2):
        y = checkpoint(lambda x: layer(x).sin(), x, use_reentrant=False)
        (gradient,) = torch.autograd.grad(y, x, normal(x.shape, seed=2))
        assert rms(gradient) == pytest.approx(0.5, rel=1e-12)
        assert layer.steps == 2 * (step + 1)


def test_counting_continues_from_a_saved_state():
    model, other = network(), network()
    handle, resumed = modulate(model, every=3), modulate(other, every=3)
    for _ in range(2):
        model(images())
    resumed.load_state_dict(handle.state_dict())
    assert resumed.steps == handle.steps == 2
    for state in ({}, {"steps": -1}, {"steps": 1.5}, {"steps": 1, "more": 2}):
        with pytest.raises(OptionError, match="is no state of an attached technique"):
            resumed.load_state_dict(state)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.ReLU()), {}, "no convolution or linear layer"),
        (nn.Linear(2, 2), {"target": 0.0}, "target=0.0 is out of range"),
        (nn.Linear(2, 2), {"every": 0}, "every=0 is out of range"),
        (nn.Linear(2, 2), {"low": 1.5}, "low=1.5 is out of range"),
        (nn.Linear(2, 2), {"high": 0.5}, "high=0.5 is out of range"),
        (nn.Linear(2, 2), {"until_step": -1}, "until_step=-1 is out of range"),
    ],
)
def test_what_cannot_be_modulated_is_refused(model, options, message):
    with pytest.raises(OptionError, match=message):
        modulate(model, **options)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_is_not_modulated_twice():
    model = network()
    handle = modulate(model)
    with pytest.raises(OptionError, match="modulated already"):
        modulate(model)
    handle.remove()
    modulate(model)


def test_a_single_linear_layer_is_a_model_too():
    model = nn.Linear(3, 3).double()
    modulate(model, target=0.5)
    x = normal((4, 3)).requires_grad_()
    error = []
    model.register_forward_hook(lambda *seen: error.append(seen[2]))
    model(x).square().sum().backward()
    assert_near(x.grad, 0.5 * (2 * error[0] / rms(2 * error[0])).detach() @ model.weight.detach(), 1e-12, what="x")
