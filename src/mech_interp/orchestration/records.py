"""Sweeps on disk: what was planned, and how each child stands.

The record holds the plan alone. How a child stands is read from the runs with its key, so that several
processes may work on one sweep and none can contradict the runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.errors import InputError, nearest
from mech_interp.storage import atomic
from mech_interp.storage.errors import StorageError
from mech_interp.storage.plain import now, read_object

if TYPE_CHECKING:
    from mech_interp.storage import RunRecord, Store

FOLDER, RECORD, FORMAT = "sweeps", "sweep.json", 1
WAITING, INVALID, FAILED = "waiting", "invalid", "failed"
_DONE = ("complete", "void")


@dataclass(frozen=True)
class Child:
    """One run of a sweep: its axis values, and its run key or why it cannot run."""

    name: str
    values: Mapping[str, Any]
    key: str | None
    error: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A planned sweep; `spec` is the spec with its matrix as plain data."""

    id: str
    name: str
    path: Path
    spec: Mapping[str, Any]
    children: tuple[Child, ...]
    created: str = ""

    def save(self) -> None:
        """Write the record, unless it is there and says the same.

        Raises:
            StorageError: it could not be written.
        """
        children = [{**vars(child), "values": dict(child.values)} for child in self.children]
        content = {
            "format": FORMAT,
            "id": self.id,
            "name": self.name,
            "created": self.created or now(),
            "spec": dict(self.spec),
            "children": children,
        }
        try:
            old = read_object(self.path)
        except StorageError:
            old = {}
        if old:
            content["created"] = old.get("created", content["created"])
        if old != content:
            atomic.write_json(self.path, content)


@dataclass(frozen=True)
class ChildState:
    """How a child stands: `waiting`, `invalid`, or the status of its newest run."""

    child: Child
    status: str
    run: str | None = None
    error: str | None = None
    seconds: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether it needs no more work."""
        return self.status in _DONE

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        child = {"name": self.child.name, "values": dict(self.child.values), "key": self.child.key}
        rest = {name: value for name, value in vars(self).items() if name != "child"}
        return {**child, **rest, "metrics": dict(self.metrics)}


def states(sweep: Sweep, store: Store) -> list[ChildState]:
    """How every child stands, in the order of the matrix."""
    return [state(child, store) for child in sweep.children]


def state(child: Child, store: Store) -> ChildState:
    """How one child stands: a run that is done wins over newer ones that are not."""
    if child.key is None:
        return ChildState(child, INVALID, error=child.error)
    runs = store.by_key(child.key)
    chosen = next((run for run in runs if run.status in _DONE), runs[0] if runs else None)
    if chosen is None:
        return ChildState(child, WAITING)
    return _of_run(child, chosen)


def _of_run(child: Child, run: RunRecord) -> ChildState:
    return ChildState(child, run.status, run.id, run.error, run.seconds, dict(run.metrics))


def folder_name(name: str, digest: str) -> str:
    """The id of a sweep: readable, and the same for the same content."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:80]}-{digest[:8]}"


def read(path: Path) -> Sweep:
    """The sweep that a record holds.

    Raises:
        StorageError: the file is missing, damaged or of a newer version.
    """
    data = read_object(path)
    try:
        if data["format"] != FORMAT:
            raise StorageError(
                f"The sweep record {str(path)!r} was written in format {data['format']!r}.",
                "Upgrade mech to read it.",
            )
        children = tuple(Child(**child) for child in data["children"])
        return Sweep(data["id"], data["name"], path, data["spec"], children, data["created"])
    except (KeyError, TypeError) as error:
        raise StorageError(
            f"The sweep record {str(path)!r} is damaged ({error}).",
            "Run the sweep again: it is written anew.",
        ) from error


def sweeps(home: Path) -> list[Sweep]:
    """Every sweep that can be read, oldest first."""
    found = []
    for path in sorted((home / FOLDER).glob(f"*/{RECORD}")):
        try:
            found.append(read(path))
        except StorageError:
            continue
    return sorted(found, key=lambda sweep: (sweep.created, sweep.id))


def find_sweep(home: Path, text: str) -> Sweep:
    """The sweep that `text` names: its id, its name, or the beginning of one.

    Raises:
        InputError: no sweep fits, or several do.
    """
    every = sweeps(home)
    exact = [one for one in every if text in (one.id, one.name)]
    fitting: Sequence[Sweep] = exact or [one for one in every if one.id.startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(
            f"{text!r} fits {len(fitting)} sweeps: {', '.join(one.id for one in fitting[:5])}.",
            "Give the whole id.",
        )
    known = [one.id for one in every]
    hint = nearest(text, known) or f"There are: {', '.join(known[-5:]) or 'none yet'}."
    raise InputError(f"There is no sweep {text!r} in {str(home)!r}.", hint)
