"""A card cannot lie: what it says of constructor, parameters, buffers, statistics and flags is measured."""

import dataclasses
import importlib
import inspect
import subprocess
import sys

import pytest
import torch
from harness import BATCH, CHANNELS, POSITIONS, STONES, Case, assert_near, cases, function, normal, run

from layers import formula
from layers.card import sizes
from layers.observe import observing

ids = [pytest.param(stone, id=stone.name) for stone in STONES]
OWN = ("device", "dtype")


def build(stone, options, channels=CHANNELS):
    return stone.load()(channels, **options, dtype=torch.float64)


def test_cards_are_read_without_torch():
    code = "import sys; from layers import catalog; [stone.card for stone in catalog.stones().values()]"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("stone", ids)
def test_the_card_read_as_data_is_the_imported_one(stone):
    assert stone.card == importlib.import_module(stone.module).card


@pytest.mark.parametrize("stone", ids)
def test_every_formula_parses_over_symbols_that_there_are(stone):
    stone.card.check_formulas()
    wrong = dataclasses.replace(stone.card, params="2*Z")
    with pytest.raises(formula.FormulaError, match=r"2\*Z' uses unknown Z"):
        wrong.check_formulas()


@pytest.mark.parametrize("stone", ids)
def test_the_constructor_has_the_options_of_the_card(stone):
    channels, *rest = inspect.signature(stone.load()).parameters.values()
    several = any(option.name == "out_channels" for option in stone.card.options)
    assert (channels.name, channels.default) == ("in_channels" if several else "channels", inspect.Parameter.empty)
    options = [p for p in rest if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    stated = [(option.name, option.default, type(option.default)) for option in stone.card.options]
    assert [(p.name, p.default, type(p.default)) for p in options] == stated
    others = [p for p in rest if p not in options]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in others)
    assert all(p.default is None for p in others)
    assert {p.name for p in others} >= set(OWN)


@pytest.mark.parametrize("stone", ids)
def test_the_options_become_attributes_and_are_printed(stone):
    for options in stone.card.examples:
        layer, full = build(stone, options), Case(stone, options).full
        printed = repr(layer)
        for name, value in full.items():
            assert f"{name}={value!r}" in printed
            if name in layer._parameters:
                assert (getattr(layer, name) is not None) == value
            elif options.get(name) is not None:
                assert getattr(layer, name) == value


@pytest.mark.parametrize("stone", ids)
def test_every_stone_has_a_naive_reference(stone):
    assert callable(function(stone)), f"references.py lacks {stone.name.replace('-', '_')}(x, p)"


@pytest.mark.parametrize("stone", ids)
def test_defaults_and_examples_are_admitted(stone):
    card = stone.card
    for option in card.options:
        checked = option.check(option.default)
        one_for_all = option.axes and isinstance(option.default, int)
        assert option.check(checked) == checked == ((option.default,) * option.axes if one_for_all else option.default)
        assert option.help
    assert 1 <= len(card.examples) == len({str(sorted(example.items())) for example in card.examples})
    for example in card.examples:
        card.check(sizes((BATCH, CHANNELS, *POSITIONS[4])), example)


@pytest.mark.parametrize("case", cases(True, False))
def test_every_formula_gives_a_count(case: Case):
    card = case.stone.card
    for shape in case.shapes():
        values = case.symbols(shape)
        texts = [card.params, card.saved, *card.derived.values()]
        texts += [t for pair in (card.flops, card.traffic, card.executed) for t in (pair.forward, pair.backward) if t]
        for text in texts:
            number = formula.evaluate(text, values)
            assert number == int(number) >= 0, f"{text} is {number} for {shape}"
        for stat in (*card.statistics, *card.buffers):
            assert all(size >= 0 for size in stat.at(values) or ())
        # A layer that is nothing but a rule for the backward has its operations there.
        passes = card.flops.forward if case.exact else card.flops.backward
        assert formula.evaluate(passes, values) > 0 or card.flops.forward == "0"


@pytest.mark.parametrize("case", cases(True))
def test_the_number_of_parameters_is_that_of_the_card(case: Case):
    for channels in (CHANNELS, 2 * CHANNELS):
        shape = (BATCH, channels, *POSITIONS[4])
        layer = build(case.stone, case.options, channels)
        values = case.stone.card.symbols(shape, case.full)
        assert sum(p.numel() for p in layer.parameters()) == formula.evaluate(case.stone.card.params, values)


def shapes_of_buffers(layer):
    parameters = dict(layer.named_parameters())
    return {name: tuple(t.shape) for name, t in layer.state_dict().items() if name not in parameters}


@pytest.mark.parametrize("case", cases(True))
def test_the_buffers_are_those_of_the_card(case: Case):
    for channels in (CHANNELS, 2 * CHANNELS):
        values = case.stone.card.symbols((BATCH, channels, *POSITIONS[4]), case.full)
        stated = {stat.name: stat.at(values) for stat in case.stone.card.buffers if stat.at(values) is not None}
        layer = build(case.stone, case.options, channels)
        fresh = shapes_of_buffers(layer)
        assert fresh.keys() == stated.keys()
        if not any(0 in shape for shape in fresh.values()):
            assert fresh == stated
        elif 4 in case.stone.card.ranks:  # what takes its size from the first step is empty before it
            run(layer, normal((BATCH, channels, *POSITIONS[4])))
            assert shapes_of_buffers(layer) == stated


def stated_statistics(case, shape):
    """Name and shape of the statistics that the card announces; no name twice."""
    values = case.symbols(shape)
    found = [(stat.name, stat.at(values)) for stat in case.stone.card.statistics if stat.at(values) is not None]
    assert len(found) == len(dict(found))
    return dict(found)


def observed(layer, shape):
    """Name and shape of the statistics that one forward shows, which must not hold on to the graph."""
    with observing() as seen:
        layer(normal(shape).requires_grad_())
    assert not any(tensor.requires_grad for tensor in seen.values())
    return {name: tuple(tensor.shape) for name, tensor in seen.items()}


@pytest.mark.parametrize("case", cases(True, False))
def test_the_statistics_are_those_of_the_card(case: Case):
    """In training of a first batch, and no others of a later one; in evaluation of any."""
    for shape in case.shapes():
        stated = stated_statistics(case, shape)
        assert observed(case.fresh() if case.train else case.layer(), shape) == stated
        assert observed(case.layer(), shape).items() <= stated.items()


@pytest.mark.parametrize("case", cases(True))
def test_watching_changes_nothing(case: Case):
    x = normal(case.shape())
    with observing():
        watched = run(case.layer(), x)
    for name, tensor in run(case.layer(), x).tensors().items():
        assert torch.equal(tensor, watched.tensors()[name]), name


def peer_of(case, shape):
    """The peer of the card for an input of ``shape``, or None where it has none for these options."""
    peer, values = case.stone.card.peer, case.symbols(shape)
    if not formula.evaluate(peer.given, values):
        return None
    module, _, name = peer.target.replace("{d}", str(max(1, len(shape) - 2))).partition(":")
    arguments = {key: formula.evaluate(text, values) for key, text in peer.arguments.items()}
    return getattr(importlib.import_module(module), name)(**arguments).double().train()


@pytest.mark.parametrize("case", [case for case in cases(True) if case.values[0].stone.card.peer])
def test_the_peer_computes_the_same(case: Case):
    """A yardstick computes something else of the same shape; with the same parameters beside a convolution."""
    same = case.stone.card.peer.same
    for shape in case.shapes():
        theirs = peer_of(case, shape)
        if theirs is None:
            continue
        ours, x = case.fresh(), normal(shape)
        own = ours.state_dict()
        alike = theirs.state_dict().keys() == own.keys() or (same and theirs.state_dict().keys() <= own.keys())
        if alike:
            theirs.load_state_dict({name: own[name] for name in theirs.state_dict()})
        found, wanted = run(ours, x), run(theirs, x)
        assert found.y.shape == wanted.y.shape
        if same:
            assert_near(found.y, wanted.y, 1e-12, what=f"y {shape}")
            if case.exact:
                assert_near(found.x, wanted.x, 1e-10, what=f"gradient of x {shape}")
        elif alike:
            assert (found.y - wanted.y).abs().max() > 1e-3, "it computes the same: say so on the card"


@pytest.mark.parametrize("stone", [pytest.param(s, id=s.name) for s in STONES if s.card.peer])
def test_the_peer_is_there_for_some_example(stone):
    shape = (BATCH, CHANNELS, *POSITIONS[4])
    assert any(formula.evaluate(stone.card.peer.given, Case(stone, o).symbols(shape)) for o in stone.card.examples)
