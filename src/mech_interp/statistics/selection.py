"""Choose a top site on one half of the data, quote its effect on the other.

Quoting the maximum on the data that chose it overstates the effect (the winner's curse).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mech_interp.errors import InputError
from mech_interp.statistics.bootstrap import bootstrap_mean, bootstrap_ratio
from mech_interp.statistics.estimate import Estimate, Groups, Ints, as_values, group_index


@dataclass(frozen=True)
class Selection:
    """A site chosen on `n_selected_on` prompts and quoted (`estimate`) on the others.

    `selected_value` is the effect on the choosing half: shown for comparison, never the result.
    """

    site: tuple[int, ...]
    estimate: Estimate
    selected_value: float
    n_selected_on: int


def split_halves(groups: Groups | None, n: int | None = None, *, seed: int = 0) -> tuple[Ints, Ints]:
    """Prompt indices of two halves with no group in both; `n` is needed when `groups` is None."""
    if groups is None and n is None:
        raise InputError("Neither groups nor a number of prompts was given.", "Give one of them.")
    size = len(groups) if groups is not None else int(n or 0)
    index, n_groups = group_index(groups, size)
    if n_groups < 2:
        raise InputError(f"{n_groups} group(s) cannot be split into two halves.", "Use at least two groups.")
    order = np.random.default_rng(seed).permutation(n_groups)
    first = np.isin(index, order[: n_groups // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def select_then_quote(
    effects: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    denominators: npt.ArrayLike | None = None,
    by: str = "magnitude",
    seed: int = 0,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Selection:
    """The site with the largest mean effect on one half, its effect on the other half.

    `effects` [n, *sites]; `denominators` [n] makes it a ratio of means. `by`: "magnitude" (largest
    absolute effect), "highest" or "lowest".
    """
    values = as_values(effects, "effects", ndim=None)
    if values.ndim < 2 or values[0].size == 0:
        raise InputError(f"Effects have shape {values.shape}.", "Give [prompts, sites].")
    if by not in ("magnitude", "highest", "lowest"):
        raise InputError(f"Unknown way to choose a site: {by!r}.", "Use magnitude, highest or lowest.")
    choose, quote = split_halves(groups, values.shape[0], seed=seed)
    flat = values.reshape(values.shape[0], -1)
    mean = flat[choose].mean(0)
    below = None if denominators is None else as_values(denominators, "denominators")
    if below is not None:
        bootstrap_ratio(flat[choose, 0], below[choose], _subset(groups, choose), n_resamples=100)
        mean = mean / below[choose].mean()
    score = np.abs(mean) if by == "magnitude" else mean if by == "highest" else -mean
    best = int(score.argmax())
    kept = _subset(groups, quote)
    estimate = (
        bootstrap_mean(flat[quote, best], kept, n_resamples=n_resamples, seed=seed, level=level)
        if below is None
        else bootstrap_ratio(
            flat[quote, best], below[quote], kept, n_resamples=n_resamples, seed=seed, level=level
        )
    )
    site = tuple(int(i) for i in np.unravel_index(best, values.shape[1:]))
    return Selection(site, estimate, float(mean[best]), int(choose.size))


def _subset(groups: Groups | None, index: Ints) -> Groups | None:
    return None if groups is None else [groups[int(i)] for i in index]
