"""The transformations and carriers of `check-invariance`, and with them why layer normalization is invariant where."""

from dataclasses import replace

import pytest
import torch

from layers import card as vocabulary
from layers.catalog import stone
from profiles.checks.carriers import BATCH, CARRIERS, CHANNELS, Carrier
from profiles.checks.difference import difference
from profiles.checks.invariance import BROKEN, HOLDS
from profiles.checks.transformations import GHOST, GROUPS, PROPERTIES, STRETCH, Draw


def deviation(layer, carrier, *columns, bias=False, change=lambda scene: scene):
    scene = change(carrier.scenes(1, bias=bias, seed=0)[0])
    moved = scene
    for column in columns:
        moved = PROPERTIES[column].apply(moved, Draw(1))
    return difference(layer(carrier(scene)), layer(carrier(moved))).deviation


def test_why_layer_normalization_is_invariant_to_re_centering_and_where_it_is_not():
    layer = stone("ln").load()(CHANNELS, eps=1e-30).double()

    def constant(scene):
        return replace(scene, x=scene.x[:, :, :1, :1].expand_as(scene.x).contiguous())

    assert deviation(layer, CARRIERS["conv"], "w-recenter") > BROKEN
    one_position = Carrier("one position", 5, (3, 3), (3, 3))
    assert one_position.output == (BATCH, CHANNELS, 1, 1)
    assert deviation(layer, one_position, "w-recenter") < HOLDS
    assert deviation(layer, CARRIERS["conv"], "w-recenter", change=constant) < HOLDS
    assert deviation(layer, CARRIERS["conv-padded"], "w-recenter", change=constant) > BROKEN


@pytest.mark.parametrize("eps", [1e-30, 1e-5, 1e-2, 1.0])
def test_re_centering_does_not_depend_on_eps_or_bias_but_equation_6_does(eps):
    layer = stone("ln").load()(CHANNELS, eps=eps).double()
    linear = CARRIERS["linear"]
    assert deviation(layer, linear, "w-recenter", bias=True) < HOLDS
    assert deviation(layer, linear, "w-scale", "w-recenter", bias=True) > BROKEN


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_statistics_per_position_are_invariant_to_re_centering_for_any_padding(padding):
    layer = stone("pono").load()(CHANNELS, eps=1e-30).double()
    assert deviation(layer, Carrier("conv", 5, (7, 6), (3, 3), padding), "w-recenter") < HOLDS


@pytest.mark.parametrize("column", PROPERTIES.values(), ids=lambda column: column.id)
@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=lambda carrier: carrier.name)
def test_a_transformation_changes_something_and_treats_all_batches_alike(column, carrier):
    first, second = carrier.scenes(2, bias=True, seed=0)
    moved, again = column.apply(first, Draw(1)), column.apply(second, Draw(1))
    assert not torch.equal(carrier(moved), carrier(first))
    assert torch.equal(moved.weight, again.weight)
    assert torch.equal(moved.bias, again.bias)
    if torch.equal(moved.weight, first.weight) and torch.equal(moved.bias, first.bias):
        ours, theirs = moved.x / first.x, again.x / second.x
        same = torch.allclose(ours, theirs) if column.scales else torch.allclose(moved.x - first.x, again.x - second.x)
        assert same


def test_scales_stay_in_the_range_that_the_bound_allows():
    for count in (GROUPS, BATCH // GHOST, BATCH, CHANNELS):
        scales = Draw(3).scales(count)
        assert len(set(scales.tolist())) == count
        assert float((1 - scales**-2).abs().max()) <= STRETCH * (1 + 1e-12)


def test_the_carriers_are_those_of_the_cards_and_have_the_shapes_they_say():
    assert tuple(CARRIERS) == vocabulary.CARRIERS
    for carrier in CARRIERS.values():
        (scene,) = carrier.scenes(1, bias=False, seed=0)
        assert carrier(scene).shape == carrier.output
        assert torch.equal(scene.bias, torch.zeros(CHANNELS, dtype=torch.float64))
