"""Which offsets a stack of dilated convolutions sees: counted one by one, by the rule, and what the paper's misses."""

from __future__ import annotations

import itertools

import pytest
import torch

from layers import formula
from layers.card import Option, OptionError
from layers.dilation import coverage, is_covered, rates_of
from layers.upsample.hdc import HybridDilatedConv2d

STAGE_4 = (2, 2, 5, 9, *(1, 2, 5, 9) * 4, 1, 2, 5)  # of the authors' network
STAGE_5 = (5, 9, 17)
LISTS = [each for n in (1, 2, 3) for each in itertools.product(range(1, 8), repeat=n)]


def seen(rates, kernel_size):
    """The offsets that are seen: every sum of one tap per layer."""
    taps = [[rate * k for k in range(kernel_size)] for rate in rates]
    return sorted({sum(chosen) for chosen in itertools.product(*taps)})


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_the_rule_is_exact(kernel_size):
    verdicts = set()
    for rates in LISTS:
        offsets = seen(rates, kernel_size)
        found = coverage(rates, kernel_size)
        assert found.receptive_field == offsets[-1] + 1
        assert found.seen == len(offsets)
        assert found.gap == max(b - a for a, b in itertools.pairwise(offsets))
        assert found.covered == is_covered(rates, kernel_size) == (found.seen == found.receptive_field)
        verdicts.add(found.covered)
    assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("rates", "m2", "paper", "count", "field"),
    [
        ("1,2,5", 2, True, 17, 17),
        ("1,2,9", 5, False, 21, 25),
        ("2,2,2", 2, False, 7, 13),
        ("2,3,5", 3, True, 19, 21),
        ("1,3,1", 5, False, 11, 11),
        ("6,10,15", 10, False, 27, 63),
        ("2,4", 4, False, 7, 13),
        (STAGE_5, 9, False, 27, 63),
        (STAGE_4 + STAGE_5, None, None, 251, 251),
    ],
)
def test_known_lists_have_known_numbers(rates, m2, paper, count, field):
    found = coverage(rates)
    assert (found.seen, found.receptive_field, found.covered) == (count, field, count == field)
    assert m2 is None or (found.m2, found.satisfies_the_paper) == (m2, paper)


def test_with_a_first_rate_of_one_the_papers_rule_is_sufficient_and_not_necessary():
    starting = [coverage(rates, kernel) for rates in LISTS for kernel in (3, 5) if rates[0] == 1]
    assert all(found.covered for found in starting if found.m2 <= found.kernel_size)
    assert any(found.covered for found in starting if found.m2 > found.kernel_size)


def test_the_distances_are_those_of_the_recursion():
    assert coverage("1,2,5").distances == (1, 2, 5)
    assert coverage("1,2,9").distances == (3, 5, 9)
    assert coverage("4").distances == (4,)
    assert coverage("4").m2 == 4


def test_a_common_factor_always_leaves_holes():
    for rates in LISTS:
        found = coverage(rates)
        assert not (found.common > 1 and found.covered)
        assert found.gap >= found.common


def test_the_order_of_the_layers_does_not_matter():
    for rates in LISTS:
        one, other = coverage(rates), coverage(rates[::-1])
        assert (one.seen, one.gap, one.covered) == (other.seen, other.gap, other.covered)
    assert coverage("1,2,5").m2 != coverage("5,2,1").m2


@pytest.mark.parametrize(
    "rates",
    ["", "1,", ",1", "0", "1,0", "-1", "1;2", "1, 2", "01", "a", "1.5", "1\n", "²", "\u0661", "1" * 10, "9" * 5000],
)
def test_a_text_that_is_no_list_is_refused_by_the_layer_and_the_function(rates):
    with pytest.raises(OptionError) as refusal:
        HybridDilatedConv2d(2, rates)
    assert str(refusal.value).startswith(f"rates={rates!r} is not integers ≥ 1 separated by commas")
    assert refusal.value.option == "rates"
    with pytest.raises(OptionError, match="is not a list of integers ≥ 1"):
        coverage(rates)


@pytest.mark.parametrize("rates", [[], [0], [1, True], [1.0], ["1"], (1, -2)])
def test_a_list_of_anything_else_is_refused(rates):
    with pytest.raises(OptionError, match="is not a list of integers ≥ 1, such as 1,2,5"):
        rates_of(rates)


@pytest.mark.parametrize("kernel_size", [1, 0, True, 3.0, None])
def test_a_kernel_that_dilation_does_not_change_is_refused(kernel_size):
    with pytest.raises(OptionError, match="is not an integer ≥ 2"):
        coverage("1,2", kernel_size)


def test_a_receptive_field_too_large_to_be_counted_is_refused_but_judged():
    assert not is_covered((1, 10**12), 3)
    with pytest.raises(OptionError, match="receptive field"):
        coverage((1, 10**12))


def test_a_kernel_with_many_taps_is_counted_in_no_time():
    found = coverage((1, 3), 1_000_001)
    assert (found.seen, found.receptive_field, found.gap) == (4_000_001, 4_000_001, 1)
    found = coverage((2, 3), 1_000_000)
    assert (found.seen, found.receptive_field, found.gap) == (4_999_994, 4_999_996, 2)


def test_a_stack_with_holes_is_refused_unless_it_is_asked_for():
    with pytest.raises(OptionError, match="rates=2,3,5 leave holes with kernel_size=3") as refusal:
        HybridDilatedConv2d(2, "2,3,5")
    assert refusal.value.option == "rates"
    made = HybridDilatedConv2d(2, "2,3,5", strict=False)
    assert (made.coverage().seen, made.coverage().gap, made.coverage().covered) == (19, 2, False)
    assert HybridDilatedConv2d(2, "1,5", 5).coverage().covered


def test_relu_stands_between_the_layers_and_not_behind():
    made, x = HybridDilatedConv2d(2, "1,2", dtype=torch.float64), torch.randn(1, 2, 5, 5, dtype=torch.float64)
    y = made(x)
    assert (y < 0).any()
    assert torch.equal(y, made.layers[1](made.layers[0](x).relu()))


def test_formulas_read_lists_of_rates():
    assert formula.evaluate("entries(rates)", {"rates": "1,2,17"}) == 3
    assert formula.evaluate("is_covered(rates, 3)", {"rates": "3,1"})
    assert not formula.evaluate("is_covered(rates, 3)", {"rates": "4,1"})


def test_a_text_has_to_match_the_whole_pattern_of_its_option():
    option = Option(name="name", type=str, default="ab", pattern="[ab]+", like="letters a and b", help="x")
    assert option.check("bba") == "bba"
    for text in ("", "abc", "ab\n", "cab"):
        with pytest.raises(OptionError, match="is not letters a and b"):
            option.check(text)
