"""`check-invariance` of techniques with a weight of their own, in the place of the carrier and before a layer."""

from dataclasses import replace

import pytest
import torch
from claims import cells, lying

from layers.catalog import stone, stones
from profiles.checks.carriers import CARRIERS
from profiles.checks.chain import Chain
from profiles.checks.invariance import BROKEN, HOLDS, Conditions, check
from profiles.checks.transformations import DELTA, GROUPS
from profiles.target import resolve

CLAIMING = [found for found in stones().values() if found.card.claims]
COLUMNS = ("w-scale", "w-recenter", "w-vec-scale", "x-scale", "x-recenter", "case-scale",
           "w-vec-recenter", "x-recenter-scalar")  # fmt: skip
# Of a dense layer, measured apart from this library with plain formulas; 1 where the output stays.
DENSE = {
    "weight-norm": (1, 0, 1, 0, 0, 0, 0, 0),
    "weight-standardization": (1, 0, 1, 0, 0, 0, 1, 1),
    "scaled-ws": (1, 0, 1, 0, 0, 0, 1, 1),
    "cen-conv": (0, 0, 0, 0, 0, 0, 1, 1),
    "normalized-conv": (0, 0, 0, 1, 0, 1, 1, 1),
    "torch.nn:Conv2d": (0, 0, 0, 0, 0, 0, 0, 0),
    "gn on weight-standardization": (1, 0, 1, 1, 0, 1, 1, 1),
    "bn on weight-standardization": (1, 0, 1, 1, 1, 0, 1, 1),
    "bn on cen-conv": (1, 0, 1, 1, 1, 0, 1, 1),
    "mean-only-bn on weight-norm": (1, 0, 1, 0, 1, 0, 0, 1),
}


@pytest.mark.parametrize("line", DENSE)
def test_own_weights_have_their_rows_on_a_dense_layer(line):
    name, _, weight = line.partition(" on ")
    options = {"groups": GROUPS} if name == "gn" else {}
    rows = check(resolve(name), Conditions(options, weight=weight), properties=COLUMNS, carriers=["linear"])
    assert tuple(int(row.holds) for row in rows) == DENSE[line]


def test_every_row_with_a_weight_is_claimed_by_the_layer_behind():
    claimed = {(found.name, claim.weight) for found in CLAIMING for claim in found.card.claims if claim.weight}
    assert claimed >= {
        ("gn", "weight-standardization"),
        ("bn", "weight-standardization"),
        ("bn", "cen-conv"),
        ("mabn", "cen-conv"),
        ("mean-only-bn", "weight-norm"),
    }


def test_a_plain_convolution_is_the_plain_carrier():
    plain, own = (check(resolve(f"torch.nn:{name}")) for name in ("Identity", "Conv2d"))
    for left, right in zip(plain, own, strict=True):
        assert (left.property, left.carrier, left.holds) == (right.property, right.carrier, right.holds)
        assert left.deviation == pytest.approx(right.deviation, abs=1e-12)


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS.keys())
def test_a_weight_in_the_place_of_the_carrier_is_the_carrier_by_the_normalized_weight(carrier):
    (scene,) = carrier.scenes(1, bias=True, seed=5)
    rows = scene.weight.flatten(1)
    standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    wanted = carrier(replace(scene, weight=standard.view_as(scene.weight)))
    chain = Chain(stone("weight-standardization"), Conditions(), carrier)
    torch.testing.assert_close(chain.run(chain.build(0), scene), wanted, rtol=1e-12, atol=1e-12)
    behind = Chain(stone("mean-only-bn"), Conditions({"affine": False}, weight="weight-standardization"), carrier)
    axes = [0, *range(2, wanted.dim())]
    centred = wanted - wanted.mean(axes, keepdim=True)
    torch.testing.assert_close(behind.run(behind.build(0), scene), centred, rtol=1e-11, atol=1e-11)


def test_what_else_a_weight_learns_is_random_and_stays():
    carrier = CARRIERS["linear"]
    chain = Chain(stone("weight-norm"), Conditions(), carrier)
    modules, again = chain.build(3), chain.build(3)
    (scene,) = carrier.scenes(1, bias=False, seed=0)
    y = chain.run(modules, scene)
    gain = modules["kernel"].gain.detach().flatten()
    assert (gain - modules["kernel"].weight.flatten(1).norm(dim=1)).abs().min() > 0.01
    directions = scene.weight / scene.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(y, scene.x @ (gain[:, None] * directions).T)
    assert all(torch.equal(*pair) for pair in zip(modules.parameters(), again.parameters(), strict=True))


STANDARDIZED = """
import torch


class StdConv2d(torch.nn.Conv2d):
    def __init__(self, in_channel, out_channels, kernel_size, stride=1, padding=None, bias=False, eps=1e-6):
        padding = kernel_size // 2 if padding is None else padding
        super().__init__(in_channel, out_channels, kernel_size, stride, padding, bias=bias)
        self.eps = eps

    def forward(self, x):
        rows = self.weight.flatten(1)
        var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        weight = ((rows - mean) / (var + self.eps).sqrt()).view_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Outside(torch.nn.Conv2d):
    def forward(self, x):
        rows = self.weight.flatten(1)
        weight = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


class Writing(torch.nn.Conv2d):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(2)
        return super().forward(x)


class Unpadded(torch.nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.one = torch.nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x):
        return self.one(x)
"""


@pytest.fixture
def own(tmp_path):
    source = tmp_path / "own.py"
    source.write_text(STANDARDIZED)
    return lambda name: resolve(f"{source}:{name}")


def test_a_class_with_a_weight_of_its_own_is_measured_in_the_place_of_the_carrier(own):
    rows = check(own("StdConv2d"))
    assert {row.verdict for row in rows} == {"measured"}
    assert {row.within for row in rows} == {HOLDS}
    assert cells(rows) == cells(check(stone("weight-standardization"), Conditions()))


def test_an_eps_outside_the_root_gets_its_own_bound(own):
    rows = check(own("Outside"))
    assert cells(rows) == cells(check(stone("weight-standardization"), Conditions()))
    scaled = [row for row in rows if row.property in ("w-scale", "w-vec-scale", "w-scale-group")]
    assert all(HOLDS < row.deviation < row.within < BROKEN for row in scaled)


@pytest.mark.parametrize("convention", ["qiao", "bcn"])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_a_given_eps_of_a_weight_stays_below_its_bound(convention, eps):
    rows = check(stone("weight-standardization"), Conditions({"convention": convention, "eps": eps}))
    for row in rows:
        if row.property in ("w-scale", "w-vec-scale", "w-scale-group"):
            assert HOLDS < row.deviation < row.within < BROKEN


def test_a_layer_that_writes_into_its_weight_does_not_change_the_next_measurement(own):
    (row,) = check(own("Writing"), properties=["w-scale"], carriers=["conv"])
    assert row.deviation == pytest.approx(DELTA - 1)


def test_a_convolution_without_padding_is_not_applicable_where_it_is_due(own):
    rows = check(own("Unpadded"), properties=["w-scale"])
    assert {row.carrier: row.verdict for row in rows} == {
        "linear": "measured",
        "conv": "measured",
        "conv-padded": "n/a",
    }
    assert "takes no padding" in rows[-1].reason


def test_a_bias_below_is_the_bias_of_the_carrier(own):
    shifted = check(own("Unpadded"), Conditions(bias=True), properties=["x-scale", "pre-bias"], carriers=["conv"])
    plain = check(resolve("torch.nn:Identity"), Conditions(bias=True), properties=["x-scale", "pre-bias"])
    wanted = {row.property: row.deviation for row in plain if row.carrier == "conv"}
    assert {row.property: row.deviation for row in shifted} == pytest.approx(wanted)


def test_a_given_eps_behind_a_weight_of_its_own_gets_the_variance_that_it_divides():
    conditions = Conditions({"eps": 1e-7}, weight="weight-norm")
    rows = check(stone("bn"), conditions, properties=["x-scale"], carriers=["linear"])
    assert [HOLDS < row.deviation < row.within < BROKEN for row in rows] == [True]


@pytest.mark.parametrize(
    ("name", "conditions", "message"),
    [
        ("torch.nn:Conv2d", Conditions({"kernel_size": 5}), "--kernel-size is that of the carrier"),
        ("weight-norm", Conditions({"out_channels": 4}), "--out-channels is that of the carrier"),
        ("weight-norm", Conditions(weight="cen-conv"), "has a weight of its own"),
        ("bn", Conditions(weight="gn"), "gn has no weight of its own"),
        ("bn", Conditions(weight="nosuch"), "no stone is called"),
        ("torch.nn:ConvTranspose2d", None, "a weight of 7 x 12 x 1 x 1"),
        ("torch.nn:Conv1d", None, "no parameter of four axes"),
    ],
)
def test_what_cannot_stand_in_the_place_of_the_carrier_is_refused_in_words(name, conditions, message):
    with pytest.raises(ValueError, match=message):
        check(resolve(name), conditions, properties=["w-scale"])


def test_a_false_claim_about_a_weight_fails(tmp_path):
    for was, becomes, failing, reason in (
        ('"w-vec-recenter",', '"w-vec-recenter", "x-scale",', "x-scale", "claimed, but"),
        ('                "w-vec-recenter",\n', "", "w-vec-recenter", "not claimed"),
    ):
        directory = tmp_path / failing  # cards are read once per path
        directory.mkdir()
        liar = lying(directory, "weight-standardization", was, becomes)
        failed = [row for row in check(liar) if row.verdict == "failed"]
        assert {row.property for row in failed} == {failing}
        assert {row.carrier for row in failed} == set(CARRIERS)
        assert all(reason in row.reason for row in failed)


def test_a_false_claim_with_a_weight_before_the_layer_fails(tmp_path):
    liar = lying(tmp_path, "gn", 'weight="weight-standardization"', 'weight="cen-conv"')
    failed = [row for row in check(liar) if row.verdict == "failed"]
    assert {row.weight for row in failed} == {"cen-conv"}
    assert {row.property for row in failed if row.expected} == {"w-vec-scale"}
