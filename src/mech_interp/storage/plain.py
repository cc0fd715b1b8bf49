"""Values as strict JSON: what goes in comes out, and what JSON lacks is reported, never invented."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mech_interp.storage.errors import StorageError, files

# Halves of a character, as damaged text has them: UTF-8 cannot hold one, a JSON escape can.
_SURROGATE = re.compile("[\ud800-\udfff]")


def plain(value: Any, gaps: list[str] | None = None, where: str = "") -> Any:
    """`value` as dicts with text keys, lists, text, numbers, booleans and None.

    Sets, arrays and other objects are refused. Numbers that are not finite become None and their
    places are appended to `gaps`; without `gaps` they are kept.

    Raises:
        TypeError: a value that JSON cannot hold (a fault of the caller).
    """
    if value is None or isinstance(value, str | bool):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int | float):
        return _number(value, gaps, where)
    if isinstance(value, Mapping):
        return {_key(k, where): plain(v, gaps, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, gaps, f"{where}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "to_dict"):  # views, estimates
        return plain(value.to_dict(), gaps, where)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return plain(value.item(), gaps, where)
    raise TypeError(f"{where or 'The value'} is a {type(value).__name__}, which JSON cannot hold.")


def _number(value: int | float, gaps: list[str] | None, where: str) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    if gaps is not None and not math.isfinite(value):
        gaps.append(where)
        return None
    return float(value)


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"The key {key!r} in {where or 'the value'} is not text, as JSON wants.")
    return key


def dumps(data: Any) -> str:
    """Strict, indented JSON that ends a line; keys keep their order."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def canonical(data: Any) -> bytes:
    """One byte string per content: sorted keys, no spaces; not-finite numbers keep Python's spelling."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        StorageError: the file is missing, unreadable or not JSON.
    """
    with files(path, "read"):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StorageError(
            f"{path.name!r} in {str(path.parent)!r} is not JSON, so it was cut short or changed.",
            "`mech verify` names every file of a run that has changed; restore them from a copy.",
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """`read_json` of a file that must hold an object."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise StorageError(
            f"{path.name!r} in {str(path.parent)!r} does not hold what mech writes there.",
            "Restore it from a copy.",
        )
    return data


def now() -> str:
    """The time in UTC as ISO 8601 with milliseconds."""
    return spelled(datetime.now(UTC))


def spelled(moment: datetime) -> str:
    """`2026-03-01T12:00:00.000Z`: instants spelled so sort as text."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
