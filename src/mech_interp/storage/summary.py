"""What the index keeps of a run, read from its folder alone, so that the index can be rebuilt.

Read from the receipt: `key`, `created`, `model` (a name or {id: …}), `backend`, `device`, `dtype`,
`seed`, `datasets` ({name: hash or {sha256: …}}), `sites`, `matrix`, `parent_run`. Read from the spec,
where the receipt is silent: `name`, `family`, `description`, `tags`, `parameters` and the same fields.
From the results: status, times, metrics, file hashes, and `datasets` that only the work made known. From
`derived/labels.json`: later tags, `archived`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from mech_interp.errors import InputError
from mech_interp.sites import Site
from mech_interp.storage import labels, naming, seal
from mech_interp.storage.errors import StorageError
from mech_interp.storage.plain import spelled
from mech_interp.storage.reading import DAMAGED, RunReader

_BIG = 1 << 63
_MOST, _LONGEST = 500, 500  # parameters of one run, characters of one
_LAYERS = {"layer", "layers"}

Rows = list[dict[str, Any]]


@dataclass
class Summary:
    """One row of `runs`, and the rows of the tables that hang on it."""

    run: dict[str, Any]
    metrics: Rows
    tags: Rows
    files: Rows
    sites: Rows
    datasets: Rows
    parameters: Rows


def summarise(folder: Path | str) -> Summary:
    """Everything that the index keeps of the run in `folder`.

    Raises:
        StorageError: the folder holds no run, or one of a newer format.
    """
    run = RunReader(folder)
    receipt, spec = run.receipt(), _or_empty(run.spec)
    status = run.status
    result = _or_empty(run.result) if status != DAMAGED and run.is_finished else {}
    later = labels.read(run.path)
    number, suffix = naming.split(run.id) or (0, "")
    parameters = _object(spec.get("parameters"))

    def said(name: str, *others: str) -> Any:
        """The first that says something of: receipt, spec, parameters."""
        values = [place.get(n) for place in (receipt, spec, parameters) for n in (name, *others)]
        return next((value for value in values if value is not None), None)

    row = {
        "id": run.id,
        "number": number,
        "suffix": suffix,
        "folder": run.path.name,
        "key": _text(receipt.get("key")),
        "status": status,
        "name": _text(said("name")),
        "family": _text(said("family")),
        "description": _text(spec.get("description")),
        "backend": _text(said("backend")),
        "model": _model(said("model")),
        "device": _text(said("device")),
        "dtype": _text(said("dtype")),
        "seed": _integer(said("seed")),
        "matrix": _text(said("matrix_id", "matrix_name")) or _matrix(receipt.get("matrix")),
        "parent": _text(said("parent_run")),
        "created": _time(receipt.get("created")),
        "finished": _time(result.get("finished")),
        "seconds": _float(result.get("seconds")),
        "error": _text(result.get("error")),
        "archived": later["archived"],
        "result_sha256": _hash(run.path / seal.RESULT),
    }
    return Summary(
        run=row,
        metrics=_metrics(run, result),
        tags=[{"tag": tag} for tag in sorted({*_texts(spec.get("tags")), *later["tags"]})],
        files=_files(result),
        sites=_sites(_texts(receipt.get("sites")), spec),
        datasets=_datasets(_object(receipt.get("datasets")) | _object(result.get("datasets"))),
        parameters=_unique(_flatten(parameters)),
    )


def _metrics(run: RunReader, result: Mapping[str, Any]) -> Rows:
    if not result:
        return []
    rows = []
    for name, metric in _or_empty(run.metrics).items():
        metric = metric if isinstance(metric, dict) else {"value": metric}
        interval = metric.get("interval")
        low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
        row = {"value": _float(metric.get("value")), "low": _float(low), "high": _float(high)}
        rows.append(
            {"name": _clean(name), **row, "n": _integer(metric.get("n")), "unit": _text(metric.get("unit"))}
            | {"better": _text(metric.get("better"))}
        )
    return rows


def _files(result: Mapping[str, Any]) -> Rows:
    listed = _object(result.get("files"))
    return [
        {"path": _clean(path), "sha256": _text(known.get("sha256")), "bytes": _integer(known.get("bytes"))}
        for path, known in sorted(listed.items())
        if isinstance(known, dict)
    ]


def _datasets(found: Mapping[str, Any]) -> Rows:
    return [
        {"name": _clean(name), "sha256": _text(data.get("sha256")) if isinstance(data, dict) else _text(data)}
        for name, data in sorted(found.items())
    ]


def _sites(named: list[str], spec: Mapping[str, Any]) -> Rows:
    """Sites that the receipt lists or the spec mentions, and layers that its parameters name."""
    found: dict[str, int | None] = {}
    for text in [*named, *_texts(spec.get("hook_site"))]:
        found.update(_site(text))
    for row in _flatten(_object(spec.get("parameters"))):
        last = str(row["name"]).rpartition(".")[2]
        if last in _LAYERS and row["number"] is not None and row["number"] == int(row["number"]):
            found.setdefault(f"layer {int(row['number'])}", int(row["number"]))
        elif "site" in last:
            found.update(_site(row["text"]))
    return [{"site": site, "layer": layer} for site, layer in sorted(found.items())]


def _site(text: str) -> dict[str, int | None]:
    try:
        site = Site.parse(text)
    except (InputError, ValueError):  # a template or a kind without its layer
        return (
            {text: int(match[1])} if (match := re.search(r"\bblocks\.([0-9]{1,6})\.", text)) else {text: None}
        )
    return {str(site): site.layer if site.layer is None or site.layer < _BIG else None}


def _flatten(value: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """Parameters as (dotted name, text, number); a list gives one row per item under one name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, ".".join(filter(None, (name, _scalar(key)["text"]))))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _flatten(item, name)
    else:
        yield {"name": name, **_scalar(value)}


def _scalar(value: Any) -> dict[str, Any]:
    """The text of a YAML scalar as a person writes it, and its number where it is one."""
    if value is None or isinstance(value, bool):
        return {"text": {None: "null", True: "true", False: "false"}[value], "number": None}
    return {"text": _clean(value)[:_LONGEST], "number": _float(value)}


def _unique(rows: Iterator[dict[str, Any]]) -> Rows:
    """The first rows, each once; whole data sets of prompts are not for an index."""
    first = {tuple(row.items()): None for row in islice(rows, _MOST)}
    return [dict(pairs) for pairs in sorted(first, key=repr)]


def _or_empty(read: Any) -> dict[str, Any]:
    """What `read` returns, or nothing where that file is damaged: the run is still listed."""
    try:
        found: dict[str, Any] = read()
        return found
    except StorageError:
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [_clean(item) for item in items if isinstance(item, str | int | float)]


def _text(value: Any) -> str | None:
    """The text of any value."""
    return None if value is None else _clean(value)


def _clean(value: Any) -> str:
    """Text that the database can hold: halves of characters are spelled out."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _model(value: Any) -> str | None:
    return _text(value.get("id", value.get("name"))) if isinstance(value, dict) else _text(value)


def _matrix(value: Any) -> str | None:
    return _text(value.get("id")) if isinstance(value, dict) else _text(value)


def _integer(value: Any) -> int | None:
    """A whole number that the database can hold."""
    fits = isinstance(value, int) and not isinstance(value, bool) and -_BIG <= value < _BIG
    return value if fits else None


def _time(value: Any) -> str | None:
    """An ISO instant in the one spelling that sorts as text: UTC, milliseconds, Z."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return spelled(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
