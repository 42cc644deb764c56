"""AutoAugment in use: seeds, batches, layouts, dtypes, Pillow images, workers, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from PIL import Image, ImageOps
from pillow_images import noise, picture, pixels, seeded
from torch.utils.data import DataLoader, Dataset

from layers.augment.autoaugment import AutoAugment
from layers.card import OptionError


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
