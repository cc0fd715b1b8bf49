"""`mech export-run`: runs as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mech_interp.cli import access, drawing
from mech_interp.cli.options import Home, Runs, a_file
from mech_interp.cli.output import Output
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mech_interp.storage.records import RunRecord

SUFFIXES = (".zip", ".json", ".csv")


def export_run(
    context: typer.Context,
    runs: Runs,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=a_file,
            help="A .zip, .json or .csv file.",
            show_default="RUN.zip",
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Runs as one file: zip with receipt, JSON or CSV.

    .zip: all files of one run, which `mech verify` checks after unpacking. .json: one run without tensors
    and pictures. .csv: the metrics of any number of runs.
    """
    out: Output = context.obj
    with access.existing(home, out) as store:
        records = access.found(store, runs)
    target = output or Path(f"{records[0].id}.zip")
    written = write(records, target)
    n = drawing.size(written.stat().st_size)
    names = ", ".join(record.id for record in records)
    out.emit(
        {"path": str(written), "bytes": written.stat().st_size, "runs": [record.id for record in records]},
        lambda console: console.print(f"{written} ({n}) holds {names}", soft_wrap=True, highlight=False),
        quiet=[written],
    )


def write(records: Sequence[RunRecord], target: Path) -> Path:
    """Write the runs in the form that the suffix of `target` names.

    Raises:
        InputError: for another suffix, or several runs where the form holds one.
        StorageError: a run is unfinished or was changed, or the file cannot be written.
    """
    from mech_interp.storage import atomic, export
    from mech_interp.storage.plain import dumps

    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        close = nearest(suffix, SUFFIXES)
        raise InputError(f"{str(target)!r} is no zip, JSON or CSV file.", close or "End its name in .zip.")
    if len(records) > 1 and suffix != ".csv":
        raise InputError(f"A {suffix} file holds one run, not {len(records)}.", "Export them one by one.")
    if suffix == ".zip":
        return export.export_zip(records[0].path, target)
    if suffix == ".json":
        atomic.write_text(target, dumps(export.export_json(records[0].path)))
    else:
        atomic.write_text(target, export.metrics_csv(record.path for record in records))
    return target
