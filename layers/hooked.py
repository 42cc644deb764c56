"""What is attached by hooks has in common: it counts steps, can be taken away, and resumes from its count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layers.option import OptionError


class Hooked:
    """A handle of hooks. ``steps`` is the only state (`state_dict`); `remove` takes the hooks away."""

    def __init__(self) -> None:
        self.steps = 0
        self._hooks: list[Any] = []

    def remove(self) -> None:
        """Take the hooks away; what they did stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def state_dict(self) -> dict[str, int]:
        """Return ``{"steps": …}``, to be kept beside the state of the model and the optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue counting from ``state``; raises OptionError when it is no state of `state_dict`."""
        steps = state.get("steps")
        if set(state) != {"steps"} or not isinstance(steps, int) or steps < 0:
            raise OptionError(f"{dict(state)!r} is no state of an attached technique: it has one count, steps")
        self.steps = steps
