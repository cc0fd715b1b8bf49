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
    """Where a command lives, `module:attribute`, its line in `mech --help` and the panel of that line."""

    target: str
    help: str
    panel: str = "Start here"


def _entries(panel: str, **targets: tuple[str, str]) -> dict[str, Entry]:
    """Entries of one panel; `_` in a keyword stands for the `-` of the command."""
    return {
        name.replace("_", "-"): Entry(f"mech_interp.cli.{target}", help, panel)
        for name, (target, help) in targets.items()
    }


COMMANDS: dict[str, Entry] = {
    **_entries(
        "Start here",
        demo=("demo:demo", "How a model recalls facts: attribution, logit lens and patching in one panel."),
        models=("models:models", "The models that work offline, and how to name others."),
        list_hf_architectures=(
            "architectures:list_hf_architectures",
            "The architectures that can be opened, and the sites of each.",
        ),
        help=("help:show_help", "What a command does and which options it takes."),
    ),
    **_entries(
        "Run experiments",
        experiments=("experiments:experiments", "The specs that can be run from here."),
        run=("run:run", "Run a spec, and leave behind a run that anyone can check."),
        sweep=("sweep:sweep", "Run a spec at every combination of some of its values."),
        preflight=("preflight:preflight", "Check all that a run needs, without loading the model's weights."),
    ),
    **_entries(
        "Look at runs",
        runs=("runs:runs", "The latest runs."),
        query_runs=("query:query_runs", "The runs that match an expression or some options."),
        inspect_run=("inspect:inspect_run", "What one run found, with its controls, tables and figures."),
        grade_circuit=(
            "grade_circuit:grade_circuit",
            "The heads of a circuit against a published one, by functional group.",
        ),
        compare_runs=("compare:compare_runs", "What differs between runs, and by how much."),
        summarize_runs=(
            "summarize:summarize_runs",
            "How many runs there are of each kind, and how they ended.",
        ),
        report=("report:report", "A report across runs, or of one run or sweep."),
        sweep_report=("sweep_report:sweep_report", "How a sweep stands, and its results side by side."),
    ),
    **_entries(
        "Check and keep runs",
        verify=("verify:verify", "Are the files of a run those that it wrote?"),
        replay=("replay:replay", "Do the same numbers come out again?"),
        parity=("parity:parity", "Do all backends give the same numbers for this model?"),
        calibrate=("calibrate:calibrate", "How right are the circuit methods where the truth is known?"),
        export_run=("export:export_run", "Runs as one file: zip with receipt, JSON or CSV."),
        archive_runs=(
            "archive:archive_runs",
            "Hide runs from lists, or bring them back; nothing is deleted.",
        ),
    ),
    **_entries(
        "Write specs",
        families=("families:families", "The kinds of experiment, and the parameters of each."),
        validate=("validate:validate", "Check specs: a file, a folder, or all that are found."),
        schema=("schema:schema", "The JSON Schema of specs, for editors and programs."),
        dataset=("dataset:app", "Look at files of prompt pairs."),
    ),
    **_entries(
        "This machine",
        config=("config:config", "Every setting, its value and where it came from."),
        init_store=("store:init_store", "Make the folder of the runs and its index."),
        store=("store:app", "Look after the folder of the runs."),
    ),
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
        return entry and TyperCommand(cmd_name, help=entry.help, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str, Any, list[str]]:
        """The command that `args` begin with, imported, and the arguments left for it."""
        name = args[0]
        if name not in COMMANDS:
            hint = f"{nearest(name, COMMANDS)} See all commands with: mech --help".strip()
            raise InputError(f"There is no command {name!r}.", hint)
        if isinstance(ctx.obj, Output):
            ctx.obj.command = f"{ctx.info_name} {name}"
            ctx.obj.follow_settings()
        return name, load(name), args[1:]


class VerbGroup(PlainFlags, TyperGroup):
    """A noun with verbs: without one it shows its help; a misspelt one names the nearest."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments; none at all ask for help."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The verb that `args` begin with, and the arguments left for it."""
        path = ctx.command_path
        if args[0] not in self.commands:
            close = nearest(args[0], self.commands)
            verbs = ", ".join(self.commands)
            raise InputError(f"{path} has no command {args[0]!r}.", close or f"It has: {verbs}.")
        if isinstance(ctx.obj, Output):
            ctx.obj.command = f"{path} {args[0]}"
        return args[0], self.commands[args[0]], args[1:]


def noun(help: str) -> typer.Typer:
    """An application for a noun; its verbs are added with `@app.command(cls=MechCommand)`."""
    app = typer.Typer(cls=VerbGroup, add_completion=False)
    app.callback(help=help)(lambda: None)  # without one, a single verb would take the noun's place
    return app


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
