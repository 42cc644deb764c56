"""The cards of what is no layer cannot lie: how it is called, its options, rules, formulas, what it leaves alone."""

import importlib
import inspect

import pytest
import roles
import test_card_options as card_options
from harness import function
from roles import FIRST, ON_WEIGHTS, SHAPES, STONES, Use, uses
from torch import nn

from layers import catalog, formula
from layers.card import Option, OptionError, Rule
from layers.checked_optimizer import excludes as excludes_numbers_alone
from layers.weights import weights

ids = [pytest.param(stone, id=stone.name) for stone in STONES]
on_weights = [pytest.param(stone, id=stone.name) for stone in ON_WEIGHTS]
options_of = [
    pytest.param(stone, option, id=f"{stone.name}-{option.name}") for stone in STONES for option in stone.card.options
]


def attempt(stone, options, shape=SHAPES[0]):
    """Call a stone in its role with ``options``, on a weight of ``shape`` or on a small model."""
    use = Use(stone, options)
    if use.role == "transform":
        return roles.transform(use)[1]
    tensor = roles.weight(shape)
    return use.make([nn.Parameter(tensor)]) if use.role == "optimizer" else use.call(tensor)


def test_every_role_has_stones_and_every_stone_a_role():
    assert {stone.card.role for stone in STONES} <= FIRST.keys()
    assert {stone.card.role for stone in catalog.stones().values()} <= {"layer", "augmentation", *FIRST}


@pytest.mark.parametrize("stone", ids)
def test_the_card_read_as_data_is_the_imported_one(stone):
    assert stone.card == importlib.import_module(stone.module).card


@pytest.mark.parametrize("stone", ids)
def test_it_is_called_as_its_role_says_with_the_options_of_the_card(stone):
    first, *rest = inspect.signature(stone.load()).parameters.values()
    assert (first.name, first.default) == (FIRST[stone.card.role], inspect.Parameter.empty)
    if stone.card.role == "transform" and rest and rest[0].name == "batch":
        assert rest.pop(0).default is inspect.Parameter.empty
    options = [p for p in rest if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    stated = [(option.name, option.default, type(option.default)) for option in stone.card.options]
    assert [(p.name, p.default, type(p.default)) for p in options] == stated
    others = [p for p in rest if p not in options]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not p.empty for p in others)
    implementation = stone.load()
    assert isinstance(implementation, type) == (stone.card.role == "optimizer")
    assert implementation.__name__.endswith("_") == (stone.card.role == "initializer")


@pytest.mark.parametrize("stone", ids)
def test_defaults_and_examples_are_admitted(stone):
    card = stone.card
    for option in card.options:
        assert option.check(option.default) == option.default
        assert option.help
    assert 1 <= len(card.examples) == len({str(sorted(example.items())) for example in card.examples})
    for example in card.examples:
        card.check({}, example)
        attempt(stone, example)


@pytest.mark.parametrize("use", uses(*FIRST))
def test_every_formula_gives_a_count(use):
    card = use.stone.card
    for shape in use.shapes() if card.works_on_weights else [(4, 12, 3, 4)]:
        values = use.symbols(shape)
        texts = [card.params, card.saved, *card.derived.values()]
        texts += [t for pair in (card.flops, card.traffic, card.executed) for t in (pair.forward, pair.backward) if t]
        for text in texts:
            number = formula.evaluate(text, values)
            assert number == int(number) >= 0, f"{text} is {number} for {shape}"
        for stat in (*card.state, *card.statistics, *card.buffers):
            assert all(size >= 0 for size in stat.at(values) or ())
        if card.role in ("penalty", "projection", "optimizer"):
            assert formula.evaluate(card.flops.forward, values) > 0
        if card.role == "penalty":
            assert formula.evaluate(card.flops.backward, values) > 0
        assert card.role == "optimizer" or not card.state


@pytest.mark.parametrize("stone", on_weights)
def test_every_stone_has_a_naive_reference(stone):
    assert callable(function(stone)), f"the references lack {stone.name.replace('-', '_')}(…, p)"


def trains_what(stone, options, name):
    """Whether a step asks the parameter group of the optimizer for option ``name``."""
    asked = set()

    class Watched(dict):
        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

    parameters, optimizer = roles.trained(Use(stone, options), SHAPES[:1], steps=[])
    optimizer.param_groups[0] = Watched(optimizer.param_groups[0])
    roles.train(optimizer, parameters, roles.gradients(SHAPES[:1])[:1])
    return name in asked


@pytest.mark.parametrize(("stone", "option"), options_of)
def test_every_option_changes_something(stone, option: Option):
    """For some example; or it is a switch between equal ways that an optimizer's step asks for."""
    card = stone.card
    pairs = [(o, other) for o in card.examples for other in card_options.alternatives(card, option, o)]
    assert pairs
    if not any(differ(stone, *pair) for pair in pairs):
        assert (option.type, card.role) == (bool, "optimizer")
        assert any(trains_what(stone, options, option.name) for pair in pairs for options in pair)


def differ(stone, ours, theirs):
    """Whether two option sets admit other weights, or then show other numbers."""
    first, second = Use(stone, ours), Use(stone, theirs)
    if stone.card.works_on_weights:
        admitted = [[shape for shape in SHAPES if use.admits(shape)] for use in (first, second)]
        if admitted[0] != admitted[1]:
            return True
    return roles.shown(first) != roles.shown(second)


@pytest.mark.parametrize(
    ("stone", "option", "value"),
    [
        pytest.param(stone, option, value, id=f"{stone.name}-{option.name}={value!r}")
        for stone in STONES
        for option in stone.card.options
        for value in card_options.refused_values(option)
    ],
)
def test_a_bad_option_is_refused_by_name(stone, option: Option, value):
    with pytest.raises(OptionError) as refusal:
        attempt(stone, {**stone.card.examples[0], option.name: value})
    message = str(refusal.value)
    assert message.startswith(f"{option.name}={value!r} is ")
    assert option.expected() in message
    assert "\n" not in message
    assert refusal.value.option == option.name


@pytest.mark.parametrize("stone", ids)
def test_an_unknown_option_is_refused(stone):
    with pytest.raises(TypeError, match="surplus"):
        attempt(stone, {"surplus": 1})


@pytest.mark.parametrize(
    ("stone", "rule"),
    [pytest.param(stone, rule, id=f"{stone.name}-{rule.test}") for stone in STONES for rule in stone.card.rules],
)
def test_every_rule_refuses_something_in_the_cards_words(stone, rule: Rule):
    shapes = [*SHAPES, (7, 3), (12, 1), (1, 5)] if stone.card.works_on_weights else [(4, 12, 3, 4)]
    found = next(card_options.offences(stone.card, rule, shapes), None)
    assert found, "no option set and weight break this rule alone: it is dead"
    options, shape, _, refusal, _ = found
    assert refusal.option == rule.option
    assert "{" not in str(refusal)
    with pytest.raises(OptionError) as ours:
        attempt(stone, options, shape)
    assert str(ours.value) == str(refusal)


def bench_of_layers():
    """A model with a parameter of every kind."""
    layers = [nn.Conv2d(4, 3, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)]
    return nn.Sequential(*layers, nn.Linear(30, 7), nn.PReLU(), nn.Conv1d(3, 2, 5), nn.Embedding(5, 4))


@pytest.mark.parametrize(
    "stone", [*on_weights, *(pytest.param(s, id=s.name) for s in catalog.stones().values() if s.kind == "weight")]
)
def test_it_says_which_parameters_of_a_model_it_is_for_and_why_not_the_others(stone):
    excludes = importlib.import_module(stone.module).excludes
    said = {weight.name: excludes(weight) for weight in weights(bench_of_layers())}
    assert all(isinstance(reason, str) and "\n" not in reason for reason in said.values())
    assert not all(said.values()), "it is for nothing"
    if excludes is excludes_numbers_alone:
        assert not any(said.values())
    else:
        assert all(len(said[name].split()) > 1 for name in said if name.endswith("bias")), said
