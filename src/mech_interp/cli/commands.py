"""The commands of `mech`: a table of names, and a group that imports a command when it is invoked.

The table holds each command's help line so that `mech --help` imports none of them. To add a noun, write
`cli/NOUN.py` with a function (or a `typer.Typer` for a noun with verbs) and name it here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from mech_interp.cli.output import Format, Output
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    # typer carries its own copy of click's classes; these names serve annotations only.
    Command = TyperCommand | TyperGroup


class Entry(NamedTuple):
    """Where a command lives, `module:attribute`, and its line in `mech --help`."""

    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry(
        "mech_interp.cli.demo:demo",
        "How a model recalls facts: attribution, logit lens and patching in one panel.",
    ),
    "models": Entry("mech_interp.cli.models:models", "The models that work offline, and how to name others."),
}

COMMON_PANEL = "Common options"


def common(
    format: Annotated[
        Format,
        typer.Option("--format", help="How results are printed.", rich_help_panel=COMMON_PANEL),
    ] = Format.HUMAN,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks.", rich_help_panel=COMMON_PANEL),
    ] = False,
) -> None:
    """Options accepted before and after every command name.

    `Output.requested` has read them already; they are declared so that they are parsed, checked and shown.
    """


class PlainFlags:
    """Mixed into a command: its help shows no type beside options that take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, flags without their type."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class MechCommand(PlainFlags, TyperCommand):
    """One command."""


class LazyGroup(PlainFlags, TyperGroup):
    """Lists commands from the table; imports one when it is resolved."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that knows its help line: all that help and completion ask for."""
        entry = COMMANDS.get(cmd_name)
        return entry and TyperCommand(cmd_name, help=entry.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str, Any, list[str]]:
        """The command that `args` begin with, imported, and the arguments left for it."""
        name = args[0]
        if name not in COMMANDS:
            hint = f"{nearest(name, COMMANDS)} See all commands with: mech --help".strip()
            raise InputError(f"There is no command {name!r}.", hint)
        if isinstance(ctx.obj, Output):
            ctx.obj.command = f"{ctx.info_name} {name}"
        return name, load(name), args[1:]


def load(name: str) -> Command:
    """Import the command `name` and give it, and its verbs, the common options."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return with_common_options(built(found, name))


def built(found: typer.Typer | Callable[..., None], name: str) -> Command:
    """The command object of a function or a Typer application."""
    application = found if isinstance(found, typer.Typer) else _single(found)
    command = typer.main.get_command(application)
    command.name = name
    return command  # type: ignore[return-value]  # typer types it by its private base class


def with_common_options(command: Command) -> Command:
    """Append the common options to `command`, and to every verb below it."""
    for option in built(common, "common").params:
        option.expose_value = False
        command.params.append(option)
    verbs: MutableMapping[str, Any] = getattr(command, "commands", {})
    for verb in verbs.values():
        with_common_options(verb)
    return command


def _single(function: Callable[..., None]) -> typer.Typer:
    """An application whose only command is `function`."""
    application = typer.Typer(add_completion=False)
    application.command(cls=MechCommand)(function)
    return application
