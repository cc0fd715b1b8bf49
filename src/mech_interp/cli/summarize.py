"""`mech summarize-runs`: runs by kind and model, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.drawing import Column
from mech_interp.cli.options import Home
from mech_interp.cli.output import Output
from mech_interp.cli.runs import EMPTY

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.storage.records import RunRecord


def summarize_runs(
    context: typer.Context,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="Only the latest so many.")
    ] = None,
    include_archived: Annotated[bool, typer.Option("--include-archived", help="Archived runs too.")] = False,
    home: Home = None,
) -> None:
    """How many runs there are of each kind, and how they ended."""
    output: Output = context.obj
    with access.opened(home, output) as store:
        found = store.runs(limit=limit, include_archived=include_archived) if store else []
    groups = list(grouped(found))
    ended = dict(Counter(run.status for run in found).most_common())
    seconds = sum(run.seconds or 0 for run in found)

    def human(console: Console) -> None:
        if not found:
            console.print(EMPTY)
            return
        _draw(console, groups)
        told = ", ".join(f"{n} {status}" for status, n in ended.items())
        console.print(f"\n{drawing.count(len(found), 'run')} ({told}), {drawing.lasted(seconds)} of work.")

    output.emit(
        {"runs": len(found), "statuses": ended, "seconds": round(seconds, 3), "groups": groups},
        human,
        quiet=[f"{group['family']} {group['model']} {group['runs']}" for group in groups],
    )


def grouped(found: Sequence[RunRecord]) -> Iterator[dict[str, Any]]:
    """Runs by family and model, the commonest first."""
    members: dict[tuple[str, str], list[RunRecord]] = {}
    for run in found:
        members.setdefault((run.family or "unknown", run.model or "unknown"), []).append(run)
    for (family, model), runs in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
        yield {
            "family": family,
            "model": model,
            "runs": len(runs),
            "statuses": dict(Counter(run.status for run in runs).most_common()),
            "seconds": round(sum(run.seconds or 0 for run in runs), 3),
            "latest": runs[0].id,
            "created": runs[0].created,
        }


def _draw(console: Console, groups: Sequence[dict[str, Any]]) -> None:
    columns = [
        Column("family"),
        Column("model"),
        Column("runs", right=True),
        Column("ended"),
        Column("time", right=True, at=drawing.WIDE),
        Column("latest", keep=True, at=drawing.WIDE),
        Column("started", keep=True),
    ]
    rows = [
        [
            group["family"],
            group["model"],
            group["runs"],
            ", ".join(f"{n} {status}" for status, n in group["statuses"].items()),
            drawing.lasted(group["seconds"]),
            group["latest"],
            drawing.ago(group["created"]),
        ]
        for group in groups
    ]
    console.print(drawing.table(console, columns, rows))
