"""`mech report`: one run, several or a sweep, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli import runs as listing
from mech_interp.cli.drawing import Column, Filled
from mech_interp.cli.options import Home, a_file, complete_runs
from mech_interp.cli.output import Output
from mech_interp.cli.query import select
from mech_interp.cli.sweep_report import complete_sweeps
from mech_interp.errors import InputError, MechError

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.orchestration.records import Sweep
    from mech_interp.reports.across import Line
    from mech_interp.storage.index import Store
    from mech_interp.storage.records import RunRecord


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    return [*complete_runs(ctx, incomplete), *complete_sweeps(ctx, incomplete)]


def report(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN...]", help="Runs, or one sweep.", autocompletion=_complete),
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Runs that match, as for query-runs.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many of --where or all.")
    ] = 100,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=a_file, help="Write Markdown there."),
    ] = None,
    home: Home = None,
) -> None:
    """A report across runs, or of one run or sweep.

    Without names: the latest runs. Markdown where the output is no terminal, or with --output.
    """
    from mech_interp.orchestration.records import states
    from mech_interp.orchestration.sweep_reports import report_sweep

    out: Output = context.obj
    with access.existing(home, out) as store:
        sweep = _sweep(store, runs)
        if sweep is not None:
            records = access.found(store, [child.run for child in states(sweep, store) if child.run])
            text = report_sweep(sweep, store)
        else:
            records = _chosen(store, runs, where, limit)
            text = of_run(records[0]) if runs and len(records) == 1 else of_runs(records)
    if output is not None:
        write(out, output, text, [record.id for record in records])
        return
    out.emit(
        {"runs": [record.id for record in records], "markdown": text},
        lambda console: _draw(console, text, records, single=bool(runs) and len(records) == 1),
        quiet=[record.id for record in records],
    )


def write(out: Output, target: Path, text: str, runs: Sequence[str]) -> None:
    """Write a report and say so.

    Raises:
        StorageError: it could not be written.
    """
    from mech_interp.storage import atomic

    atomic.write_text(target, text)
    out.emit(
        {"path": str(target), "runs": list(runs)},
        lambda console: console.print(f"Written to {target}.", soft_wrap=True, highlight=False),
        quiet=[target],
    )


def of_run(record: RunRecord) -> str:
    """The report of one run: the one it wrote, or the same made now.

    Raises:
        StorageError: it has not finished.
    """
    from mech_interp.orchestration.outputs import told_again
    from mech_interp.reports.run_report import run_report

    folder = record.open()
    return folder.report() or run_report(told_again(folder))


def of_runs(records: Sequence[RunRecord]) -> str:
    """A report across runs."""
    from mech_interp.reports.across import across

    return across(lines(records))


def lines(records: Sequence[RunRecord]) -> list[Line]:
    """What reports say of runs."""
    from mech_interp.reports.across import line_of

    return [line_of(record.open()) for record in records]


def _sweep(store: Store, names: Sequence[str] | None) -> Sweep | None:
    """The sweep that a single name means, where it is not a run."""
    from mech_interp.orchestration.records import find_sweep

    if not names or len(names) > 1:
        return None
    try:
        store.find(names[0])
    except MechError:
        try:
            return find_sweep(store.root, names[0])
        except InputError:
            return None
    return None


def _chosen(store: Store, runs: Sequence[str] | None, where: str | None, limit: int) -> list[RunRecord]:
    if runs and where is None:
        return access.found(store, runs)
    named = access.found(store, runs or ())
    chosen = select(store, where or "", limit)
    return list({record.id: record for record in [*named, *chosen]}.values())


def _draw(console: Console, text: str, records: Sequence[RunRecord], single: bool) -> None:
    if not console.is_terminal:
        console.print(text, soft_wrap=True, markup=False, highlight=False, end="")
    elif single:
        from rich.markdown import Markdown

        console.print(Markdown(text))
    else:
        _draw_runs(console, records)


def _draw_runs(console: Console, records: Sequence[RunRecord]) -> None:
    """Families one by one: which runs, their numbers, their findings."""
    from rich.text import Text

    listing.draw(console, records)
    told = lines(records)
    for family in dict.fromkeys(line.family for line in told):
        members = [line for line in told if line.family == family and line.metrics]
        console.print(Text(f"\n{family}", style="bold"))
        if not members:
            console.print("No run of it has numbers.")
            continue
        names = dict.fromkeys(name for line in members for name in line.metrics)
        columns = {name: [line.metrics.get(name, {}).get("value") for line in members] for name in names}
        first: list[Filled] = [(Column("run", keep=True), [line.run for line in members])]
        for drawn in drawing.number_tables(console, first, columns):
            console.print()
            console.print(drawn)
        console.print()
        console.print(
            drawing.bullets(
                Text.assemble(sentence, (f" ({line.run})", "dim"))
                for line in members
                for sentence in line.findings
            )
        )
