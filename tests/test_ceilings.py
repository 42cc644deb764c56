"""Ceilings: floors by numbers that were computed by hand, and measuring by clocks that go by plan."""

from __future__ import annotations

import math

import pytest
import torch
from machines import KNOWN, PLACE, planted

from profiles.speed import ceilings_measured
from profiles.speed.ceilings import Ceilings, Rung, Work, needed
from profiles.speed.ceilings_measured import least, measure, where
from profiles.speed.clocks import HostClock


def floor(moved, written, flops, working_set, dtype="float32"):
    return KNOWN.floor(Work(moved, written, flops, working_set), dtype)


def test_what_is_written_goes_at_the_copys_rate_and_the_rest_at_the_reads():
    found = floor(300, 100, 0, 100)  # 200 at 8, 100 at 10
    assert (found.memory, found.seconds, found.bound) == (35.0, 35.0, "memory")
    assert floor(100, 0, 0, 100).memory == 10.0
    assert floor(100, 50, 0, 100).memory == 12.5


def test_what_is_written_without_being_read_goes_at_the_best_rate():
    assert floor(100, 100, 0, 100).memory == 10.0
    assert floor(100, 80, 0, 100).memory == 40 / 8 + 60 / 10


@pytest.mark.parametrize(
    ("working_set", "copy", "read"), [(1, 8, 10), (99, 8, 10), (100, 8, 10), (999, 8, 10), (1000, 2, 5), (10**9, 2, 5)]
)
def test_the_rung_is_the_best_from_the_one_below_upwards(working_set, copy, read):
    assert (KNOWN.copy(working_set), KNOWN.read(working_set)) == (copy, read)


def test_a_read_is_no_slower_than_a_copy():
    slow = Ceilings(PLACE, (Rung(10, 4.0, 3.0),), {"float32": 1.0}, 1.0)
    assert slow.read(10) == 4.0


def test_arithmetic_is_that_of_the_dtype_and_of_float32_where_that_may_stand_for_it():
    assert floor(0, 0, 1000, 0).arithmetic == 10.0
    assert floor(0, 0, 1000, 0, "float64").arithmetic == 20.0
    assert floor(0, 0, 1000, 0, "bfloat16").arithmetic == 10.0
    assert floor(0, 0, 1000, 0, "uint8").arithmetic == 10.0
    assert [needed(name) for name in ("float32", "float64", "float16", "uint8")] == [
        ("float32",), ("float32", "float64"), ("float32", "float16"), ("float32",),
    ]  # fmt: skip


def test_the_largest_of_three_bounds():
    assert floor(8, 0, 0, 100).bound == "call"
    assert floor(8, 0, 0, 100).seconds == 3.0
    assert floor(8, 0, 10_000, 100).bound == "arithmetic"
    assert floor(80, 0, 100, 100).bound == "memory"
    nothing = floor(0, 0, 0, 0)
    assert (nothing.seconds, nothing.bound) == (0.0, "call")


def test_a_faster_copy_raises_the_ceiling_and_a_slower_one_does_not():
    assert KNOWN.raised(500, 8.0) is KNOWN
    raised = KNOWN.raised(500, 16.0)
    assert (raised.copy(500), raised.copy(100), raised.copy(1000), raised.read(500)) == (16.0, 16.0, 2.0, 16.0)
    assert raised.floor(Work(200, 100, 0, 500)).memory == 200 / 16


def test_the_better_of_two_ceilings():
    other = Ceilings(PLACE, (Rung(100, 9.0, 1.0), Rung(2000, 9.0, 9.0)), {"float32": 7.0, "float64": 60.0}, 2.0)
    best = KNOWN.at_least(other)
    assert best.ladder == (Rung(10, 4.0, 3.0), Rung(100, 9.0, 10.0), Rung(1000, 2.0, 5.0))
    assert best.products == {"float32": 100.0, "bfloat16": 20.0, "float64": 60.0}
    assert best.call == 2.0


def test_the_best_block_counts_and_the_first_call_does_not():
    assert least(planted(iter([1e-9, 5e-3, 4e-3, 2e-3, 3e-3])), lambda: None, 0.0) == 5e-3, "one is enough in no time"
    assert least(planted(iter([1e-9, 5e-3, 4e-3, 2e-3, 3e-3])), lambda: None, 1e-2) == 2e-3


def test_blocks_are_long_enough_and_not_without_end():
    calls = []

    class Counted(HostClock):
        def once(self, job, count):
            calls.append(count)
            return 1e-6 * count, False

    assert least(Counted(now=lambda: 0.0), lambda: None, 1.0) == 1e-6
    assert set(calls[2:]) <= {1000, 1001}
    assert len(calls) <= 1 + ceilings_measured.MOST_BLOCKS


def test_a_clock_that_sees_nothing_gives_a_number():
    assert 0 < least(planted(iter(lambda: 0.0, 1)), lambda: None, 0.0) < 1e-6


def test_a_measurement_is_positive_finite_and_of_what_was_asked():
    seen = []
    place = where("cpu", 1, "wall", "kept")
    found = measure(place, ["float32", "bfloat16"], seconds=0.05, tell=lambda fraction, what: seen.append(fraction))
    numbers = [
        *found.products.values(),
        found.call,
        *(rate for rung in found.ladder for rate in (rung.copy, rung.read)),
    ]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert tuple(rung.bytes for rung in found.ladder) == ceilings_measured.LADDER
    assert set(found.products) == {"float32", "bfloat16"}
    assert found.where == place
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_only_what_is_missing_is_measured():
    found = measure(PLACE, ["float32", "float16"], known=KNOWN, seconds=0.01)
    assert found.ladder == KNOWN.ladder
    assert found.products == {**KNOWN.products, "float16": found.products["float16"]}


def test_torch_is_left_as_it_was():
    before = torch.get_num_threads(), torch.is_grad_enabled()
    measure(where("cpu", 2, "wall", "kept"), [], seconds=0.01)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before


def test_products_on_cuda_round_as_convolutions_do_and_only_meanwhile():
    before = torch.get_float32_matmul_precision()
    seen = []
    for device in ("cpu", "cuda", "cuda:1"):
        with ceilings_measured.as_convolutions(device):
            seen.append(torch.get_float32_matmul_precision())
    assert (before, seen) == ("highest", ["highest", "high", "high"])
    assert torch.get_float32_matmul_precision() == before


def test_a_memory_that_ends_stops_the_large_rungs_only(monkeypatch):
    real = ceilings_measured._rung

    def limited(size, *rest):
        if size > 2**19:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(size, *rest)

    monkeypatch.setattr(ceilings_measured, "_rung", limited)
    assert [rung.bytes for rung in measure(PLACE, [], seconds=0.01).ladder] == [2**15, 2**19]
    monkeypatch.setattr(ceilings_measured, "_available", lambda device: 8 * 2**15)
    assert [rung.bytes for rung in measure(PLACE, [], seconds=0.01).ladder] == [2**15]
