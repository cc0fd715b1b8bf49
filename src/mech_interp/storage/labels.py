"""What people say of a run afterwards (tags, archived), kept in `derived/`, outside its seal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mech_interp.storage import atomic, naming
from mech_interp.storage.errors import StorageError
from mech_interp.storage.plain import read_object

LABELS = f"{naming.DERIVED}/labels.json"


def read(folder: Path) -> dict[str, Any]:
    """`archived` and the later `tags`; nothing where the file is absent or damaged."""
    try:
        found = read_object(folder / LABELS)
    except StorageError:
        found = {}
    tags = found.get("tags")
    texts = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return {"archived": found.get("archived") is True, "tags": texts}


def write(folder: Path, labels: dict[str, Any]) -> None:
    """Replace the labels of a run; the caller holds the lock of the root."""
    atomic.write_json(folder / LABELS, labels)
