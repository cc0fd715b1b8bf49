"""Names inside a root: run ids, the files that are not results, and the next free number."""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from mech_interp.storage import atomic
from mech_interp.storage.errors import files

RUN_LOCK, UNITS, DERIVED = "run.lock", "units", "derived"
ROOT_LOCK, COUNTER, DRAFT = ".lock", ".last-number", ".draft-"
_ID = re.compile(r"run-([0-9]{6,})-([0-9a-f]{8})")


def split(name: str) -> tuple[int, str] | None:
    """(number, suffix) of a run id, or None where `name` is none."""
    match = _ID.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def run_folders(root: Path) -> list[Path]:
    """The run folders in `root`, by number; empty where there is no such root."""
    return [path for _, path in sorted(_numbered(root))]


def next_name(root: Path) -> str:
    """The id of the next run; the caller holds the lock of the root.

    Numbers are never given twice, not even that of a run that was deleted; the suffix is random, so
    that runs from several machines can be put together.
    """
    used = [number for number, _ in _numbered(root)]
    with contextlib.suppress(OSError, ValueError):
        used.append(int((root / COUNTER).read_text(encoding="ascii")))
    number = max(used, default=0) + 1
    atomic.write_text(root / COUNTER, f"{number}\n", durable=False)
    return f"run-{number:06d}-{uuid.uuid4().hex[:8]}"


def sweep(root: Path) -> None:
    """Remove drafts of creators that were killed; the caller holds the lock of the root."""
    with files(root):
        for path in root.iterdir():
            if path.name.startswith(DRAFT):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(atomic.PREFIX) and path.name.endswith(atomic.SUFFIX):
                remove(path)


def remove(path: Path) -> None:
    """Delete a file if it can be deleted."""
    with contextlib.suppress(OSError):
        path.unlink()


def _numbered(root: Path) -> Iterator[tuple[int, Path]]:
    if not root.is_dir():
        return
    with files(root, "read"):
        for path in root.iterdir():
            parts = split(path.name)
            if parts is not None and path.is_dir():
                yield parts[0], path
