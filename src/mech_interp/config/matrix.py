"""A spec with a matrix to the specs it stands for; pure, and the same in every process."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mech_interp.config.canonical import canonical_json, digest
from mech_interp.config.overrides import path_of, with_values
from mech_interp.config.reading import Origin
from mech_interp.config.spec import Matrix, Spec
from mech_interp.errors import InputError

MAX_POINTS = 10_000
_Values = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a matrix: the values of its axes, and its spec."""

    values: dict[str, Any]
    spec: Spec


def expand(spec: Spec) -> list[Spec]:
    """The specs of every point, in order; a spec without matrix gives itself.

    A child's name is the parent's with the axis values and eight hex digits of their hash.

    Raises:
        InputError: for an axis that lists a value twice, more than ten thousand points, or a point whose
            spec is not valid.
    """
    return [point.spec for point in points(spec)]


def points(spec: Spec) -> list[Point]:
    """The points of a spec's matrix: list, then zip, then grid, then seeds, the last varying fastest."""
    if spec.matrix is None:
        return [Point({}, spec)]
    base = {key: value for key, value in spec.to_dict().items() if key != "matrix"}
    return [Point(values, _child(spec, base, values)) for values in _combinations(spec.matrix, spec)]


def count(spec: Spec) -> int:
    """How many points there are, without making them."""
    return math.prod(map(len, _factors(spec.matrix, spec))) if spec.matrix else 1


def _combinations(matrix: Matrix, spec: Spec) -> Iterator[_Values]:
    factors = _factors(matrix, spec)
    n = math.prod(map(len, factors))
    if n > MAX_POINTS:
        raise InputError(
            f"{spec.origin.at(('matrix',))}the matrix of {spec.name} has {n} points.",
            f"At most {MAX_POINTS} are run; split it.",
        )
    for parts in itertools.product(*factors):
        yield {axis: value for part in parts for axis, value in part.items()}


def _factors(matrix: Matrix, spec: Spec) -> list[list[_Values]]:
    """What is combined with what: lists of axis values, no value twice in any."""
    factors: list[list[_Values]] = []
    if matrix.cases:
        factors.append([{path_of(axis): value for axis, value in case.items()} for case in matrix.cases])
    if matrix.zip:
        axes = [path_of(axis) for axis in matrix.zip]
        rows = zip(*matrix.zip.values(), strict=True)
        factors.append([dict(zip(axes, row, strict=True)) for row in rows])
    factors += [[{path_of(axis): value} for value in values] for axis, values in matrix.grid.items()]
    if matrix.seeds is not None:
        seeds = matrix.seeds
        numbers = range(spec.seed, spec.seed + seeds) if isinstance(seeds, int) else seeds
        factors.append([{"seed": seed} for seed in numbers])
    for factor in factors:
        _check_once(factor, spec)
    return factors


def _check_once(factor: list[_Values], spec: Spec) -> None:
    seen: set[str] = set()
    for values in factor:
        text = canonical_json(values)
        if text in seen:
            raise InputError(
                f"{spec.origin.at(('matrix',))}the matrix of {spec.name} lists {text:.80} twice.",
                "Keep one; for replicates use seeds.",
            )
        seen.add(text)


def _child(parent: Spec, base: dict[str, Any], values: _Values) -> Spec:
    data = with_values(base, values) | {"name": _name(parent.name, values)}
    try:
        return Spec.from_dict(data, origin=_origin(parent.origin, values))
    except InputError as error:
        point = f"This is the point {canonical_json(values):.200} of the matrix."
        raise InputError(error.message, f"{error.hint} {point}".strip()) from None


def _origin(parent: Origin, values: _Values) -> Origin:
    """The parent's lines, with what the matrix sets found in the matrix."""
    if ("matrix",) not in parent.lines:
        return parent
    set_here = [tuple(axis.split(".")) for axis in values]
    lines = {
        path: line for path, line in parent.lines.items() if not any(path[: len(a)] == a for a in set_here)
    }
    return Origin(parent.source, lines | dict.fromkeys(set_here, parent.lines[("matrix",)]))


def _name(parent: str, values: _Values) -> str:
    suffix = _suffix(values, 60)
    return "-".join(part for part in (parent[:120], suffix, digest(values)[:8]) if part)


def _suffix(values: _Values, limit: int) -> str:
    """``kind-z-seed-3``: the last part of each axis and a short form of its value."""
    parts = (f"{axis.rpartition('.')[2]}-{_slug(value)}" for axis, value in values.items())
    text = "-".join(parts)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:limit].strip("-.")


def _slug(value: Any) -> str:
    text = value.rpartition("/")[2] if isinstance(value, str) else canonical_json(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:24]
