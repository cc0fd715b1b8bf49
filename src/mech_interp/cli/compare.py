"""`mech compare-runs`: what differs between runs, and by how much."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.drawing import Column, Filled
from mech_interp.cli.options import Home, complete_runs
from mech_interp.cli.output import Output
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mech_interp.orchestration.comparison import Comparison, Difference, MetricRow

# Columns that a run's values need to stand beside those of the others.
ROOM, NAMES = 21, 28


def compare_runs(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="Numbers, ids, suffixes or folders.", autocompletion=complete_runs
        ),
    ] = None,
    left: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="The first run.", autocompletion=complete_runs),
    ] = None,
    right: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="The second run.", autocompletion=complete_runs),
    ] = None,
    home: Home = None,
) -> None:
    """What differs between runs, and by how much.

    Any number of runs: only those inputs that differ, every metric side by side, and paired statistics of
    each run against the first over the groups that both measured.
    """
    from mech_interp.orchestration.comparison import compare

    output: Output = context.obj
    named = [*([left] if left else []), *(runs or ()), *([right] if right else [])]
    if len(named) < 2:
        raise InputError("A comparison needs two or more runs.", "For example: mech compare-runs 1 2")
    with access.existing(home, output) as store:
        records = access.found(store, named)
    found = compare([record.open() for record in records])
    output.emit(
        found.to_dict(), lambda console: _draw(console, found), quiet=[one.what for one in found.differences]
    )


def _draw(console: Console, found: Comparison) -> None:
    from rich.text import Text

    labels = [_label(str(run["id"])) for run in found.runs]
    columns = [
        Column("", keep=True, style="bold"),
        Column("run", keep=True),
        Column("name"),
        Column("status"),
    ]
    rows = [
        [label, run["id"], run["name"], drawing.state(str(run["status"]))]
        for label, run in zip(labels, found.runs, strict=True)
    ]
    console.print(drawing.table(console, columns, rows))
    for note in found.notes:
        console.print(Text(note, style="yellow"))
    console.print()
    if found.differences:
        console.print(_inputs(console, labels, found.differences))
    else:
        console.print("Nothing that went in differs.")
    console.print()
    console.print(_numbers(console, labels, found.metrics))
    if found.paired:
        console.print()
        console.print(_paired(console, found))


def _label(run: str) -> str:
    """The run's number, which is how people name it."""
    from mech_interp.storage import naming

    parts = naming.split(run)
    return str(parts[0]) if parts else run


def _fit(console: Console, labels: Sequence[str]) -> bool:
    """Whether there is a column for each run; two always have one."""
    return len(labels) <= 2 or NAMES + ROOM * len(labels) <= console.width


def _inputs(console: Console, labels: Sequence[str], found: Sequence[Difference]) -> RenderableType:
    """What went in: a column for each run, or a line for each value with the runs that have it."""
    from rich.text import Text

    if _fit(console, labels):
        columns = [Column("what differs"), *map(Column, labels)]
        return drawing.table(console, columns, ([one.what, *map(_short, one.values)] for one in found))
    columns = [Column("what differs"), Column("value"), Column("runs")]
    rows: list[list[object]] = []
    for one in found:
        for index, value in enumerate(dict.fromkeys(one.values)):
            having = [label for label, other in zip(labels, one.values, strict=True) if other == value]
            rows.append([Text("") if index else one.what, _short(value), ", ".join(having)])
    return drawing.table(console, columns, rows)


def _short(value: str) -> str:
    """The beginning of a hash, which is enough to tell two apart."""
    return f"{value[:12]}…" if re.fullmatch(r"[0-9a-f]{40,}", value) else value


def _numbers(console: Console, labels: Sequence[str], found: Sequence[MetricRow]) -> RenderableType:
    """What came out: a column for each run, or a line for each run of each metric."""
    from rich.text import Text

    names = [Text.assemble(row.name, (f", {row.unit}" if row.unit else "", "dim")) for row in found]
    cells = [[None if one is None else drawing.estimate(one) for one in row.cells] for row in found]
    if _fit(console, labels):
        values: list[Filled] = [
            (Column(label, keep=True), [row[index] for row in cells]) for index, label in enumerate(labels)
        ]
        room = console.width - sum(drawing.breadth(*one) for one in values)
        metric = Column("metric")
        if drawing.breadth(metric, names) > room:  # rather no units than names in pieces
            names = [Text(row.name) for row in found]
        return drawing.filled(console, [(metric, names), *values])
    columns = [Column("metric"), Column("run", right=True), Column("value", keep=True)]
    rows = [
        [Text("") if index else name, label, cell]
        for name, row in zip(names, cells, strict=True)
        for index, (label, cell) in enumerate(zip(labels, row, strict=True))
    ]
    return drawing.table(console, columns, rows)


def _paired(console: Console, found: Comparison) -> RenderableType:
    columns = [
        Column("pair", keep=True),
        Column("metric", keep=True),
        Column("difference", keep=True),
        Column("groups", right=True),
        Column("p", right=True, at=drawing.WIDE),
        Column("adj. p", right=True),
    ]
    rows = [
        [
            f"{_label(one.right)}−{_label(one.left)}",
            one.metric,
            drawing.estimate({"value": one.difference, "interval": one.interval}),
            one.n_groups,
            _p(one.p),
            _p(one.adjusted_p),
        ]
        for one in found.paired
    ]
    return drawing.table(console, columns, rows)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else drawing.scientific(value)
