"""Options that several commands take, with the completions that shells ask for.

Completions are quick and silent: whatever goes wrong, there are just no suggestions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mech_interp.errors import InputError, MechError

STORE_PANEL = "Store"


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the latest runs; where the text begins like a number, their numbers."""
    from mech_interp.cli.access import opened

    try:
        with opened(ctx.params.get("home")) as store:
            found = store.runs(limit=200) if store else []
    except MechError:
        return []
    names = [name for run in found for name in (run.id, str(run.number), run.suffix)]
    return [name for name in names if name.startswith(incomplete)][:40]


def complete_specs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the specs that can be run from here."""
    from mech_interp.cli import library
    from mech_interp.cli.access import settings_of

    try:
        names = library.names(settings_of())
    except MechError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_families(incomplete: str) -> list[str]:
    """Names of the families."""
    from mech_interp.experiments import registry

    try:
        return [name for name in registry.names() if name.startswith(incomplete)]
    except MechError:
        return []


def complete_models(incomplete: str) -> list[str]:
    """Bundled models and aliases."""
    from mech_interp import bundled
    from mech_interp.cli.access import settings_of

    try:
        names = [*bundled.names(), *settings_of().aliases]
    except MechError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_backends(incomplete: str) -> list[str]:
    """Backends that can be named."""
    from mech_interp.orchestration import backends

    try:
        return [name for name in backends.names() if name.startswith(incomplete)]
    except MechError:
        return []


def a_file(path: Path | None) -> Path | None:
    """The path of a file to write.

    Raises:
        InputError: it is a folder.
    """
    if path is not None and (not path.name or path.is_dir()):
        raise InputError(f"{str(path)!r} is a folder, not a file to write.", "Name a file in it.")
    return path


Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="Folder of the runs; by default the setting home.",
        show_default=False,
        rich_help_panel=STORE_PANEL,
    ),
]

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Number, id, suffix or folder of a run.", autocompletion=complete_runs
    ),
]

Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", help="Numbers, ids, suffixes or folders of runs.", autocompletion=complete_runs
    ),
]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A bundled model, a folder, an alias or a hub id.",
        autocompletion=complete_models,
        show_default="the spec's",
    ),
]

Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.", show_default="the spec's"),
]

Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="What runs the model.",
        autocompletion=complete_backends,
        show_default="the spec's",
    ),
]

Family = Annotated[
    str | None,
    typer.Option(
        "--family", metavar="NAME", help="Only this kind of experiment.", autocompletion=complete_families
    ),
]
