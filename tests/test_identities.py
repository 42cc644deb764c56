"""`check-identities`: every equation on the cards holds, and one that does not is found out."""

import itertools
import json
from dataclasses import asdict

import pytest
import torch

from layers.catalog import Stone, stone, stones
from layers.norm import bn, gn
from profiles.checks.difference import difference
from profiles.checks.identities import DIMS, check

STATED = [found for found in stones().values() if found.card.identities]


@pytest.fixture
def stating(tmp_path):
    """Make a stone whose card has one more identity; the layer stays the real one."""
    count = itertools.count()

    def make(identity, name="gn"):
        honest, before = stone(name), "identities=("
        text = honest.path.read_text(encoding="utf-8")
        assert text.count(before) == 1
        path = tmp_path / f"{next(count)}" / honest.path.name  # a card is read once per path
        path.parent.mkdir()
        path.write_text(text.replace(before, f'{before}Identity(says="this", {identity}),'), encoding="utf-8")
        return Stone(name, honest.kind, path)

    return make


def row_of(liar):
    return next(row for row in check([liar]) if row.says == "this")


@pytest.mark.parametrize("found", STATED, ids=lambda found: found.name)
def test_every_identity_holds(found):
    rows = check([found])
    assert [row for row in rows if row.verdict != "ok"] == []
    assert [row.says for row in rows] == [identity.says for identity in found.card.identities]
    assert all(row.deviation <= row.within for row in rows)


def test_a_false_identity_fails_and_says_what_differs_most(stating):
    row = row_of(stating('options={"groups": 3}, equals="in", other={"affine": True}'))
    assert row.verdict == "failed"
    assert row.deviation > row.within
    assert row.differs in ("output", "input gradient")
    assert row.at.left != row.at.right
    assert len(row.at.index) == len(DIMS)


def test_the_same_output_with_another_gradient_fails(stating):
    equal = 'options={"groups": 1, "affine": False}, equals="ln", other={"affine": "none"%s}'
    assert row_of(stating(equal % "")).verdict == "ok"
    row = row_of(stating(equal % ', "detach": "std"'))
    assert row.verdict == "failed"
    assert row.differs == "input gradient"


def test_parameters_that_only_one_side_has_are_not_at_their_neutral_values(stating):
    row = row_of(stating('options={"groups": "C"}, equals="in", other={"affine": False}'))
    assert row.verdict == "failed"


def test_stored_statistics_are_copied(stating):
    other_speed = 'mode="eval", options={"momentum": 0.1}, equals="bn", other={"momentum": 0.9}'
    assert row_of(stating(other_speed, "bn")).verdict == "ok"
    none = 'mode="eval", equals="bn", other={"track_running_stats": False}'
    assert row_of(stating(none, "bn")).verdict == "failed"


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ('options={"groups": 3}, equals="inn"', "UnknownStone: no stone is called 'inn'"),
        ('options={"groups": 3}, proof="nowhere"', "AttributeError"),
        ('options={"groups": 5}, equals="in"', "OptionError: groups=5 does not divide"),
        ('options={"groups": "C + Q"}, equals="in"', "FormulaError"),
        (
            'options={"groups": 1}, equals="ln", other={"affine": "elementwise", "height": 5, "width": 4}',
            "has the shapes (12,) and (12, 5, 4)",
        ),
    ],
)
def test_an_identity_that_cannot_be_evaluated_fails_with_the_reason(stating, identity, reason):
    row = row_of(stating(identity))
    assert (row.verdict, row.deviation, row.at) == ("failed", None, None)
    assert reason in row.reason
    assert "\n" not in row.reason


@pytest.mark.parametrize(
    ("sides", "reason"),
    [
        (lambda layer, x: (x, x[:1]), "the two sides have shapes"),
        (lambda layer, x: (x[:0], x[:0]), "the two sides have no elements"),
        (lambda layer, x: (x, x / 0), "the proof is not finite"),
        (lambda layer, x: layer.missing(x), "AttributeError"),
    ],
)
def test_a_proof_that_proves_nothing_fails_with_the_reason(stating, monkeypatch, sides, reason):
    monkeypatch.setattr(gn, "sides", sides, raising=False)
    row = row_of(stating('options={"groups": 3}, proof="sides"'))
    assert (row.verdict, row.deviation) == ("failed", None)
    assert reason in row.reason
    json.dumps(asdict(row), allow_nan=False)


def test_a_proof_gets_a_layer_that_was_trained_and_a_batch_of_the_stated_sizes(stating, monkeypatch):
    seen = []

    def sides(layer, x):
        seen.append((layer, x))
        return layer(x), layer(x) + 1e-12

    monkeypatch.setattr(gn, "sides", sides, raising=False)
    row = row_of(
        stating('options={"groups": "H * W"}, proof="sides", mode="eval", dims={"H": 2, "W": 3}, within=1e-15')
    )
    assert row.verdict == "failed"
    ((layer, x),) = seen
    assert x.shape == (DIMS["N"], DIMS["C"], 2, 3)
    assert (x.dtype, x.requires_grad, layer.groups, layer.training) == (torch.float64, True, 6, False)
    assert not torch.allclose(layer.weight, torch.ones_like(layer.weight))
    assert not torch.allclose(layer.bias, torch.zeros_like(layer.bias))


def test_the_layer_of_a_proof_has_stored_statistics(stating, monkeypatch):
    seen = []
    monkeypatch.setattr(bn, "sides", lambda layer, x: (seen.append(layer), (x, x))[1], raising=False)
    assert row_of(stating('proof="sides"', "bn")).deviation == 0.0
    assert int(seen[0].num_batches_tracked) > 0
    assert not torch.allclose(seen[0].running_mean, torch.zeros_like(seen[0].running_mean))


def test_progress_sees_every_row_and_the_generator_nothing():
    before, seen = torch.get_rng_state(), []
    rows = check([stone("gn"), stone("bn")], progress=seen.append)
    assert seen == rows == check([stone("gn"), stone("bn")])
    assert torch.equal(torch.get_rng_state(), before)
    json.dumps([asdict(row) for row in rows], allow_nan=False)


def test_a_difference_names_the_element_and_is_relative_to_the_left():
    left = torch.tensor([[4.0, 0.0], [-8.0, 2.0]])
    found = difference(left, left + torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    assert (found.deviation, found.index, found.left, found.right) == (0.25, (1, 1), 2.0, 4.0)
    assert difference(left, left).deviation == 0.0
    assert difference(torch.zeros(2), torch.tensor([0.0, 3.0])).deviation == 1.0
    infinite = difference(left, torch.tensor([[4.0, 0.0], [float("inf"), float("nan")]]))
    assert (infinite.deviation, infinite.index, infinite.left, infinite.right) == (None, (1, 0), -8.0, None)
