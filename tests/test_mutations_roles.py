"""The promises to what is no layer can fail: each lie and each bug here is caught by the test that must catch it."""

from dataclasses import replace

import pytest
import test_roles as cards
import test_roles_numbers as numbers
import torch
from planted import caught, planted
from roles import Use

from layers import catalog
from layers.card import Flops, Rule, Stat


def stone(role):
    return next(stone for stone in catalog.stones().values() if stone.card.role == role)


PENALTY, PROJECTION, OPTIMIZER = (stone(role) for role in ("penalty", "projection", "optimizer"))
SURPLUS = Rule("O > 0", "so many outputs are refused: {O}", "")
LIES = [
    (PENALTY, {"flops": Flops("E / 7", "E")}, cards.test_every_formula_gives_a_count),
    (PENALTY, {"flops": Flops("E", "0")}, cards.test_every_formula_gives_a_count),
    (PENALTY, {"state": (Stat("more", ("O",)),)}, cards.test_every_formula_gives_a_count),
    (
        OPTIMIZER,
        {"state": ()},
        lambda use: numbers.test_the_state_of_an_optimizer_is_that_of_the_card(use, torch.float64),
    ),
    (
        OPTIMIZER,
        {"state": (*OPTIMIZER.card.state, Stat("more", ("O",)))},
        lambda use: numbers.test_the_state_of_an_optimizer_is_that_of_the_card(use, torch.float64),
    ),
]
STONE_LIES = [
    (PENALTY, {"role": "projection"}, cards.test_it_is_called_as_its_role_says_with_the_options_of_the_card),
]


@pytest.mark.parametrize(
    ("honest", "lie", "test"), LIES, ids=[f"{lie[0].name}-{number}" for number, lie in enumerate(LIES)]
)
def test_a_lie_about_an_example_is_caught(honest, lie, test):
    liar = planted(honest.name, lie)
    test(Use(honest, {}))
    caught(test, Use(liar, {}))


@pytest.mark.parametrize("honest", [PENALTY, PROJECTION, OPTIMIZER], ids=lambda stone: stone.name)
def test_a_lie_about_an_option_is_caught(honest):
    test = cards.test_it_is_called_as_its_role_says_with_the_options_of_the_card
    first, *rest = honest.card.options
    test(honest)
    caught(test, planted(honest.name, {"options": (*rest, first)}))
    caught(test, planted(honest.name, {"options": (replace(first, default=first.default * 2), *rest)}))
    caught(test, planted(honest.name, {"role": "initializer" if honest.card.role != "optimizer" else "penalty"}))
    caught(cards.test_the_card_read_as_data_is_the_imported_one, planted(honest.name, {"title": "Another"}))


@pytest.mark.parametrize("honest", [PENALTY, PROJECTION], ids=lambda stone: stone.name)
def test_an_option_without_effect_or_check_is_caught(honest):
    true, option = honest.load(), honest.card.options[0]

    def deaf(weight, **options):
        return true(weight, **{name: value for name, value in options.items() if name != option.name})

    liar = planted(honest.name, made=deaf)
    cards.test_every_option_changes_something(honest, option)
    caught(cards.test_every_option_changes_something, liar, option)
    with pytest.raises(pytest.fail.Exception):
        cards.test_a_bad_option_is_refused_by_name(liar, option, "text")


def test_a_rule_that_nothing_breaks_is_caught():
    liar = planted(PENALTY.name, {"rules": (*PENALTY.card.rules, SURPLUS)})
    caught(cards.test_every_rule_refuses_something_in_the_cards_words, liar, SURPLUS)


# Bugs: what surrounds the true function.


def writes_weight(weight, true):
    result = true(weight)
    weight.detach().add_(1)
    return result


def forgets_a_gradient(weight, true):
    return true(torch.cat([weight[:1].detach(), weight[1:]]))


def supposes_strides(weight, true):
    return true(torch.as_strided(weight, weight.shape, torch.empty(weight.shape).stride()))


def is_a_little_off(weight, true):
    return true(weight) * (1 + 1e-6)


def is_off_for_linear_layers(weight, true):
    return true(weight) * (1 + 1e-6 * (weight.dim() == 2))


def stays_in_half_precision(weight, true):
    return true(weight if weight.dtype == torch.float64 else weight.to(torch.bfloat16)).to(weight.dtype)


def widens(weight, true):
    return true(weight).double()


def reads_values(weight, true):
    return true(weight) * (1 + 0 * weight.sum().item())


def draws(weight, true):
    return true(weight) + 1e-9 * torch.rand(())


def keeps_the_graph(weight, true):
    return true(weight) + 0 * weight


def returns_the_weight(weight, true):
    return weight.detach()


BUGS = [
    (PENALTY, writes_weight, numbers.test_the_weight_is_never_written),
    (PENALTY, forgets_a_gradient, numbers.test_a_penalty_and_its_gradient_are_those_of_the_reference),
    (PENALTY, forgets_a_gradient, numbers.test_a_penalty_can_be_derived_twice),
    (PENALTY, supposes_strides, numbers.test_every_layout_of_the_weight_gives_the_same),
    (PENALTY, is_a_little_off, numbers.test_a_penalty_and_its_gradient_are_those_of_the_reference),
    (PENALTY, is_off_for_linear_layers, numbers.test_a_penalty_and_its_gradient_are_those_of_the_reference),
    (PENALTY, widens, lambda use: numbers.test_every_dtype_loses_only_the_last_digits(use, torch.float32)),
    (
        PENALTY,
        stays_in_half_precision,
        lambda use: numbers.test_every_dtype_loses_only_the_last_digits(use, torch.float32),
    ),
    (PENALTY, reads_values, numbers.test_meta_tells_the_shape),
    (PENALTY, draws, numbers.test_the_same_twice_is_the_same_bit_for_bit_and_draws_no_random_number),
    (PROJECTION, writes_weight, numbers.test_the_weight_is_never_written),
    (PROJECTION, is_a_little_off, numbers.test_a_projection_is_that_of_the_reference),
    (PROJECTION, keeps_the_graph, numbers.test_a_projection_moves_some_weight_and_has_no_graph),
    (PROJECTION, returns_the_weight, numbers.test_a_projection_moves_some_weight_and_has_no_graph),
    (PROJECTION, supposes_strides, numbers.test_every_layout_of_the_weight_gives_the_same),
]


@pytest.mark.parametrize(("honest", "bug", "test"), BUGS, ids=lambda thing: getattr(thing, "__name__", "test"))
def test_a_bug_of_a_function_of_a_weight_is_caught(honest, bug, test):
    true = honest.load()
    liar = planted(honest.name, made=lambda weight, **options: bug(weight, lambda w: true(w, **options)))
    options = honest.card.examples[-1]
    test(Use(honest, options))
    caught(test, Use(liar, options))


def test_a_number_for_a_weight_that_is_accepted_is_caught():
    true = PENALTY.load()
    lax = planted(PENALTY.name, made=lambda weight, **options: true(weight) if weight.dim() > 1 else weight.sum())
    with pytest.raises(pytest.fail.Exception):
        numbers.test_what_is_no_weight_is_refused_in_words(Use(lax, {}))


def optimizer_with(**members):
    return Use(planted(OPTIMIZER.name, **members), {})


def slower(self, closure=None):
    for group in self.param_groups:
        group["lr"] *= 1 - 1e-6
    return OPTIMIZER.load().step(self, closure)


def noisy(self, closure=None):
    for group in self.param_groups:
        for parameter in group["params"]:
            parameter.grad += 1e-9 * torch.rand_like(parameter.grad)
    return OPTIMIZER.load().step(self, closure)


def flat(self, closure=None):
    for group in self.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.as_strided(parameter.grad, parameter.shape, torch.empty(parameter.shape).stride())
    return OPTIMIZER.load().step(self, closure)


@pytest.mark.parametrize(
    ("step", "test"),
    [
        (slower, numbers.test_the_trajectory_of_an_optimizer_is_that_of_the_reference),
        (noisy, numbers.test_the_same_training_twice_is_the_same_bit_for_bit_and_draws_no_random_number),
        (flat, numbers.test_every_layout_of_parameter_and_gradient_trains_alike),
    ],
)
def test_a_bug_of_an_optimizer_is_caught(step, test):
    test(Use(OPTIMIZER, {}))
    caught(test, optimizer_with(step=step))
