"""Cluster bootstrap: whole groups are resampled, numerator and denominator together.

Intervals are percentile intervals whose percentiles are pushed outwards for small samples
("expanded percentile", Hesterberg 2015, The American Statistician 69:371, section 4): the nominal
tail a/2 becomes Phi(-sqrt(G/(G-1)) t[a/2, G-1]) for G groups, since the plain percentile interval is
too narrow by about that factor. `expand=False` gives the plain one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mech_interp.errors import InputError
from mech_interp.statistics.estimate import (
    MIN_GROUPS,
    Estimate,
    EstimateArray,
    Floats,
    Groups,
    Ints,
    UnstableRatioError,
    as_values,
    check_level,
    group_index,
    group_sums,
    rounded,
)

_CHUNK = 2_000_000  # resampled numbers held at once (16 MB)


def bootstrap_mean(
    values: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    expand: bool = True,
) -> Estimate:
    """Mean of per-prompt values [n] with a cluster-bootstrap interval.

    With fewer than 8 groups, or when every group has the same mean, the interval is None and
    `reason` says so: resampling would understate the uncertainty or give zero width.
    """
    array = as_values(values, "values")
    result = bootstrap_columns(
        array[:, None], groups=groups, n_resamples=n_resamples, seed=seed, level=level, expand=expand
    )
    return result.at(0)


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    expand: bool = True,
) -> Estimate:
    """Ratio of means, sum(numerators)/sum(denominators), both resampled together.

    Raises `UnstableRatioError` when the mean denominator is within three standard errors (over
    groups) of zero.
    """
    array = as_values(numerators, "numerators")
    result = bootstrap_columns(
        array[:, None],
        denominators,
        groups=groups,
        n_resamples=n_resamples,
        seed=seed,
        level=level,
        expand=expand,
    )
    return result.at(0)


def bootstrap_columns(
    values: npt.ArrayLike,
    denominators: npt.ArrayLike | None = None,
    *,
    groups: Groups | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    expand: bool = True,
    allow_missing: bool = False,
) -> EstimateArray:
    """`bootstrap_mean` or `bootstrap_ratio` of many sites with one set of resamples.

    `values` [n, *sites]; `denominators` [n] (shared by all sites) or [n, *sites]. With
    `allow_missing`, NaN means that a prompt lacks that site, and the prompt counts in neither
    numerator nor denominator there. Intervals are per site, not simultaneous: for claims over many
    sites use `max_t_test`.
    """
    check_level(level)
    if n_resamples < 100:
        raise InputError(f"{n_resamples} resamples are too few.", "Use at least 100; 2000 is the default.")
    array = as_values(values, "values", ndim=None, missing=allow_missing)
    sites = array.shape[1:]
    flat = array.reshape(array.shape[0], -1)
    index, n_groups = group_index(groups, flat.shape[0])
    present = np.isfinite(flat)
    below = _denominator_columns(denominators, array.shape, present)
    top = group_sums(np.where(present, flat, 0.0), index, n_groups)
    bottom = group_sums(below, index, n_groups)
    here = group_sums(present.astype(np.float64), index, n_groups)
    if denominators is not None:
        _check_denominator(bottom, here)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = top.sum(0) / bottom.sum(0)
    low, high = _intervals(top, bottom, n_resamples, seed, _tail(level, n_groups, expand))
    groups_here = (here > 0).sum(0)
    reasons = _reasons(low, high, value, groups_here)
    silent = np.array([bool(reason) for reason in reasons])
    low[silent], high[silent] = np.nan, np.nan
    return EstimateArray(
        value=value.reshape(sites),
        low=low.reshape(sites),
        high=high.reshape(sites),
        n=here.sum(0).astype(np.int64).reshape(sites),
        n_groups=groups_here.astype(np.int64).reshape(sites),
        reasons=reasons.reshape(sites),
        method=_method(denominators is not None, n_groups, n_resamples, expand),
        level=level,
    )


def bootstrap_statistic(
    function: Callable[..., float],
    *arrays: npt.ArrayLike,
    groups: Groups | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    expand: bool = True,
) -> Estimate:
    """Any statistic, e.g. a median or a correlation: `function(*arrays)` of the resampled prompts.

    Arrays share their first dimension; prompts of a group stay together.
    """
    check_level(level)
    if not arrays:
        raise InputError("There are no values to summarise.", "Give at least one array.")
    data = [as_values(array, "values", ndim=None) for array in arrays]
    n = data[0].shape[0]
    if any(array.shape[0] != n for array in data):
        raise InputError("The arrays have different numbers of prompts.", "Give one value per prompt.")
    index, n_groups = group_index(groups, n)
    value = float(function(*data))
    method = f"cluster bootstrap of a statistic over {n_groups} groups, {n_resamples} resamples"
    if n_groups < MIN_GROUPS:
        return Estimate(value, None, n, method, level, _too_few(n_groups), n_groups)
    members = [np.flatnonzero(index == group) for group in range(n_groups)]
    generator = np.random.default_rng(seed)
    draws = np.empty(n_resamples)
    for i in range(n_resamples):
        chosen = np.concatenate([members[g] for g in generator.integers(0, n_groups, n_groups)])
        draws[i] = function(*(array[chosen] for array in data))
    if not np.isfinite(draws).all():
        reason = f"the statistic is undefined in {int((~np.isfinite(draws)).sum())} resamples"
        return Estimate(value, None, n, method, level, reason, n_groups)
    tail = _tail(level, n_groups, expand)
    low, high = (float(bound) for bound in np.quantile(draws, [tail, 1 - tail]))
    if high - low <= _width_floor(value):
        return Estimate(value, None, n, method, level, _NO_WIDTH, n_groups)
    return Estimate(value, (low, high), n, method, level, n_groups=n_groups)


def group_standard_error(values: npt.ArrayLike, groups: Groups | None = None) -> float:
    """Cluster-robust standard error of the mean of per-prompt values [n]; NaN for one group.

    sqrt(G/(G-1) * sum_g (S_g - n_g * mean)^2) / n, the linearised variance of a ratio of sums.
    """
    return float(group_standard_errors(as_values(values, "values")[:, None], groups)[0])


def group_standard_errors(values: npt.ArrayLike, groups: Groups | None = None) -> Floats:
    """`group_standard_error` for many sites: [n, *sites] -> [*sites]."""
    array = as_values(values, "values", ndim=None)
    index, n_groups = group_index(groups, array.shape[0])
    flat = array.reshape(array.shape[0], -1)
    sums = group_sums(flat, index, n_groups)
    return _standard_errors(sums, group_sums(np.ones_like(flat), index, n_groups)).reshape(array.shape[1:])


def _standard_errors(sums: Floats, counts: Floats) -> Floats:
    """Standard error of sum(sums)/sum(counts) per column; NaN where there is one group."""
    total = counts.sum(0)
    n_groups = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = sums - counts * (sums.sum(0) / total)
        factor = np.where(n_groups > 1, n_groups / (n_groups - 1), np.nan)
        return np.asarray(np.sqrt(factor * (residual**2).sum(0)) / total, dtype=np.float64)


def _denominator_columns(
    denominators: npt.ArrayLike | None, shape: tuple[int, ...], present: npt.NDArray[np.bool_]
) -> Floats:
    """Denominator of every prompt and site, zero where the prompt lacks the site."""
    if denominators is None:
        return present.astype(np.float64)
    array = as_values(denominators, "denominators", ndim=None, missing=True)
    if array.shape not in (shape[:1], shape):
        raise InputError(
            f"The denominators have shape {array.shape} and the values {shape}.",
            "Give one denominator per prompt, or one per prompt and site.",
        )
    wide = array.reshape(-1, 1) if array.ndim == 1 else array.reshape(shape[0], -1)
    wide = np.broadcast_to(wide, present.shape)
    if np.isnan(wide[present]).any():
        raise InputError("A denominator is NaN where its numerator is not.", "Find the prompt behind it.")
    return np.where(present, wide, 0.0)


def _check_denominator(bottom: Floats, here: Floats) -> None:
    """Refuse a mean denominator within three standard errors of zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = bottom.sum(0) / here.sum(0)
    error = _standard_errors(bottom, here)
    floor = np.where(np.isnan(error), 0.0, 3 * error)
    bad = (np.abs(mean) <= floor) & (here.sum(0) > 0)
    if not bad.any():
        return
    worst = int(np.flatnonzero(bad)[0])
    raise UnstableRatioError(
        f"The mean denominator {rounded(float(mean[worst]), 4)} is within three standard errors "
        f"({rounded(float(np.nan_to_num(error[worst])), 4)} each) of zero, so the ratio is not stable.",
        "Quote the effect without normalising, or use prompts on which clean and corrupt differ clearly.",
    )


def _intervals(
    top: Floats, bottom: Floats, n_resamples: int, seed: int, tail: float
) -> tuple[Floats, Floats]:
    """Percentile bounds of sum(top)/sum(bottom) over resampled groups, per column."""
    n_groups, columns = top.shape
    low, high = np.full(columns, np.nan), np.full(columns, np.nan)
    if n_groups < MIN_GROUPS:
        return low, high
    generator = np.random.default_rng(seed)
    even = np.full(n_groups, 1.0 / n_groups)
    weights = generator.multinomial(n_groups, even, size=n_resamples).astype(np.float64)
    step = max(1, _CHUNK // n_resamples)
    for start in range(0, columns, step):
        part = slice(start, start + step)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (weights @ top[:, part]) / (weights @ bottom[:, part])
        draws[~np.isfinite(draws)] = np.nan  # a resample with no prompt that has this site
        usable = ~np.isnan(draws).all(0)
        bounds = np.full((2, draws.shape[1]), np.nan)
        bounds[:, usable] = np.nanquantile(draws[:, usable], [tail, 1 - tail], axis=0)
        low[part], high[part] = bounds
    return low, high


def _tail(level: float, n_groups: int, expand: bool) -> float:
    """Probability below the lower bound, after the small-sample expansion."""
    tail = (1 - level) / 2
    if not expand or n_groups < MIN_GROUPS:
        return tail
    from scipy.special import ndtr, stdtrit

    return float(ndtr(np.sqrt(n_groups / (n_groups - 1)) * stdtrit(n_groups - 1, tail)))


_NO_WIDTH = "all groups have the same value, so resampling shows no spread"


def _too_few(n_groups: int) -> str:
    plural = "group" if n_groups == 1 else "groups"
    return f"{n_groups} {plural}, and an interval needs at least {MIN_GROUPS}"


def _width_floor(value: float) -> float:
    """Widths below this are rounding, not spread."""
    return 1e-12 * max(1.0, abs(value))


def _reasons(low: Floats, high: Floats, value: Floats, n_groups: Ints) -> npt.NDArray[np.object_]:
    """Why each site has no interval; the empty string where it has one."""
    out = np.empty(low.shape, dtype=object)
    for i in range(low.size):
        if n_groups[i] == 0:
            out[i] = "no prompt has this site"
        elif n_groups[i] < MIN_GROUPS:
            out[i] = _too_few(int(n_groups[i]))
        elif not high[i] - low[i] > _width_floor(float(value[i])):
            out[i] = _NO_WIDTH
        else:
            out[i] = ""
    return out


def _method(ratio: bool, n_groups: int, n_resamples: int, expand: bool) -> str:
    what = "ratio of means, " if ratio else "mean, "
    kind = "expanded percentile" if expand else "percentile"
    return f"{what}cluster bootstrap over {n_groups} groups, {kind}, {n_resamples} resamples"
