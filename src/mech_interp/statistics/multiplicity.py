"""Tests over many sites: sign flips of group effects, single-step max-T, Benjamini-Hochberg.

Under the null hypothesis a group's effect is as likely to have either sign, jointly over all sites,
so flipping the signs of whole groups gives the reference distribution (Westfall & Young 1993,
single-step max-T). The statistic is the group mean over its root mean square, which orders
permutations exactly as the t statistic does (the sum of squares does not change under flips) and
stays finite when all groups agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mech_interp.errors import InputError
from mech_interp.statistics.estimate import Floats, Groups, as_values, group_index, group_means

Alternative = Literal["two-sided", "greater", "less"]
_TIE = 1e-9  # statistics lie in [-1, 1]; closer than this is a tie, and ties count against the claim
_CHUNK = 2_000_000


@dataclass(frozen=True)
class SignFlipResult:
    """One sign-flip test. `smallest_p` is the least p-value that these groups could have given."""

    mean: float
    p: float
    smallest_p: float
    n: int
    n_groups: int
    exact: bool
    n_permutations: int
    alternative: Alternative

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**self.__dict__, "method": "sign-flip test on group effects"}

    def __str__(self) -> str:
        return f"p = {self.p:.2g} (smallest attainable {self.smallest_p:.2g}), {self.n_groups} groups"


@dataclass(frozen=True)
class MaxTResult:
    """A max-T test over sites; arrays have the shape of the sites.

    `adjusted_p` controls the family-wise error rate over all sites given; `t` is each site's
    one-sample t statistic over groups.
    """

    mean: Floats
    t: Floats
    adjusted_p: Floats
    smallest_p: float
    n: int
    n_groups: int
    exact: bool
    n_permutations: int
    alternative: Alternative

    def significant(self, alpha: float = 0.05) -> npt.NDArray[np.bool_]:
        """Sites whose adjusted p-value is at most alpha."""
        return np.asarray(self.adjusted_p <= alpha)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; a t statistic that is not finite becomes None."""
        t = np.where(np.isfinite(self.t), self.t, np.nan).astype(object)
        t[~np.isfinite(self.t)] = None
        arrays = {"mean": self.mean.tolist(), "t": t.tolist(), "adjusted_p": self.adjusted_p.tolist()}
        return {**self.__dict__, **arrays, "method": "single-step max-T, sign flips of group effects"}


def sign_flip_test(
    effects: npt.ArrayLike,
    groups: Groups | None = None,
    alternative: Alternative = "two-sided",
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> SignFlipResult:
    """Is the mean group effect zero? `effects` [n] are per prompt and averaged within groups.

    Exact (all 2^G sign patterns) when they are at most `n_permutations`.
    """
    values = as_values(effects, "effects")
    result = max_t_test(
        values[:, None], groups, alternative=alternative, n_permutations=n_permutations, seed=seed
    )
    return SignFlipResult(
        mean=float(result.mean[0]),
        p=float(result.adjusted_p[0]),
        smallest_p=result.smallest_p,
        n=result.n,
        n_groups=result.n_groups,
        exact=result.exact,
        n_permutations=result.n_permutations,
        alternative=alternative,
    )


def max_t_test(
    effects: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    alternative: Alternative = "two-sided",
    n_permutations: int = 10_000,
    seed: int = 0,
    noise_floor: float = 0.0,
) -> MaxTResult:
    """Single-step max-T sign-flip test of `effects` [n, *sites], averaged within groups first.

    Sites whose group effects have a root mean square of at most `noise_floor` count as zero: rounding
    errors of one sign would otherwise look perfectly consistent.
    """
    values = as_values(effects, "effects", ndim=None)
    if alternative not in ("two-sided", "greater", "less"):
        raise InputError(f"Unknown alternative {alternative!r}.", "Use two-sided, greater or less.")
    if n_permutations < 100:
        raise InputError(f"{n_permutations} permutations are too few.", "Use at least 100.")
    sites = values.shape[1:]
    index, n_groups = group_index(groups, values.shape[0])
    table = group_means(values.reshape(values.shape[0], -1), index, n_groups)
    if table.shape[1] == 0:
        raise InputError("There are no sites to test.", "Give effects of shape [prompts, sites].")
    rms = np.sqrt((table**2).mean(0))
    scaled = np.divide(table, rms, out=np.zeros_like(table), where=rms > noise_floor) / n_groups
    observed = _oriented(scaled.sum(0), alternative)
    exact = 2**n_groups <= n_permutations
    exceed, count = np.zeros(observed.shape, dtype=np.int64), 0
    for signs in _sign_patterns(n_groups, exact, n_permutations, seed, table.shape[1]):
        peak = _oriented(signs @ scaled, alternative).max(1)
        # peaks sorted: how many reach each site's observed statistic
        ordered = np.sort(peak)
        exceed += ordered.size - np.searchsorted(ordered, observed - _TIE, side="left")
        count += ordered.size
    adjusted = exceed / count if exact else (exceed + 1) / (count + 1)
    mean = table.mean(0)
    return MaxTResult(
        mean=mean.reshape(sites),
        t=_t_statistic(table).reshape(sites),
        adjusted_p=np.asarray(adjusted, dtype=np.float64).reshape(sites),
        smallest_p=_smallest_p(n_groups, exact, count, alternative),
        n=values.shape[0],
        n_groups=n_groups,
        exact=exact,
        n_permutations=count,
        alternative=alternative,
    )


def benjamini_hochberg(p: npt.ArrayLike) -> Floats:
    """Benjamini-Hochberg adjusted p-values (false discovery rate), same shape as `p`."""
    values = np.asarray(p, dtype=np.float64)
    flat = values.reshape(-1)
    if flat.size == 0:
        raise InputError("There are no p-values to adjust.", "Give at least one.")
    if not (np.isfinite(flat) & (flat >= 0) & (flat <= 1)).all():
        raise InputError("A p-value lies outside [0, 1].", "Check the test that produced it.")
    order = np.argsort(flat, kind="stable")
    ranked = flat[order] * flat.size / np.arange(1, flat.size + 1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return adjusted.reshape(values.shape)


def _oriented(statistic: Floats, alternative: Alternative) -> Floats:
    """The statistic turned so that larger is more extreme."""
    if alternative == "two-sided":
        return np.abs(statistic)
    return statistic if alternative == "greater" else -statistic


def _sign_patterns(
    n_groups: int, exact: bool, n_permutations: int, seed: int, n_sites: int
) -> Iterator[Floats]:
    """Sign patterns [chunk, n_groups]: all of them, or random ones."""
    step = max(1, _CHUNK // max(n_groups, n_sites))
    total = 2**n_groups if exact else n_permutations
    generator = np.random.default_rng(seed)
    for start in range(0, total, step):
        size = min(step, total - start)
        if exact:
            codes = np.arange(start, start + size, dtype=np.int64)[:, None]
            bits = (codes >> np.arange(n_groups, dtype=np.int64)) & 1
        else:
            bits = generator.integers(0, 2, size=(size, n_groups))
        yield np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


def _smallest_p(n_groups: int, exact: bool, count: int, alternative: Alternative) -> float:
    """Two patterns (all kept, all flipped) always tie in a two-sided test."""
    attainable = math.ldexp(2.0 if alternative == "two-sided" else 1.0, -n_groups)
    return attainable if exact else max(attainable, 1.0 / (count + 1))


def _t_statistic(table: Floats) -> Floats:
    """One-sample t over groups; 0 where all effects are 0, infinite where they are equal and not 0."""
    n_groups = table.shape[0]
    mean = table.mean(0)
    if n_groups < 2:
        return np.full(mean.shape, np.nan)
    error = table.std(0, ddof=1) / np.sqrt(n_groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(mean == 0, 0.0, mean / error), dtype=np.float64)
