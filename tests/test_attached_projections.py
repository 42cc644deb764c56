"""Projections attached to optimizers, copies of these, and several processes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from attaching import LAM, OPTIMIZERS, RATE, convolutions, network, step_on_nothing, train
from torch import distributed, multiprocessing, nn

from layers.attached import Penalized, Projected
from layers.card import OptionError
from layers.regularize import bbn, omd, shifted_l2, svb


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_a_step_of_every_optimizer_the_singular_values_are_in_the_band(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters(), lr=1.0 if name != "Rprop" else RATE)
    svb.attach(optimizer, model, factor=1.2)
    for parameter in train(model, optimizer):
        values = torch.linalg.svdvals(parameter)
        assert values.max() < 1.2 + 1e-9
        assert values.min() > 1 / 1.2 - 1e-9


def test_every_third_step_counts_and_training_resumes_where_it_stopped():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    handle, calm = svb.attach(optimizer, model, every=3, factor=1.1), []
    for step in range(5):
        if step == 4:
            kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
        train(model, optimizer, steps=1)
        calm.append(bool(torch.linalg.svdvals(model[0].weight).max() < 1.1 + 1e-9))
    assert calm == [False, False, True, False, False]
    assert kept[2] == {"steps": 4}
    train(model, optimizer, steps=1)

    resumed = network()
    again = torch.optim.SGD(resumed.parameters(), lr=RATE, momentum=0.9)
    other = svb.attach(again, resumed, every=3, factor=1.1)
    for target, state in zip((resumed, again, other), kept, strict=True):
        target.load_state_dict(state)
    for _ in range(2):
        train(resumed, again, steps=1)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other.steps == handle.steps == 6


def test_a_penalty_waits_for_its_step_too():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    omd.attach(optimizer, model, lam=LAM, every=2)
    moved = []
    for _ in range(4):
        before = model[0].weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved.append(not torch.equal(model[0].weight, before))
    assert moved == [False, True, False, True]


def test_a_projection_can_be_asked_for_and_taken_away():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    handle = svb.attach(optimizer, model, every=100)
    handle.apply()
    assert torch.linalg.svdvals(model[0].weight).max() < 1.5 + 1e-9
    handle.remove()
    handle.remove()
    nn.init.constant_(model[0].weight, 3.0)
    train(model, optimizer, steps=1)
    assert torch.linalg.svdvals(model[0].weight).max() > 10
    assert handle.steps == 0


def test_kernels_are_projected_by_group_and_what_is_no_kernel_is_skipped_with_a_reason():
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    handle = svb.attach(optimizer, model)
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    step_on_nothing(optimizer)
    torch.testing.assert_close(model[0].weight.detach(), svb.svb(before[0], groups=2))
    torch.testing.assert_close(model[2].weight.detach(), svb.svb(before[1], groups=2, transposed=True))
    assert handle.names == ("0.weight", "2.weight")
    assert set(handle.names) | set(handle.skipped) == {name for name, _ in model.named_parameters()}
    assert handle.skipped["0.bias"] == "a bias"
    assert handle.skipped["1.weight"] == "γ of a normalization"
    assert handle.skipped["3.weight"].startswith("WSConv2d computes")
    assert handle.skipped["4.parametrizations.weight.original1"].startswith("parametrized")


def test_what_the_optimizer_does_not_hold_is_skipped():
    model = network()
    handle = svb.attach(torch.optim.SGD([model[2].weight], lr=RATE), model)
    assert handle.names == ("2.weight",)
    assert handle.skipped == {"0.weight": "the optimizer does not hold it"}


def test_what_the_optimizer_is_given_later_is_touched_from_then_on():
    model = network()
    optimizer = torch.optim.SGD([model[0].weight], lr=0.0)
    handle = svb.attach(optimizer, model, factor=1.2)
    optimizer.add_param_group({"params": [model[2].weight]})
    assert handle.names == ("0.weight", "2.weight")
    assert handle.skipped == {}
    step_on_nothing(optimizer)
    assert torch.linalg.svdvals(model[2].weight).max() < 1.2 + 1e-9


def test_the_shifted_decay_is_attached_to_kernels_of_convolutions():
    model = convolutions()
    optimizer = torch.optim.SGD(shifted_l2.param_groups(model, weight_decay=0.1), lr=RATE)
    handle = shifted_l2.attach(optimizer, model, lam=LAM, eps=0.1)
    weight, gamma = model[3].weight.detach().clone(), model[1].weight.detach().clone()
    step_on_nothing(optimizer)
    expected = weight - RATE * shifted_l2.shifted_l2_gradient(weight, LAM, 0.1)
    torch.testing.assert_close(model[3].weight.detach(), expected)
    torch.testing.assert_close(model[1].weight.detach(), gamma * (1 - 0.1 * RATE))
    assert handle.names == ("0.weight", "3.weight", "4.parametrizations.weight.original1")
    assert handle.skipped["2.weight"] == "a transposed convolution: keeps its ordinary weight decay"


@pytest.mark.parametrize("type", ["rel", "bbn"])
def test_gammas_are_bounded_after_the_step(type):
    model = convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    handle = bbn.attach(optimizer, model, factor=1.5, type=type)
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.1, 3, 6))
    twin = copy.deepcopy(model)
    step_on_nothing(optimizer)
    assert handle.names == ("1.weight",)
    torch.testing.assert_close(model[1].weight, bbn.bbn(twin, 1.5, type)[1].weight)


def test_an_optimizer_with_something_attached_can_be_copied_and_pickled_without_it():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    handles = svb.attach(optimizer, model), omd.attach(optimizer, model, lam=LAM)
    assert isinstance(handles[0], Projected)
    assert isinstance(handles[1], Penalized)
    train(model, optimizer, steps=1)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        before = [parameter.detach().clone() for parameter in copied.param_groups[0]["params"]]
        copied.zero_grad()
        copied.step()
        torch.testing.assert_close([p.detach() for p in copied.param_groups[0]["params"]], before, rtol=0, atol=0)
    assert handles[0].steps == handles[1].steps == 1


def test_copied_with_its_optimizer_and_model_a_technique_is_attached_to_the_copies():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    handles = svb.attach(optimizer, model, factor=1.1, every=2), omd.attach(optimizer, model, lam=LAM)
    train(model, optimizer, steps=1)
    copied, stepper, others = copy.deepcopy((model, optimizer, handles))
    assert others[0].names == handles[0].names
    for found, expected in zip(train(copied, stepper), train(model, optimizer), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [handle.steps for handle in others] == [4, 4]
    others[1].remove()
    train(copied, stepper, steps=1)
    assert [handle.steps for handle in (*others, *handles)] == [5, 4, 4, 4]
    assert copy.deepcopy((stepper, others[1]))[0]._optimizer_step_post_hooks == {}


def test_kernels_that_are_complex_or_empty_are_passed_over_and_harmless(recwarn):
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2, dtype=torch.complex64), nn.Linear(3, 0), nn.Linear(0, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    recwarn.clear()  # torch's, of empty tensors
    for handle in (svb.attach(optimizer, model), omd.attach(optimizer, model, lam=LAM)):
        assert handle.names == ("0.weight", "2.weight", "3.weight")
        assert handle.skipped["1.weight"] == "torch.complex64: real floating-point weights alone"
    step_on_nothing(optimizer)
    assert torch.linalg.svdvals(model[0].weight).min() > 1 / 1.5 - 1e-6
    layer = nn.Conv2d(4, 4, 3, dtype=torch.complex64)
    with pytest.raises(OptionError, match=r"0\.weight: torch\.complex64, not real floating-point: keeps its ordinary"):
        shifted_l2.attach(torch.optim.SGD(layer.parameters(), lr=RATE), nn.Sequential(layer))


def work(rank, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for broadcast in (True, False):
        torch.manual_seed(rank)
        model = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        start = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        svb.attach(optimizer, model, broadcast=broadcast)
        step_on_nothing(optimizer)
        found[broadcast] = svb.svb(start), model.weight.detach().clone()
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_rank_0_projects_for_all_ranks_that_ask_for_it(tmp_path):
    multiprocessing.spawn(work, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for found in (first, second):
        torch.testing.assert_close(found[True][1], first[True][0], rtol=0, atol=0)
        torch.testing.assert_close(found[False][1], found[False][0], rtol=0, atol=0)
    assert not torch.equal(first[False][1], second[False][1])
