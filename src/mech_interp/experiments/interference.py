"""Features in weights: how much of a dimension each direction has to itself, and how much others intrude.

For directions W_1 … W_m in d dimensions and W^ = W / |W|, after Elhage et al. 2022, "Toy Models of
Superposition" (section "The Geometry of Superposition"):

    D_i = |W_i|^2 / sum_j (W^_i . W_j)^2,

1 for a direction that is orthogonal to all others, 1/2 for one of an antipodal pair, 0 for no direction.
The sum over j is W^_i' (W' W) W^_i, so D is exact for a whole vocabulary without its Gram matrix. Cauchy
and Schwarz give D_i <= W_i' (W' W)^+ W_i, hence sum_i D_i <= rank W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mech_interp.errors import InputError

Floats = npt.NDArray[np.float64]
Rows = Callable[[], Iterator[Floats]]
"""Directions [some, d] in double precision, part by part; each call starts again with the same ones."""
_PART = 4096
QUANTILES = np.linspace(0.0, 1.0, 21)


@dataclass(frozen=True)
class Geometry:
    """Measured on the m directions that are not zero.

    Attributes:
        dimensionality: D, [m].
        crowding: d x mean over j of (W^_i . W^_j)^2, j other than i, [m]; 1 in expectation for directions
            drawn at random.
        closest: largest |cosine| to any other direction, for some directions.
        effective_rank: exp of the entropy of the squared singular values, as shares.
        lengths: |W|, [m].
        d: number of dimensions. zeros: directions left out.
    """

    dimensionality: Floats
    crowding: Floats
    closest: Floats
    effective_rank: float
    lengths: Floats
    d: int
    zeros: int

    @property
    def total(self) -> float:
        """Sum of D: dimensions in use; at most the rank of W."""
        return float(self.dimensionality.sum())

    @property
    def quantiles(self) -> Floats:
        """D at every twentieth."""
        return np.asarray(np.quantile(self.dimensionality, QUANTILES), dtype=np.float64)


def rows_of(directions: npt.ArrayLike, *, centre: bool = False) -> Rows:
    """The rows of a matrix [m, d]; with `centre`, less their mean.

    Raises:
        InputError: for anything but a finite matrix.
    """
    matrix = np.asarray(directions)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise InputError(f"Directions of shape {matrix.shape} are no finite matrix.", "Give [features, d].")
    mean = matrix.mean(0, dtype=np.float64) if centre else np.zeros(matrix.shape[1])

    def parts() -> Iterator[Floats]:
        for start in range(0, matrix.shape[0], _PART):
            yield np.asarray(matrix[start : start + _PART], dtype=np.float64) - mean

    return parts


def random_rows(lengths: Floats, d: int, seed: int) -> Rows:
    """Directions of the given lengths, drawn uniformly from the sphere."""

    def parts() -> Iterator[Floats]:
        generator = np.random.default_rng(seed)
        for start in range(0, lengths.size, _PART):
            own = lengths[start : start + _PART]
            draw = generator.standard_normal((own.size, d))
            yield draw / np.linalg.norm(draw, axis=1, keepdims=True) * own[:, None]

    return parts


def mean_share(directions: npt.ArrayLike) -> float:
    """Share of the rows' squared length that lies in their common mean."""
    matrix = np.asarray(directions)
    power = sum(float((np.asarray(part, dtype=np.float64) ** 2).sum()) for part in rows_of(matrix)())
    mean = matrix.mean(0, dtype=np.float64)
    return float(matrix.shape[0] * (mean**2).sum() / power) if power else 0.0


def geometry(rows: Rows, *, sampled: int = 512, seed: int = 0) -> Geometry:
    """The geometry of a set of directions; `sampled` of them are compared with every other one.

    Raises:
        InputError: for fewer than two directions that are not zero.
    """
    lengths = np.concatenate([np.linalg.norm(part, axis=1) for part in rows()])
    kept = lengths > 1e-12 * float(lengths.max(initial=0.0))
    n = int(kept.sum())
    if n < 2:
        raise InputError(f"Superposition compares directions, and there is {n}.", "Choose other weights.")
    moment, unit_moment = _moments(rows)
    d = moment.shape[0]
    found, crowd = [], []
    for part, units in _units(rows):
        power = (part**2).sum(1)
        found.append(power**2 / ((part @ moment) * part).sum(1))
        crowd.append(((units @ unit_moment) * units).sum(1) - 1.0)
    spectrum = np.clip(np.linalg.eigvalsh(moment), 0.0, None)
    shares = spectrum[spectrum > 0] / spectrum.sum()
    return Geometry(
        dimensionality=np.concatenate(found),
        crowding=d * np.clip(np.concatenate(crowd), 0.0, None) / (n - 1),
        closest=_closest(rows, n, sampled, seed),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        lengths=lengths[kept],
        d=d,
        zeros=int((~kept).sum()),
    )


def _moments(rows: Rows) -> tuple[Floats, Floats]:
    """W'W of the directions and of their unit vectors."""
    moment: Floats | None = None
    unit_moment: Floats | None = None
    for part, units in _units(rows):
        own, unit = part.T @ part, units.T @ units
        moment = own if moment is None else moment + own
        unit_moment = unit if unit_moment is None else unit_moment + unit
    assert moment is not None
    assert unit_moment is not None
    return moment, unit_moment


def _units(rows: Rows) -> Iterator[tuple[Floats, Floats]]:
    """Directions that are not zero, and their unit vectors."""
    largest = max(float(np.linalg.norm(part, axis=1).max(initial=0.0)) for part in rows())
    for part in rows():
        lengths = np.linalg.norm(part, axis=1)
        kept = lengths > 1e-12 * largest
        yield part[kept], part[kept] / lengths[kept, None]


def _closest(rows: Rows, n: int, sampled: int, seed: int) -> Floats:
    """Largest |cosine| of sampled directions with any other."""
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:sampled])
    picked, start = [], 0
    for _, units in _units(rows):
        picked.append(units[chosen[(chosen >= start) & (chosen < start + len(units))] - start])
        start += len(units)
    sample = np.concatenate(picked)
    best, start = np.zeros(chosen.size), 0
    for _, units in _units(rows):
        cosines = np.abs(sample @ units.T)
        own = np.flatnonzero((chosen >= start) & (chosen < start + len(units)))
        cosines[own, chosen[own] - start] = 0.0
        best = np.maximum(best, cosines.max(1, initial=0.0))
        start += len(units)
    return best
