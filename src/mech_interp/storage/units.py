"""The finished pieces of a run's work, so that a killed run continues where it stopped.

A unit is a small JSON document and, where it has arrays, a safetensors file beside it. Each is written
whole or not at all, and the document carries the hashes of both: a unit that is torn, or whose two
files do not belong together, reads as absent and is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.storage import atomic
from mech_interp.storage.errors import StorageError, files
from mech_interp.storage.plain import canonical, plain

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

Unit = tuple[dict[str, Any], "dict[str, np.ndarray[Any, Any]]"]


def stem(key: str) -> str:
    """The file name, without its ending, of the unit called `key`."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def save(folder: Path, key: str, payload: Mapping[str, Any], arrays: Arrays | None = None) -> Unit:
    """Store the unit `key` in `folder`; returns it as `load` will.

    Raises:
        TypeError: the payload holds something that JSON cannot.
        StorageError: it could not be written.
    """
    record: dict[str, Any] = {"key": key, "payload": plain(payload), "arrays": None}
    place = folder / stem(key)
    packed = pack(arrays) if arrays else b""
    if arrays:
        record["arrays"] = hashlib.sha256(packed).hexdigest()
        atomic.write_bytes(place.with_suffix(".safetensors"), packed, durable=False)
    record["sha256"] = hashlib.sha256(canonical(record)).hexdigest()
    atomic.write_bytes(place.with_suffix(".json"), canonical(record), durable=False)
    return json.loads(canonical(record["payload"])), unpack(packed) if arrays else {}


def load(folder: Path, key: str) -> Unit | None:
    """The unit `key`, or None where it is absent, torn or changed.

    Raises:
        StorageError: the file is there and the system refuses to read it.
    """
    place = folder / stem(key)
    record = _record(place.with_suffix(".json"))
    if record is None or record["key"] != key:
        return None
    if record["arrays"] is None:
        return record["payload"], {}
    packed = _bytes(place.with_suffix(".safetensors"))
    if packed is None or hashlib.sha256(packed).hexdigest() != record["arrays"]:
        return None
    return record["payload"], unpack(packed)


def keys(folder: Path) -> list[str]:
    """The keys of the whole units in `folder`, sorted (their arrays are checked when they are loaded)."""
    found = (_record(path) for path in sorted(folder.glob("*.json")))
    return sorted(record["key"] for record in found if record is not None)


def pack(arrays: Arrays) -> bytes:
    """Named arrays as one safetensors file; the same arrays give the same bytes.

    Raises:
        TypeError: an array of objects or of another kind that the format lacks.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save as save_arrays

    plain_arrays = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    try:
        return bytes(save_arrays(plain_arrays))
    except (SafetensorError, KeyError, ValueError) as error:
        kinds = ", ".join(f"{name}: {array.dtype}" for name, array in plain_arrays.items())
        raise TypeError(f"These arrays cannot be stored as safetensors ({kinds}): {error}") from error


def unpack(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that `pack` packed.

    Raises:
        StorageError: the bytes are no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    try:
        return dict(load_arrays(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise StorageError(
            f"A tensor file is damaged: {error}.", "`mech verify` names the files of a run that have changed."
        ) from error


def _record(path: Path) -> dict[str, Any] | None:
    """The document of a unit if its own hash holds."""
    data = _bytes(path)
    if data is None:
        return None
    try:
        record = json.loads(data)
        claimed = record.pop("sha256")
        whole = hashlib.sha256(canonical(record)).hexdigest() == claimed
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return record if whole else None


def _bytes(path: Path) -> bytes | None:
    with files(path, "read"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
