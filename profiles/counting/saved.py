"""The bytes a forward keeps for its backward, beside parameters and buffers: each storage once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Saved:
    """The storages packed for backward inside `saving`; holds them, so that no address is used twice."""

    def __init__(self, without: Iterable[Tensor]) -> None:
        self._without = {t.untyped_storage().data_ptr() for t in without}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> int:
        """Count the storage of ``tensor`` unless it belongs to the layer or was counted before; return its bytes."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._without or storage.data_ptr() in self._storages:
            return 0
        self._storages[storage.data_ptr()] = storage
        return storage.nbytes()

    @property
    def bytes(self) -> int:
        """All bytes kept, the input's among them when it is kept."""
        return sum(storage.nbytes() for storage in self._storages.values())

    def holds(self, tensor: Tensor) -> bool:
        """Tell whether ``tensor`` itself is kept."""
        return tensor.untyped_storage().data_ptr() in self._storages


@contextmanager
def saving(module: nn.Module, keep: Callable[[int], None] | None = None) -> Iterator[Saved]:
    """Watch what the forward of ``module`` inside the block keeps for backward; tell ``keep`` of its bytes."""
    saved = Saved([*module.parameters(), *module.buffers()])

    def pack(tensor: Tensor) -> Tensor:
        size = saved.add(tensor)
        if keep is not None:
            keep(size)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
