"""A sweep as people write it: ``N=1,8,64``, an axis of the input or an option, and the values that it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from profiles.errors import Refusal

MOST_VALUES = 64


@dataclass(frozen=True)
class Sweep:
    """The ``values`` that ``axis`` takes, as they were spelt: an axis of the input, or an option of the technique."""

    axis: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.axis}={','.join(self.values)}"


def parse(text: str) -> Sweep:
    """Read ``N=1,8,64`` or ``groups=1,8``; raises `Refusal` for anything else, a value that stands twice included."""
    matched = re.fullmatch(r"\s*([A-Za-z][A-Za-z0-9_-]{0,40})\s*=\s*([^\s,]{1,40}(?:\s*,\s*[^\s,]{1,40})*)\s*", text)
    if not matched:
        raise Refusal(f"{text[:60]!r} is not a sweep such as N=1,8,64 or groups=1,8 (an axis or an option, its values)")
    values = tuple(value.strip() for value in matched[2].split(","))
    if len(set(values)) < len(values):
        raise Refusal(f"{text[:60]!r} has a value twice")
    if len(values) > MOST_VALUES:
        raise Refusal(f"{len(values)} values are too many: at most {MOST_VALUES}")
    return Sweep(matched[1], values)
