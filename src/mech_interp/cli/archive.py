"""`mech archive-runs`: hide runs from lists, or bring them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli import runs as listing
from mech_interp.cli.options import Home, complete_runs
from mech_interp.cli.output import Output
from mech_interp.cli.query import conjunction, select
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.storage.index import Store
    from mech_interp.storage.records import RunRecord


def archive_runs(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="Numbers, ids, suffixes or folders.", autocompletion=complete_runs
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Runs that match, as for query-runs.")
    ] = None,
    before_run_id: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Runs with a lower number.", autocompletion=complete_runs),
    ] = None,
    restore: Annotated[bool, typer.Option("--restore", help="Bring them back instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    home: Home = None,
) -> None:
    """Hide runs from lists, or bring them back; nothing is deleted."""
    output: Output = context.obj
    if not runs and where is None and before_run_id is None:
        raise InputError("Which runs?", "Name some, or give --where or --before-run-id.")
    with access.existing(home, output) as store:
        chosen = _chosen(store, runs, where, before_run_id, restore)
        if not dry_run:
            chosen = store.archive((record.id for record in chosen), archived=not restore)
    verb = "restored" if restore else "archived"
    done = f"Would be {verb}" if dry_run else verb.capitalize()

    def human(console: Console) -> None:
        console.print(f"{done}: {drawing.count(len(chosen), 'run')}.\n")
        listing.draw(console, chosen)
        if not restore and not dry_run:
            output.note("\nLists show them with --include-archived; bring them back with --restore.")

    output.emit(
        {"archived": not restore, "dry_run": dry_run, "runs": [record.id for record in chosen]},
        human,
        quiet=[record.id for record in chosen],
    )


def _chosen(
    store: Store, runs: list[str] | None, where: str | None, before: str | None, restore: bool
) -> list[RunRecord]:
    """The named runs, and those that meet every condition."""
    named = access.found(store, runs or ())
    if where is None and before is None:
        return named
    conditions = [f"archived = {str(restore).lower()}"]
    if before is not None:
        conditions.append(f"number < {store.find(before).number}")
    found = select(store, conjunction(where or "", conditions))
    return list({record.id: record for record in [*named, *found]}.values())
