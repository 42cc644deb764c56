"""Used as people use layers: from threads, twice in a graph, frozen, checkpointed, with hooks, without gradients."""

import copy
import threading

import pytest
import torch
from harness import (
    STONES,
    Case,
    assert_near,
    assert_passes,
    assert_same,
    cases,
    normal,
    outputs,
    run,
    state,
)
from torch.utils.checkpoint import checkpoint


def batches(case, count):
    return [normal(case.shape(), seed=seed) for seed in range(count)]


@pytest.mark.parametrize("case", cases())
def test_four_threads_with_a_layer_each_do_not_disturb_each_other(case: Case):
    data = batches(case, 4)
    wanted = [run(case.layer(), x) for x in data]
    layers, found = [case.layer() for _ in data], {}

    def work(index):
        torch.set_num_threads(1)
        for _ in range(3):
            found[index] = run(copy.deepcopy(layers[index]), data[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, passes in enumerate(wanted):
        assert_passes(found[index], passes)


@pytest.mark.parametrize("case", cases(False))
def test_four_threads_may_share_a_layer_in_evaluation(case: Case):
    data = batches(case, 4)
    layer, found = case.layer(), {}
    wanted = [outputs(layer(x))[0] for x in data]

    def work(index):
        found[index] = [outputs(layer(data[index]))[0].detach() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, y in enumerate(wanted):
        for each in found[index]:
            assert_same(each, y.detach(), what="y")


def remembers(case):
    """Whether a training forward depends on the forwards before it, through the buffers."""
    layer, other = case.layer(), case.layer(warm=1)
    other.load_state_dict({**other.state_dict(), **dict(layer.named_parameters())})
    x = batches(case, 1)[0]
    return not torch.equal(outputs(layer(x))[0], outputs(other(x))[0])


@pytest.mark.parametrize("stone", STONES, ids=lambda stone: stone.name)
def test_training_remembers_where_the_card_says_so(stone):
    """A card may say so of a schedule that has not begun; it must be true of one of the examples."""
    measured = [(case, remembers(case)) for case in (Case(stone, options) for options in stone.card.examples)]
    assert all(case.remembers for case, true in measured if true)
    assert any(true for _, true in measured) == any(case.remembers for case, _ in measured)


def backward_writes(case):
    """Whether a backward moves buffers, so that the order of forwards and backwards matters."""
    layer = case.layer()
    y = outputs(layer(batches(case, 1)[0].requires_grad_()))[0]
    before = state(layer)
    y.backward(normal(y.shape, seed=7))
    return any(not torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


@pytest.mark.parametrize("case", cases())
def test_only_a_backward_that_is_no_derivative_writes_buffers(case: Case):
    assert not (case.exact and backward_writes(case))


@pytest.mark.parametrize("case", cases())
def test_twice_in_one_graph_is_the_sum_of_two_uses(case: Case):
    if backward_writes(case):
        return
    layer, first = case.layer(), case.layer()
    left, right = (x.requires_grad_() for x in batches(case, 2))
    upstreams = [normal(case.output(case.shape()), seed=7 + step) for step in range(2)]
    ys = [outputs(layer(x))[0] for x in (left, right)]
    torch.autograd.backward(ys, upstreams)
    ours = {name: parameter.grad for name, parameter in layer.named_parameters()}

    one = run(first, left, upstreams[0])
    second = copy.deepcopy(first)
    two = run(second, right, upstreams[1])
    for y, wanted in zip(ys, (one, two), strict=True):
        assert_near(y.detach(), wanted.y, 1e-12, what="y")
    assert_near(left.grad, one.x, 1e-10, what="gradient of the first input")
    assert_near(right.grad, two.x, 1e-10, what="gradient of the second input")
    for name, gradient in ours.items():
        assert_near(gradient, one.parameters[name] + two.parameters[name], 1e-10, what=f"gradient of {name}")


@pytest.mark.parametrize("case", [case for case in cases() if case.values[0].follows_itself])
def test_a_layer_may_follow_itself(case: Case):
    if backward_writes(case):
        return
    layer, pioneer = case.layer(), case.layer()
    x = batches(case, 1)[0].requires_grad_()
    upstream = normal(case.output(case.output(case.shape())), seed=7)
    y = outputs(layer(outputs(layer(x))[0]))[0]
    y.backward(upstream)

    middle = outputs(pioneer(x.detach()))[0].detach()
    after = run(pioneer, middle, upstream)
    before = run(case.layer(), x, after.x)
    assert_near(y.detach(), after.y, 1e-12, what="y")
    assert_near(x.grad, before.x, 1e-9, what="gradient of x")
    for name, gradient in before.parameters.items():
        total = gradient + after.parameters[name]
        assert_near(layer.get_parameter(name).grad, total, 1e-9, what=f"gradient of {name}")


@pytest.mark.parametrize("case", cases())
def test_backward_twice_gives_the_same_twice(case: Case):
    layer = case.layer()
    leaves = (batches(case, 1)[0].requires_grad_(), *layer.parameters())
    y = outputs(layer(leaves[0]))[0]
    upstream = normal(y.shape, seed=7)
    first = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, upstream), first, strict=True):
        assert_same(ours, theirs, what="gradient")


@pytest.mark.parametrize("case", cases())
def test_checkpointing_changes_nothing(case: Case):
    """The recomputed forward of a layer that remembers sees statistics that have moved: no promise there."""
    if case.train and case.remembers:
        return
    layer = case.layer()
    x = batches(case, 1)[0]
    wanted = run(case.layer(), x)
    found = run(layer, x, call=lambda leaf: checkpoint(layer, leaf, use_reentrant=False))
    assert_same(found.y, wanted.y, what="y")
    assert_near(found.x, wanted.x, 1e-12, what="gradient of x")
    for name, gradient in wanted.parameters.items():
        assert_near(found.parameters[name], gradient, 1e-12, what=f"gradient of {name}")


@pytest.mark.parametrize("case", cases())
def test_frozen_parts_get_no_gradient_and_the_others_theirs(case: Case):
    x = batches(case, 1)[0]
    wanted = run(case.layer(), x)
    names = list(wanted.parameters)
    for alive in ([], *([name] for name in names), ["x"], ["x", *names[:1]]):
        layer = case.layer()
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in alive)
        leaf = x.clone().requires_grad_("x" in alive)
        y = outputs(layer(leaf))[0]
        assert_near(y.detach(), wanted.y, 1e-12, what="y")
        assert y.requires_grad == bool(alive)
        if alive:
            y.backward(normal(y.shape, seed=7))
        for name, tensor in {"x": leaf, **dict(layer.named_parameters())}.items():
            if name in alive:
                goal = wanted.tensors()[f"gradient of {name}"]
                assert_near(tensor.grad, goal, 1e-12, what=f"gradient of {name} alone")
            else:
                assert tensor.grad is None, name


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("case", cases())
def test_without_gradients_the_same_happens_and_training_goes_on(case: Case, quiet):
    layer, twin = case.layer(), case.layer()
    first, second = batches(case, 2)
    wanted = outputs(twin(first.clone().requires_grad_()))[0].detach()
    with quiet():
        y = outputs(layer(first))[0]
    assert not y.requires_grad
    assert_near(y.clone(), wanted, 1e-12, what="y")
    for name, buffer in state(twin).items():
        ours = dict(layer.named_buffers())[name]
        assert not ours.is_inference()
        assert_near(ours, buffer, 1e-12, what=f"buffer {name}")
    found = run(layer, second)
    assert found.x.isfinite().all()


@pytest.mark.parametrize("case", cases())
def test_hooks_see_what_passes(case: Case):
    layer, seen = case.layer(), []
    x = batches(case, 1)[0]
    wanted = run(case.layer(), x)
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    layer.register_forward_hook(lambda module, inputs, y: seen.append(outputs(y)[0].detach().clone()))
    layer.register_full_backward_pre_hook(lambda module, upstream: seen.append(upstream[0].clone()))
    layer.register_full_backward_hook(lambda module, inputs, upstream: seen.append(inputs[0].clone()))
    found = run(layer, x)
    assert_passes(found, wanted)
    for ours, theirs in zip(seen, (x, wanted.y, normal(wanted.y.shape, seed=7), wanted.x), strict=True):
        assert_same(ours, theirs, what="what a hook saw")
