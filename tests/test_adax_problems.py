"""How AdaX weighs gradients, and what it does on published problems on which Adam fails."""

import math

import pytest
import torch

from layers.adax_optimizer import newest
from layers.adax_proofs import impulse_gain
from layers.optim.adax import AdaX, card
from profiles.races.problems import DECAY


def test_the_newest_gradient_weighs_less_and_less():
    found = [newest(1e-4, t) for t in range(1, 2000)]
    assert found[0] == pytest.approx(1, abs=1e-12)
    assert found[9] == pytest.approx(1e-4 / (1.0001**10 - 1), rel=1e-9)
    assert sorted(found, reverse=True) == found
    assert newest(1e-4, 74_261) > 2**-24 > newest(1e-4, 74_262) > 0
    assert newest(1e-4, 10**9) == 0


@pytest.mark.parametrize(
    ("beta1", "gain", "within"),
    [(0.0, 1.0, 1e-12), (0.9, 2.855543514904, 1e-12), (0.99, 8.8498, 1e-5), (0.999, 27.0338, 1e-5)],
)
def test_one_gradient_moves_by_a_bounded_multiple_of_the_learning_rate(beta1, gain, within):
    """Where Adam's sum is infinite once β₁ ≥ √β₂."""
    found = impulse_gain(beta1, 1e-4, 40_000)
    assert found == pytest.approx(gain, rel=within)
    assert found < math.sqrt(1.0001 / 1e-4)


def test_on_the_problem_of_reddi_it_finds_the_side_that_adam_does_not():
    """f is 4x once in three steps and −x else, on [−1, 1]: the sum falls towards −1."""
    ends = {}
    for name, make in {
        "adam": lambda params: torch.optim.Adam(params, lr=0.5, betas=(0.0, 1 / 17)),
        "adax": lambda params: AdaX(params, lr=0.5, beta1=0.0, weight_decay=0.0),
    }.items():
        x = torch.zeros(1, requires_grad=True)
        optimizer = make([x])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) ** -0.5)
        for step in range(300):
            x.grad = torch.tensor([4.0 if step % 3 == 0 else -1.0])
            optimizer.step()
            scheduler.step()
            x.data.clamp_(-1, 1)
        ends[name] = x.item()
    assert ends["adax"] < -0.8
    assert ends["adam"] > 0.8


def test_steps_vanish_with_the_gradient_where_those_of_adam_do_not():
    """With g = λᵗ Adam's steps tend to η(1 − β₁)/(λ − β₁) √((λ² − β₂)/(1 − β₂)) once λ² > β₂."""
    decay, beta2, lr = 0.97, 0.9, 1e-3
    expected = lr * 0.1 / (decay - 0.9) * math.sqrt((decay**2 - beta2) / (1 - beta2))
    last = {}
    for name, make in {
        "adam": lambda params: torch.optim.Adam(params, lr=lr, betas=(0.9, beta2), eps=1e-30),
        "adax": lambda params: AdaX(params, lr=lr, eps=1e-30, weight_decay=0.0),
    }.items():
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = make([x])
        for t in range(600):
            before = x.item()
            x.grad = torch.full_like(x, decay**t)
            optimizer.step()
        last[name] = before - x.item()
    assert last["adam"] == pytest.approx(expected, rel=1e-3)
    assert last["adax"] < 1e-5 * lr


def decaying_step(t):
    """m/√v̂ at step t of the gradients λᵗ."""
    ratio = DECAY**2 / 1.0001
    m = 0.1 * DECAY * (DECAY**t - 0.9**t) / (DECAY - 0.9)
    return m / math.sqrt(1e-4 * ratio * (1 - ratio**t) / ((1 - ratio) * (1 - 1.0001**-t)))


def test_the_races_of_the_card_expect_what_the_formulas_say():
    expected = {(race.problem, race.measure): (race.expected, race.steps) for race in card.races}
    travel, steps = expected["decay", "travel"]
    assert travel == pytest.approx(math.fsum(map(decaying_step, range(1, steps + 1))), rel=1e-12)
    pace, steps = expected["decay", "pace"]
    assert pace == pytest.approx(decaying_step(steps), rel=1e-11)
    impulse, steps = expected["impulse", "travel"]
    assert impulse == pytest.approx(impulse_gain(0.9, 1e-4, steps), rel=1e-12)
