"""A card cannot lie, nor a constructor be lax: each lie here is caught by the test that must catch it."""

from dataclasses import replace

import pytest
import test_card_options as options
import test_cards as facts
import test_promises_gradients as gradients
import test_promises_samples as samples
import test_promises_shapes as shapes
from harness import Case
from planted import caught, planted

from layers import catalog
from layers.card import Flops, Peer, Rule, Stat

pytestmark = pytest.mark.usefixtures("nothing_built")

GN, BN = catalog.stone("gn").card, catalog.stone("bn").card
SURPLUS = Rule("C > 0", "this many channels are refused: {C} of them", "groups")
LIES = [
    ("gn", {"params": "2*C"}, facts.test_the_number_of_parameters_is_that_of_the_card, 1),
    ("bn", {"buffers": BN.buffers[:2]}, facts.test_the_buffers_are_those_of_the_card, 0),
    ("bn", {"buffers": (*BN.buffers, Stat("more", ("C",)))}, facts.test_the_buffers_are_those_of_the_card, 0),
    (
        "gn",
        {"statistics": (GN.statistics[0], Stat("rstd", ("N", "C")))},
        facts.test_the_statistics_are_those_of_the_card,
        0,
    ),
    ("bn", {"statistics": BN.statistics[:1]}, facts.test_the_statistics_are_those_of_the_card, 0),
    ("gn", {"flops": Flops("E / 7", "E")}, facts.test_every_formula_gives_a_count, 0),
    ("gn", {"rules": GN.rules[:-1]}, shapes.test_a_batch_of_one_works_or_is_refused_with_a_reason, 1),
    ("adanorm", {"exact_gradient": "True"}, gradients.test_the_jacobian_is_right, 0),
    ("gn", {"peer": Peer("torch.nn:BatchNorm2d", {"num_features": "C"})}, facts.test_the_peer_computes_the_same, 0),
]


@pytest.mark.parametrize(("name", "lie", "test", "number"), LIES, ids=lambda thing: getattr(thing, "__name__", None))
def test_a_lie_about_an_example_is_caught(name, lie, test, number):
    stone = planted(name, lie)
    caught(test, Case(stone, stone.card.examples[number]))


STONE_LIES = [
    ("bn", {"couples": "never"}, samples.test_samples_meet_where_the_card_says_so),
    ("gn", {"couples": "always"}, samples.test_samples_meet_where_the_card_says_so),
    ("bn", {"couples": "always"}, samples.test_samples_meet_where_the_card_says_so),
    ("bn", {"eval_differs": "False"}, samples.test_evaluation_differs_where_the_card_says_so),
    ("gn", {"eval_differs": "True"}, samples.test_evaluation_differs_where_the_card_says_so),
    ("bn", {"exact_gradient": "False"}, gradients.test_a_gradient_that_is_said_to_be_no_derivative_is_none),
    ("gn", {"options": GN.options[::-1]}, facts.test_the_constructor_has_the_options_of_the_card),
    (
        "gn",
        {"options": (replace(GN.options[0], default=16), *GN.options[1:])},
        facts.test_the_constructor_has_the_options_of_the_card,
    ),
    ("gn", {"title": "Batch Normalization"}, facts.test_the_card_read_as_data_is_the_imported_one),
    ("gn", {"examples": ({"groups": 5},)}, facts.test_defaults_and_examples_are_admitted),
]


@pytest.mark.parametrize(("name", "lie", "test"), STONE_LIES)
def test_a_lie_about_a_stone_is_caught(name, lie, test):
    stone = planted(name, lie)
    caught(test, stone)


def test_an_option_without_effect_is_caught():
    base = catalog.stone("gn").load()

    def dead(self, channels, groups=32, channels_per_group=None, eps=1e-5, affine=True, **made):
        base.__init__(self, channels, groups, channels_per_group, affine=affine, **made)

    stone = planted("gn", __init__=dead)
    caught(options.test_every_option_changes_something, stone, GN.option("eps"))
    options.test_every_option_changes_something(stone, GN.option("affine"))


def test_a_rule_that_nothing_breaks_is_caught():
    stone = planted("gn", {"rules": (*GN.rules, SURPLUS)})
    caught(options.test_every_rule_refuses_something_at_construction_or_in_the_forward, stone, SURPLUS)


def test_a_bad_value_that_is_accepted_is_caught():
    base = catalog.stone("gn").load()

    def lax(self, channels, groups=32, channels_per_group=None, eps=1e-5, affine=True, **made):
        base.__init__(self, channels, groups, channels_per_group, abs(eps), affine, **made)

    stone = planted("gn", __init__=lax)
    with pytest.raises(pytest.fail.Exception):
        options.test_a_bad_option_is_refused_by_name(stone, GN.option("eps"), -1.0)
