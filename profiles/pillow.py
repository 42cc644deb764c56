"""What augmentations do by Pillow itself: the operations one by one, and a whole stone beside which it is timed.

Pillow is imported when something here is called; it is needed for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layers.augmentation import Plan, draw
from layers.policies import POLICIES, Applied

Fill = tuple[int, ...]


def picture(image: Tensor) -> Any:
    """Return ``image`` (3, H, W) uint8 as a Pillow image."""
    from PIL import Image

    height, width = image.shape[1:]
    return Image.frombytes("RGB", (width, height), image.permute(1, 2, 0).contiguous().cpu().numpy().tobytes())


def pixels(picture: Any) -> Tensor:
    """Return a Pillow image in mode RGB as (3, H, W) uint8."""
    width, height = picture.size
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)


def applied(picture: Any, plan: Plan, fill: Fill) -> Any:
    """Return ``picture`` after the operations of ``plan``; ``fill`` is what comes from outside it."""
    for step in plan:
        picture = _OPERATIONS[step.operation](picture, step, fill)
    return picture


class Pillow(nn.Module):
    """AutoAugment by Pillow: draws as the stone does, from torch's generator, and applies it image by image.

    Called on images (N, 3, H, W) uint8, which become Pillow images the first time only: in a timing neither their
    making nor a way back to tensors counts. Returns how many operations each image got (N,); the images are in
    ``pictures``.
    """

    def __init__(self, policy: str, reading: str, fill: Fill) -> None:
        super().__init__()
        self.policy, self.reading, self.fill = policy, reading, fill
        self.pictures: list[Any] = []
        self._images: Tensor | None = None
        self._before: list[Any] = []

    def forward(self, images: Tensor) -> Tensor:
        """Apply what is drawn to each of ``images``."""
        if self._images is not images:
            self._images, self._before = images, list(map(picture, images))
        plans = draw(len(images), POLICIES[self.policy], self.reading, *images.shape[2:])
        self.pictures = [applied(each, plan, self.fill) for each, plan in zip(self._before, plans, strict=True)]
        return torch.tensor([len(plan) for plan in plans], dtype=torch.uint8, device=images.device)


def _affine(*matrix: float) -> Callable[[Any, Fill], Any]:
    def moved(picture: Any, fill: Fill) -> Any:
        from PIL import Image

        affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
        return picture.transform(picture.size, affine, matrix, resample=nearest, fillcolor=fill)

    return moved


def _of_value(name: str, *arguments: float) -> Callable[[Any], Any]:
    def changed(picture: Any) -> Any:
        from PIL import ImageOps

        return getattr(ImageOps, name)(picture, *arguments)

    return changed


def _enhanced(picture: Any, step: Applied, fill: Fill) -> Any:
    from PIL import ImageEnhance

    return getattr(ImageEnhance, step.operation)(picture).enhance(step.value)


_OPERATIONS: dict[str, Callable[[Any, Applied, Fill], Any]] = {
    "ShearX": lambda image, step, fill: _affine(1, step.value, 0, 0, 1, 0)(image, fill),
    "ShearY": lambda image, step, fill: _affine(1, 0, 0, step.value, 1, 0)(image, fill),
    "TranslateX": lambda image, step, fill: _affine(1, 0, step.value, 0, 1, 0)(image, fill),
    "TranslateY": lambda image, step, fill: _affine(1, 0, 0, 0, 1, step.value)(image, fill),
    "Rotate": lambda image, step, fill: image.rotate(step.value, fillcolor=fill),
    "AutoContrast": lambda image, step, fill: _of_value("autocontrast")(image),
    "Invert": lambda image, step, fill: _of_value("invert")(image),
    "Equalize": lambda image, step, fill: _of_value("equalize")(image),
    "Solarize": lambda image, step, fill: _of_value("solarize", step.value)(image),
    "Posterize": lambda image, step, fill: _of_value("posterize", int(step.value))(image),
    **dict.fromkeys(("Contrast", "Color", "Brightness", "Sharpness"), _enhanced),
}
