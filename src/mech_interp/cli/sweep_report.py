"""`mech sweep-report`: how a sweep stands, and its results side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.drawing import Column, Filled
from mech_interp.cli.options import Home, a_file
from mech_interp.cli.output import Output
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.orchestration.records import ChildState, Sweep

MARKS = {
    "complete": ("✓", "green"),
    "void": ("!", "bold yellow"),
    "failed": ("✗", "bold red"),
    "invalid": ("✗", "bold red"),
}


def complete_sweeps(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of sweeps."""
    from mech_interp.errors import MechError
    from mech_interp.orchestration.records import sweeps

    try:
        found = sweeps(access.settings_of(home=ctx.params.get("home")).home)
    except MechError:
        return []
    return [one.id for one in found if one.id.startswith(incomplete)]


def sweep_report(
    context: typer.Context,
    sweep: Annotated[
        str | None,
        typer.Argument(metavar="[SWEEP]", help="Id or name of a sweep.", autocompletion=complete_sweeps),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="A column for this metric. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", callback=a_file, help="Write a Markdown report there."
        ),
    ] = None,
    home: Home = None,
) -> None:
    """How a sweep stands, and its results side by side.

    Without a name it lists the sweeps there are.
    """
    from mech_interp.orchestration import records

    out: Output = context.obj
    root = access.settings_of(home=home).home
    if sweep is None:
        _list(out, home, records.sweeps(root))
        return
    found = records.find_sweep(root, sweep)
    with access.existing(home, out) as store:
        children = records.states(found, store)
    names = chosen_metrics(children, metric)
    if output is not None:
        _write(out, found, children, output, home)
        return
    out.emit(
        {"sweep": found.id, "name": found.name, "children": [child.to_dict() for child in children]},
        lambda console: _draw(console, out, found, children, names),
        quiet=[child.run for child in children if child.run],
    )


def chosen_metrics(children: Sequence[ChildState], asked: Sequence[str] | None) -> list[str]:
    """The metrics to show: those asked for, or all.

    Raises:
        InputError: no run of the sweep has one that is asked for.
    """
    known = list(dict.fromkeys(name for child in children for name in child.metrics))
    for name in asked or ():
        if name not in known:
            raise InputError(
                f"No run of this sweep has the metric {name!r}.",
                nearest(name, known) or f"They have: {', '.join(known) or 'none yet'}.",
            )
    return list(asked or known)


def counts(children: Sequence[ChildState]) -> dict[str, int]:
    """How many runs stand how, the commonest first."""
    return dict(Counter(child.status for child in children).most_common())


def draw_children(console: Console, sweep: Sweep, children: Sequence[ChildState]) -> None:
    """A line for each run: its number in the sweep, its axis values, how it stands."""
    from rich.text import Text

    columns = [*_numbered(sweep, children), *_axes(sweep, children)]
    columns.append((Column("status", keep=True), [drawing.state(child.status) for child in children]))
    columns.append((Column("run", keep=True), [child.run for child in children]))
    console.print(drawing.filled(console, columns))
    for error in dict.fromkeys(child.error for child in children if child.error):
        having = [child.child.name for child in children if child.error == error]
        others = f" and {drawing.count(len(having) - 1, 'other')}" if len(having) > 1 else ""
        console.print(Text.assemble(("✗ ", "bold red"), f"{having[0]}{others}: {error}"))


def draw_metrics(
    console: Console, sweep: Sweep, children: Sequence[ChildState], metrics: Sequence[str]
) -> None:
    """The numbers of every run, in as many tables as the width of the terminal asks for."""
    axes = _axes(sweep, children)
    first = _numbered(sweep, children)
    if sum(drawing.breadth(*one) for one in axes) <= console.width // 2:
        first += axes
    columns = {name: [child.metrics.get(name) for child in children] for name in metrics}
    for drawn in drawing.number_tables(console, first, columns):
        console.print()
        console.print(drawn)


def _numbered(sweep: Sweep, children: Sequence[ChildState]) -> list[Filled]:
    return [(Column("#", right=True, style="dim"), list(range(1, len(children) + 1)))]


def _axes(sweep: Sweep, children: Sequence[ChildState]) -> list[Filled]:
    axes = dict.fromkeys(axis for child in sweep.children for axis in child.values)
    return [
        (Column(axis.removeprefix("parameters.")), [_value(child.child.values, axis) for child in children])
        for axis in axes
    ]


def _value(values: Mapping[str, Any], axis: str) -> str:
    value = values.get(axis)
    return "–" if value is None else str(value)


def _draw(
    console: Console, out: Output, sweep: Sweep, children: Sequence[ChildState], metrics: Sequence[str]
) -> None:
    from rich.text import Text

    about = f"  {sweep.spec.get('family')}, planned {drawing.ago(sweep.created)}"
    console.print(Text.assemble((sweep.id, "bold"), (about, "dim")))
    console.print()
    draw_children(console, sweep, children)
    draw_metrics(console, sweep, children, metrics)
    console.print()
    told = ", ".join(f"{n} {status}" for status, n in counts(children).items())
    console.print(f"{drawing.count(len(children), 'run')}: {told}.", highlight=False)


def _list(out: Output, home: Path | None, found: Sequence[Sweep]) -> None:
    from mech_interp.orchestration import records

    rows: list[dict[str, Any]] = []
    with access.opened(home, out) as store:
        for sweep in found:
            children = records.states(sweep, store) if store else []
            about = {"sweep": sweep.id, "name": sweep.name, "created": sweep.created}
            rows.append({**about, "runs": len(sweep.children), "statuses": counts(children)})

    def human(console: Console) -> None:
        if not rows:
            console.print("No sweeps yet. Run one with: mech sweep SPEC --axis KEY=VALUES --execute")
            return
        columns = [
            Column("sweep"),
            Column("runs", right=True),
            Column("stand"),
            Column("planned", keep=True),
        ]
        lines = [
            [
                row["sweep"],
                row["runs"],
                ", ".join(f"{n} {status}" for status, n in row["statuses"].items()),
                drawing.ago(str(row["created"])),
            ]
            for row in rows
        ]
        console.print(drawing.table(console, columns, lines))

    out.emit({"sweeps": rows}, human, quiet=[row["sweep"] for row in rows])


def _write(
    out: Output, sweep: Sweep, children: Sequence[ChildState], target: Path, home: Path | None
) -> None:
    from mech_interp.cli import report
    from mech_interp.orchestration.sweep_reports import report_sweep

    with access.existing(home, out) as store:
        text = report_sweep(sweep, store)
    report.write(out, target, text, [child.run for child in children if child.run])
