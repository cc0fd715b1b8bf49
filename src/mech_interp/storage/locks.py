"""Locks between processes that end with the process, however it ends.

They are advisory locks of the operating system on an open file: a process that is killed lets go, so
nothing is ever locked for good, and no clock decides who is alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mech_interp.storage.errors import StorageError, file_error

_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
_PAUSE = 0.01
_ASKING = 60.0  # seconds in which whoever only asks has long ended


def try_lock(path: Path) -> int | None:
    """Take the exclusive lock on `path` (made if missing); its descriptor, or None if it is held.

    Raises:
        StorageError: the file cannot be made, or the file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise file_error(error, path) from error
    taken = False
    try:
        taken = _take(descriptor, fcntl.LOCK_EX, path)
    finally:
        if not taken:
            os.close(descriptor)
    return descriptor if taken else None


def lock(path: Path, timeout: float) -> int | None:
    """`try_lock` until it succeeds, or another has held the lock for `timeout` seconds.

    Processes that only ask (`is_held`) do not count: they are waited for, even where the system is so
    busy that asking takes seconds.
    """
    end = time.monotonic() + timeout
    while (descriptor := try_lock(path)) is None:
        late = time.monotonic() - end
        if late > _ASKING or (late >= 0 and is_held(path)):
            return None
        time.sleep(_PAUSE)
    return descriptor


def unlock(descriptor: int) -> None:
    """Let go of a lock."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


@contextmanager
def locked(path: Path, timeout: float = 60.0) -> Iterator[None]:
    """Hold the exclusive lock on `path` inside the block.

    Raises:
        StorageError: another process kept it for `timeout` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, path.parent) from error
    descriptor = lock(path, timeout)
    if descriptor is None:
        raise StorageError(
            f"Another mech process has kept {str(path)!r} locked for {timeout:.0f} seconds.",
            "Wait for it to end, or end it, and run the same command again.",
        )
    try:
        yield
    finally:
        unlock(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on `path`; never makes the file.

    A shared lock is tried, so that several processes that ask at once do not see each other.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _take(descriptor, fcntl.LOCK_SH, path)
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise StorageError(
            f"The file system of {str(path.parent)!r} has no locks, so runs there would not be safe.",
            "Give a folder on a local disk with --home or MECH_HOME.",
        ) from error
    return True
