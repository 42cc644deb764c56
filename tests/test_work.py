"""The least that a case must do: by its card, by its role, or as a class is seen to do it."""

from __future__ import annotations

import pytest

from profiles.speed.cases import case
from profiles.speed.ceilings import Work
from profiles.speed.roofline import work_of
from profiles.subject import Setup, subject
from profiles.target import resolve

SHAPE = (4, 12, 6, 6)


def of(name, direction="forward", options=None, **setup):
    return case(subject(resolve(name), options or {}, Setup(**{"shape": SHAPE, **setup})), direction)


E, P = 4 * 12 * 6 * 6 * 4, 2 * 12 * 4  # bytes of the input, and of γ and β


@pytest.mark.parametrize(
    ("name", "direction", "expected"),
    [
        ("gn", "forward", (2 * E, E, 2 * E)),
        ("gn", "backward", (3 * E, E + P, 3 * E)),
        ("gn", "forward+backward", (5 * E, 2 * E + P, 3 * E)),
        ("bn", "forward", (3 * E, E, 2 * E + P)),
    ],
)
def test_the_work_of_a_layer_is_that_of_its_card(name, direction, expected):
    work = work_of(of(name, direction, {"groups": 3} if name == "gn" else {}))
    assert (work.bytes, work.written, work.working_set) == expected
    assert work.flops == of(name, direction, {"groups": 3} if name == "gn" else {}).flops() > 0


W = 8 * 4 * 3 * 3 * 4


@pytest.mark.parametrize(
    ("name", "direction", "expected"),
    [
        ("svb", "forward", (2 * W, W, 2 * W)),
        ("orthogonal", "forward", (W, W, W)),
        ("shifted-l2", "forward", (W, 4, W)),
        ("shifted-l2", "backward", (2 * W, W, 2 * W)),
        ("lars", "forward", (7 * W, 2 * W, 3 * W)),
        ("sgd-g", "forward", (5 * W, 2 * W, 3 * W)),
    ],
)
def test_the_work_on_a_weight_goes_by_its_role(name, direction, expected):
    work = work_of(of(name, direction, shape=(8, 4, 3, 3)))
    assert (work.bytes, work.written, work.working_set) == expected


def test_an_optimizer_writes_its_parameter_and_its_state():
    work = work_of(of("adax", shape=(8, 4, 3, 3)))
    assert work.bytes == 7 * W
    assert 3 * W <= work.written <= 3 * W + 8
    assert 4 * W <= work.working_set <= 4 * W + 8


def test_the_work_on_several_tensors_is_the_sum():
    one, three = (work_of(of("sgd-g", shape=(8, 4, 3, 3), tensors=tensors)) for tensors in (1, 3))
    assert vars(three) == {name: 3 * value for name, value in vars(one).items()}


def test_no_stone_writes_or_touches_more_than_it_moves():
    for name in ("omd-modulation", "spp", "strip-pooling", "subpixel", "mpn-cov"):
        work = work_of(of(name, "forward+backward"))
        assert 0 < work.written <= work.bytes, name
        assert 0 < work.working_set <= work.bytes, name


def test_the_work_of_a_class_is_what_it_is_seen_to_do():
    linear = of("torch.nn:Linear", options={"in_features": 12, "out_features": 5}, shape=(4, 12))
    parameters = (12 * 5 + 5) * 4
    work = work_of(linear)
    assert work == Work(4 * 12 * 4 + 4 * 5 * 4 + parameters, 4 * 5 * 4, 2 * 4 * 12 * 5 + 4 * 5, work.bytes)
    back = work_of(of("torch.nn:Linear", "backward", {"in_features": 12, "out_features": 5}, shape=(4, 12)))
    assert back.bytes == 2 * 4 * 12 * 4 + 4 * 5 * 4 + 2 * parameters
    assert back.written == 4 * 12 * 4 + parameters
    assert work_of(of("torch.nn:ReLU")) == Work(2 * E, E, E // 4, 2 * E)
    assert work_of(of("torch.nn:PixelShuffle", "backward", {"upscale_factor": 2})).bytes == 2 * E, "needs no input"


def test_a_view_is_no_work_and_a_change_in_place_is():
    assert work_of(of("torch.nn:Identity")) == Work(0, 0, 0, 0)
    assert work_of(of("torch.nn:Flatten")) == Work(0, 0, 0, 0)
    in_place = work_of(of("torch.nn:ReLU", options={"inplace": True}, train=False))
    assert (in_place.bytes, in_place.written, in_place.working_set) == (2 * E, E, E)
