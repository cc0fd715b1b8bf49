"""What a finished run holds besides its receipt: encoded to files, and read back with the same types."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mech_interp.storage import units
from mech_interp.storage.errors import StorageError
from mech_interp.storage.plain import dumps, plain

if TYPE_CHECKING:
    import numpy as np

METRICS, FINDINGS, REPORT = "metrics.json", "findings.json", "report.md"
FOLDERS = ("tables", "tensors", "views", "figures", "graphs")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The results of a run as plain values.

    `metrics`: name -> {value, interval, n, unit, better, …}. `tables`: name -> rows. `tensors`: name ->
    array. `views`: name -> view, or what its `to_dict` returns. `figures`: name -> PNG bytes. `graphs`:
    file name -> text of a circuit graph. `notes`: question, method, caveats and whatever else explains the
    numbers.
    """

    metrics: Mapping[str, Row] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[Any] = ()
    controls: Sequence[Any] = ()
    notes: Row = field(default_factory=dict)
    report: str | None = None


@dataclass
class Encoded:
    """Files by relative path, a listing of what they hold, and the places of numbers JSON lacks."""

    files: dict[str, bytes]
    listing: dict[str, dict[str, Any]]
    gaps: list[str]

    @property
    def size(self) -> int:
        """Bytes altogether."""
        return sum(map(len, self.files.values()))


def encode(contents: Contents) -> Encoded:
    """Every file of `contents`, in memory.

    Raises:
        TypeError: a value that its file cannot hold (a fault of the family that produced it).
    """
    done = Encoded({}, {name: {} for name in FOLDERS}, [])
    done.files[METRICS] = _json(contents.metrics, done, "metrics")
    told = {"findings": contents.findings, "controls": contents.controls, "notes": contents.notes}
    done.files[FINDINGS] = _json(told, done, "")
    for name, rows in contents.tables.items():
        text, columns = encode_table(rows)
        path = _place(done, "tables", name, ".csv", rows=len(rows), columns=columns)
        done.files[path] = text.encode("utf-8", "backslashreplace")
    for name, array in contents.tensors.items():
        kind, shape = str(array.dtype), list(array.shape)
        path = _place(done, "tensors", name, ".safetensors", dtype=kind, shape=shape)
        done.files[path] = units.pack({"data": array})
    for name, view in contents.views.items():
        path = _place(done, "views", name, ".json")
        done.files[path] = _json(view, done, f"views.{name}")
    for name, png in contents.figures.items():
        done.files[_place(done, "figures", name, ".png")] = bytes(png)
    for name, text in contents.graphs.items():
        stem, dot, ending = name.partition(".")
        done.files[_place(done, "graphs", name, dot + ending, stem=stem)] = text.encode("utf-8")
    if contents.report is not None:
        done.files[REPORT] = contents.report.encode("utf-8", "backslashreplace")
    return done


def encode_table(rows: Sequence[Row]) -> tuple[str, dict[str, str]]:
    """A table as CSV, and the type of each column: int, float, bool, str or json.

    Columns appear in the order in which rows bring them; a missing value is an empty cell.
    """
    plain_rows: list[dict[str, Any]] = [plain(row) for row in rows]
    names = list(dict.fromkeys(name for row in plain_rows for name in row))
    types = {name: _column_type([row.get(name) for row in plain_rows]) for name in names}
    lines = [names, *([_cell(row.get(name), types[name]) for name in names] for row in plain_rows)]
    return "".join(map(_line, lines)), types


def decode_table(text: str, types: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows that `encode_table` wrote; empty cells are None (and '' in columns that never lack one).

    Raises:
        StorageError: the text does not fit the column types.
    """
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        names = next(lines, [])
        return [
            {name: _value(cell, types[name]) for name, cell in zip(names, line, strict=True)}
            for line in lines
            if line or not names
        ]
    except (ValueError, KeyError, csv.Error) as error:
        raise StorageError(
            f"A table is damaged: {error}.", "`mech verify` names the files of a run that have changed."
        ) from error


def _json(value: Any, done: Encoded, where: str) -> bytes:
    return dumps(plain(value, done.gaps, where)).encode("utf-8")


def _place(
    done: Encoded, folder: str, name: str, ending: str, *, stem: str | None = None, **facts: Any
) -> str:
    """A path for `name` that any file system takes, noted in the listing; `stem` is it without `ending`."""
    plain_name = name if stem is None else stem
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain_name).strip("._-")[:80]
    taken = {path.casefold() for path in done.files}
    if safe != plain_name or f"{folder}/{safe}{ending}".casefold() in taken:
        safe = f"{safe}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")
    path = f"{folder}/{safe}{ending}"
    done.listing[folder][name] = {"path": path, **facts}
    return path


def _column_type(values: Sequence[Any]) -> str:
    """The narrowest type that brings every value back as it was."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} and kinds:
        return "bool"
    if kinds == {int}:
        return "int"
    if kinds and kinds <= {int, float}:
        return "float"
    if kinds <= {str} and not (None in values and "" in values):
        return "str?" if None in values else "str"
    return "json"


def _line(cells: Sequence[str]) -> str:
    """One line of CSV. (The library's writer leaves a lone carriage return bare, and then cannot read it.)"""
    alone = len(cells) == 1  # a lone empty cell would make an empty line
    quoted = [
        '"' + cell.replace('"', '""') + '"' if re.search(r'[",\r\n]', cell) or (alone and not cell) else cell
        for cell in cells
    ]
    return ",".join(quoted) + "\n"


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return ""
    if kind == "json":
        return json.dumps(value, ensure_ascii=False)
    if kind == "bool":
        return "true" if value else "false"
    return str(value) if kind.startswith("str") else repr(value)


def _value(cell: str, kind: str) -> Any:
    if kind == "str":
        return cell
    if cell == "":
        return None
    if kind == "bool":
        return {"true": True, "false": False}[cell]
    if kind == "json":
        return json.loads(cell)
    return int(cell) if kind == "int" else float(cell) if kind == "float" else cell
