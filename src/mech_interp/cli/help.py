"""`mech help`: the same as --help, for people who type it that way."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mech_interp.cli.output import Output


def complete_commands(incomplete: str) -> list[str]:
    """Names of commands."""
    from mech_interp.cli.commands import COMMANDS

    return [name for name in COMMANDS if name.startswith(incomplete)]


def show_help(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND]", help="Such as run.", autocompletion=complete_commands),
    ] = None,
) -> None:
    """What a command does and which options it takes."""
    output: Output = context.obj
    group: Any = context.parent
    given = [*(command or ()), "--help"]
    if output.is_human:
        with group.command.make_context("mech", given, obj=output) as inner:
            group.command.invoke(inner)
    else:
        from mech_interp.cli.commands import COMMANDS

        lines = {name: entry.help for name, entry in COMMANDS.items()}
        output.emit({"commands": lines}, lambda console: None, quiet=lines)
