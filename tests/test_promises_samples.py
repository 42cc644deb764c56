"""What training changes and evaluation does not, and which samples meet: as declared on the card, both ways."""

import copy
from dataclasses import replace

import pytest
import torch
from harness import BATCH, CHANNELS, STONES, Case, assert_near, assert_passes, assert_same, cases, normal, outputs, run

EVERY = cases(True, False)


def changed(case, layer, x, sample=0):
    """The outputs for ``x`` and for ``x`` with other numbers in one sample, from copies of one layer."""
    other = x.clone()
    other[sample] = 3 - 2 * x[sample].flip(0)
    return [outputs(copy.deepcopy(layer)(each))[0] for each in (x, other)]


def meets(case):
    """Whether changing one sample changes the output of another by more than the order of a sum does."""
    for shape in case.shapes():
        before, after = changed(case, case.layer(), normal(shape, seed=1))
        if len(before) != len(normal(shape)):  # the first axis of the output is not that of the samples
            return True
        if not torch.allclose(before[1:], after[1:], rtol=0, atol=1e-13 * before.abs().max().item()):
            return True
    return False


def differs(stone, options):
    """Whether evaluation gives another output than training on the same layer, for data like the past or not."""
    train, evaluate = (Case(stone, options, mode) for mode in (True, False))
    x = normal(train.shape(), seed=1)
    pairs = [[outputs(case.layer()(data))[0] for case in (train, evaluate)] for data in (x, 9 * x + 40)]
    return any((ours - theirs).abs().max().item() > 1e-6 for ours, theirs in pairs)


@pytest.mark.parametrize("case", cases(False))
def test_evaluation_changes_no_state_and_repeats_itself(case: Case):
    layer = case.layer(torch.float32)
    before = copy.deepcopy(layer.state_dict())
    x = normal(case.shape(), dtype=torch.float32)
    first = run(layer, x)
    assert_passes(run(layer, x), first)
    for name, tensor in layer.state_dict().items():
        assert_same(tensor, before[name], what=name)


@pytest.mark.parametrize("stone", STONES, ids=lambda stone: stone.name)
def test_evaluation_differs_where_the_card_says_so(stone):
    for options in stone.card.examples:
        assert differs(stone, options) == Case(stone, options).eval_differs, options


@pytest.mark.parametrize("case", [case for case in cases(True) if not case.values[0].eval_differs])
def test_where_it_does_not_differ_evaluation_is_training_bit_for_bit(case: Case):
    for shape in case.shapes():
        x = normal(shape, seed=1)
        found, wanted = run(case.layer().eval(), x), run(case.layer(), x)
        assert_passes(replace(found, buffers={}), replace(wanted, buffers={}))


@pytest.mark.parametrize("stone", STONES, ids=lambda stone: stone.name)
def test_samples_meet_where_the_card_says_so(stone):
    """Of examples whose evaluation is their training (they track nothing), evaluation is not counted if others are."""
    examples = stone.card.examples
    training = any(meets(Case(stone, options, True)) for options in examples)
    different = [options for options in examples if differs(stone, options)]
    evaluation = any(meets(Case(stone, options, False)) for options in different or examples)
    assert (training, evaluation) == {
        "never": (False, False),
        "train": (True, False),
        "always": (True, True),
    }[stone.card.couples]


@pytest.mark.parametrize("case", EVERY)
def test_samples_that_do_not_meet_have_no_gradient_in_common(case: Case):
    shape = case.shape()
    x = normal(shape, seed=1).requires_grad_()
    y = outputs(case.layer()(x))[0]
    (gradient,) = torch.autograd.grad((y[0] * normal(y.shape[1:], seed=7)).sum(), x)
    assert gradient[0].any()
    if not meets(case) and case.exact:  # a rule for the backward may give all samples something in common
        assert not gradient[1:].any()


@pytest.mark.parametrize("case", EVERY)
def test_samples_that_do_not_meet_are_computed_alone_and_in_any_order(case: Case):
    if meets(case):
        return
    for shape in case.shapes():
        x = normal(shape, seed=1)
        y = outputs(case.layer()(x))[0]
        order = torch.tensor([2, 0, 3, 1])
        assert_near(outputs(case.layer()(x[order]))[0], y[order], 1e-12, what="the permuted batch")
        if not case.refusal((1, *shape[1:])):
            assert_near(outputs(case.layer()(x[2:3]))[0], y[2:3], 1e-12, what="the sample alone")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", EVERY)
def test_nan_and_inf_stay_in_their_sample_and_do_not_vanish(case: Case, bad):
    for shape in case.shapes((BATCH, CHANNELS, 3, 4), (BATCH, CHANNELS)):
        x = normal(shape, seed=1, dtype=torch.float32)
        clean = outputs(case.layer(torch.float32)(x))[0]
        x[(1, 2, *(0 for _ in shape[2:]))] = bad
        y = outputs(case.layer(torch.float32)(x))[0]
        assert not (y[1] if len(y) == len(x) else y).isfinite().all()
        if not meets(case):
            for sample in (0, 2, 3):
                assert_same(y[sample], clean[sample], what=f"sample {sample}")
