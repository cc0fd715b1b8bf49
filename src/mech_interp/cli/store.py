"""`mech init-store` and `mech store`: the folder of the runs and its index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mech_interp.cli import drawing
from mech_interp.cli.access import settings_of
from mech_interp.cli.commands import MechCommand, noun
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Home
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.storage.index import Rebuilt

app = noun("Look after the folder of the runs.")


def init_store(context: typer.Context, home: Home = None) -> None:
    """Make the folder of the runs and its index.

    Runs make them by themselves; this is for checking in advance that the place is right.
    """
    from mech_interp.storage import Store

    output: Output = context.obj
    root = settings_of(home=home).home.absolute()
    existed = root.is_dir()
    store = Store(root)
    try:
        n, read_only = len(store.runs(include_archived=True)), store.read_only
    finally:
        store.close()
    verb = "is ready" if existed else "was made"
    warning = ", but it is read-only for you" if read_only else ""

    def human(console: Console) -> None:
        told = f"The store {drawing.short_path(root)} {verb}, with {drawing.count(n, 'run')}{warning}."
        console.print(told, highlight=False)

    output.emit({"home": str(root), "runs": n, "read_only": read_only}, human, quiet=[root])


@app.command(cls=MechCommand)
def rebuild(context: typer.Context, home: Home = None) -> None:
    """Read every run folder again and write the index anew.

    The folders are the truth, so nothing is lost; a damaged index is kept beside the new one. Exits with 8
    if a run cannot be read, or is not the one that was first indexed.
    """
    from mech_interp.storage import rebuild as read_again

    output: Output = context.obj
    root = settings_of(home=home).home.absolute()
    found = read_again(root)
    output.emit(
        {
            "home": str(root),
            "runs": found.recorded,
            "changed": found.changed,
            "unreadable": found.unreadable,
        },
        lambda console: _draw(console, found),
        quiet=[root],
    )
    if found.changed or found.unreadable:
        raise typer.Exit(UNSOUND)


def _draw(console: Console, found: Rebuilt) -> None:
    console.print(f"{drawing.count(found.recorded, 'run')} indexed.", highlight=False)
    for run in found.changed:
        console.print(f"[bold red]✗[/] {run}: its result.json is not the one that was first indexed")
    for name, why in found.unreadable.items():
        console.print(f"[bold red]✗[/] {name}: {why}")
