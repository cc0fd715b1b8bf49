"""`mech run`: one spec to one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing, experiments, library, progress
from mech_interp.cli import inspect as inspecting
from mech_interp.cli.access import settings_of
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Backend, Device, Home, Model, complete_specs
from mech_interp.cli.output import Output
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec
    from mech_interp.orchestration.runner import RunOutcome

Name = Annotated[
    str | None, typer.Argument(metavar="[SPEC]", help="Name of a spec.", autocompletion=complete_specs)
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", "-n", metavar="SPEC", help="The same as SPEC.", autocompletion=complete_specs),
]
File = Annotated[
    Path | None, typer.Option("--spec", "-s", metavar="FILE", help="A file of specs, instead of a name.")
]
Directory = Annotated[
    Path | None, typer.Option("--directory", metavar="FOLDER", help="Look names up here alone.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value: seed=3, parameters.n=64. Repeatable."),
]
Tag = Annotated[
    list[str] | None,
    typer.Option("--tag", "-t", metavar="WORD", help="A word to find the run by. Repeatable."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Run again, even if the same run is stored.")]


def run(
    context: typer.Context,
    spec: Name = None,
    name: NameOption = None,
    file: File = None,
    directory: Directory = None,
    model: Model = None,
    backend: Backend = None,
    device: Device = None,
    values: Set = None,
    tag: Tag = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load no weights, write nothing.")
    ] = False,
    force: Force = False,
    home: Home = None,
) -> None:
    """Run a spec, and leave behind a run that anyone can check.

    What has been run already is not computed again: the stored run is shown. A run that was interrupted goes
    on where it stopped when the same command is given again. Exits with 8 if a sanity control failed.
    """
    from mech_interp.orchestration.runner import run_spec

    output: Output = context.obj
    settings = settings_of(home=home)
    chosen = choose(output, spec or name, file, settings, directory)
    chosen = chosen.changed(overrides(values, model=model, backend=backend, device=device))
    if chosen.matrix is not None:
        refuse_matrix(chosen, file)
    with progress.shown(output, chosen.name) as display:
        outcome = run_spec(chosen, settings, force=force, dry_run=dry_run, tags=tag or (), progress=display)
    output.emit(
        document(outcome),
        lambda console: _draw_plan(console, outcome, chosen) if dry_run else _draw(console, outcome),
        quiet=[outcome.run_id or outcome.key],
    )
    if outcome.status == "void":
        raise typer.Exit(UNSOUND)


def choose(
    output: Output, name: str | None, file: Path | None, settings: Settings, directory: Path | None = None
) -> Spec:
    """The spec that the arguments name.

    Raises:
        InputError: they name none (what there is has then been listed), or one that does not exist.
    """
    from mech_interp.config import read_specs

    if file is None and name is None:
        if output.is_human:
            entries, _ = experiments.listed(directory)
            experiments.draw(output.console, entries)
            output.console.print()
        raise InputError("Which spec?", f"Name one: {output.command} SPEC, or a file: --spec FILE")
    if file is None:
        assert name is not None
        return library.find(name, settings, directory)
    specs = {one.name: one for one in read_specs(file)}
    if name is None and len(specs) == 1:
        return next(iter(specs.values()))
    names = ", ".join(specs)
    if name is None:
        raise InputError(f"{str(file)!r} holds {len(specs)} specs: {names}.", "Say which, by its name.")
    if name not in specs:
        raise InputError(
            f"{str(file)!r} holds no spec {name!r}.", nearest(name, specs) or f"It holds: {names}."
        )
    return specs[name]


def overrides(values: Sequence[str] | None, **options: str | None) -> dict[str, Any]:
    """Changes to a spec by dotted path: of `--set`, and of the options that have names of their own.

    Raises:
        InputError: a value is given in both ways and not the same.
    """
    from mech_interp.config.overrides import assignments

    changes = assignments(values or ())
    for key, value in options.items():
        if value is not None and changes.setdefault(key, value) != value:
            raise InputError(f"{key} is given as --{key} and as --set {key}=….", "Keep one of them.")
    return changes


def refuse_matrix(spec: Spec, file: Path | None) -> None:
    """Say how a spec that stands for several runs is run.

    Raises:
        InputError: always.
    """
    from mech_interp.config.matrix import count

    named = f"--spec {file} {spec.name}" if file else spec.name
    n = drawing.count(count(spec), "run")
    raise InputError(f"{spec.name} has a matrix: {n}.", f"Run it with: mech sweep {named} --execute")


def document(outcome: RunOutcome) -> dict[str, Any]:
    """What became of the spec, with the numbers where there are any."""
    from mech_interp.storage.folder import RunFolder

    told = outcome.to_dict()
    if outcome.folder is None or outcome.status not in ("complete", "void"):
        return told
    folder = RunFolder(outcome.folder)
    return {**told, "metrics": folder.metrics(), **folder.findings()}


def _draw_plan(console: Console, outcome: RunOutcome, spec: Spec) -> None:
    from rich.text import Text

    console.print(Text.assemble(("✓ ", "green"), (spec.name, "bold"), f" can run. {_plan(outcome)}"))
    console.print(Text(f"key {outcome.key}", style="dim"), soft_wrap=True)


def _draw(console: Console, outcome: RunOutcome) -> None:
    from rich.text import Text

    assert outcome.run_id is not None
    assert outcome.folder is not None
    took = f"took {drawing.lasted(outcome.seconds)}"
    told = {
        "continued": f"continued where it had stopped, {took}",
        "stored": "was run before, so nothing was computed; --force runs it again",
    }.get(outcome.how, took)
    status = drawing.state(outcome.status)
    console.print(Text.assemble((outcome.run_id, "bold"), " ", status, f": {told}"))
    inspecting.draw_result(console, outcome.run_id, outcome.folder, outcome.status)


def _plan(outcome: RunOutcome) -> str:
    known: Mapping[str, str] = {
        "interrupted": f"It would continue {outcome.run_id}, which was interrupted.",
        "running": f"{outcome.run_id} is being executed by another process.",
    }
    if outcome.reused:
        return f"It was run before, as {outcome.run_id}."
    return known.get(outcome.status, "It has not been run yet.")
