"""Options as the card states them: each does something, each bad value and broken rule is refused by name."""

import itertools
import math

import pytest
from harness import BATCH, CHANNELS, POSITIONS, STONES, Case, normal, outputs

from layers import formula
from layers.card import Card, Option, OptionError, Rule

ids = [pytest.param(stone, id=stone.name) for stone in STONES]


def build(stone, options, channels=CHANNELS):
    return stone.load()(channels, **options)


def refusal_of(card: Card, options, known) -> OptionError | None:
    """What the card says against ``options`` when it knows the sizes ``known``."""
    try:
        card.check(known, options)
    except OptionError as refusal:
        return refusal
    return None


def admits(card: Card, options) -> bool:
    return refusal_of(card, options, {"C": CHANNELS}) is None


def candidates(card: Card, option: Option):
    """Values that the option by itself admits: choices, bounds, neighbours of the default and of the examples'."""
    found = [option.default, *(example.get(option.name, option.default) for example in card.examples)]
    found += [*option.choices, *((True, False) if option.type is bool else ()), *((None,) if option.optional else ())]
    if option.axes:
        found += [*([option.ge] if option.ge is not None else ()), 1, 2]
        found += [*(tuple(1 + (axis == first) for axis in range(option.axes)) for first in range(option.axes))]
    elif option.type in (int, float):
        numbers = [1, *(value for value in found if value is not None)]
        found += [option.type(value * factor) for value in numbers for factor in (0.5, 2)]
        found += [option.type(bound) for bound in (option.ge, option.le) if bound is not None]
    distinct = dict.fromkeys((type(value), value) for value in found)
    return [value for kind, value in distinct if option.type is not float or kind is not int or value is None]


def alternatives(card: Card, option: Option, options):
    """``options`` with other values of ``option`` that the card admits beside them."""
    now = option.check(options.get(option.name, option.default))
    values = [value for value in candidates(card, option) if all_in_range(option, value) and option.check(value) != now]
    changed = [{**options, option.name: value} for value in values]
    return [each for each in changed if admits(card, each)]


def all_in_range(option: Option, value) -> bool:
    try:
        option.check(value)
    except OptionError:
        return False
    return True


def trace(stone, options, shape):
    """Everything that three training steps and an evaluation show of a layer, as shapes and bytes."""
    layer = Case(stone, options).fresh()
    seen = [sorted((name, tuple(t.shape)) for name, t in layer.state_dict().items())]
    for step in range(4):
        layer.train(step < 3)
        x = normal(shape, seed=step).requires_grad_()
        ys = outputs(layer(x))
        ys[0].backward(normal(ys[0].shape, seed=7))
        tensors = (*ys, x.grad, *(parameter.grad for parameter in layer.parameters()), *layer.buffers())
        seen.append([(tuple(t.shape), t.detach().numpy().tobytes()) for t in tensors])
        for parameter in layer.parameters():  # a step, so that what follows the weights moves too
            parameter.data -= 0.01 * parameter.grad
    return seen


def admitted(stone, options):
    """Those of some small inputs that are admitted in both modes."""
    shapes = [(BATCH, CHANNELS, *positions) for positions in (*POSITIONS.values(), (6, 4), (3, 8), (6,))]
    shapes.append((2 * BATCH, CHANNELS, *POSITIONS[4]))
    return [s for s in shapes if not any(Case(stone, options, train).refusal(s) for train in (True, False))]


def differ(stone, ours, theirs):
    """Whether two option sets make layers that differ: in what they admit, or in what they then show."""
    shapes, others = admitted(stone, ours), admitted(stone, theirs)
    return shapes != others or any(trace(stone, ours, shape) != trace(stone, theirs, shape) for shape in shapes[:2])


def asks_for(stone, options, name):
    """Whether a forward asks the layer for its option ``name``."""
    asked = set()
    layer = Case(stone, options).fresh()
    kind = type(layer)

    class Watched(kind):
        def __getattribute__(self, attribute):
            asked.add(attribute)
            return super().__getattribute__(attribute)

    layer.__class__ = Watched
    layer(normal(Case(stone, options).shape()))
    return name in asked


@pytest.mark.parametrize(
    ("stone", "option"),
    [
        pytest.param(stone, option, id=f"{stone.name}-{option.name}")
        for stone in STONES
        for option in stone.card.options
    ],
)
def test_every_option_changes_something(stone, option: Option):
    """For some example; or it is a switch that the forward asks for, which one process alone cannot show.

    Or one that decides what is refused, and refuses an example when it is turned.
    """
    card = stone.card
    pairs = [(options, other) for options in card.examples for other in alternatives(card, option, options)]
    assert pairs
    if not any(differ(stone, *pair) for pair in pairs):
        assert option.type is bool
        if not all(admits(card, {**e, option.name: not e.get(option.name, option.default)}) for e in card.examples):
            return
        assert any(asks_for(stone, options, option.name) for pair in pairs for options in pair)


@pytest.mark.parametrize(
    ("stone", "option", "pair"),
    [
        pytest.param(stone, option, pair, id=f"{stone.name}-{option.name}-{'-'.join(pair)}")
        for stone in STONES
        for option in stone.card.options
        for pair in itertools.combinations(option.choices, 2)
    ],
)
def test_every_choice_differs_from_every_other_unless_said_to_be_alike(stone, option: Option, pair):
    made = [[{**options, option.name: choice} for options in stone.card.examples] for choice in pair]
    both = [sides for sides in zip(*made, strict=True) if all(admits(stone.card, side) for side in sides)]
    if not both:  # one of the two needs other options beside it
        both = [sides for sides in itertools.product(*made) if all(admits(stone.card, side) for side in sides)]
    assert both
    assert any(differ(stone, *sides) for sides in both) != (pair in option.alike)


def refused_values(option: Option):
    """Values of a wrong type, not finite, out of range, no choice, or too many or few."""
    wrong = {
        int: ["2", 1.5, math.nan, math.inf, True, []],
        float: ["0.1", math.nan, math.inf, -math.inf, True, []],
        bool: [0, 1, "true", 1.0],
        str: [1, True, "", "nonsense"] if option.choices else [1, True],
    }[option.type]
    bounds = [
        (option.ge, -1),
        (option.gt, 0),
        (option.gt, -1),
        (option.le, 1),
        (option.lt, 0),
        (option.lt, 1),
    ]
    beyond = [option.type(bound + step) for bound, step in bounds if bound is not None]
    if option.axes:
        good = option.check(option.default)
        lengths = [good[1:], (*good, 1), list(good[1:]), (good,), set(good)]
        beyond += lengths + [(*good[1:], bad) for bad in (*wrong, *beyond, None)]
    return [*wrong, *beyond, *([] if option.optional else [None])]


@pytest.mark.parametrize(
    ("stone", "option", "value"),
    [
        pytest.param(stone, option, value, id=f"{stone.name}-{option.name}={value!r}")
        for stone in STONES
        for option in stone.card.options
        for value in refused_values(option)
    ],
)
def test_a_bad_option_is_refused_by_name(stone, option: Option, value):
    with pytest.raises(OptionError) as refusal:
        build(stone, {**stone.card.examples[0], option.name: value})
    message = str(refusal.value)
    assert message.startswith(f"{option.name}={value!r} is ")
    assert option.expected() in message
    assert "\n" not in message
    assert refusal.value.option == option.name


@pytest.mark.parametrize(
    ("stone", "option"),
    [
        pytest.param(stone, option, id=f"{stone.name}-{option.name}")
        for stone in STONES
        for option in stone.card.options
        if option.axes
    ],
)
def test_one_number_for_all_axes_is_that_number_on_each(stone, option: Option):
    ways = [1, [1] * option.axes, (1,) * option.axes]
    assert {option.check(way) for way in ways} == {ways[-1]}
    made = [{**stone.card.examples[0], option.name: way} for way in ways]
    shape = admitted(stone, made[0])[0]
    assert trace(stone, made[0], shape) == trace(stone, made[1], shape) == trace(stone, made[2], shape)


@pytest.mark.parametrize("channels", [0, -1, 1.5, math.nan, "12", True, None])
@pytest.mark.parametrize("stone", ids)
def test_bad_channels_are_refused_by_name(stone, channels):
    with pytest.raises(OptionError) as refusal:
        build(stone, stone.card.examples[0], channels)
    assert str(refusal.value).startswith(f"channels={channels!r} is ")
    assert refusal.value.option == "channels"


@pytest.mark.parametrize("stone", ids)
def test_an_unknown_option_is_refused(stone):
    with pytest.raises(TypeError, match="surplus"):
        build(stone, {"surplus": 1})


def offences(card: Card, rule: Rule, shapes=None):
    """Option sets and inputs (or weights, of ``shapes``) that this rule is the first to refuse."""
    named = formula.symbols(rule.test)
    while named != (
        wider := named.union(*(formula.symbols(card.derived[name]) for name in named & card.derived.keys()))
    ):
        named = wider
    free = [option for option in card.options if option.name in named]
    values = [[v for v in candidates(card, option) if all_in_range(option, v)] for option in free]
    positions = [p for p in (POSITIONS[4], (), (1, 1), (0, 3), (3, 3)) if 2 + len(p) in card.ranks]
    shapes = shapes or [(n, c, *p) for n in (BATCH, 3, 1) for c in (CHANNELS, 7, 1) for p in positions]
    for base, chosen in itertools.product(card.examples, itertools.product(*values)):
        options = {**base, **{option.name: value for option, value in zip(free, chosen, strict=True)}}
        for shape, train in itertools.product(shapes, (True, False)):
            known = card.sizes(shape, train=train)
            full = {o.name: o.check(options.get(o.name, o.default)) for o in card.options}
            refusal = refusal_of(card, options, known)
            if refusal and str(refusal) == rule.refusal(card.symbols(shape, full, train=train)):
                early = refusal_of(card, options, {"C": shape[1]})
                if early is None or str(early) == str(refusal):
                    yield options, shape, train, refusal, early


@pytest.mark.parametrize(
    ("stone", "rule"),
    [pytest.param(stone, rule, id=f"{stone.name}-{rule.test}") for stone in STONES for rule in stone.card.rules],
)
def test_every_rule_refuses_something_at_construction_or_in_the_forward(stone, rule: Rule):
    """At construction when it needs no more than channels and options, and with the card's own words."""
    found = next(offences(stone.card, rule), None)
    assert found, "no option set and input break this rule alone: it is dead"
    options, shape, train, refusal, early = found
    assert refusal.option == rule.option
    assert "{" not in str(refusal)
    if early is None:
        layer = build(stone, options, shape[1]).train(train)
        with pytest.raises(ValueError, match=r"(\S+ ){4}"):
            layer(normal(shape).float())
    else:
        with pytest.raises(OptionError) as ours:
            build(stone, options, shape[1])
        assert str(ours.value) == str(refusal)
