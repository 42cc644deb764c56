"""Batches in slices that stay in the cache, for what takes several passes over each sample by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.moments import CHUNK, needs_plain_operations


def rows_in_cache(x: Tensor) -> list[slice]:
    """Return the samples of ``x`` in slices of up to 2 `CHUNK` elements a thread; all at once where nothing is gained.

    That is on other devices than a processor, and where the compiler or functorch is looking.
    """
    count = x.shape[0]
    if x.device.type != "cpu" or not x.numel() or needs_plain_operations():
        return [slice(0, count)]
    step = max(1, 2 * CHUNK * torch.get_num_threads() * count // x.numel())
    return [slice(start, start + step) for start in range(0, count, step)]


def joined(parts: list[Tensor]) -> Tensor:
    """Return ``parts`` as one tensor, a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
