"""What every view shares: the JSON form, the registry of kinds, checks of fields."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from mech_interp.errors import InputError, nearest

SCHEMA = 1
Number = float | None
Interval = tuple[float, float]
Cell = str | int | float | bool | None
_Kind = TypeVar("_Kind", bound="type[View]")
_KINDS: dict[str, type[View]] = {}


def register(cls: _Kind) -> _Kind:
    """Make a view class readable by `view_from_dict`."""
    _KINDS[cls.kind] = cls
    return cls


@dataclass(frozen=True, kw_only=True)
class View:
    """What all views have: a title and a note (n, interval statement, control)."""

    kind: ClassVar[str]
    title: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with `kind` and `schema`."""
        return {
            "kind": self.kind,
            "schema": SCHEMA,
            **{f.name: _plain(getattr(self, f.name)) for f in fields(self)},
        }

    def to_json(self) -> str:
        """Strict JSON (no NaN)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def _build(cls, data: dict[str, Any]) -> View:
        """From the fields of `to_dict`, without kind and schema."""
        return cls(**data)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def view_from_dict(data: dict[str, Any]) -> View:
    """The view that `to_dict` described."""
    if not isinstance(data, dict) or "kind" not in data:
        raise InputError("This is not a view: it has no 'kind'.", "Give what View.to_dict returned.")
    rest = dict(data)
    kind, schema = rest.pop("kind"), rest.pop("schema", None)
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise InputError(f"Unknown view kind {kind!r}.", nearest(str(kind), _KINDS) or f"Known: {known}.")
    if schema != SCHEMA:
        raise InputError(
            f"View schema {schema!r} is not {SCHEMA}.", "Read it with the version that wrote it."
        )
    try:
        return _KINDS[kind]._build(rest)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"The fields of this {kind} view do not fit: {error}.", "Restore the file."
        ) from error


def view_from_json(text: str) -> View:
    """The view that `to_json` wrote."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"This view is not JSON: {error}.", "Restore the file.") from error
    return view_from_dict(data)


def finite(values: Iterable[Number]) -> list[float]:
    """The values that are present and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def visible(token: str) -> str:
    """A token with its spaces, line ends and unprintable characters made visible.

    Only spaces that touch an end are marked: inside a token they are visible anyway.
    """
    core = token.strip(" ")
    left = len(token) - len(token.lstrip(" "))
    right = len(token) - left - len(core)
    body = "".join(_SHOWN.get(char, char if char.isprintable() else f"\\x{ord(char):02x}") for char in core)
    return "·" * left + body + "·" * right or "∅"


_SHOWN = {"\n": "↵", "\t": "→", "\r": "\\r"}


def _plain(value: object) -> Any:
    """JSON-ready copy: tuples to lists, infinities to strings."""
    if isinstance(value, View):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def as_number(value: Any) -> Number:
    """A Python float; NaN becomes None (missing)."""
    number = None if value is None else float(value)
    return None if number is None or math.isnan(number) else number


def as_numbers(values: Iterable[Any], title: str) -> tuple[Number, ...]:
    """Python floats of a row of values."""
    try:
        return tuple(as_number(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"View {title!r} has a value that is no number: {error}.", "Give numbers."
        ) from error


def as_cell(value: Any) -> Cell:
    """A table cell; numbers of array libraries become Python numbers, NaN becomes None (missing)."""
    if isinstance(value, dict) and set(value) == {"float"}:  # an infinity out of JSON, see `plain_cell`
        return float(value["float"])
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return as_number(value)
    except (TypeError, ValueError):
        return str(value)


def plain_cell(cell: Cell) -> Any:
    """A cell for JSON; an infinity must not look like the text 'inf'."""
    return {"float": _plain(cell)} if isinstance(cell, float) and math.isinf(cell) else cell


def as_interval(interval: Any, title: str) -> Interval | None:
    """A checked (low, high); None when absent or when a bound is missing."""
    if interval is None:
        return None
    bounds = as_numbers(interval, title)
    if len(bounds) == 2:
        low, high = bounds
        if low is None or high is None:
            return None
        if low <= high:
            return low, high
    raise InputError(f"View {title!r} has the interval {interval!r}.", "Give (low, high) with low <= high.")


def check_labels(view: View, *names: str) -> None:
    """Store the named fields as tuples of strings."""
    for name in names:
        view._set(name, tuple(str(label) for label in getattr(view, name)))


def check_length(title: str, what: str, values: Sequence[object], expected: int) -> None:
    """Refuse a field that does not have one entry for each label."""
    if len(values) != expected:
        raise InputError(f"View {title!r} has {len(values)} {what}, not {expected}.", "Give one for each.")


def check_grid(title: str, what: str, grid: Sequence[Sequence[object]], shape: tuple[int, int]) -> None:
    """Refuse a grid that does not have the shape of its labels."""
    if len(grid) != shape[0] or any(len(row) != shape[1] for row in grid):
        sizes = sorted({len(row) for row in grid})
        raise InputError(
            f"View {title!r} has {len(grid)} rows of {what} (lengths {sizes}), "
            f"but {shape[0]} row and {shape[1]} column labels.",
            "Give one row label per row and one column label per column.",
        )
