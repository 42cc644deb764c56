"""The promises to convolutions can fail: each mutant has one planted bug or lie, which a test must catch."""

from dataclasses import replace

import harness
import pytest
import test_card_options as options
import test_cards as facts
import test_promises_compile as compiled
import test_promises_gradients as gradients
import test_promises_memory as memory
import test_promises_numerics as numerics
import test_promises_samples as samples
import test_promises_shapes as shapes
import test_promises_state as states
import torch
from harness import Case
from planted import caught, first, planted

from layers import catalog

pytestmark = pytest.mark.usefixtures("nothing_built")

NAME = "weight-standardization"
BASE, CARD = catalog.stone(NAME).load(), catalog.stone(NAME).card


# Bugs of the weight, or of the convolution by it.


def forgets_the_gradient_of_the_mean(layer):
    rows = layer.weight.flatten(1)
    var, mean = torch.var_mean(rows, 1, keepdim=True)
    return ((rows - mean.detach()) / (var.sqrt() + 1e-5)).view_as(layer.weight)


def is_biased(layer):
    return BASE.effective_weight(layer) * (1 + 1e-6)


def standardizes_the_kernels_of_each_input(layer):
    flat = layer.weight.flatten(2)
    return ((flat - flat.mean(2, keepdim=True)) / flat.std(2, keepdim=True)).view_as(layer.weight)


def takes_statistics_in_one_pass(layer):
    rows = layer.weight.flatten(1)
    mean = rows.sum(1, keepdim=True) / rows.shape[1]
    var = (rows.square().sum(1, keepdim=True) / rows.shape[1] - mean.square()).clamp_min(0)
    return ((rows - mean) / (var.sqrt() + 1e-5)).view_as(layer.weight)


def freezes_one_filter(layer):
    weight = BASE.effective_weight(layer)
    return torch.cat([weight[:1].detach(), weight[1:]])


def caches(layer):
    if not hasattr(layer, "cached"):
        layer.cached = BASE.effective_weight(layer).detach()
    return layer.cached


WEIGHTS = [
    (forgets_the_gradient_of_the_mean, gradients.test_the_jacobian_is_right),
    (forgets_the_gradient_of_the_mean, gradients.test_gradients_are_right_along_gaussian_directions),
    (forgets_the_gradient_of_the_mean, gradients.test_forward_gradients_and_buffers_equal_the_reference),
    (forgets_the_gradient_of_the_mean, gradients.test_second_derivatives_are_those_of_the_reference_or_refused),
    (is_biased, gradients.test_forward_gradients_and_buffers_equal_the_reference),
    (standardizes_the_kernels_of_each_input, gradients.test_a_fresh_layer_equals_the_reference_step_by_step),
    (freezes_one_filter, memory.test_every_parameter_gets_a_finite_gradient_that_is_not_zero),
    (caches, states.test_no_tensor_hides_outside_parameters_and_buffers),
    (caches, gradients.test_forward_gradients_and_buffers_equal_the_reference),
]


@pytest.mark.parametrize(("bug", "test"), WEIGHTS, ids=lambda thing: thing.__name__)
def test_a_bug_of_the_weight_is_caught(bug, test):
    test(first(NAME))
    harness._built.clear()
    caught(test, Case(planted(NAME, effective_weight=bug), {}))


def loses_the_format(layer, x):
    return BASE.forward(layer, x).contiguous()


def pads_no_more(layer, x):
    return torch.nn.functional.conv2d(x, layer.effective_weight(), layer.bias)


def looks_at_the_batch(layer, x):
    return BASE.forward(layer, x - x.mean(0, keepdim=True))


def supposes_strides(layer, x):
    return BASE.forward(layer, torch.as_strided(x, x.shape, torch.empty(x.shape).stride()))


def widens(layer, x):
    return BASE.forward(layer, x).double()


def fails_on_empty(layer, x):
    return BASE.forward(layer, x) * (x.numel() / x.numel())


def takes_any_rank(layer, x):
    return BASE.forward(layer, x.unsqueeze(3).expand(-1, -1, -1, 3) if x.dim() == 3 else x)


FORWARDS = [
    (loses_the_format, numerics.test_the_output_keeps_the_memory_format),
    (loses_the_format, shapes.test_channels_last_keeps_its_strides_on_meta_too),
    (supposes_strides, numerics.test_every_layout_of_input_and_gradient_gives_the_same),
    (looks_at_the_batch, lambda case: samples.test_samples_meet_where_the_card_says_so(case.stone)),
    (widens, lambda case: numerics.test_half_precision_loses_only_the_last_digits(case, torch.bfloat16)),
    (fails_on_empty, shapes.test_an_empty_batch_gives_an_empty_output_and_no_gradient),
    (takes_any_rank, shapes.test_the_ranks_of_inputs_are_those_of_the_card),
]


@pytest.mark.parametrize(("bug", "test"), FORWARDS, ids=lambda thing: thing.__name__)
def test_a_bug_of_the_forward_is_caught(bug, test):
    test(first(NAME))
    harness._built.clear()
    caught(test, Case(planted(NAME, forward=bug), {}))


@pytest.mark.parametrize(
    "test",
    [
        gradients.test_forward_gradients_and_buffers_equal_the_reference,
        shapes.test_a_layer_takes_exactly_what_its_card_admits,
    ],
)
def test_a_padding_that_is_forgotten_is_caught(test):
    stone = planted(NAME, forward=pads_no_more)
    caught(test, Case(stone, {"padding": 1}))


def test_statistics_in_one_pass_are_caught():
    stone = planted(NAME, effective_weight=takes_statistics_in_one_pass)
    test = numerics.test_filters_with_a_mean_far_above_their_spread_cost_no_accuracy
    test(first(NAME))
    harness._built.clear()
    caught(test, Case(stone, {}))


# Lies of the card.

LIES = [
    ({"ranks": (3, 4)}, shapes.test_the_ranks_of_inputs_are_those_of_the_card),
    ({"rules": CARD.rules[:2]}, shapes.test_a_layer_takes_exactly_what_its_card_admits),
    (
        {"derived": {**CARD.derived, "HO": f"{CARD.derived['HO']} - 1"}},
        shapes.test_a_layer_takes_exactly_what_its_card_admits,
    ),
    ({"params": "O*I"}, facts.test_the_number_of_parameters_is_that_of_the_card),
    ({"peer": replace(CARD.peer, same=True)}, facts.test_the_peer_computes_the_same),
]


@pytest.mark.parametrize(("lie", "test"), LIES)
def test_a_lie_of_the_card_is_caught(lie, test):
    stone = planted(NAME, lie)
    options = {"kernel_size": 1}
    test(Case(catalog.stone(NAME), options))
    caught(test, Case(stone, options))


def test_a_yardstick_that_computes_the_same_is_caught():
    stone = planted("gn", {"peer": replace(catalog.stone("gn").card.peer, same=False)})
    caught(facts.test_the_peer_computes_the_same, Case(stone, stone.card.examples[0]))


def test_an_option_that_is_not_heard_is_caught():
    def deaf(self, in_channels, **options):
        BASE.__init__(self, in_channels, **{name: v for name, v in options.items() if name != "stride"})

    test, option = options.test_every_option_changes_something, CARD.option("stride")
    test(catalog.stone(NAME), option)
    caught(test, planted(NAME, __init__=deaf), option)


def test_choices_that_are_alike_must_be_said_to_be():
    test = options.test_every_choice_differs_from_every_other_unless_said_to_be_alike
    pair = ("qiao", "timm")
    option = CARD.option("convention")
    test(catalog.stone(NAME), option, pair)
    caught(test, catalog.stone(NAME), replace(option, alike=(pair,)), pair)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_break_is_caught():
    def breaks(layer, x):
        torch._dynamo.graph_break()
        return BASE.forward(layer, x)

    torch._dynamo.reset()
    test = compiled.test_compiled_training_equals_eager_and_a_third_batch_size_is_free
    caught(test, Case(planted(NAME, forward=breaks), {}), by=Exception)
    torch._dynamo.reset()
