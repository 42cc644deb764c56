"""Images, as tensors and as Pillow has them, and what Pillow makes of them by the operations of AutoAugment."""

from __future__ import annotations

import torch
from PIL import Image, ImageEnhance, ImageOps

FILL = (10, 128, 250)


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
