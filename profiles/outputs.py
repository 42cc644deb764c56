"""What a module returns, where that is several things: the one that counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from profiles.errors import Refusal


def first_tensor(y: Any, name: str) -> Tensor:
    """Return what ``name`` returned, the first where that is several, in order or by name; `Refusal` if no tensor."""
    while isinstance(y, (tuple, list, Mapping)) and y:
        y = next(iter(y.values() if isinstance(y, Mapping) else y))
    if not isinstance(y, Tensor):
        raise Refusal(f"{name} returned {type(y).__name__}, not a tensor")
    return y
