"""The peak of allocated bytes: against what is allocated by hand, and against what is known of torch's convolutions."""

import pytest
import torch
from torch.nn import functional as F

from layers import catalog
from profiles.counting.facts import inspect
from profiles.counting.workspace import workspace
from profiles.subject import Setup, subject

KIB = torch.ones(256)  # 1024 bytes


@pytest.mark.parametrize(
    ("work", "found"),
    [
        (lambda: None, 0),
        (lambda: KIB.clone(), 0),
        (lambda: KIB.add_(KIB), 0),
        (lambda: KIB + (KIB + KIB), 1024),
        (lambda: [KIB + KIB, None, KIB + KIB], 0),
        (lambda: (KIB + KIB).relu_().abs(), 1024),
        (lambda: KIB.repeat(8).neg()[:1].clone(), 16 * 1024 - 4),
    ],
)
def test_what_is_dropped_counts_and_what_is_returned_does_not(work, found):
    assert workspace(work) == found


def test_memory_from_before_does_not_count():
    kept = [KIB.repeat(100)]
    assert workspace(lambda: kept.clear()) == 0


def test_an_error_leaves_the_profiler_off():
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        workspace(fail)
    assert workspace(lambda: KIB + (KIB + KIB)) == 1024


def test_the_columns_of_torchs_double_precision_convolution_are_seen():
    x, weight = torch.ones(3, 4, 7, 6, dtype=torch.float64), torch.ones(5, 4, 3, 2, dtype=torch.float64)
    assert workspace(lambda: F.conv2d(x, weight)) == 3 * 4 * 6 * 5 * 5 * 8  # N·C·K·P numbers, of the whole batch


def test_inspect_states_both_passes_of_any_layer_and_changes_nothing():
    record = inspect(subject(catalog.stone("bn"), {}, Setup(shape=(4, 6, 5, 5))))
    space = record["memory"]["workspace"]
    assert space["formula"] is None
    assert space["measured"] > 0
    assert space["backward"] >= 0
    assert record["ok"]


def test_a_wrong_formula_of_workspace_fails(monkeypatch):
    import dataclasses

    stone = catalog.stone("im2col")
    wrong = dataclasses.replace(stone.card, workspace="lowered + B")
    monkeypatch.setattr(type(stone), "card", property(lambda self: wrong))
    record = inspect(subject(stone, {}, Setup(shape=(2, 3, 5, 5))))
    assert [check["what"] for check in record["checks"] if not check["ok"]] == ["memory.workspace"]
