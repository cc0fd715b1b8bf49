"""Files that are either whole or absent: written to a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

from mech_interp.storage.errors import StorageError, file_error
from mech_interp.storage.plain import dumps

# A writer that is killed leaves such a file behind; the next owner of the folder sweeps it.
PREFIX, SUFFIX = ".new-", ".tmp"


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file at `path` by `data`, wholly or not at all; a link is followed.

    `durable` also flushes the folder entry, so that the new name survives a loss of power.

    Raises:
        StorageError: the disk is full, the folder read-only, the path a device, pipe or folder, or the
            write failed otherwise.
    """
    path = _regular(path)
    temporary = path.with_name(f"{PREFIX}{uuid.uuid4().hex}{SUFFIX}")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if durable:
            flush_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise file_error(error, path) from error
    except BaseException:  # Ctrl-C between the two names
        _remove(temporary)
        raise


def _regular(path: Path) -> Path:
    """The file to replace: renaming over a device, a pipe or a link would destroy it."""
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or pipe"
        raise StorageError(f"{path} is {kind}, not a file.", "Name a file to write.")
    return path


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """`write_bytes` of UTF-8 text with the line ends it has."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_json(path: Path, data: Any, *, durable: bool = True) -> None:
    """`write_bytes` of strict, indented JSON with a line end."""
    write_bytes(path, dumps(data).encode("utf-8"), durable=durable)


def flush_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):  # some file systems have no such call; the data are flushed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed writers left anywhere under `folder`; the caller owns the folder."""
    for path in folder.rglob(f"{PREFIX}*{SUFFIX}"):
        _remove(path)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, in as few calls as the system allows."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
