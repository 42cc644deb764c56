"""From a card, or a constructor, to typed parameters of a command; what the shell offers to complete them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from layers import catalog
from layers.card import Option
from layers.catalog import Stone
from profiles import target as targets
from profiles.target import REQUIRED, Target
from stones_cli import parse
from stones_cli.report.tables import value_text
from stones_cli.visible import one_line

PREFIX = "option_"  # keeps a technique's options apart from the command's own, which may have the same names


def complete_names(incomplete: str) -> list[tuple[str, str]]:
    """Offer the techniques that begin so, with their titles."""
    return [(name, stone.card.title) for name, stone in catalog.stones().items() if name.startswith(incomplete)]


def offering(*words: str) -> Callable[[str], list[str]]:
    """Return a completion that offers ``words``."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def parameters(target: Target, taken: Container[str]) -> list[Any]:
    """Return the parameters for the options of ``target``; one whose flag is ``taken`` is spelt ``--class-NAME``."""
    title = target.card.title if isinstance(target, Stone) else target.name
    annotations = {}
    for option in targets.options_of(target):
        flag = option.name.replace("_", "-")
        flag = f"class-{flag}" if f"--{flag}" in taken else flag
        annotations[PREFIX + option.name] = _annotation(option, flag, one_line(f"Options of {title}"))

    def handler(**values: object) -> None: ...

    handler.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in annotations.items()
        ]
    )
    handler.__annotations__ = annotations
    throwaway = typer.Typer(add_completion=False)
    throwaway.command()(handler)
    return list(get_command(throwaway).params)


def _annotation(option: Option, flag: str, panel: str) -> Any:
    shared: dict[str, Any] = {"help": _help(option), "show_default": False, "rich_help_panel": panel}
    if option.type is bool and not option.optional:
        return Annotated[bool | None, typer.Option(f"--{flag}/--no-{flag}", **shared)]
    words = [*(option.choices or _WORDS.get(option.type, ())), *(("none",) if option.optional else ())]
    if words:
        shared["autocompletion"] = offering(*words)
    kind = "AxB" if option.axes == 2 else _KINDS[option.type]
    kinds = words if len(words) > 1 else [*(["integer"] if option.axes else []), kind, *words]
    if _are_many(words):
        kinds = ["word"]
    return Annotated[
        str | None,
        typer.Option(f"--{flag}", parser=parse.option_value(option), metavar=f"<{'|'.join(kinds)}>", **shared),
    ]


_WORDS: dict[type, tuple[str, ...]] = {bool: ("true", "false")}
_KINDS = {int: "integer", float: "number", str: "text", bool: "true|false"}


def _are_many(words: Sequence[str]) -> bool:
    """Tell whether ``words`` take more than half a line: they then stand in the help, not beside the flag."""
    return len("|".join(words)) > 40


def _help(option: Option) -> str:
    """Return what the option does, its default, range and source."""
    if option.default is REQUIRED:
        default = "from the input's channels" if option.name in targets.CHANNEL_NAMES else "required"
    else:
        default = f"default: {one_line(value_text(option.default))}"
    words = option.expected() if _are_many(option.choices) else ""
    facts = "; ".join(part for part in (default, words, option.bounds(), option.source) if part)
    about = "" if option.help.startswith(("required", "default ")) else option.help
    return f"{about}  [{facts}]".strip()
