"""A boolean buffer that decides what a layer does, read once: every read of it would wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Remembered:
    """What a buffer said, for as long as it is the same tensor and nobody has written to it.

    So a copy, a load or a broadcast of the buffer is noticed. Where it cannot be read (in compiled code, on meta and
    fake devices) writes are not counted and only another tensor is noticed: whoever writes there calls `forget`.
    """

    def __init__(self) -> None:
        self._seen: tuple[Tensor, int] | None = None

    def read(self, buffer: Tensor) -> bool | None:
        """Tell what ``buffer`` () says; None where it cannot be read and nothing is remembered."""
        blind = torch.compiler.is_compiling() or not readable(buffer)
        if self._seen is not None and self._seen[0] is buffer and (blind or self._seen[1] == _writes(buffer)):
            return True
        if blind:
            return None
        found = bool(buffer)
        self._seen = (buffer, _writes(buffer)) if found else None
        return found

    def assume(self, buffer: Tensor) -> None:
        """Take ``buffer`` for true where it cannot be read; elsewhere the next `read` reads it."""
        self._seen = (buffer, -1)

    def forget(self) -> None:
        """Let the next `read` read the buffer again."""
        self._seen = None


def readable(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` has values: meta tensors have none, nor have fake ones, which are a subclass."""
    return not tensor.is_meta and type(tensor) is Tensor


def _writes(tensor: Tensor) -> int:
    """The number of writes to ``tensor``; inference tensors do not count them."""
    return 0 if tensor.is_inference() else tensor._version
