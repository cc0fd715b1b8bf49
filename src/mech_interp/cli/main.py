"""The entry point of `mech`: parse, call, and turn whatever goes wrong into a sentence and an exit code."""

from __future__ import annotations

import io
import os
import platform
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mech_interp.cli import failures
from mech_interp.cli.commands import LazyGroup, built, with_common_options
from mech_interp.cli.output import Output

DISTRIBUTION = "mech-interpretability"

EPILOG = "Start with: mech demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mech` with `arguments` (default: the process's own); returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _print_anything()
    output = Output.requested(given)
    try:
        group = application()
        if "_MECH_COMPLETE" in os.environ:  # a shell asks for completions: typer answers and exits
            group.main(args=given, prog_name="mech")
        with group.make_context("mech", given or ["--help"], obj=output) as context:
            group.invoke(context)
        sys.stdout.flush()
    except BaseException as error:
        return failures.report(error, output)
    return 0


def _print_anything() -> None:
    """Let no name of a file, and no terminal without Unicode, end a command while it prints."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def application() -> Any:
    """The command group with the common options."""
    settings = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(cls=LazyGroup, epilog=EPILOG, context_settings=settings)
    app.callback()(mech)
    return with_common_options(built(app, "mech"))


def mech(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda on: on and _version())
    ] = False,
) -> None:
    """Find out how a language model does what it does, on this machine, with numbers anyone can check."""


def _version() -> None:
    from importlib import metadata  # costs as much as half of the rest

    try:
        number = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        number = "(not installed: running from source)"
    typer.echo(f"mech {number}, Python {platform.python_version()}")
    raise typer.Exit
