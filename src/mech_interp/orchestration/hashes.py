"""Hashes of model files, remembered by path, size and time of change, so that a weight file is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mech_interp.errors import ModelError

CACHE = ".file-hashes.json"
# A file changed this recently could change again within the clock's grain, unseen.
SETTLED_SECONDS = 2.0


class FileHashes:
    """SHA-256 of files; what is known is kept in `path`, or in memory where there is no such place."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = self._read()

    def of(self, file: Path) -> str:
        """SHA-256 (hex) of the file's content.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            real = file.resolve()
            stat = real.stat()
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            known = self._known.get(str(real))
            if known is not None and known[:-1] == mark:
                return str(known[-1])
            with real.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(
                f"{str(file)!r} cannot be read ({error.strerror}).", "Fetch the checkpoint again."
            ) from error
        if time.time() - stat.st_mtime > SETTLED_SECONDS:
            self._known[str(real)] = [*mark, digest]
            self._write()
        return digest

    def together(self, files: Iterable[Path]) -> str:
        """SHA-256 over names and contents, in order: what a loaded model states as its weights' hash."""
        total = hashlib.sha256()
        for file in files:
            total.update(file.name.encode() + bytes.fromhex(self.of(file)))
        return total.hexdigest()

    def _read(self) -> dict[str, list[Any]]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {key: one for key, one in entries if isinstance(one, list) and len(one) == 4}

    def _write(self) -> None:
        """Best effort: without the cache everything works, only slower."""
        from mech_interp.errors import MechError
        from mech_interp.storage.atomic import write_json

        if self._path is not None and self._path.parent.is_dir():
            with contextlib.suppress(MechError, OSError):
                write_json(self._path, {**self._read(), **self._known}, durable=False)
