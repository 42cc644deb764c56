"""From a card, or a constructor, to typed parameters of a command; what the shell offers to complete them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Sequence
from dataclasses import fields, replace
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


def parameters(chosen: Sequence[Target], taken: Container[str]) -> list[Any]:
    """Return the parameters for the options that all ``chosen`` have; a flag that is ``taken`` is ``--class-FLAG``."""
    panel, annotations = one_line(f"Options of {_all_of(chosen)}"), {}
    for option in in_common(chosen):
        flag = option.name.replace("_", "-")
        flag = f"class-{flag}" if f"--{flag}" in taken else flag
        annotations[PREFIX + option.name] = _annotation(option, flag, panel)

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


def in_common(chosen: Sequence[Target]) -> list[Option]:
    """Return the options that all ``chosen`` have under one name and of one type.

    What they differ in, such as ranges, is left to each: a value need fit none of them here.
    """
    first, *others = ({option.name: option for option in targets.options_of(target)} for target in chosen)
    return [
        _common([option, *(other[name] for other in others)])
        for name, option in first.items()
        if all(name in other and _kind(other[name]) == _kind(option) for other in others)
    ]


def _kind(option: Option) -> tuple[type, int]:
    return option.type, option.axes


def _common(same: Sequence[Option]) -> Option:
    """Return the option that admits whatever one of ``same`` does."""
    first = same[0]
    differing = {f.name: f.default for f in fields(Option) if len({repr(getattr(o, f.name)) for o in same}) > 1}
    words = dict.fromkeys(word for o in same for word in o.choices)
    joined: dict[str, Any] = {
        "default": "that of each",
        "help": " / ".join(dict.fromkeys(o.help for o in same)),
        "choices": tuple(words) if all(o.choices for o in same) else (),
        "optional": True,
    }
    return replace(first, **{name: joined.get(name, neutral) for name, neutral in differing.items()})


def _all_of(chosen: Sequence[Target]) -> str:
    """Name ``chosen``: a single one by its title, a few by their names."""
    if len(chosen) == 1:
        return chosen[0].card.title if isinstance(chosen[0], Stone) else chosen[0].name
    return listed([target.name for target in chosen]) if len(chosen) <= 3 else f"all {len(chosen)} techniques"


def listed(names: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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
