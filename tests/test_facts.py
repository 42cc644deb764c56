"""`inspect`: every card states what is measured, nothing is changed by looking, and what cannot run is refused."""

from __future__ import annotations

import json

import pytest
import torch

from layers import catalog
from layers.card import Flops, OptionError
from profiles.counting import facts
from profiles.errors import Refusal, Unavailable
from profiles.subject import Setup, subject
from profiles.target import resolve

LAYERS = [stone for stone in catalog.stones().values() if stone.card.role == "layer"]
SHAPES = [(4, 12, 5, 3), (8, 12, 4, 4), (4, 12, 3, 4), (4, 12, 7)]


ROWS = [(4, 12), (9, 12)]  # of what takes no positions


def admitted(stone, options, shape, train):
    """Whether the card admits an input of ``shape``; some options fix the batch or the positions."""
    if len(shape) not in stone.card.ranks:
        return False
    try:
        subject(stone, options, Setup(shape=shape, train=train))
    except OptionError:
        return False
    return True


CASES = [
    pytest.param(stone, options, train, shape, id=f"{stone.name}-{number}-{'train' if train else 'eval'}-{shape}")
    for stone in LAYERS
    for number, options in enumerate(stone.card.examples)
    for train in (True, False)
    for shape in (ROWS if stone.card.ranks == (2,) else SHAPES)
    if admitted(stone, options, shape, train)
]


def record_of(name, options=None, **setup):
    made = subject(resolve(name), options or {}, Setup(**setup))
    return facts.inspect(made)


def test_every_example_is_measured_in_both_modes():
    measured = {(case.values[0].name, str(case.values[1]), case.values[2]) for case in CASES}
    assert len(measured) == 2 * sum(len(stone.card.examples) for stone in LAYERS)


@pytest.mark.parametrize(("stone", "options", "train", "shape"), CASES)
def test_the_card_states_what_is_measured(stone, options, train, shape):
    record = facts.inspect(subject(stone, options, Setup(shape=shape, train=train)), fvcore=False)
    assert [check for check in record["checks"] if not check["ok"]] == []
    assert record["flops"]["forward"]["status"] == record["flops"]["backward"]["status"] == "complete"
    assert len(record["checks"]) >= 3
    json.dumps(record, allow_nan=False)


def test_the_reading_notes_example():
    record = record_of("gn", {"groups": 32})
    assert record["params"]["total"] == 128
    (mean, rstd) = record["stats"]
    assert (mean["symbolic"], mean["observed"], rstd["observed"]) == ("N×C/K", [8, 32], [8, 32])
    assert record["flops"]["fvcore"]["value"] == 5 * 8 * 64 * 32 * 32
    assert record["memory"]["saved"]["measured"] == 4 * 8 * 64 * 32 * 32 + 2 * 4 * 8 * 32


def test_a_lying_card_is_found(monkeypatch):
    honest = catalog.stone("gn").card
    monkeypatch.setitem(honest.__dict__, "params", "3*C")
    for kind in ("flops", "executed"):
        monkeypatch.setitem(honest.__dict__, kind, Flops("7*E", "11*E"))
    record = record_of("gn", {"groups": 4}, shape=(2, 8, 4, 4))
    assert not record["ok"]
    wrong = {check["what"] for check in record["checks"] if not check["ok"]}
    assert wrong == {"params", "flops.forward.executed", "flops.backward.executed"}


def test_without_measuring_the_card_answers_alone():
    made = subject(resolve("gn"), {}, Setup(shape=(8, 64, 10**6, 10**6)))
    record = facts.inspect(made, measure=False)
    assert record["params"]["total"] == 128
    assert record["flops"]["forward"]["total"] == 7 * 8 * 64 * 10**12 + 2 * 8 * 32
    assert not record["measured"]
    with pytest.raises(Unavailable, match="GiB"):
        facts.inspect(made)


def test_looking_changes_nothing():
    state = torch.random.get_rng_state()
    mode = torch.is_grad_enabled()
    record_of("bn", shape=(4, 12, 5, 3))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled() == mode


def test_a_class_of_torch_is_inspected_like_a_stone():
    record = record_of("torch.nn:BatchNorm2d", shape=(4, 12, 5, 3))
    assert record["params"]["total"] == 24
    assert {row["name"]: row["observed"] for row in record["stats"]} == {
        "native_batch_norm.mean": [12],
        "native_batch_norm.rstd": [12],
    }
    assert {row["name"] for row in record["buffers"]["tensors"]} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert record["ok"]


@pytest.mark.parametrize(
    ("name", "options", "setup", "words"),
    [
        ("torch.nn:Nothing", {}, {}, "has no 'Nothing'"),
        ("no_such_module:Thing", {}, {}, "cannot import no_such_module"),
        ("torch.nn:Linear", {"in_features": 3, "out_features": 2}, {}, "refuses an input of"),
        ("torch.nn:BatchNorm1d", {}, {"shape": (1, 64)}, "more than 1 value per channel"),
        ("gn", {}, {"shape": (8,)}, "2 to 5 sizes"),
        ("gn", {}, {"shape": (2, 0, 3)}, "at least 1 channel"),
        ("gn", {}, {"shape": (2, 64, 3), "memory_format": "channels_last"}, "needs 4 or 5 sizes"),
        ("gn", {}, {"shape": (10**10, 64, 10**10)}, "more than any tensor"),
    ],
)
def test_what_cannot_run_is_refused_in_words(name, options, setup, words):
    with pytest.raises(Refusal, match=words):
        record_of(name, options, **setup)


def test_other_circumstances_are_measured_without_comparing_counts():
    record = record_of("gn", {"groups": 4}, shape=(4, 12, 5, 3), memory_format="channels_last", dtype="bfloat16")
    assert record["ok"]
    assert any("contiguous" in note for note in record["notes"])
    assert record["flops"]["forward"]["executed"] > 0


def test_an_empty_batch_is_inspected():
    record = record_of("gn", {"groups": 4}, shape=(0, 12, 5, 3))
    assert record["output"]["shape"] == [0, 12, 5, 3]


@pytest.mark.parametrize("method", ["eig", "isqrt"])
def test_the_nominal_count_of_a_decomposition_is_told_where_one_runs(method):
    record = record_of("mpn-cov", {"method": method}, shape=(2, 6, 3, 3))
    assert ("eigenvectors 9n³" in record["flops"]["convention"]) == (method == "eig")
    assert ("_linalg_eigh" in record["flops"]["forward"]["by_op"]) == (method == "eig")


def test_fvcore_counts_products_and_eigenvectors_by_our_handles():
    eig = record_of("mpn-cov", {"method": "eig"}, shape=(2, 6, 3, 3))["flops"]["fvcore"]
    steps = record_of("mpn-cov", {"iters": 4}, shape=(2, 6, 3, 3))["flops"]["fvcore"]
    sketch = record_of("bilinear", {"sketch": 9}, shape=(2, 6, 3, 3))["flops"]["fvcore"]
    assert eig["by_op"]["linalg_eigh"] == 2 * 9 * 6**3
    assert steps["by_op"]["baddbmm"] == 3 * 2 * 6**3
    assert steps["by_op"]["bmm"] == 2 * 6 * 6 * 9 + 6 * 2 * 6**3
    assert sketch["by_op"]["index_add"] == 2 * 6 * 6
    assert eig["status"] == steps["status"] == sketch["status"] == "complete"
