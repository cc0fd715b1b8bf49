"""Runs as one file: a zip for other people, one JSON document, a CSV of metrics."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mech_interp.storage import atomic, naming, seal
from mech_interp.storage.errors import StorageError, files
from mech_interp.storage.reading import RunReader
from mech_interp.storage.verify import verify

_ABOUT = ("run", "name", "family", "backend", "model", "status")
_COLUMNS = (*_ABOUT, "metric", "value", "low", "high", "n", "unit", "better")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def export_zip(folder: Path | str, target: Path | str, *, derived: bool = False) -> Path:
    """A finished run as a zip, with its receipt and seal; the same run gives the same bytes.

    Files are stored uncompressed, since compressed bytes differ between versions of the compressor.
    `derived` adds what was made after the seal. Returns the path of the zip.

    Raises:
        StorageError: the run is unfinished or no longer what was sealed, or the zip cannot be written.
    """
    run = RunReader(folder)
    names = [seal.RESULT, seal.SEAL, *_sealed(run)]
    if derived:
        later = (run.path / naming.DERIVED).rglob("*")
        names += [path.relative_to(run.path).as_posix() for path in later if path.is_file()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(names):
            entry = zipfile.ZipInfo(f"{run.id}/{name}", _EPOCH)
            entry.external_attr = 0o644 << 16
            with files(run.path / name, "read"):
                archive.writestr(entry, (run.path / name).read_bytes())
    target = Path(target)
    atomic.write_bytes(target, out.getvalue())
    return target


def export_json(folder: Path | str) -> dict[str, Any]:
    """A finished run as one document: everything but tensors and pictures, which are listed by hash.

    Raises:
        StorageError: the run is unfinished, or a file cannot be read.
    """
    run = RunReader(folder)
    return {
        "run": run.id,
        "spec": run.spec(),
        "receipt": run.receipt(),
        "result": run.result(),
        "metrics": run.metrics(),
        **run.findings(),
        "tables": {name: run.table(name) for name in run.names("tables")},
        "views": {name: run.view(name) for name in run.names("views")},
        "events": run.events(),
        "report": run.report(),
    }


def metrics_csv(folders: Iterable[Path | str]) -> str:
    """The metrics of finished runs, one per line, with the run's family and model; ends of intervals apart.

    Raises:
        StorageError: a run is unfinished, or a file cannot be read.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for folder in folders:
        run = RunReader(folder)
        spec, receipt = run.spec(), run.receipt()
        said = {**spec, **{name: receipt[name] for name in ("backend", "model") if receipt.get(name)}}
        if isinstance(said.get("model"), dict):
            said["model"] = said["model"].get("id")
        about = {**said, "run": run.id, "status": run.status}
        for name, metric in run.metrics().items():
            low, high = metric.get("interval") or (None, None)
            writer.writerow({**about, **metric, "metric": name, "low": low, "high": high})
    return out.getvalue()


def _sealed(run: RunReader) -> list[str]:
    """The files under the seal, after checking that they still are what was sealed."""
    listed = run.result().get("files", {})
    problems = verify(run.path)
    if problems:
        raise StorageError(
            f"{run.id} is no longer what was sealed: {problems[0]}.",
            "See all differences with mech verify; export a copy that is intact.",
        )
    return list(listed)
