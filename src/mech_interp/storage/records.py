"""`RunRecord`: one line of the index, as lists of runs show it. Imports the database library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, false, insert, or_, select, text

from mech_interp.errors import nearest
from mech_interp.storage import tables
from mech_interp.storage.folder import RunFolder
from mech_interp.storage.query import Field
from mech_interp.storage.summary import Summary

_CHUNK = 500  # values in one statement


@dataclass(frozen=True)
class RunRecord:
    """What the index knows of a run. Times are ISO instants in UTC; `seconds` is the time it took.

    `result_sha256` is the hash of `result.json` when the run was first indexed.
    """

    path: Path
    id: str
    number: int
    suffix: str
    key: str | None
    status: str
    name: str | None
    family: str | None
    description: str | None
    backend: str | None
    model: str | None
    device: str | None
    dtype: str | None
    seed: int | None
    matrix: str | None
    parent: str | None
    created: str | None
    finished: str | None
    seconds: float | None
    error: str | None
    archived: bool
    result_sha256: str | None
    tags: tuple[str, ...] = ()
    metrics: dict[str, float | None] = field(default_factory=dict)

    def open(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**named, "path": str(self.path), "tags": list(self.tags), "metrics": dict(self.metrics)}


_COLUMNS = [f.name for f in fields(RunRecord) if f.name in tables.runs.c]


def put(connection: Connection, summary: Summary) -> bool:
    """Replace everything the index holds of a run; whether its result is the one first indexed.

    The hash that was indexed first is kept, so that a run rewritten later, seal and all, still shows.
    """
    run = dict(summary.run)
    runs = tables.runs
    old = connection.execute(select(runs.c.result_sha256).where(runs.c.id == run["id"])).scalar()
    is_first = old is None or old == run["result_sha256"]
    if not is_first:
        run["result_sha256"] = old
    connection.execute(delete(runs).where(runs.c.id == run["id"]))
    connection.execute(insert(runs), run)
    for table in tables.CHILDREN:
        rows = [{"run": run["id"], **row} for row in getattr(summary, table.name)]
        if rows:
            connection.execute(insert(table), rows)
    return is_first


def named(name: str, root: Path) -> ColumnElement[bool]:
    """What a person may call a run: number, id or its beginning, suffix or its beginning, folder."""
    runs, name = tables.runs.c, name.strip()
    if not name.isprintable():  # no name of a run; the database and the system could not even compare it
        return false()
    tests: list[ColumnElement[bool]] = [runs.id == name]
    if match := re.fullmatch(r"(?:run-)?([0-9]{1,18})", name):
        tests.append(runs.number == int(match[1]))
    if re.fullmatch(r"[0-9a-f]{4,8}", name):
        tests.append(runs.suffix.startswith(name))
    if re.fullmatch(r"run-[0-9]{6,}-[0-9a-f]{1,8}", name):
        tests.append(runs.id.startswith(name))
    if Path(name).absolute().parent == root or Path(name).resolve().parent == root.resolve():
        tests.append(runs.folder == Path(name).resolve().name)
    return or_(*tests)


def advice(connection: Connection, asked: Sequence[Field]) -> str:
    """A sentence for every asked metric or parameter that no run has."""
    said = []
    for one in dict.fromkeys(asked):
        table = tables.metrics if one.table == "metric" else tables.parameters
        known = set(connection.execute(select(table.c.name).distinct()).scalars())
        if one.name not in known:
            said.append(f"No run has {one.table}.{one.name}. {nearest(one.name, known)}".strip())
    return " ".join(said)


def dump(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, sorted: two indexes with equal dumps are equal."""
    return {
        table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
        for table in (tables.runs, *tables.CHILDREN)
    }


def fetch(connection: Connection, root: Path, query: Select[Any]) -> list[RunRecord]:
    """The records of a selection of whole rows of `runs`, in its order."""
    rows = connection.execute(query).all()
    ids = [row.id for row in rows]
    tags: dict[str, list[str]] = {run: [] for run in ids}
    for row in _of(connection, tables.tags, ids):
        tags[row.run].append(row.tag)
    metrics: dict[str, dict[str, float | None]] = {run: {} for run in ids}
    for row in _of(connection, tables.metrics, ids):
        metrics[row.run][row.name] = row.value
    return [_record(row, root, tags[row.id], metrics[row.id]) for row in rows]


def _record(row: Row[Any], root: Path, tags: Iterable[str], metrics: dict[str, float | None]) -> RunRecord:
    values = {name: getattr(row, name) for name in _COLUMNS}
    return RunRecord(path=root / row.folder, **values, tags=tuple(tags), metrics=metrics)


def _of(connection: Connection, table: Any, ids: Sequence[str]) -> Iterator[Row[Any]]:
    """The rows of `table` that hang on the runs, in the order in which they were put in."""
    for start in range(0, len(ids), _CHUNK):
        wanted = table.c.run.in_(ids[start : start + _CHUNK])
        yield from connection.execute(select(table).where(wanted).order_by(text("rowid")))
