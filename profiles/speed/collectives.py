"""Which collectives something issues, and the same ones again, alone, on zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch.utils._pytree import tree_leaves, tree_map_only

from profiles.counting.dispatch import Window

_SPACES = ("c10d", "_c10d_functional")  # of torch.distributed's functions, and of what the compiler makes of them
_AFTERWARDS = ("wait_tensor", "_wrap_tensor_autograd")  # operations there that only end another
_SILENT = ("recv_", "recv_any_source_", "barrier", "monitored_barrier_")  # by which this rank hands nothing over


class Collectives(Window):
    """Listens in its block, forward and backward alike: ``count``, the ``bytes`` that this rank hands over, `again`.

    Bytes are those of the tensors given, whatever the backend makes of them on the wire.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._issued: list[Callable[[], None]] = []

    @property
    def count(self) -> int:
        """How many collectives were issued."""
        return len(self._issued)

    def again(self) -> None:
        """Issue the same collectives in the same order, each waited for, on tensors of zeros kept for this."""
        for issue in self._issued:
            issue()

    def after(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note a collective."""
        if func.namespace not in _SPACES or name in _AFTERWARDS:
            return
        self._issued.append(_issuing(func, args, kwargs))
        names = (argument.name for argument in func._schema.arguments)
        given = [value for name, value in zip(names, args, strict=False) if not name.startswith("output")]
        if name not in _SILENT:
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))


def _issuing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], None]:
    args, kwargs = tree_map_only(torch.Tensor, torch.zeros_like, (list(args), dict(kwargs)))

    def issue() -> None:
        out = func(*args, **kwargs)
        if func.namespace == "c10d":
            dist.Work.unbox(out[-1] if isinstance(out, tuple) else out).wait()
            return
        for tensor in tree_leaves(out):
            torch.ops._c10d_functional.wait_tensor(tensor)

    return issue
