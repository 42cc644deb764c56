"""Drawing what happens to each image of a batch, and doing it: the engine of augmentations by policy.

All images are drawn at once. What was drawn is then done in rounds, the first operation of every image, then the
second: in a round each kind of operation runs once over the images that got it, as many at a time as the cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from layers.image_operations import BY_PLANE, OPERATIONS
from layers.policies import Applied, Policy, choices

Plan = tuple[Applied, ...]
AT_ONCE = 2**18  # values of images that are worked on together; their single-precision copies fit the L2 cache


def draw(
    count: int, policy: Policy, reading: str, height: int, width: int, generator: torch.Generator | None = None
) -> list[Plan]:
    """Return for each of ``count`` images of ``height`` and ``width`` the operations that it gets, none to all of a
    sub-policy's, in order.

    One row of uniform numbers an image: which sub-policy; a coin for each step; a sign for each step. So a batch gets
    what its images would get one by one.
    """
    table = choices(policy, reading, height, width)
    most = max(map(len, table))
    device = "cpu" if generator is None else generator.device
    plans = []
    for which, *rest in torch.rand(count, 1 + 2 * most, generator=generator, device=device).tolist():
        steps = zip(table[int(which * len(table))], rest[:most], rest[most:], strict=False)
        plans.append(tuple(step.sides[sign >= 0.5] for step, coin, sign in steps if coin < step.probability))
    return plans


def apply(images: Tensor, plans: Sequence[Plan], fill: Sequence[int]) -> Tensor:
    """Return ``images`` (N, 3, H, W) uint8 after what the plan of each says; ``images`` stay as they are.

    ``fill`` is the red, green and blue of what comes from outside an image. Keeps the memory layout.
    """
    source = images.contiguous()
    if len(images) == len(plans) == 1 and plans[0] and images.numel():  # without looking for what is alike
        for operation, value in plans[0]:
            source = OPERATIONS[operation](source, (value,), fill)
        done = source.contiguous()
    else:
        done = _in_rounds(source, plans, fill)
    return done if images.is_contiguous() else torch.empty_like(images).copy_(done)


def _in_rounds(source: Tensor, plans: Sequence[Plan], fill: Sequence[int]) -> Tensor:
    """Return contiguous ``source``, never itself, after what the plan of each says."""
    if not source.numel():
        return torch.empty_like(source)
    done = list(source.chunk(len(plans)))  # images stay where the last operation left them: no copies between rounds
    most = max(1, AT_ONCE // source[0].numel())
    for number in range(max(map(len, plans))):
        for operation, values, chosen in _groups(plans, number, most):
            given = done[chosen[0]] if len(chosen) == 1 else torch.cat([done[image] for image in chosen])
            made = OPERATIONS[operation](given, values, fill)
            for image, result in zip(chosen, made.chunk(len(chosen)), strict=True):
                done[image] = result
    return torch.cat(done)


def _groups(plans: Sequence[Plan], number: int, most: int) -> Iterator[tuple[str, list[float], list[int]]]:
    """Every kind of operation that is some plan's ``number``-th, with values and images, up to ``most`` at a time.

    Equal values are neighbours.
    """
    groups: dict[str, list[tuple[float, int]]] = {}
    for image, plan in enumerate(plans):
        if number < len(plan):
            groups.setdefault(plan[number].operation, []).append((plan[number].value, image))
    for operation, members in groups.items():
        members.sort()
        step = 8 * most if operation in BY_PLANE else most
        for start in range(0, len(members), step):
            part = members[start : start + step]
            yield operation, [value for value, _ in part], [image for _, image in part]


def is_picture(image: Any) -> bool:
    """Whether ``image`` has what a Pillow image has."""
    return all(hasattr(image, name) for name in ("mode", "size", "tobytes", "frombytes", "copy"))


def from_picture(picture: Any) -> Tensor:
    """Return the pixels of a Pillow image in mode RGB as (1, 3, H, W) uint8; raises ValueError for another mode."""
    if picture.mode != "RGB":
        raise ValueError(f"an image of mode {picture.mode}, not RGB: give image.convert('RGB')")
    width, height = picture.size
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, height, width, 3).permute(0, 3, 1, 2).contiguous()


def to_picture(images: Tensor, like: Any) -> Any:
    """Return images (1, 3, H, W) uint8 as a copy of the Pillow image ``like`` with other pixels."""
    made = like.copy()
    made.frombytes(images[0].permute(1, 2, 0).contiguous().numpy().tobytes())
    return made


def from_unit(images: Tensor) -> Tensor:
    """Return floating-point images as uint8, 255·v to the nearest; raises ValueError for values outside 0 … 1."""
    least, most = torch.aminmax(images) if images.numel() else (images.new_tensor(0.0), images.new_tensor(1.0))
    if not (least >= 0 and most <= 1):
        raise ValueError(
            f"images of {images.dtype} from {least:.4g} to {most:.4g}: floating-point values are in 0 … 1, "
            "augment before you normalize"
        )
    return images.detach().float().mul(255).round_().to(torch.uint8)


def to_unit(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images as ``dtype``: v/255."""
    return images.to(dtype).div_(255)
