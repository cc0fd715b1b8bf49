"""Is a finished run still what it was when it was sealed?"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mech_interp.storage import naming, seal
from mech_interp.storage.errors import StorageError

Kind = Literal["changed", "missing", "extra", "unreadable"]


@dataclass(frozen=True)
class Problem:
    """One file that is not as it was sealed; `path` is relative to the run folder."""

    path: str
    kind: Kind
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind} ({self.detail})"


def verify(folder: Path | str, index_hash: str | None = None) -> list[Problem]:
    """Every file of a run that changed, is missing or was added since it was sealed, by path.

    `derived/` is outside the seal. `index_hash` is the hash of `result.json` that the index recorded: it
    exposes a run that was rewritten as a whole, seal and all.
    """
    folder = Path(folder)
    data = _read(folder / seal.RESULT)
    if data is None:
        return [Problem(seal.RESULT, "missing", "the run has not finished, or the file was removed")]
    problems = [*_result(data, folder, index_hash), *_seal(folder)]
    listed = _listed(data)
    if listed is None:
        problems.append(Problem(seal.RESULT, "changed", "it no longer lists the files of the run"))
    else:
        problems += _files(folder, listed)
    unique = {(problem.path, problem.kind): problem for problem in reversed(problems)}
    return sorted(unique.values(), key=lambda problem: (problem.path, problem.kind))


def _result(data: bytes, folder: Path, index_hash: str | None) -> Iterator[Problem]:
    """Whether `result.json` is the one that was written, by three witnesses."""
    found = hashlib.sha256(data).hexdigest()
    witness = _read(folder / seal.SEAL)
    if index_hash is not None and found != index_hash:
        yield Problem(seal.RESULT, "changed", "its hash is not the one in the index")
    if not seal.is_intact(data):
        yield Problem(seal.RESULT, "changed", "it fails its own hash")
    elif witness is not None and seal.is_intact(witness) and seal.sealed_hash(witness) != found:
        yield Problem(seal.RESULT, "changed", "its hash is not the one in seal.json")


def _seal(folder: Path) -> Iterator[Problem]:
    witness = _read(folder / seal.SEAL)
    if witness is None:
        yield Problem(seal.SEAL, "missing", "it was removed or cannot be read")
    elif not seal.is_intact(witness):
        yield Problem(seal.SEAL, "changed", "it fails its own hash")
    elif seal.sealed_hash(witness) is None:
        yield Problem(seal.SEAL, "changed", "it holds no hash of result.json")


def _files(folder: Path, listed: Mapping[str, Any]) -> Iterator[Problem]:
    present = set(_present(folder))
    for path, known in listed.items():
        if path not in present:
            yield Problem(path, "missing", "it was sealed with the run and is gone")
        elif (folder / path).is_symlink():
            yield Problem(path, "changed", "it is a link now")
        else:
            yield from _file(folder, path, known)
    for path in sorted(present - set(listed) - {seal.RESULT, seal.SEAL}):
        yield Problem(path, "extra", "it was not sealed with the run; later files belong in derived/")


def _file(folder: Path, path: str, known: Any) -> Iterator[Problem]:
    try:
        found = seal.fingerprint(folder / path)
    except StorageError as error:
        yield Problem(path, "unreadable", error.message)
        return
    if found != known:
        sizes = found["bytes"], known.get("bytes") if isinstance(known, dict) else None
        detail = f"{sizes[0]} bytes instead of {sizes[1]}" if sizes[0] != sizes[1] else "other content"
        yield Problem(path, "changed", detail)


def _present(folder: Path) -> Iterator[str]:
    """Every file and link of the run outside `derived/`; an empty lock file holds nothing to check."""
    for base, folders, names in os.walk(folder):
        here = Path(base)
        if here == folder and naming.DERIVED in folders:
            folders.remove(naming.DERIVED)
        names += [name for name in folders if (here / name).is_symlink()]
        for name in names:
            path = here / name
            if path == folder / naming.RUN_LOCK and not path.is_symlink() and path.stat().st_size == 0:
                continue
            yield path.relative_to(folder).as_posix()


def _listed(data: bytes) -> dict[str, Any] | None:
    try:
        listed = json.loads(data)["files"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return listed if isinstance(listed, dict) else None


def _read(path: Path) -> bytes | None:
    """The bytes of a plain file (a link in its place counts as gone)."""
    try:
        return None if path.is_symlink() else path.read_bytes()
    except OSError:
        return None
