"""One text per content: canonical JSON, its hash, and the part of a spec that decides the numbers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mech_interp.config.reading import MAX_DEPTH, Path_
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from mech_interp.config.spec import Spec

_Copy = str | int | float | bool | None | list[Any] | dict[str, Any]


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces, the same for equal content in every process.

    A float with an integral value is written as that integer (1.0 as 1, -0.0 as 0), every other one as
    the shortest text that reads back to it. Text is kept to the letter, since letters decide tokens.

    Raises:
        InputError: for what JSON cannot hold: NaN, infinity, keys that are not text, other objects.
    """
    return json.dumps(
        _numbers(plain(data)), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":")
    )


def digest(data: Any) -> str:
    """SHA-256 of the canonical JSON (hex, 64 characters)."""
    return hashlib.sha256(canonical_json(data).encode("ascii")).hexdigest()


def plain(data: Any, what: str = "the value") -> _Copy:
    """A copy made of text, numbers, booleans, null, lists (from tuples too) and dictionaries alone.

    Raises:
        InputError: naming the place of anything else, of NaN and infinity, and of nesting without end.
    """
    return _plain(data, (), what)


def spec_content(
    spec: Spec,
    parameters: Mapping[str, Any],
    *,
    weights: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """What decides a run's numbers.

    Left out are name, description, tags, matrix, artifact policy, parent run and hypothesis. Facts that
    are known only once the model is found replace what the spec calls them, so that two names of
    one checkpoint, or ``auto`` and what it stands for, are the same content.

    Args:
        spec: a spec without matrix.
        parameters: the family's parameters, defaults filled in.
        weights: hash of the model's files; replaces model name and revision.
        device: the device used; only its type counts (``cuda:1`` is ``cuda``).
        dtype: the number format used.
    """
    content: dict[str, Any] = {
        "family": spec.family,
        "backend": spec.backend,
        "model": {"weights": weights} if weights else {"name": spec.model, "revision": spec.revision},
        "device": (device or spec.device).partition(":")[0],
        "dtype": dtype or spec.dtype,
        "attention": spec.attention,
        "seed": spec.seed,
        "parameters": plain(dict(parameters), "parameters"),
    }
    for key, value in (("hook_site", spec.hook_site), ("prompts", spec.prompts)):
        # A family that takes them has them among its parameters, where its defaults are filled in.
        if key not in parameters and value is not None:
            content[key] = plain(value, key)
    return content


def show_path(path: Path_) -> str:
    """``parameters.layers[3]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _plain(value: Any, path: Path_, what: str) -> _Copy:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str(value), path, what)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{_name(path, what)} is {value}.", "Give a finite number, or leave it out.")
        return float(value)
    if len(path) >= 2 * MAX_DEPTH:
        raise InputError(
            f"{_name(path[:3], what)} is nested too deeply.", f"At most {MAX_DEPTH} levels are read."
        )
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, i), what) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _mapping(value, path, what)
    raise InputError(
        f"{_name(path, what)} is of type {type(value).__name__}.",
        "Only text, numbers, true, false, null, lists and mappings can be stored.",
    )


def _mapping(value: Mapping[Any, Any], path: Path_, what: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise InputError(
                f"{_name(path, what)} has the key {key!r:.60}, which is not text.", "Put it in quotes."
            )
        out[_text(str(key), path, what)] = _plain(item, (*path, key), what)
    return out


def _text(text: str, path: Path_, what: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{_name(path, what)} holds half of a surrogate pair, which no file can store.", "Remove it."
        ) from None
    return text


def _name(path: Path_, what: str) -> str:
    shown = show_path(path)
    return f"{what}{shown if shown.startswith('[') else f'.{shown}'}" if shown else what


def _numbers(value: Any) -> Any:
    """Integral floats as integers, all the way down."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return value
