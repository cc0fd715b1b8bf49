"""`mech validate`: are these specs right?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import drawing, library
from mech_interp.cli.access import settings_of
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.output import Output
from mech_interp.errors import InputError, MechError

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec


def validate(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...]", help="Files or folders of specs.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="FOLDER", help="The same as a folder as PATH.")
    ] = None,
    with_models: Annotated[
        bool,
        typer.Option(
            "--with-models",
            help="Check sites, heads and answer tokens with each model's config and tokenizer too.",
        ),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Check this installation instead: device, a bundled model, every kind of hook, the store, "
            "families and backends.",
        ),
    ] = False,
) -> None:
    """Check specs: a file, a folder, or all that are found.

    Keys, types, ranges, the family's parameters and every point of a matrix. Exits with 8 if one is wrong.
    """
    output: Output = context.obj
    settings = settings_of()
    if smoke:
        if paths or directory or with_models:
            raise InputError("--smoke checks the installation, not specs.", "Give it alone.")
        _smoke(output, settings)
        return
    given = [*(paths or ()), *([directory] if directory else ())]
    checked = [one for path in _files(given, settings) for one in check_file(path, settings, with_models)]
    wrong = [one for one in checked if one["problem"]]
    output.emit(
        {"ok": not wrong, "specs": checked},
        lambda console: _draw(console, checked),
        quiet=[f"{one['path']}: {one['problem']}" for one in wrong],
    )
    if wrong:
        raise typer.Exit(UNSOUND)


def _smoke(output: Output, settings: Settings) -> None:
    """The checklist of the installation; exits with 8 where a check fails."""
    import time

    from mech_interp.cli import progress
    from mech_interp.cli.preflight import draw_checks
    from mech_interp.orchestration.smoke import passes, smoke

    began = time.perf_counter()
    with progress.shown(output, "checking the installation"):
        found = list(smoke(settings))
    passed, seconds = passes(found), round(time.perf_counter() - began, 1)
    output.emit(
        {"ok": passed, "seconds": seconds, "checks": [check.to_dict() for check in found]},
        lambda console: draw_checks(console, found, well=f"All right, in {seconds} s."),
        quiet=[f"{check.name}: {check.status}" for check in found],
    )
    if not passed:
        raise typer.Exit(UNSOUND)


def _files(given: Sequence[Path], settings: Settings) -> list[Path]:
    from mech_interp.config import spec_files

    places = given or [folder for _, folder in library.folders(settings)]
    if not places:
        raise InputError("There are no specs here.", "Name a file or a folder.")
    return list(dict.fromkeys(path for place in places for path in spec_files(place)))


def check_file(path: Path, settings: Settings, with_models: bool = False) -> Iterator[dict[str, Any]]:
    """A verdict for each spec of a file; one for the file where it cannot be read."""
    from mech_interp.config import read_specs

    try:
        specs = read_specs(path)
    except MechError as error:
        yield _verdict(path, None, 0, error)
        return
    for spec in specs:
        yield _check(path, spec, settings, with_models)


def _check(path: Path, spec: Spec, settings: Settings, with_models: bool) -> dict[str, Any]:
    from mech_interp.config import expand, resolve_parameters
    from mech_interp.experiments import registry

    try:
        family = registry.get(spec.family)
    except MechError as error:
        placed = InputError(f"{spec.origin.at(('family',))}{error.message}", error.hint)
        return _verdict(path, spec, 0, placed)
    children = expand(spec)
    try:
        for child in children:
            resolve_parameters(child, family.Params)
        if with_models:
            _check_models(children, settings)
    except MechError as error:
        return _verdict(path, spec, len(children), error)
    return _verdict(path, spec, len(children), None)


def _check_models(specs: Sequence[Spec], settings: Settings) -> None:
    from mech_interp.orchestration.prepare import prepare
    from mech_interp.orchestration.session import Session

    session = Session(settings)
    try:
        for spec in specs:
            prepare(spec, session)
    finally:
        session.close()


def _verdict(path: Path, spec: Spec | None, runs: int, problem: MechError | None) -> dict[str, Any]:
    about = {"name": spec.name, "family": spec.family, "model": spec.model} if spec else {"name": None}
    told = {"problem": problem.message, "hint": problem.hint} if problem else {"problem": None, "hint": None}
    return {"path": str(path), **about, "runs": runs, **told}


def _draw(console: Console, checked: Sequence[dict[str, Any]]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for one in checked:
        what = one["name"] or drawing.short_path(one["path"])
        if one["problem"]:
            console.print(Text.assemble(("✗ ", "bold red"), (what, "bold")))
            console.print(Padding(Text(one["problem"]), (0, 0, 0, 2)))
            if one["hint"]:
                console.print(Padding(Text(one["hint"], style="dim"), (0, 0, 0, 2)))
        else:
            runs = f", {drawing.count(one['runs'], 'run')}" if one["runs"] > 1 else ""
            told = (f" ({one['family']} on {one['model'] or 'several models'}{runs})", "dim")
            console.print(Text.assemble(("✓ ", "green"), what, told))
    wrong = sum(1 for one in checked if one["problem"])
    summary = (
        f"{wrong} of {len(checked)} wrong" if wrong else f"{drawing.count(len(checked), 'spec')}, all right"
    )
    console.print(f"\n{summary}.", highlight=False)
