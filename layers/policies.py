"""The policies that AutoAugment's search found, and what their magnitude indices mean. Standard library only.

A policy is sub-policies, of which an image gets one; a sub-policy is steps in order, each applied with a probability of
its own at an index i of 0 to 9. Two readings of that index are in use: that of torchvision and most re-implementations
counts ninths of the largest amount, that of the authors' code for CIFAR tenths.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from layers.option import OptionError

READINGS = ("torchvision", "tf-cifar")
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # a coin decides the direction
ENHANCING = ("Contrast", "Color", "Brightness", "Sharpness")  # by a factor; 1 leaves the image as it is
WITHOUT_AMOUNT = ("AutoContrast", "Invert", "Equalize")
OPERATIONS = (*SIGNED, *WITHOUT_AMOUNT, "Solarize", "Posterize", *ENHANCING)
INDICES = 10


class Step(NamedTuple):
    """An operation, the probability with which it is applied, and the index of its magnitude, 0 to 9."""

    operation: str
    probability: float
    magnitude: int


class Applied(NamedTuple):
    """An operation as it was applied to an image: its name and value.

    The value is a slope for shears, whole pixels for translations, degrees for Rotate, a threshold for Solarize, bits
    for Posterize, a factor for Contrast, Color, Brightness and Sharpness, and 0 where an operation has none.
    """

    operation: str
    value: float


SubPolicy = tuple[Step, ...]
Policy = tuple[SubPolicy, ...]


def policy(text: str) -> Policy:
    """Read a sub-policy a line, steps separated by semicolons, such as ``Posterize 0.4 8; Rotate 0.6 9``."""
    return checked([[step.split() for step in line.split(";")] for line in text.strip().splitlines()])


def checked(sub_policies: Sequence[Sequence[Sequence[object]]]) -> Policy:
    """Return ``sub_policies`` as a `Policy`; raises OptionError that names the step that is none."""
    found = tuple(tuple(_step(step) for step in sub) for sub in sub_policies)
    if not found or not all(found):
        raise _refusal("at least 1 sub-policy is needed, and 1 step in each")
    return found


def _step(step: Sequence[object]) -> Step:
    try:
        operation, probability, magnitude = step
        made = Step(str(operation), float(str(probability)), int(str(magnitude)))
    except ValueError as error:
        raise _refusal(f"{step!r} is not (operation, probability, magnitude), such as ('Rotate', 0.6, 9)") from error
    if made.operation not in OPERATIONS:
        raise _refusal(f"{operation!r} is not one of {', '.join(OPERATIONS)}")
    if not 0 <= made.probability <= 1:
        raise _refusal(f"the probability {probability} of {operation} is not in 0 … 1")
    if not 0 <= made.magnitude < INDICES:
        raise _refusal(f"the magnitude {magnitude} of {operation} is not in 0 … {INDICES - 1}")
    return made


def _refusal(what: str) -> OptionError:
    return OptionError(f"sub_policies: {what}", "sub_policies")


def is_signed(operation: str, reading: str) -> bool:
    """Whether a coin decides between two values of ``operation``."""
    return operation in SIGNED or (operation in ENHANCING and reading == "torchvision")


def value(step: Step, reading: str, height: int, width: int, sign: int = 1) -> float:
    """Return what ``step`` does to an image of ``height`` and ``width``: the value that `Applied` describes.

    ``sign`` is 1 or −1 and matters where the operation is signed.
    """
    signed = sign if is_signed(step.operation, reading) else 1
    return (_ninths if reading == "torchvision" else _tenths)(step.operation, step.magnitude, height, width, signed)


def _ninths(operation: str, i: int, height: int, width: int, sign: int) -> float:
    match operation:
        case "ShearX" | "ShearY":
            return sign * i / 30  # 0.3 i/9
        case "TranslateX" | "TranslateY":  # 150 of 331 pixels, whole ones
            return sign * (150 * (width if operation == "TranslateX" else height) * i // (331 * 9))
        case "Rotate":
            return sign * 30 * i / 9
        case "Solarize":
            return 255 * (9 - i) / 9
        case "Posterize":
            return 8 - i // 2
        case "AutoContrast" | "Invert" | "Equalize":
            return 0
    return (10 + sign * i) / 10  # 1 ± 0.9 i/9


def _tenths(operation: str, i: int, height: int, width: int, sign: int) -> float:
    match operation:
        case "ShearX" | "ShearY":
            return sign * 3 * i / 100  # 0.3 i/10
        case "TranslateX" | "TranslateY":
            return sign * i
        case "Rotate":
            return sign * 3 * i
        case "Solarize":
            return 256 - 256 * i // 10
        case "Posterize":
            return 4 - 4 * i // 10
        case "AutoContrast" | "Invert" | "Equalize":
            return 0
    return (10 + 18 * i) / 100  # 0.1 to 1.9


class Choice(NamedTuple):
    """A step on images of one size: what is applied for either side of the coin, and with which probability."""

    probability: float
    sides: tuple[Applied, Applied]


@lru_cache(maxsize=64)
def choices(policy: Policy, reading: str, height: int, width: int) -> tuple[tuple[Choice, ...], ...]:
    """Return every step of ``policy`` with its values for images of ``height`` and ``width``."""

    def applied(step: Step, sign: int) -> Applied:
        return Applied(step.operation, value(step, reading, height, width, sign))

    return tuple(
        tuple(Choice(step.probability, (applied(step, 1), applied(step, -1))) for step in sub) for sub in policy
    )


_IMAGENET = """
Posterize 0.4 8; Rotate 0.6 9
Solarize 0.6 5; AutoContrast 0.6 5
Equalize 0.8 8; Equalize 0.6 3
Posterize 0.6 7; Posterize 0.6 6
Equalize 0.4 7; Solarize 0.2 4
Equalize 0.4 4; Rotate 0.8 8
Solarize 0.6 3; Equalize 0.6 7
Posterize 0.8 5; Equalize 1.0 2
Rotate 0.2 3; Solarize 0.6 8
Equalize 0.6 8; Posterize 0.4 6
Rotate 0.8 8; Color 0.4 0
Rotate 0.4 9; Equalize 0.6 2
Equalize 0.0 7; Equalize 0.8 8
Invert 0.6 4; Equalize 1.0 8
Color 0.6 4; Contrast 1.0 8
Rotate 0.8 8; Color 1.0 2
Color 0.8 8; Solarize 0.8 7
Sharpness 0.4 7; Invert 0.6 8
ShearX 0.6 5; Equalize 1.0 9
Color 0.4 0; Equalize 0.6 3
Equalize 0.4 7; Solarize 0.2 4
Solarize 0.6 5; AutoContrast 0.6 5
Invert 0.6 4; Equalize 1.0 8
Color 0.6 4; Contrast 1.0 8
Equalize 0.8 8; Equalize 0.6 3
"""
_CIFAR10 = """
Invert 0.1 7; Contrast 0.2 6
Rotate 0.7 2; TranslateX 0.3 9
Sharpness 0.8 1; Sharpness 0.9 3
ShearY 0.5 8; TranslateY 0.7 9
AutoContrast 0.5 8; Equalize 0.9 2
ShearY 0.2 7; Posterize 0.3 7
Color 0.4 3; Brightness 0.6 7
Sharpness 0.3 9; Brightness 0.7 9
Equalize 0.6 5; Equalize 0.5 1
Contrast 0.6 7; Sharpness 0.6 5
Color 0.7 7; TranslateX 0.5 8
Equalize 0.3 7; AutoContrast 0.4 8
TranslateY 0.4 3; Sharpness 0.2 6
Brightness 0.9 6; Color 0.2 8
Solarize 0.5 2; Invert 0.0 3
Equalize 0.2 0; AutoContrast 0.6 0
Equalize 0.2 8; Equalize 0.6 4
Color 0.9 9; Equalize 0.6 6
AutoContrast 0.8 4; Solarize 0.2 8
Brightness 0.1 3; Color 0.7 0
Solarize 0.4 5; AutoContrast 0.9 3
TranslateY 0.9 9; TranslateY 0.7 9
AutoContrast 0.9 2; Solarize 0.8 3
Equalize 0.8 8; Invert 0.1 3
TranslateY 0.7 9; AutoContrast 0.9 1
"""
_SVHN = """
ShearX 0.9 4; Invert 0.2 3
ShearY 0.9 8; Invert 0.7 5
Equalize 0.6 5; Solarize 0.6 6
Invert 0.9 3; Equalize 0.6 3
Equalize 0.6 1; Rotate 0.9 3
ShearX 0.9 4; AutoContrast 0.8 3
ShearY 0.9 8; Invert 0.4 5
ShearY 0.9 5; Solarize 0.2 6
Invert 0.9 6; AutoContrast 0.8 1
Equalize 0.6 3; Rotate 0.9 3
ShearX 0.9 4; Solarize 0.3 3
ShearY 0.8 8; Invert 0.7 4
Equalize 0.9 5; TranslateY 0.6 6
Invert 0.9 4; Equalize 0.6 7
Contrast 0.3 3; Rotate 0.8 4
Invert 0.8 5; TranslateY 0.0 2
ShearY 0.7 6; Solarize 0.4 8
Invert 0.6 4; Rotate 0.8 4
ShearY 0.3 7; TranslateX 0.9 3
ShearX 0.1 6; Invert 0.6 5
Solarize 0.7 2; TranslateY 0.6 7
ShearY 0.8 4; Invert 0.8 8
ShearX 0.7 9; TranslateY 0.8 3
ShearY 0.8 5; AutoContrast 0.7 3
ShearX 0.7 2; Invert 0.1 5
"""
POLICIES = {"imagenet": policy(_IMAGENET), "cifar10": policy(_CIFAR10), "svhn": policy(_SVHN)}
