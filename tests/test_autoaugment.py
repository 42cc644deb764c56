"""AutoAugment: every operation bit for bit as Pillow computes it, its policies, its random numbers, what it takes."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections import Counter

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset

from layers.augment.autoaugment import AutoAugment
from layers.augmentation import apply, draw
from layers.card import OptionError
from layers.image_operations import OPERATIONS
from layers.policies import INDICES, POLICIES, READINGS, Applied, Step, is_signed, value
from layers.policies import OPERATIONS as NAMES

FILL = (10, 128, 250)
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


def pictures(height, width):
    """Noise, faint noise, black and white with a few grays, and constant channels."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.randint(0, 256, (5, 3, height, width), generator=generator, dtype=torch.uint8)
    flat = noise[3, :, :1, :1].expand(3, height, width)
    ramp = torch.arange(height * width).view(height, width).expand(3, -1, -1).to(torch.uint8)
    return torch.stack([noise[0], noise[1] // 8 + 50, noise[2] // 128 * 200 + noise[4] % 2, flat, ramp])


def picture(image):
    height, width = image.shape[1:]
    return Image.frombytes("RGB", (width, height), image.permute(1, 2, 0).contiguous().numpy().tobytes())


def pixels(image):
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, 3)
        .permute(2, 0, 1)
    )


def by_pillow(image, name, amount):
    """One operation by Pillow, as the paper's code calls it."""

    def moved(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)

    match name:
        case "ShearX":
            return moved(1, amount, 0, 0, 1, 0)
        case "ShearY":
            return moved(1, 0, 0, amount, 1, 0)
        case "TranslateX":
            return moved(1, 0, amount, 0, 1, 0)
        case "TranslateY":
            return moved(1, 0, 0, 0, 1, amount)
        case "Rotate":
            return image.rotate(amount, fillcolor=FILL)
        case "AutoContrast" | "Invert" | "Equalize":
            return getattr(ImageOps, name.lower())(image)
        case "Solarize":
            return ImageOps.solarize(image, amount)
        case "Posterize":
            return ImageOps.posterize(image, int(amount))
    return getattr(ImageEnhance, name)(image).enhance(amount)


def planned(images, plans):
    """What Pillow makes of ``images`` by ``plans``."""
    found = []
    for image, plan in zip(map(picture, images), plans, strict=True):
        for step in plan:
            image = by_pillow(image, *step)
        found.append(pixels(image))
    return torch.stack(found)


def noise(n, height=8, width=8, seed=0):
    return torch.randint(
        0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    images, state = noise(64), torch.get_rng_state()
    first, again, other = (AutoAugment("svhn", generator=seeded(seed))(images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_without_a_generator_torch_decides():
    images, augment = noise(64), AutoAugment("svhn")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, next_ = augment(images), augment(images)
        torch.manual_seed(3)
        assert torch.equal(augment(images), first)
    assert not torch.equal(first, next_)


@pytest.mark.parametrize("sizes", [(64,), (1,) * 64, (3, 17, 44), (0, 64)], ids=str)
def test_however_images_are_batched_they_get_the_same(sizes):
    images, whole = noise(64), AutoAugment("cifar10", generator=seeded())
    parts = AutoAugment("cifar10", generator=seeded())
    assert torch.equal(torch.cat([parts(part) for part in images.split(sizes)]), whole(images))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_the_layout_of_the_batch_changes_nothing_and_is_kept(layout):
    images = noise(32, 9, 9)
    given = {
        "channels_last": lambda: images.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: images.mT.contiguous().mT,
        "strided": lambda: images.repeat_interleave(2, dim=3)[..., ::2],
        "expanded": lambda: images[:1].expand(32, -1, -1, -1),
    }[layout]()
    before = given.clone()
    found = AutoAugment("svhn", generator=seeded())(given)
    assert torch.equal(found, AutoAugment("svhn", generator=seeded())(given.contiguous()))
    assert torch.equal(given, before)
    if layout == "channels_last":
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_result_shares_no_memory_with_what_was_given():
    images = noise(4)
    found = AutoAugment(sub_policies=[[("Invert", 0.0, 0)]])(images)
    assert torch.equal(found, images)
    assert found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_floating_point_images_are_255_levels_and_come_back_as_such(dtype):
    images = noise(32, 12, 10)
    unit = (images.double() / 255).to(dtype)
    found = AutoAugment("imagenet", generator=seeded())(unit)
    expected = AutoAugment("imagenet", generator=seeded())(images)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype) / 255)


@pytest.mark.parametrize("bad", [-0.01, 1.01, 255.0, math.nan, math.inf])
def test_floating_point_images_outside_0_to_1_are_refused(bad):
    images = torch.rand(2, 3, 4, 4, generator=seeded())
    images[1, 2, 3, 0] = bad
    with pytest.raises(ValueError, match=r"are in 0 … 1, augment before you normalize"):
        AutoAugment()(images)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_nothing_comes_of_nothing(shape, dtype):
    assert AutoAugment()(torch.empty(shape, dtype=dtype)).shape == shape


def test_one_image_is_a_batch_of_one():
    image = noise(1, 13, 7)[0]
    found = AutoAugment("svhn", generator=seeded(4))(image)
    assert torch.equal(found, AutoAugment("svhn", generator=seeded(4))(image[None])[0])


def test_pillow_images_come_back_as_pillow_images():
    images = noise(24, 15, 11)
    before = [picture(image) for image in images]
    ours, tensors = AutoAugment("cifar10", generator=seeded()), AutoAugment("cifar10", generator=seeded())
    one_by_one = [ours(image) for image in before[:12]]
    found = [*one_by_one, *ours(before[12:])]
    assert all(isinstance(image, Image.Image) and image.size == (11, 15) and image.mode == "RGB" for image in found)
    assert torch.equal(torch.stack([pixels(image) for image in found]), tensors(images))
    assert torch.equal(torch.stack([pixels(image) for image in before]), images)


def test_a_pillow_image_read_from_a_file_is_augmented():
    stored = io.BytesIO()
    picture(noise(1, 10, 12)[0]).save(stored, format="PNG")
    image = Image.open(io.BytesIO(stored.getvalue()))
    found = AutoAugment(sub_policies=[[("Invert", 1.0, 0)]])(image)
    assert found.tobytes() == ImageOps.invert(image).tobytes()


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ValueError, r"shape \(2, 1, 4, 4\): \(N, 3, H, W\)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), ValueError, r"shape \(2, 4, 4, 3\)"),
        (torch.zeros(4, 4, dtype=torch.uint8), ValueError, r"shape \(4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), ValueError, r"torch.int64: uint8 is needed"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), ValueError, r"torch.complex64: uint8 is needed"),
        (Image.new("L", (4, 4)), ValueError, r"mode L, not RGB: give image.convert\('RGB'\)"),
        (Image.new("RGBA", (4, 4)), ValueError, r"mode RGBA, not RGB"),
        ("picture.png", TypeError, r"a str is no image"),
        (None, TypeError, r"a NoneType is no image"),
    ],
)
def test_what_is_no_image_is_refused_in_words(images, error, words):
    with pytest.raises(error, match=words):
        AutoAugment()(images)


@pytest.mark.parametrize(
    ("sub_policies", "words"),
    [
        ([], "at least 1 sub-policy"),
        ([[]], "1 step in each"),
        ([[("Cutout", 0.5, 3)]], "'Cutout' is not one of ShearX"),
        ([[("Rotate", 1.5, 3)]], "probability 1.5 of Rotate is not in 0 … 1"),
        ([[("Rotate", math.nan, 3)]], "probability nan of Rotate"),
        ([[("Rotate", 0.5, 10)]], "magnitude 10 of Rotate is not in 0 … 9"),
        ([[("Rotate", 0.5, -1)]], "magnitude -1 of Rotate"),
        ([[("Rotate", 0.5, 2.5)]], r"is not \(operation, probability, magnitude\)"),
        ([[("Rotate", 0.5)]], r"is not \(operation, probability, magnitude\)"),
    ],
)
def test_bad_sub_policies_are_refused_in_words(sub_policies, words):
    with pytest.raises(OptionError, match=words):
        AutoAugment(sub_policies=sub_policies)


def test_sub_policies_of_ones_own_stand_in_place_of_the_policy():
    steps = [("Rotate", 1.0, 9), ("Invert", 1.0, 0), ("Color", 1.0, 9)]
    plans = AutoAugment(sub_policies=[steps, steps[:1]], generator=seeded()).draw(200, 8, 8)
    assert {tuple(step.operation for step in plan) for plan in plans} == {("Rotate", "Invert", "Color"), ("Rotate",)}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_goes_on_as_the_original_would(copied):
    images, augment = noise(32), AutoAugment("svhn", generator=seeded())
    augment(images)
    again = copied(augment)
    assert torch.equal(again(images), augment(images))


def test_it_has_no_parameters_no_graph_and_one_mode():
    images = torch.rand(8, 3, 8, 8, generator=seeded()).requires_grad_()
    train, evaluated = AutoAugment(generator=seeded()).train(), AutoAugment(generator=seeded()).eval()
    found = train(images)
    assert not found.requires_grad
    assert torch.equal(found, evaluated(images))
    assert not train.state_dict()
    assert repr(train) == "AutoAugment(policy='imagenet', reading='torchvision', fill=(128, 128, 128))"


def test_the_compiler_leaves_it_alone():
    images = noise(64, 9, 9)
    compiled = torch.compile(torch.nn.Sequential(AutoAugment("cifar10", generator=seeded())), backend="aot_eager")
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    assert torch.equal(compiled(images), AutoAugment("cifar10", generator=seeded())(images))
    assert counts["unique_graphs"] == before


class Images(Dataset):
    """The same image 64 times, augmented when it is fetched."""

    def __init__(self, augment):
        self.augment, self.image = augment, noise(1, 6, 6)[0]

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self.augment(self.image)


@pytest.mark.parametrize("generator", [None, 7])
def test_workers_of_a_data_loader_differ_and_are_decided_by_the_seeds(generator):
    def epochs(seed):
        augment = AutoAugment("svhn", generator=generator and seeded(generator))
        loader = DataLoader(Images(augment), batch_size=32, num_workers=2, generator=seeded(seed))
        return [torch.stack(list(loader)) for _ in range(2)]

    first, second = epochs(1)
    again, other = epochs(1), epochs(2)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first[0], first[1])  # of the two workers
    assert not torch.equal(first, second)
    assert not torch.equal(first, other[0])
