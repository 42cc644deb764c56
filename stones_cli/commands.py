"""What a command is: its parsing, its help, its way from an exception to a status. The file that looks into Typer.

A command that takes techniques, such as `inspect` or `bench`, is one `Command`: before it parses, it looks for the
names among its arguments, or for ``--kind``; the options that all these techniques have join the command's own, so
that they are parsed, checked, completed and explained like any others. A class named ``pkg.mod:Class`` is imported for
that, except while the shell asks for completions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from layers import catalog
from layers.card import OptionValue
from profiles import target as targets
from profiles.errors import Refusal
from profiles.speed.ranks import is_silent, world_size
from profiles.target import Target
from stones_cli import parse
from stones_cli.failures import complain, status_of, tell_of_broken
from stones_cli.options import PREFIX, listed, parameters
from stones_cli.status import Status
from stones_cli.streams import kept_for_the_result

_TARGETS = "stones.targets"
_OWNERS = "stones.owners"
_OPTIONS = "stones.options"
_GIVEN = "stones.given"


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; raises SystemExit where the shell asks for completions."""
    from stones_cli.app import app

    if is_silent():
        _fall_silent()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it would warn of memory freed that is older than a profile
    return int(get_command(app).main(list(arguments), prog_name="stones", standalone_mode=False))


def _fall_silent() -> None:
    """Let nothing that this process writes be seen: another one speaks for it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)


def named(context: typer.Context) -> tuple[Target, ...]:
    """Return the techniques and classes that the command line names, in order."""
    found: tuple[Target, ...] = context.meta[_TARGETS]
    return found


def given(context: typer.Context) -> dict[str, OptionValue]:
    """Return the options given to the techniques named, or of the kind; those not given are left to the defaults."""
    values: Mapping[str, Any] = context.meta[_GIVEN]
    return {name: None if value is parse.NONE else value for name, value in values.items() if value is not None}


def was_given(context: typer.Context, names: Iterable[str]) -> str:
    """Return the flag of the first of the parameters ``names`` that stands on the command line, or nothing."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            return max((*parameter.opts, *parameter.secondary_opts), key=len)
    return ""


class Root(TyperGroup):
    """All commands. Every way out of it is an exit status and, when it is not 0, a message on standard error."""

    def main(self, *args: Any, **settings: Any) -> Any:
        """Parse and run; exits with the status, or returns it when ``standalone_mode`` is false."""
        standalone = settings.pop("standalone_mode", True)
        status = status_of(lambda: self._run(*args, **settings, standalone_mode=False))
        return sys.exit(status) if standalone else status

    def _run(self, *args: Any, **settings: Any) -> Any:
        try:
            return super().main(*args, **settings)
        except typer.TyperException as error:
            _explain(error)
            return Status.MISUSE

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters before the command: flags, and Typer's for completion, which convert nothing."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _convert_directly(parameter)
        return parameters

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, or say what to do with a technique where a command is due."""
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in catalog.stones() and not ctx.resilient_parsing:
            ctx.fail(f"{cmd_name!r} is a technique, not a command: stones show {cmd_name}, stones inspect {cmd_name}")
        return command

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands, then what the exit statuses mean."""
        super().format_options(ctx, formatter)
        _write_statuses(formatter)


class Command(TyperCommand):
    """One command: the options of its techniques beside its own, help in panels, values without pydantic."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Find the techniques named, take on the options that all of them have, parse."""
        names, kind = self._found(ctx, args) if self._takes_targets else ([], "")
        ctx.meta[_TARGETS] = self.targets(names, ctx)
        ctx.meta[_OWNERS] = ctx.meta[_TARGETS] or _timeable(kind)
        ctx.meta[_OPTIONS] = []
        if ctx.meta[_OWNERS] and self.name in _WITH_OPTIONS:
            taken = {flag for parameter in self.params for flag in parameter.opts}
            ctx.meta[_OPTIONS] = parameters(ctx.meta[_OWNERS], taken)
        ctx.ignore_unknown_options = kind not in ("", *catalog.KINDS)  # then it is the kind that is refused
        rest = super().parse_args(ctx, args)
        parsed = _listed(next((ctx.params[name] for name in _NAMES if ctx.params.get(name) is not None), ()))
        if self._takes_targets and parsed != names:  # a name that looked like an option or its value, or the reverse
            ctx.meta[_TARGETS] = self.targets(parsed, ctx)
        return rest

    def targets(self, names: Sequence[str], ctx: Any) -> tuple[Target, ...]:
        """Return what ``names`` mean; while the shell completes, only those for which no code of the user runs."""
        return tuple(_resolved(names, ctx))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of the command after those of the technique."""
        parameters = [*ctx.meta.get(_OPTIONS, ()), *super().get_params(ctx)]
        for parameter in parameters:
            _convert_directly(parameter)
        return parameters

    def invoke(self, ctx: Any) -> Any:
        """Take the technique's options out of the parameters and call the handler."""
        if self.name != "bench" and (ranks := world_size()) > 1:
            raise Refusal(
                f"stones {self.name} runs in one process, WORLD_SIZE={ranks} says that there are more: start it "
                "without torchrun, or unset WORLD_SIZE; bench alone runs on many ranks"
            )
        options = ctx.meta[_OPTIONS]
        ctx.meta[_GIVEN] = {o.name.removeprefix(PREFIX): ctx.params.pop(o.name) for o in options}
        if names := [target.name for target in ctx.meta[_TARGETS]]:
            tell_of_broken(*names)
        with kept_for_the_result():
            return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel, then what the exit statuses mean."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            record = (parameter.metavar, parameter.help) if is_argument else parameter.get_help_record(ctx)
            if record is not None:
                panel = parameter.rich_help_panel or ("Arguments" if is_argument else "Options")
                panels.setdefault(panel, []).append(record)
        for panel in sorted(panels, key=lambda title: title != "Arguments"):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])
        if self.name in _WITH_OPTIONS and not ctx.meta[_OPTIONS]:
            names = ", ".join(target.name for target in ctx.meta[_OWNERS])
            none = "Techniques without a common option" if names else "Techniques (options: name one before --help)"
            with formatter.section(none):
                formatter.write_text(names or ", ".join(catalog.stones()))
        _write_statuses(formatter)

    @property
    def _takes_targets(self) -> bool:
        return any(parameter.name in _NAMES for parameter in self.params)

    def _found(self, ctx: Any, args: list[str]) -> tuple[list[str], str]:
        """Return the names among ``args``, neither options nor, as far as can be told, their values, and the kind."""
        before, ctx.ignore_unknown_options = ctx.ignore_unknown_options, True
        try:
            values, rest, _ = self.make_parser(ctx).parse_args(list(args))
        finally:
            ctx.ignore_unknown_options = before
        arguments = (values.get(parameter.name) for parameter in self.params if parameter.param_type_name == "argument")
        words = [*(word for argument in arguments if argument for word in _listed(argument)), *rest]
        names = [
            word
            for word, previous in zip(words, ["", *words], strict=False)
            if not word.startswith("-") and (_is_name(word) or not previous.startswith("--") or "=" in previous)
        ]
        single = "technique" in values  # then what follows the name is another argument
        return names[:1] if single else names, values.get("kind") or ""


def _write_statuses(formatter: Any) -> None:
    with formatter.section("Exit status"):
        formatter.write_dl([(str(int(status)), status.meaning) for status in Status])


# The commands whose techniques may be given options.
_WITH_OPTIONS = ("inspect", "bench", "diff", "draw", "report", "check-invariance", "check-gradients")
_NAMES = ("technique", "techniques")  # what a command calls its argument when it is to be resolved here


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _is_name(word: str) -> bool:
    return ":" in word or word.lower().replace("_", "-") in catalog.stones()


def _timeable(kind: str) -> tuple[Target, ...]:
    """Return the techniques of ``kind`` whose options count; none for a word that is no kind."""
    if kind not in catalog.KINDS:
        return ()
    from profiles.kinds import timeable

    return tuple(timeable(kind))


def _resolved(names: Sequence[str], ctx: Any) -> list[Target]:
    """Resolve ``names``, those only that are techniques while completing."""
    if ctx.resilient_parsing:
        return [catalog.stone(name) for name in names if ":" not in name and _is_name(name)]
    return [targets.resolve(name) for name in names]


class _Direct:
    """Stands where Typer would build a pydantic validator, whose import costs more than all else of a short command."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        try:
            return tuple(map(self._read, value)) if several else self._read(value)
        except Refusal as error:
            raise typer.BadParameter(str(error), ctx=ctx, param=param) from error


def _convert_directly(parameter: Any) -> None:
    """Let ``parameter`` read its value by the parser it was declared with."""
    direct = _Direct(parameter.type_descriptor.parameter_info.parser or str)
    parameter.get_runtime_param = lambda: direct


def _explain(error: typer.TyperException) -> None:
    """Write a usage error in our words: what is wrong, what is near, where to read on."""
    context = getattr(error, "ctx", None)
    option, near = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        complain(message, "usage")
        return
    if option is not None and message.startswith("No such option"):
        owner = _owner(option, context)
        message = f"no such option {option}{owner or (f'; did you mean {near[0]}?' if near else '')}"
    if context is not None:
        message += f"\nsee '{' '.join([context.command_path, *_chosen(context), '--help'])}'"
    complain(message)


def _chosen(context: Any) -> list[str]:
    """Return what to write before --help for the options that may be given: the names, or the kind."""
    owners, named = context.meta.get(_OWNERS, ()), context.meta.get(_TARGETS, ())
    if owners and not named:
        return ["--kind", owners[0].kind]
    return [target.name for target in named]


def _owner(option: str, context: Any) -> str:
    """Say whose option it is where not all techniques have it: only what all have may be given."""
    owners = context.meta.get(_OWNERS, ()) if context is not None else ()
    name = option.removeprefix("--").replace("-", "_")
    have = [t.name for t in owners if any(o.name == name for o in targets.options_of(t))]
    lack = [t.name for t in owners if t.name not in have]
    if not have:
        return ""
    whose = f"an option of {listed(have)}, not of {listed(lack)}" if lack else f"not alike in {listed(have)}"
    return f"; it is {whose}: name only techniques that share it"
