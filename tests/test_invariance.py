"""`check-invariance`: every claim is true and whole, and a card that lies is found out."""

import json
from dataclasses import asdict

import pytest
import torch
from claims import cells, lying

from layers import card as vocabulary
from layers.card import OptionError
from layers.catalog import stone, stones
from profiles.checks.carriers import CARRIERS
from profiles.checks.chain import has_weight
from profiles.checks.invariance import BROKEN, HOLDS, PUBLISHED, Conditions, check, published
from profiles.checks.transformations import DELTA, GROUPS, PROPERTIES
from profiles.errors import Refusal
from profiles.target import resolve

CLAIMING = [found for found in stones().values() if found.card.claims]
PAPER = [column.id for column in PROPERTIES.values() if column.paper]


@pytest.mark.parametrize("target", CLAIMING, ids=lambda target: target.name)
def test_every_claim_is_true_and_whole(target):
    rows = check(target)
    assert [row for row in rows if row.verdict == "failed"] == []
    assert len(rows) == len(target.card.claims) * len(PROPERTIES) * len(CARRIERS)
    for row in rows:
        assert (row.verdict == "n/a") == (row.deviation is None)
        assert (row.counterexample is None) == (row.holds in (True, None))


@pytest.mark.parametrize("target", CLAIMING, ids=lambda target: target.name)
def test_claims_speak_the_vocabulary(target):
    for claim in target.card.claims:
        assert {entry.partition("@")[0] for entry in claim.holds} <= PROPERTIES.keys()
        for entry in claim.holds:
            assert set(filter(None, entry.partition("@")[2].split(","))) <= set(claim.carriers)
        assert set(claim.carriers) <= set(vocabulary.CARRIERS)
        assert claim.mode in ("train", "eval")
        assert claim.history in ("frozen", "follow")
        assert not claim.weight or has_weight(stone(claim.weight))


def test_the_papers_table_is_reproduced():
    rows = published()
    assert [(row.stone, row.property) for row in rows] == [(name, column) for name in PUBLISHED for column in PAPER]
    assert {row.verdict for row in rows} == {"ok"}
    assert [row.holds for row in rows] == [cell for row in PUBLISHED.values() for cell in row]


def test_an_invariance_that_does_not_hold_fails_where_it_is_claimed(tmp_path):
    liar = lying(tmp_path, "gn", '"w-recenter@linear",', '"w-recenter@linear", "w-vec-scale@linear,conv",')
    failed = [row for row in check(liar) if row.verdict == "failed"]
    assert [(row.property, row.carrier) for row in failed] == [("w-vec-scale", "linear"), ("w-vec-scale", "conv")]
    for row in failed:
        assert row.expected
        assert row.deviation > BROKEN
        assert row.reason == "claimed, but the output changes"
        assert row.counterexample is not None


def test_an_invariance_that_holds_fails_where_nobody_claims_it(tmp_path):
    liar = lying(tmp_path, "pixel-norm", '"w-scale",', '"w-scale@linear",')
    failed = [row for row in check(liar) if row.verdict == "failed"]
    assert [(row.property, row.carrier) for row in failed] == [("w-scale", "conv"), ("w-scale", "conv-padded")]
    for row in failed:
        assert row.expected is False
        assert row.deviation < HOLDS
        assert row.reason == "holds, but is not claimed"


def test_a_claim_that_cannot_be_measured_fails(tmp_path):
    liar = lying(tmp_path, "gn", 'options={"groups": 3},\n            why', 'options={"groups": 5},\n            why')
    rows = [row for row in check(liar, properties=["w-scale"]) if not row.weight]
    assert {row.verdict for row in rows} == {"failed"}
    assert all("groups=5" in row.reason for row in rows)


def test_an_excluded_carrier_is_not_applicable(tmp_path):
    partial = lying(tmp_path, "bn-gn", 'options={"groups": 3},\n', 'options={"groups": 3}, carriers=("conv",),\n')
    rows = check(partial, properties=PAPER)
    assert {row.carrier for row in rows if row.verdict == "n/a"} == {"linear", "conv-padded"}
    assert {row.verdict for row in rows if row.carrier == "conv"} == {"ok"}


def test_a_counterexample_says_which_element_changed_and_comes_again():
    target = resolve("torch.nn:Identity")
    rows = check(target, properties=["x-scale"])
    assert rows == check(target, properties=["x-scale"])
    for row in rows:
        assert row.deviation == pytest.approx(DELTA - 1)
        found = row.counterexample
        assert len(found.index) == len(CARRIERS[row.carrier].output)
        assert found.after == pytest.approx(DELTA * found.before)
        assert found.change == found.after - found.before


@pytest.mark.parametrize(
    ("name", "options", "same_as"),
    [
        ("torch.nn:LayerNorm", {}, ("ln", {})),
        ("torch.nn:GroupNorm", {"num_groups": GROUPS}, ("gn", {"groups": GROUPS})),
    ],
)
def test_a_class_is_measured_without_expectation(name, options, same_as):
    rows = check(resolve(name), Conditions(options=options))
    assert {row.verdict for row in rows} == {"measured"}
    assert {row.expected for row in rows} == {None}
    twin, twin_options = same_as
    assert cells(rows) == cells(check(stone(twin), Conditions(options=twin_options)))


def test_a_class_is_not_applicable_where_it_refuses_to_run():
    for name, refused in (("torch.nn:BatchNorm2d", {"linear"}), ("torch.nn:BatchNorm1d", {"conv", "conv-padded"})):
        rows = check(resolve(name), properties=PAPER)
        assert {row.carrier for row in rows if row.verdict == "n/a"} == refused
        by_stone = cells(check(stone("bn"), Conditions(), properties=PAPER))
        assert all(by_stone[row.property, row.carrier] == row.holds for row in rows if row.carrier not in refused)
        with pytest.raises(Refusal, match="refuses an input of"):
            check(resolve(name), carriers=refused)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("irevnet-squeeze", {"block_size": 2}, "block_size=(2, 2) does not divide the input of 7×6"),
        ("subpixel", {"scale": 3}, "a weight of 108 x 5 x 3 x 3, the check needs 12 x 5 x 3 x 3"),
        ("split-merge", {}, "window=(2, 2) does not divide 7×6 positions"),
        ("gn", {"groups": 5}, "groups=5 does not divide 12 channels"),
        ("ghost-bn", {"ghost_size": 3}, "ghost_size=3 does not divide the batch of 8"),
    ],
)
def test_options_that_fit_no_carrier_are_refused_for_its_sizes_beside_those_of_a_claim(name, options, message):
    with pytest.raises(Refusal) as refused:
        check(stone(name), Conditions(options=options), properties=["w-scale"])
    said = str(refused.value)
    _, where, why = said.partition("the carriers, whose sizes are fixed: on conv-padded (8x5x7x6 → 8x12x7x6) ")
    assert where
    assert message in why
    assert "--input" not in said
    assert all(f"{name} with {option}={value!r} does not fit" in said for option, value in options.items())
    (claimed,) = {str(claim.options): claim.options for claim in stone(name).card.claims}.values()
    assert said.endswith("; it fits with " + ", ".join(f"{option}={value!r}" for option, value in claimed.items()))
    rows = check(stone(name), Conditions(options=claimed), properties=["w-scale"], carriers=["conv-padded"])
    assert [row.verdict for row in rows] == ["measured"]


def test_maps_alone_are_not_applicable_on_vectors():
    rows = check(stone("spp"), Conditions(), properties=["w-scale"])
    assert [(row.carrier, row.reason) for row in rows if row.verdict == "n/a"] == [
        ("linear", "spp needs 4 sizes, N x C x positions; what linear gives has 2")
    ]
    with pytest.raises(Refusal, match=r"on linear \(8x7 → 8x12\) spp needs 4 sizes, N x C x positions; .* has 2$"):
        check(stone("spp"), Conditions(), properties=["w-scale"], carriers=["linear"])


def test_an_option_out_of_range_is_refused_without_a_carrier():
    with pytest.raises(OptionError, match=r"^eps=-1\.0 is out of range"):
        check(stone("bn"), Conditions(options={"eps": -1.0}), properties=["w-scale"])


def test_a_degenerate_layer_is_not_applicable(tmp_path):
    source = tmp_path / "degenerate.py"
    source.write_text(
        "import torch\n\n\nclass Zero(torch.nn.Module):\n    def forward(self, x):\n        return 0 * x\n"
    )
    with pytest.raises(Refusal, match="does not depend on its input"):
        check(resolve(f"{source}:Zero"))


def test_parameters_are_not_at_their_first_values(tmp_path):
    source = tmp_path / "fresh.py"
    source.write_text(
        "import torch\n\n\nclass Fresh(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.ones(()))\n\n"
        "    def forward(self, x):\n        return x * (self.weight - 1)\n"
    )
    (row,) = check(resolve(f"{source}:Fresh"), properties=["x-scale"], carriers=["linear"])
    assert row.deviation == pytest.approx(DELTA - 1)


def test_a_class_with_a_hidden_eps_gets_the_first_order_bound(tmp_path):
    source = tmp_path / "hidden_eps.py"
    source.write_text(
        "import torch\n\n\nclass Standard(torch.nn.Module):\n    def forward(self, x):\n"
        "        x = x - x.mean(0)\n        return x / (x.square().mean(0) + 1e-5).sqrt()\n"
    )
    rows = {row.property: row for row in check(resolve(f"{source}:Standard"), carriers=["linear"])}
    assert HOLDS < rows["w-scale"].deviation < rows["w-scale"].within < BROKEN
    assert rows["x-recenter"].within == HOLDS
    expected = cells(check(stone("bn"), Conditions(), carriers=["linear"]))
    assert {(name, "linear"): row.holds for name, row in rows.items()} == expected


def test_a_given_eps_is_measured_as_it_is():
    (row,) = check(stone("bn"), Conditions(options={"eps": 1e-5}), properties=["w-scale"], carriers=["linear"])
    assert HOLDS < row.deviation < row.within
    assert row.holds
    (row,) = check(stone("bn"), Conditions(options={"eps": 10.0}), properties=["w-scale"], carriers=["linear"])
    assert row.within == BROKEN
    assert row.holds is False


def test_between_the_two_thresholds_nothing_is_decided(tmp_path):
    source = tmp_path / "nearly.py"
    source.write_text(
        "import torch\n\n\nclass Nearly(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x - x.mean(0) + 1e-6 * x.sin()\n"
    )
    (row,) = check(resolve(f"{source}:Nearly"), properties=["x-recenter"], carriers=["linear"])
    assert HOLDS < row.deviation < BROKEN
    assert row.holds is None
    assert row.reason.startswith("unclear")
    assert row.counterexample is not None


def test_an_unclear_cell_of_a_card_fails(monkeypatch):
    forward = stone("pono").load().forward
    monkeypatch.setattr(stone("pono").load(), "forward", lambda layer, x: forward(layer, x) + 1e-6 * x.sin())
    rows = check(stone("pono"), properties=["w-scale"])
    assert {(row.expected, row.holds, row.verdict) for row in rows} == {(True, None, "failed")}
    assert all(row.reason.startswith("unclear") for row in rows)


def test_what_is_not_finite_fails_and_stays_out_of_the_record(tmp_path):
    source = tmp_path / "overflowing.py"
    source.write_text(
        "import torch\n\n\nclass Overflowing(torch.nn.Module):\n    def forward(self, x):\n"
        "        return torch.where(x.abs().max() > 6, x / 0, x)\n"
    )
    rows = check(resolve(f"{source}:Overflowing"), properties=["x-scale"])
    assert [(row.deviation, row.holds, row.verdict) for row in rows] == [(None, None, "failed")] * len(CARRIERS)
    json.dumps([asdict(row) for row in rows], allow_nan=False)


def test_stored_statistics_that_follow_bring_the_invariances_of_training_back():
    def held(history):
        conditions = Conditions(options={"momentum": 1.0}, mode="eval", history=history)
        return cells(check(stone("bn"), conditions))

    assert not any(held("frozen").values())
    assert held("follow") == cells(check(stone("bn"), Conditions()))


@pytest.mark.parametrize(("name", "lost"), [("ln", {"w-scale", "x-scale", "case-scale"}), ("bn", set())])
def test_a_bias_of_the_layer_before_breaks_re_scaling_where_it_is_not_removed(name, lost):
    without, with_bias = (cells(check(stone(name), Conditions(bias=bias), properties=PAPER)) for bias in (False, True))
    assert {column for (column, where), holds in without.items() if holds != with_bias[column, where]} == lost


def test_names_are_refused_with_a_near_one():
    with pytest.raises(Refusal, match="did you mean w-recenter"):
        check(stone("bn"), properties=["w-recentre"])
    with pytest.raises(Refusal, match="did you mean conv-padded"):
        check(stone("bn"), carriers=["conv-paded"])


def test_a_transform_of_models_is_refused():
    with pytest.raises(Refusal, match="transform"):
        check(stone("bn-only"))


def test_progress_sees_every_row_and_the_generator_nothing():
    before, seen = torch.get_rng_state(), []
    rows = check(stone("pono"), properties=["w-scale", "x-scale"], progress=seen.append)
    assert seen == rows
    assert [(row.carrier, row.property) for row in rows] == [(c, p) for c in CARRIERS for p in ("w-scale", "x-scale")]
    assert torch.equal(torch.get_rng_state(), before)


def test_records_are_strict_json():
    rows = check(stone("bn"), properties=PAPER)
    assert json.loads(json.dumps([asdict(row) for row in rows], allow_nan=False))[0]["stone"] == "bn"
