"""`result.json` and `seal.json`: what a finished run consists of, so that any later change shows.

`result.json` lists every file with its hash and size and ends with a hash of its own content; `seal.json`
holds the hash of `result.json` and one of itself. Both are written in one spelling only, so that a single
changed byte anywhere, white space included, is found, and each file is blamed on its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mech_interp.storage.errors import StorageError, files
from mech_interp.storage.plain import canonical, dumps

RESULT, SEAL = "result.json", "seal.json"
FORMAT = 1
_DIGEST = "digest"
_CHUNK = 1 << 20


def fingerprint(path: Path) -> dict[str, Any]:
    """`sha256` and `bytes` of a file, read in pieces.

    Raises:
        StorageError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with files(path, "read"), path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
    return {"sha256": digest.hexdigest(), "bytes": size}


def result_bytes(content: Mapping[str, Any]) -> bytes:
    """The one spelling of `result.json` with this content."""
    return _spelled({"format": FORMAT, **content})


def seal_bytes(result: bytes, run: str) -> bytes:
    """The one spelling of `seal.json` for this `result.json`."""
    named = {"sha256": hashlib.sha256(result).hexdigest(), "bytes": len(result)}
    return _spelled({"format": FORMAT, "run": run, RESULT: named})


def is_intact(data: bytes) -> bool:
    """Whether a `result.json` or `seal.json` is as it was written, by its own account."""
    try:
        content = json.loads(data)
        content.pop(_DIGEST)
        return _spelled(content) == data
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return False


def sealed_hash(seal: bytes) -> str | None:
    """The hash of `result.json` that a seal holds, or None where it holds none."""
    try:
        return str(json.loads(seal)[RESULT]["sha256"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def check_format(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a run that a newer version wrote.

    Raises:
        StorageError: its format number is not one this version knows.
    """
    found = content.get("format")
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise StorageError(
            f"The run in {str(path)!r} was written in format {found!r}; this version of mech reads {FORMAT}.",
            "Upgrade mech to read it.",
        )


def _spelled(content: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(canonical(content)).hexdigest()
    return dumps({**content, _DIGEST: digest}).encode("utf-8")
