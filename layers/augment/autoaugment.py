r"""AutoAugment: each image gets one of 25 sub-policies that a search found, two operations with probabilities of their
own (Cubuk, Zoph, Mané, Vasudevan & Le 2019, arXiv 1805.09501, section 3 and appendix).

With the sub-policies (o₁, p₁, i₁; o₂, p₂, i₂) of a policy, for every image x by itself
$$s \sim U\{1,\dots,25\},\quad c_k \sim \mathrm{Bernoulli}(p_{s,k}),\quad
x \leftarrow o_{s,k}(x,\ \pm m(i_{s,k}))\ \text{if}\ c_k,\quad k = 1, 2,$$
where m turns the index i of 0 to 9 into degrees, pixels, bits, a threshold or a factor, and the sign is a coin too.

Images are uint8, and what becomes of them is what Pillow makes of them, bit for bit (`layers.image_operations`);
Pillow itself is not needed. Geometric operations take the nearest pixel, and ``fill`` from outside.

    augment = AutoAugment("cifar10", generator=torch.Generator().manual_seed(0))
    images = augment(images)  # (N, 3, H, W) uint8

Floating-point images in 0 … 1 are taken as 255·v to the nearest integer and come back as v/255. Pillow images in mode
RGB come back as Pillow images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.data import get_worker_info

from layers.augmentation import Plan, apply, draw, from_picture, from_unit, is_picture, to_picture, to_unit
from layers.card import Card, Flops, Identity, Option, Paper, Peer, Rule
from layers.policies import POLICIES, Applied, Policy, checked

card = Card(
    title="AutoAugment",
    paper=Paper(
        authors="Cubuk, Zoph, Mané, Vasudevan, Le",
        title="AutoAugment: Learning Augmentation Policies from Data",
        year=2019,
        venue="CVPR 2019",
        arxiv="1805.09501",
    ),
    impl="AutoAugment",
    role="augmentation",
    formula="s ~ U{1 … 25};  x ← o_k(x, ± m(i_k)) with probability p_k,  k = 1, 2 of sub-policy s",
    summary="Each image gets one of 25 pairs of operations, each with its probability, as Pillow computes them.",
    options=(
        Option(
            name="policy",
            type=str,
            default="imagenet",
            choices=("imagenet", "cifar10", "svhn"),
            help="the data set on which the sub-policies were found",
            source="the paper's tables",
        ),
        Option(
            name="reading",
            type=str,
            default="torchvision",
            choices=("torchvision", "tf-cifar"),
            help="what an index means: ninths, as most code has it, or tenths, as the authors' for CIFAR",
        ),
        Option(
            name="fill",
            type=int,
            default=128,
            ge=0,
            le=255,
            axes=3,
            help="red, green and blue of what comes from outside an image",
            source="the authors' code for ImageNet",
        ),
    ),
    rules=(Rule("C == 3", "images of {C} channels: red, green and blue are needed, 3"),),
    flops=Flops("0", "0"),
    explained="Most of the arithmetic is on integers, and how much there is depends on what is drawn: no FLOPs are "
    "stated. An operation reads and writes every value at least once.",
    traffic=Flops("2*E*B", "0"),
    identities=(
        Identity(says="invert twice is nothing", proof="inverted_twice"),
        Identity(says="posterize to 8 bits, solarize from 256 and factors of 1 are nothing", proof="neutral"),
        Identity(says="solarize from 0 is invert", proof="solarized_all"),
        Identity(says="posterize twice is posterize once", proof="posterized_twice"),
        Identity(
            says="brightness 0 is black, color 0 the gray picture, which color leaves alone", proof="without_color"
        ),
        Identity(says="no shear, no shift, no turn, and a full turn are nothing", proof="unmoved"),
        Identity(says="two half turns, and four quarter turns of a square, are nothing", proof="turned_back"),
        Identity(says="shifted there and back, the inside is as it was", proof="shifted_back"),
        Identity(says="autocontrast of what spans 0 … 255 is nothing", proof="spanning"),
        Identity(says="operations on values commute with every order of the pixels", proof="reordered"),
        Identity(says="a batch gets what its images get one by one", proof="one_by_one"),
    ),
    notes=(
        "The reading notes give the title only.",
        "The ImageNet policy has 20 different sub-policies: rows 20 to 24 repeat rows 4, 1, 13, 14 and 2.",
        "The authors' file of CIFAR policies has 95 sub-policies; 20 of the paper's 25 are among them. The policy v0 "
        "of EfficientNet, called the paper's there, is another one.",
        "torchvision applies an operation of probability 0 once in 2^24 times (rand ≤ p); here never.",
        "torchvision's results on tensors differ from those on Pillow images for AutoContrast, Sharpness, Contrast, "
        "Color and Rotate.",
        "EfficientNet's code counts the bits of posterize and the threshold of solarize the other way round: its index "
        "0 gives a black image.",
        "Equalize twice is not equalize; nor does autocontrast always reach 255: Pillow truncates, so that the "
        "greatest value becomes 254 for 4,852 of the 32,640 pairs of extremes.",
    ),
    examples=({}, {"policy": "cifar10", "fill": 0}, {"policy": "svhn", "reading": "tf-cifar", "fill": (1, 2, 3)}),
    ranks=(4,),
    peer=Peer("profiles.pillow:Pillow", {"policy": "policy", "reading": "reading", "fill": "fill"}, needs="PIL"),
)


class AutoAugment(nn.Module):
    """AutoAugment: a callable on a batch of images (N, 3, H, W), one image (3, H, W), or Pillow images.

    Returns what it was given: shape, dtype, layout, or kind of image; what it was given stays as it is, and no graph is
    recorded. It has no parameters and no buffers, and does the same in training and evaluation. torch.compile leaves it
    as it is.

    Random numbers come from ``generator``, or from torch's where it is None, which a DataLoader seeds differently in
    each worker; in a worker ``generator`` is seeded anew from its seed and the worker's, so that workers and epochs
    differ and all is decided by the two seeds. ``sub_policies`` stand in place of the policy: sequences of
    (operation, probability, magnitude).

    Raises OptionError for refused options and sub-policies, ValueError for images of another shape or dtype, values
    outside 0 … 1, and Pillow images that are not RGB.
    """

    def __init__(
        self,
        policy: str = "imagenet",
        reading: str = "torchvision",
        fill: int | tuple[int, ...] = 128,
        *,
        generator: torch.Generator | None = None,
        sub_policies: Sequence[Sequence[Sequence[object]]] | None = None,
    ) -> None:
        super().__init__()
        options = card.check({}, {"policy": policy, "reading": reading, "fill": fill})
        self.policy, self.reading, self.generator = policy, reading, generator
        self.fill: tuple[int, ...] = options["fill"]  # type: ignore[assignment]
        self.sub_policies: Policy = POLICIES[policy] if sub_policies is None else checked(sub_policies)
        self._worker_seed: int | None = None

    @_disable_dynamo  # what is drawn decides what runs, and a compiler may contract the operations that must round
    def forward(self, images: Any) -> Any:
        """Return ``images``, each after what was drawn for it; of a list or tuple a list, one by one."""
        if isinstance(images, Tensor):
            return self._of_tensor(images)
        if isinstance(images, (list, tuple)):
            return [self(image) for image in images]
        if is_picture(images):
            return to_picture(self._augmented(from_picture(images)), images)
        raise TypeError(f"a {type(images).__name__} is no image: give a tensor (N, 3, H, W) or a Pillow image")

    def _of_tensor(self, images: Tensor) -> Tensor:
        if images.dim() not in (3, 4) or images.shape[-3] != 3:
            raise ValueError(f"images of shape {tuple(images.shape)}: (N, 3, H, W) or (3, H, W) is needed")
        if images.dim() == 3:
            return self._of_tensor(images.unsqueeze(0)).squeeze(0)
        if images.is_floating_point():
            return to_unit(self._augmented(from_unit(images)), images.dtype)
        if images.dtype != torch.uint8:
            raise ValueError(f"images of {images.dtype}: uint8 is needed, or floating-point values in 0 … 1")
        return self._augmented(images)

    def draw(self, count: int, height: int, width: int) -> list[Plan]:
        """Return what the next ``count`` images of this size get: the operations of each, in order, and values."""
        return draw(count, self.sub_policies, self.reading, height, width, self._seeded())

    def _augmented(self, images: Tensor) -> Tensor:
        return apply(images, self.draw(len(images), *images.shape[2:]), self.fill)

    def _seeded(self) -> torch.Generator | None:
        """Return the generator, in a worker of a DataLoader one of its own: every worker begins with the same copy."""
        worker = get_worker_info()
        if self.generator is not None and worker is not None and self._worker_seed != worker.seed:
            seed = (self.generator.initial_seed() + worker.seed) % 2**63
            self.generator = torch.Generator().manual_seed(seed)
            self._worker_seed = worker.seed
        return self.generator

    def extra_repr(self) -> str:
        """The options in words."""
        return f"policy={self.policy!r}, reading={self.reading!r}, fill={self.fill}"


Make = Callable[..., AutoAugment]


def _done(make: Make, images: Tensor, *steps: tuple[str, float]) -> Tensor:
    """``images`` (float64, multiples of 1/255) as values 0 … 255 after ``steps`` on each of them."""
    plans = [tuple(Applied(*step) for step in steps)] * len(images)
    return apply(from_unit(images.detach()), plans, make().fill).double()


def _each(make: Make, images: Tensor, *sequences: Sequence[tuple[str, float]]) -> tuple[Tensor, Tensor]:
    """The images after each of ``sequences``, and as they are."""
    found = torch.stack([_done(make, images, *steps) for steps in sequences])
    return found, _done(make, images).expand_as(found)


def inverted_twice(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """255 − (255 − v) beside v."""
    return _each(make, images, [("Invert", 0), ("Invert", 0)])


def neutral(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Operations at the value that changes nothing."""
    factors = [[(name, 1.0)] for name in ("Brightness", "Color", "Contrast", "Sharpness")]
    return _each(make, images, [("Posterize", 8)], [("Solarize", 256)], *factors)


def solarized_all(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Solarize from 0 beside invert."""
    return _done(make, images, ("Solarize", 0)), _done(make, images, ("Invert", 0))


def posterized_twice(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Posterize twice beside once, for every number of bits."""
    bits = range(1, 9)
    twice = [_done(make, images, ("Posterize", b), ("Posterize", b)) for b in bits]
    return torch.stack(twice), torch.stack([_done(make, images, ("Posterize", b)) for b in bits])


def without_color(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Black, and the gray picture after another blend with it, beside themselves."""
    gray = _done(make, images, ("Color", 0))
    found = torch.stack([_done(make, images, ("Brightness", 0)), _done(make, gray / 255, ("Color", 1.9)), gray])
    return found, torch.stack([torch.zeros_like(gray), gray, gray[:, :1].expand_as(gray)])


def unmoved(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Geometric operations by nothing."""
    names = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    return _each(make, images, *([(name, 0.0)] for name in names), [("Rotate", 360.0)])


def turned_back(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Half and quarter turns until the picture is upright again."""
    return _each(make, images, [("Rotate", 180.0)] * 2, [("Rotate", 90.0)] * 4, [("Rotate", -90.0), ("Rotate", 90.0)])


def shifted_back(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of an image after a shift and its opposite, in both directions."""
    moved, before = _each(make, images, *([(f"Translate{axis}", 3), (f"Translate{axis}", -3)] for axis in "XY"))
    return moved[..., 3:-3, 3:-3], before[..., 3:-3, 3:-3]


def spanning(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Autocontrast of images with a black and a white pixel."""
    images = images.detach().clone()
    images[..., 0, 0], images[..., 0, 1] = 0, 1
    return _each(make, images, [("AutoContrast", 0)])


def reordered(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels put in another order before and after what looks at values, histograms and means only."""
    order = torch.randperm(images.shape[2] * images.shape[3], generator=torch.Generator().manual_seed(0))

    def mixed(pixels: Tensor) -> Tensor:
        return pixels.flatten(2)[..., order].view(pixels.shape)

    steps = (("Equalize", 0.0), ("AutoContrast", 0.0), ("Contrast", 1.5), ("Color", 0.4), ("Solarize", 100.0))
    found = torch.stack([mixed(_done(make, images, step)) for step in steps])
    return found, torch.stack([_done(make, mixed(images), step) for step in steps])


def one_by_one(make: Make, images: Tensor) -> tuple[Tensor, Tensor]:
    """A batch beside its images with a generator of the same seed."""
    whole, single = (make(generator=torch.Generator().manual_seed(0)) for _ in range(2))
    return whole(images), torch.cat([single(image.unsqueeze(0)) for image in images])


__all__ = [
    "AutoAugment", "inverted_twice", "neutral", "one_by_one", "posterized_twice", "reordered", "shifted_back",
    "solarized_all", "spanning", "turned_back", "unmoved", "without_color",
]  # fmt: skip
