"""AutoAugment: every operation bit for bit as Pillow computes it, and its policies."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from pillow_images import FILL, by_pillow, noise, picture, pictures, pixels, planned, seeded

from layers.augment.autoaugment import AutoAugment
from layers.augmentation import apply, draw
from layers.image_operations import OPERATIONS
from layers.policies import INDICES, POLICIES, READINGS, Applied, Step, is_signed, value
from layers.policies import OPERATIONS as NAMES

SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (3, 3), (5, 8), (17, 13), (31, 33), (3, 100), (70, 65)]
BEYOND = {  # values that no index has: off the tables' grid, larger than the image, whole turns
    "ShearX": (0.05, -1.7),
    "ShearY": (0.05, -1.7),
    "TranslateX": (1, -1, 200, -200),
    "TranslateY": (1, -1, 200, -200),
    "Rotate": (45.5, 90, 180, 270, 360, -123.4),
    "Solarize": (0, 1, 255, 255.5, 256),
    "Posterize": (1, 2, 3),
    **dict.fromkeys(("Contrast", "Color", "Brightness", "Sharpness"), (0.0, 0.5, 1.0, 3.3)),
}


def values(name, height, width):
    """Every value that an index comes to, in either reading and with either sign, and some beyond."""
    steps = [(Step(name, 1.0, index), reading) for index in range(INDICES) for reading in READINGS]
    found = [value(step, reading, height, width, sign) for step, reading in steps for sign in (1, -1)]
    return list(dict.fromkeys([*found, *BEYOND.get(name, ())]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_at_every_magnitude_is_pillow_bit_for_bit(name, size):
    images = pictures(*size)
    before = images.clone()
    for amount in values(name, *size):
        found = OPERATIONS[name](images, [amount] * len(images), FILL)
        expected = torch.stack([pixels(by_pillow(picture(image), name, amount)) for image in images])
        assert torch.equal(found, expected), f"{name} {amount}"
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_group_each_get_their_own_value(name):
    amounts = values(name, 9, 11)
    images = noise(len(amounts), 9, 11)
    found = OPERATIONS[name](images, amounts, FILL)
    assert torch.equal(found, planned(images, [(Applied(name, amount),) for amount in amounts]))


@pytest.mark.parametrize("extremes", [(0, 255), (3, 17), (100, 101), (0, 1), (7, 250)])
def test_autocontrast_has_the_table_of_pillow_for_every_value_between_the_extremes(extremes):
    low, high = extremes
    image = torch.arange(low, high + 1).to(torch.uint8).expand(3, 1, -1)
    assert torch.equal(
        apply(image[None], [(Applied("AutoContrast", 0),)], FILL), planned(image[None], [(Applied("AutoContrast", 0),)])
    )


def test_autocontrast_of_every_pair_of_extremes_divides_as_pillow_does():
    """1 ulp in the scale is another picture for one pair in ten."""
    pairs = torch.tensor([(low, high) for low in range(256) for high in range(low + 1, 256)])
    ramps = (pairs[:, :1] + (pairs[:, 1:] - pairs[:, :1]) * torch.arange(8) // 7).to(torch.uint8)
    images = ramps[: 32640 // 3 * 3].view(-1, 3, 1, 8)
    found = OPERATIONS["AutoContrast"](images, [0] * len(images), FILL)
    for ramp, result in zip(images.flatten(0, 1).view(-1, 8).tolist(), found.view(-1, 8).tolist(), strict=True):
        scale = 255.0 / (ramp[-1] - ramp[0])
        assert result == [max(0, min(255, int(v * scale + -ramp[0] * scale))) for v in ramp]


@pytest.mark.parametrize("side", [66, 224])
def test_large_images_take_the_way_of_large_images_and_are_pillow_too(side):
    images = noise(2, side, side + 1, seed=3)
    plans = [tuple(Applied(name, values(name, side, side)[3 % len(values(name, side, side))]) for name in NAMES)] * 2
    assert torch.equal(apply(images, plans, FILL), planned(images, plans))


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
@pytest.mark.parametrize("size", [(97, 120), (300, 40)], ids=str)
def test_large_images_are_moved_as_pillow_does_at_every_magnitude(name, size):
    images = noise(2, *size, seed=4)
    for amount in values(name, *size):
        plans = [(Applied(name, amount),)] * 2
        assert torch.equal(apply(images, plans, FILL), planned(images, plans)), amount


def test_one_image_gets_every_operation_after_another_as_in_a_batch():
    image = noise(1, 19, 23, seed=5)
    plan = tuple(Applied(name, values(name, 19, 23)[-1]) for name in NAMES)
    before = image.clone()
    alone = apply(image, [plan], FILL)
    assert torch.equal(alone, planned(image, [plan]))
    assert torch.equal(apply(image.expand(3, -1, -1, -1), [plan, (), plan], FILL)[2:], alone)
    assert torch.equal(image, before)
    for name in NAMES:
        apply(image, [(Applied(name, values(name, 19, 23)[0]),)], FILL).zero_()
    assert torch.equal(image, before)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(32, 32), (17, 50)], ids=str)
def test_a_policy_on_a_batch_is_pillow_on_each_image(policy, reading, size):
    images = noise(128, *size)
    ours, plans = (AutoAugment(policy, reading, FILL, generator=seeded(5)) for _ in range(2))
    drawn = plans.draw(128, *size)
    assert len({step.operation for plan in drawn for step in plan}) >= 8
    assert torch.equal(ours(images), planned(images, drawn))


def test_the_tables_are_those_of_the_paper():
    assert {name: len(policy) for name, policy in POLICIES.items()} == {"imagenet": 25, "cifar10": 25, "svhn": 25}
    assert POLICIES["imagenet"][0] == (("Posterize", 0.4, 8), ("Rotate", 0.6, 9))
    assert POLICIES["imagenet"][24] == (("Equalize", 0.8, 8), ("Equalize", 0.6, 3))
    assert POLICIES["cifar10"][3] == (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9))
    assert POLICIES["svhn"][24] == (("ShearX", 0.7, 2), ("Invert", 0.1, 5))
    assert len(set(POLICIES["imagenet"])) == 20
    expected = {name: sum(step[1] for sub in policy for step in sub) / 25 for name, policy in POLICIES.items()}
    assert expected == pytest.approx({"imagenet": 1.24, "cifar10": 1.06, "svhn": 1.316})


@pytest.mark.parametrize(
    ("reading", "name", "expected"),
    [
        ("torchvision", "Posterize", [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]),
        ("torchvision", "Rotate", [30 * i / 9 for i in range(10)]),
        ("torchvision", "ShearX", [0.3 * i / 9 for i in range(10)]),
        ("torchvision", "Solarize", [255 - 255 * i / 9 for i in range(10)]),
        ("torchvision", "Color", [1 + 0.9 * i / 9 for i in range(10)]),
        ("torchvision", "TranslateX", [math.floor(150 / 331 * 224 * i / 9) for i in range(10)]),
        ("torchvision", "TranslateY", [math.floor(150 / 331 * 32 * i / 9) for i in range(10)]),
        ("tf-cifar", "Posterize", [4 - int(0.4 * i) for i in range(10)]),
        ("tf-cifar", "Rotate", [int(3 * i) for i in range(10)]),
        ("tf-cifar", "ShearY", [0.3 * i / 10 for i in range(10)]),
        ("tf-cifar", "Solarize", [256 - int(25.6 * i) for i in range(10)]),
        ("tf-cifar", "Sharpness", [0.1 + 0.18 * i for i in range(10)]),
        ("tf-cifar", "TranslateX", list(range(10))),
    ],
)
def test_indices_mean_what_the_reading_says(reading, name, expected):
    found = [value(Step(name, 1.0, index), reading, 32, 224) for index in range(INDICES)]
    assert found == pytest.approx(expected)
    negative = [value(Step(name, 1.0, index), reading, 32, 224, -1) for index in range(INDICES)]
    around = 2 if name in ("Color", "Sharpness") else 0
    assert negative == (pytest.approx([around - v for v in found]) if is_signed(name, reading) else found)


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_are_applied_as_often_as_the_policy_says(policy):
    n = 100_000
    plans = draw(n, POLICIES[policy], "torchvision", 32, 32, seeded(1))
    found = Counter(step.operation for plan in plans for step in plan)
    shares = Counter()
    for step in (step for sub_policy in POLICIES[policy] for step in sub_policy):
        shares[step.operation] += step.probability / 25
    assert found.keys() == {name for name, share in shares.items() if share}
    for name, count in found.items():
        assert abs(count / n - shares[name]) < 5 * math.sqrt(2 * shares[name] / n)
    signs = Counter(math.copysign(1, step.value) for plan in plans for step in plan if step.operation == "Rotate")
    assert abs(signs[1] - signs[-1]) < 5 * math.sqrt(signs.total())


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probability_0_never_and_probability_1_always_applies(probability):
    plans = draw(5000, ((Step("Invert", probability, 0),),), "torchvision", 8, 8, seeded())
    assert {len(plan) for plan in plans} == {int(probability)}
