"""What is measured: a stone by name, or anybody's class by ``pkg.mod:Class`` or ``path/to/file.py:Class``.

A function of a tensor, ``torch.nn.functional:normalize``, is taken for a layer without state.

Stones are resolved without importing torch. A class is imported, which runs its module: only names that the user typed
come here, never names from a file. The options of a class are read from its constructor.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layers import catalog
from layers.card import Card, Option, OptionError, OptionValue
from layers.catalog import Stone
from profiles.errors import Refusal, first_line

# Names under which constructors take the number of channels; filled in from the input's shape when not given.
CHANNEL_NAMES = ("channels", "num_channels", "num_features", "in_channels", "dim", "features", "normalized_shape")


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Foreign:
    """A class outside the catalogue: its constructor's options stand where a stone has its card's."""

    name: str
    factory: Callable[..., Any]
    options: tuple[Option, ...]

    def check(self, channels: int, options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Return the arguments to construct with: ``options``, the channels where they are due, no defaults."""
        known = {option.name: option for option in self.options}
        for name in options:
            if name not in known:
                near = catalog.suggest(name, known)
                raise OptionError(f"{self.name} has no option {name!r}" + (f"; did you mean {near}?" if near else ""))
        full = dict(options)
        for name, option in known.items():
            if name in full:
                full[name] = option.check(full[name])
            elif option.default is REQUIRED:
                if name not in CHANNEL_NAMES:
                    raise OptionError(f"{self.name} needs --{name.replace('_', '-')}", name)
                full[name] = channels
        return full


Target = Stone | Foreign


def options_of(target: Target) -> tuple[Option, ...]:
    """Return the options that ``target`` takes: from the card of a stone, from the constructor of a class."""
    return target.card.options if isinstance(target, Stone) else target.options


def card_of(target: Target) -> Card | None:
    """Return the card of a stone, None for a class."""
    return target.card if isinstance(target, Stone) else None


def is_optimizer(target: Foreign) -> bool:
    """Whether ``target`` is a class of optimizers, torch's or derived from it, without importing torch."""
    bases = target.factory.__mro__ if isinstance(target.factory, type) else ()
    return any((base.__module__, base.__name__) == ("torch.optim.optimizer", "Optimizer") for base in bases)


def takes_tensor(factory: Callable[..., Any]) -> bool:
    """Whether ``factory`` is itself what runs: a function whose first argument is a tensor, by its annotation."""
    if isinstance(factory, type):
        return False
    first = next(iter(inspect.signature(factory).parameters.values()), None)
    return first is not None and first.default is first.empty and "Tensor" in re.findall(r"\w+", str(first.annotation))


def remedy(factory: Callable[..., Any]) -> str:
    """Return what may help where ``factory``, called for a module, failed; nothing for a class."""
    said = "a function that is to run itself says that its argument is a tensor, x: torch.Tensor"
    return "" if isinstance(factory, type) else f"; {said}"


def resolve(name: str) -> Target:
    """Return what ``name`` means; raises `catalog.UnknownStone` or `Refusal` with what was looked for."""
    if ":" not in name:
        return catalog.stone(name)
    where, _, attribute = name.rpartition(":")
    factory = _attribute(_import(where), where, attribute)
    if factory is None:
        raise Refusal(f"{name}: {where} has no {attribute!r}")
    if not callable(factory):
        raise Refusal(f"{name}: {attribute} is a {type(factory).__name__}, not a class or function")
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError) as error:
        raise Refusal(f"{name}: its arguments cannot be read: {error}") from error
    return Foreign(name, factory, _options(signature))


def _import(where: str) -> Any:
    """Import a module by name or file, its standard output kept away from ours."""
    with contextlib.redirect_stderr(sys.stderr), contextlib.redirect_stdout(sys.stderr):
        try:
            if where.endswith(".py"):
                return _import_file(Path(where))
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
            return importlib.import_module(where)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Refusal(f"cannot import {where}: {type(error).__name__}: {first_line(error)}") from error


def _attribute(module: Any, where: str, name: str) -> Any:
    try:
        return getattr(module, name, None)
    except Exception as error:  # a module may compute its attributes
        raise Refusal(f"{where}:{name}: {type(error).__name__}: {first_line(error)}") from error


def _import_file(path: Path) -> Any:
    """Import a file under a name that no module has: it may be called layers.py or json.py."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = str(path.resolve().with_suffix("")).replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _options(signature: inspect.Signature) -> tuple[Option, ...]:
    """Read typed options off a constructor; parameters whose type is not a plain one are left at their defaults."""
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name in ("device", "dtype"):
            continue
        required = parameter.default is parameter.empty
        kind = _type_of(parameter)
        if kind is None:
            continue
        default = REQUIRED if required else parameter.default
        words = "required" if required else f"default {parameter.default}"
        found.append(Option(name=parameter.name, type=kind, default=default, optional=default is None, help=words))
    return tuple(found)


def _type_of(parameter: inspect.Parameter) -> type | None:
    annotation = parameter.annotation if isinstance(parameter.annotation, str) else str(parameter.annotation)
    words = re.findall(r"\w+", annotation)
    if type(parameter.default) is int and "float" in words:
        return float
    if type(parameter.default) in (int, float, bool, str):
        return type(parameter.default)
    for kind in (bool, int, float, str):
        if kind.__name__ in words:
            return kind
    return int if parameter.name in CHANNEL_NAMES else None
