"""`mech calibrate`: how right are the circuit methods where the truth is known?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import drawing, progress
from mech_interp.cli.access import settings_of
from mech_interp.cli.drawing import Column
from mech_interp.cli.failures import UNSOUND
from mech_interp.cli.options import Home, a_file
from mech_interp.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mech_interp.methods.circuits.certificate.result import Certificate
    from mech_interp.methods.circuits.certificate.tables import Cell


def calibrate(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer models, draws and replicates: seconds, not minutes.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Sections: exact, acdc, gates, gradients, paths, nodes, scrubbing, discovery, identities.",
            show_default="all",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the certificate here too (JSON)."),
    ] = None,
    home: Home = None,
) -> None:
    """How right are the circuit methods where the truth is known?

    Every method is scored on planted models, whose circuits are known by construction, and on nulls, where
    there is nothing to find. Prints the certificate and stores it beside the runs; exits with 8 where a bar
    is missed.
    """
    from mech_interp.orchestration.calibrate import calibrate as measure
    from mech_interp.orchestration.calibrate import choose_sections
    from mech_interp.orchestration.calibrate_record import record, store
    from mech_interp.orchestration.progress import Step
    from mech_interp.orchestration.session import Session
    from mech_interp.storage import atomic

    out: Output = context.obj
    named = None if only is None else [one.strip() for one in only.split(",") if one.strip()]
    choose_sections(named)
    path, settings = a_file(output), settings_of(home=home)
    session = Session(settings)
    try:
        with progress.shown(out, "calibrating") as display:

            def tell(section: str, done: int, total: int, seconds: float) -> None:
                if display is not None:
                    display(Step("calibrate", section, done, total, seconds, None))

            certificate = measure(quick=quick, only=named, tell=tell)
        document = record(certificate, session)
    finally:
        session.close()
    kept = store(document, settings.home)
    if path is not None:
        atomic.write_json(path, document)
    out.emit(
        {**document, "file": str(kept)},
        lambda console: _draw(console, certificate, [kept, *([path] if path else [])]),
        quiet=[kept],
    )
    if not certificate.holds:
        raise typer.Exit(UNSOUND)


def _draw(console: Console, certificate: Certificate, files: Sequence[Path]) -> None:
    from rich.text import Text

    from mech_interp.methods.circuits.certificate.tables import grids

    for grid in grids([measure.to_dict() for measure in certificate.measures]):
        console.print(Text(grid.title, style="bold"))
        console.print(Text(grid.about, style="dim"))
        # Broken behind a hyphen: five methods side by side do not fit into 80 characters otherwise.
        heads = (head.replace("-", "-\n", 1) if " " not in head else head for head in grid.heads[1:])
        columns = [Column("", keep=True), *map(Column, heads)]
        rows = [[_shown(one) for one in row] for row in grid.rows]
        console.print(drawing.table(console, columns, rows))
        console.print()
    barred = sum(measure.bar is not None for measure in certificate.measures)
    missed = certificate.missed
    for measure in missed:
        console.print(Text(f"✗ {measure}", style="bold red"))
    verdict = f"✗ {len(missed)} of {barred} bars missed." if missed else f"✓ all {barred} bars kept."
    console.print(Text(verdict, style="bold red" if missed else "green"))
    took = sum(certificate.seconds.values())
    console.print(f"Wrote {', '.join(map(str, files))}. {took:.1f} s.", highlight=False)


def _shown(cell: Cell) -> Text:
    """Green where a bar is kept, red where it is missed."""
    from rich.text import Text

    if cell.holds is None:
        return Text(cell.text)
    return Text(cell.text, style="green") if cell.holds else Text(f"✗ {cell.text}", style="bold red")
