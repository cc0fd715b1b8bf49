"""`mech runs`: the latest runs; and the table in which every command lists runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.drawing import Column, Filled
from mech_interp.cli.options import Home
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.storage.records import RunRecord

NAME_ROOM = 16
"""Terminal columns that names keep whatever else is shown; they go on in the next line."""

EMPTY = "No runs yet. Start one with: mech run NAME (mech experiments lists names)"


def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 20,
    include_archived: Annotated[
        bool, typer.Option("--include-archived", "-a", help="Archived runs too.")
    ] = False,
    home: Home = None,
) -> None:
    """The latest runs."""
    output: Output = context.obj
    with access.opened(home, output) as store:
        found = store.runs(limit=limit + 1, include_archived=include_archived) if store else []
    shown = found[:limit]

    def human(console: Console) -> None:
        if not shown:
            console.print(EMPTY)
            return
        draw(console, shown)
        if len(found) > limit:
            output.note(f"\nThe latest {limit}; more with --limit, or ask with mech query-runs.")

    output.emit(document(shown), human, quiet=[run.id for run in shown])


def document(found: Sequence[RunRecord]) -> dict[str, Any]:
    """The runs as JSON."""
    return {"runs": [run.to_dict() for run in found]}


def draw(console: Console, found: Sequence[RunRecord], metrics: Sequence[str] = ()) -> None:
    """A table of runs, with a column for each of `metrics` as far as they fit."""
    fixed: list[Filled] = [
        (Column("run", keep=True), [run.id for run in found]),
        (Column("status", keep=True), [drawing.state(run.status) for run in found]),
        (Column("started", keep=True), [drawing.ago(run.created) for run in found]),
    ]
    numbers: list[Filled] = [
        (Column(name, right=True), [drawing.number(run.metrics.get(name)) for run in found])
        for name in metrics
    ]
    room = console.width - NAME_ROOM - sum(drawing.breadth(*one) for one in fixed)
    shown: list[Filled] = []
    for one in numbers:
        room -= drawing.breadth(*one)
        if room < 0 and shown:
            break
        shown.append(one)
    optional: list[Filled] = [
        (Column("family"), [run.family for run in found]),
        (Column("model"), [run.model for run in found]),
        (Column("took", right=True), [drawing.lasted(run.seconds) for run in found]),
    ]
    extra = optional if room >= sum(drawing.breadth(*one) for one in optional) else []
    name: Filled = (Column("name"), [_name(run) for run in found])
    columns = [fixed[0], name, *extra[:2], *shown, fixed[1], *extra[2:], fixed[2]]
    console.print(drawing.filled(console, columns))


def _name(run: RunRecord) -> Any:
    from rich.text import Text

    tags = "".join(f" #{tag}" for tag in run.tags) + (" (archived)" if run.archived else "")
    return Text.assemble(run.name or "–", (tags, "dim"))
