"""Which modules of a model are meant: by names and patterns, of some kinds, without those that do not suit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from layers import catalog
from layers.card import OptionError
from layers.catalog import Stone


class Choice:
    """Which modules of a model ``only`` names, and under which names."""

    def __init__(self, model: nn.Module, stone: Stone, only: str | Iterable[str] | None) -> None:
        self.model, self.stone = model, stone
        self._patterns = None if only is None else [only] if isinstance(only, str) else _texts(only)
        self._names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            if ".parametrizations." not in f".{name}.":
                self._names.setdefault(module, []).append(name)
        known = [name for names in self._names.values() for name in names if name]
        for pattern in self._patterns or ():
            if not any(fnmatchcase(name, pattern) for name in known):
                near = catalog.suggest(pattern, known)
                hint = f"; did you mean {near}?" if near else ""
                raise OptionError(f"only: the model has no module {pattern!r}{hint}", "only")

    def of(self, kinds: Any, what: str, suits: Callable[[nn.Module], str] | None = None) -> dict[str, nn.Module]:
        """Return the modules of ``kinds`` by name, without those that ``suits`` gives a reason against.

        Raises OptionError, with the word ``what`` for them, when there is none, in all or for one of the patterns.
        """
        found, against, served = {}, "", set()
        for module, names in self._names.items():
            patterns = {pattern for name in names for pattern in self._covering(name)}
            if not isinstance(module, kinds) or (self._patterns is not None and not patterns):
                continue
            if any(is_lazy(parameter) for parameter in module._parameters.values()):
                raise OptionError(f"{shown(names[0], self.model)} has no shapes yet: run the model once first")
            reason = "" if suits is None or set(names) & set(self._patterns or ()) else suits(module)
            if reason:
                against = against or f" ({shown(names[0], self.model)}: {reason})"
            else:
                found[shown(names[0], self.model)] = module
                served |= patterns
        for pattern in self._patterns or ():
            if pattern not in served:
                raise OptionError(f"only: {pattern!r} has no {what} for {self.stone.name}{against}", "only")
        if not found:
            raise OptionError(f"{type(self.model).__name__} has no {what} for {self.stone.name}{against}")
        return found

    def _covering(self, name: str) -> Iterator[str]:
        """Yield the patterns that match ``name`` or a module around it."""
        parts = name.split(".")
        around = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return (p for p in self._patterns or () if any(fnmatchcase(each, p) for each in around))


def _texts(only: Iterable[str]) -> list[str]:
    """Return the patterns, or raise OptionError for what is no text."""
    patterns = list(only) if isinstance(only, Iterable) else [only]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise OptionError(f"only={only!r} is not the name of a module, a pattern, or several", "only")
    return patterns


def shown(name: str, model: nn.Module) -> str:
    """The name of a module in messages; the model itself has none."""
    return name or type(model).__name__
