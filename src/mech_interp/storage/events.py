"""`events.jsonl`: what happened in a run, one JSON object per line, appended in one write each."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from mech_interp.storage.atomic import write_all
from mech_interp.storage.errors import files
from mech_interp.storage.plain import now, plain

RESUMED = "resumed"


def append(path: Path, kind: str, data: dict[str, Any]) -> None:
    """Add one event; concurrent writers do not mix, since each line is one appending write.

    Raises:
        StorageError: it could not be written.
    """
    line = json.dumps({"time": now(), "event": kind, **plain(data, [])}, ensure_ascii=False) + "\n"
    with files(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            write_all(descriptor, line.encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole events in order; a line that was cut short by a kill is left out."""
    with files(path, "read"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
    return [event for line in data.split(b"\n") if (event := _event(line)) is not None]


def mend(path: Path) -> None:
    """End a line that a kill cut short, so that the next event starts on its own line."""
    with files(path):
        try:
            with path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    file.write(b"\n")
        except FileNotFoundError:
            return


def working_seconds(found: Sequence[Mapping[str, Any]]) -> float:
    """The time from the first event to the last, less the gaps in which the run lay interrupted."""
    total = 0.0
    for before, after in pairwise(found):
        if after["event"] != RESUMED:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                span = datetime.fromisoformat(after["time"]) - datetime.fromisoformat(before["time"])
                total += max(span.total_seconds(), 0.0)
    return round(total, 3)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "event" in event else None
