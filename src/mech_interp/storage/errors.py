"""What can go wrong with files and the index, in sentences."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mech_interp.errors import MechError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


class StorageError(MechError):
    """A run folder or an index that cannot be read or written."""

    exit_code = 7


class ReadOnlyError(StorageError):
    """A folder or an index that this user may read and not write."""


class DamagedIndexError(StorageError):
    """An index that is no index any more; it can be rebuilt from the folders."""


def file_error(error: OSError, path: Path, doing: str = "write") -> StorageError:
    """The sentence for a failed file operation on `path`."""
    where = f"{path.name!r} in {str(path.parent)!r}"
    if error.errno in _FULL:
        return StorageError(
            f"The disk is full, so {where} could not be written.",
            "Free some space and run the same command again: work already stored is kept.",
        )
    if error.errno in _DENIED and doing == "write":
        return ReadOnlyError(
            f"The folder {str(path.parent)!r} is read-only for this user, so {path.name!r} was not written.",
            "Give another place with --home or MECH_HOME, or change the folder's permissions.",
        )
    if isinstance(error, FileNotFoundError) and doing == "read":
        return StorageError(f"{where} does not exist.", "Check the name, or list the runs there are.")
    reason = (error.strerror or os.strerror(error.errno) if error.errno else str(error)).lower()
    return StorageError(f"{where} could not be {_DONE[doing]}: {reason}.", "Check the disk and the path.")


_DONE = {"write": "written", "read": "read"}


@contextmanager
def files(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path, doing) from error
