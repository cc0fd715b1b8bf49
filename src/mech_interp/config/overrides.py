"""Single values set by a dotted path: `--set parameters.kind=z`, and the axes of a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mech_interp.config.canonical import plain
from mech_interp.config.reading import Origin, read_value
from mech_interp.errors import InputError, nearest

SHARED = ("model", "hook_site", "device", "prompts")
"""Keys that mean the same at the top of a spec and under `parameters`."""


def apply(data: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of a spec's data with ``path=value`` settings made, in order; values are read as YAML.

    Raises:
        InputError: for a setting without ``=``, a value that is not YAML, or a path into something
            that is neither mapping nor list.
    """
    return with_values(data, assignments(settings))


def assignments(settings: Iterable[str]) -> dict[str, Any]:
    """``["seed=3"]`` as ``{"seed": 3}``, with the last value of a path given twice."""
    out: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise InputError(
                f"{setting!r:.80} sets nothing.", "Write it as key=value, e.g. parameters.kind=z."
            )
        out[path_of(path)] = read_value(value, f"--set {path.strip()[:60]}")
    return out


def with_values(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a spec's data with the values at dotted paths replaced; `data` is left alone."""
    out = lift(data)
    for path, value in values.items():
        _put(out, path_of(path), plain(value, path))
    return out


def path_of(path: str) -> str:
    """The path in its one form: ``parameters.model`` is ``model``."""
    parts = [part.strip() for part in path.strip().split(".")]
    if not all(parts):
        raise InputError(
            f"{path!r:.80} is not a path.", "Write keys with dots between, e.g. parameters.kind."
        )
    if len(parts) > 1 and parts[0] == "parameters" and parts[1] in SHARED:
        parts = parts[1:]
    return ".".join(parts)


def lift(data: Mapping[str, Any], origin: Origin | None = None) -> dict[str, Any]:
    """A copy in which the shared keys stand at the top, wherever they were given.

    Raises:
        InputError: where a key was given in both places with different values.
    """
    out = {key: plain(value, key) for key, value in data.items()}
    parameters = out.get("parameters")
    if not isinstance(parameters, dict):
        return out
    for key in SHARED:
        if key not in parameters:
            continue
        value = parameters.pop(key)
        if key in out and out[key] != value:
            where = origin.at(("parameters", key)) if origin else ""
            raise InputError(
                f"{where}{key} is {out[key]!r:.60} at the top and {value!r:.60} under parameters.",
                "They mean the same: keep one of them.",
            )
        out[key] = value
    return out


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = data
    for done, part in enumerate(parents):
        if isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            place = place[_index(place, part, path, parents[:done])]
    if isinstance(place, dict):
        place[last] = value
    else:
        place[_index(place, last, path, parents)] = value


def _index(place: Any, part: str, path: str, above: list[str]) -> int:
    """`part` as the number of an item of the list `place`."""
    name = ".".join(above)
    if not isinstance(place, list):
        raise InputError(
            f"{path} cannot be set: {name} is {place!r:.60}, which has no parts.", f"Set {name} as a whole."
        )
    if not (part.isascii() and part.isdigit() and len(part) < 9 and int(part) < len(place)):
        close = nearest(part, map(str, range(min(len(place), 100))))
        raise InputError(
            f"{path} cannot be set: {name} is a list of {len(place)}.",
            close or f"Items are 0 to {len(place) - 1}.",
        )
    return int(part)
