"""A window on every ATen operation that runs, without torch's import of its compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Window(TorchDispatchMode):
    """Calls `after` behind each operation that runs inside the block, forward and backward alike."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing torch._dynamo (a second) for a mode that is never compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Run ``func``, show it to `after`, and return what it gave."""
        out = func(*args, **(kwargs or {}))
        self.after(func, func._schema.name.partition("::")[2], args, kwargs or {}, out)
        return out

    def after(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Look at one finished operation, called ``name`` without its namespace."""
        raise NotImplementedError
