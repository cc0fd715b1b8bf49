"""`mech preflight`: everything that can be known to be wrong before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from mech_interp.cli import drawing, progress
from mech_interp.cli import run as running
from mech_interp.cli.access import settings_of
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Backend, Device, Home, Model
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.orchestration.checks import Check


def preflight(
    context: typer.Context,
    spec: running.Name = None,
    name: running.NameOption = None,
    file: running.File = None,
    directory: running.Directory = None,
    model: Model = None,
    backend: Backend = None,
    device: Device = None,
    values: running.Set = None,
    home: Home = None,
) -> None:
    """Check all that a run needs, without loading the model's weights.

    Packages, family, parameters, backend, model, device, tokenizer, sites, answers, data, memory and disk;
    of a spec with a matrix, for every run. Exits with 8 if a check fails.
    """
    from mech_interp.config import expand
    from mech_interp.orchestration import checks
    from mech_interp.orchestration.session import Session

    output: Output = context.obj
    settings = settings_of(home=home)
    chosen = running.choose(output, spec or name, file, settings, directory)
    chosen = chosen.changed(running.overrides(values, model=model, backend=backend, device=device))
    session = Session(settings)
    try:
        with progress.shown(output, f"checking {chosen.name}"):
            found = [(one.name, checks.preflight(one, settings, session=session)) for one in expand(chosen)]
    finally:
        session.close()
    passed = all(checks.passes(listed) for _, listed in found)
    output.emit(
        {"ok": passed, "specs": [_document(name, listed) for name, listed in found]},
        lambda console: _draw(console, found),
        quiet=[f"{check.name}: {check.status}" for _, listed in found for check in listed],
    )
    if not passed:
        raise typer.Exit(UNSOUND)


def _document(name: str, listed: list[Check]) -> dict[str, Any]:
    from mech_interp.orchestration.checks import passes

    return {"name": name, "ok": passes(listed), "checks": [check.to_dict() for check in listed]}


def _draw(console: Console, found: Sequence[tuple[str, list[Check]]]) -> None:
    from rich.text import Text

    for index, (name, listed) in enumerate(found):
        if index:
            console.print()
        console.print(Text(name, style="bold"))
        draw_checks(console, listed)


def draw_checks(console: Console, listed: Sequence[Check], well: str = "Ready to run.") -> None:
    """A line per check, and what they come to: `well` where nothing is wrong."""
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("✓", "green"), "warning": ("!", "bold yellow"), "failed": ("✗", "bold red")}
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in listed:
        mark, style = marks.get(check.status, ("·", "dim"))
        detail = Text(check.detail, style="dim" if check.status == "skipped" else "")
        if check.hint:
            detail.append(f"\n{check.hint}", style="dim")
        grid.add_row(Text(mark, style=style), check.name, detail)
    console.print(grid)
    counts = {status: sum(check.status == status for check in listed) for status in ("failed", "warning")}
    told = [
        drawing.count(n, "failed check" if status == "failed" else status)
        for status, n in counts.items()
        if n
    ]
    console.print(f"{', '.join(told)}." if told else well, highlight=False)
