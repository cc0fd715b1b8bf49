"""How far first-order scores are from exact effects, and which items hold when tested exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mech_interp.methods.common import Floats, Ints
from mech_interp.statistics import (
    Estimate,
    EstimateArray,
    MaxTResult,
    bootstrap_columns,
    bootstrap_mean,
    bootstrap_statistic,
)


@dataclass(frozen=True)
class Approximation:
    """Scores of random items against their exact effects on the same prompts.

    Attributes:
        items: their numbers, [k]; prompts: the prompts used.
        scores, effects: [prompt, k].
        seed: of the draw.
    """

    items: Ints
    prompts: tuple[int, ...]
    scores: Floats
    effects: Floats
    seed: int = 0

    def __len__(self) -> int:
        return int(self.items.size)

    @property
    def estimated(self) -> Floats:
        """Mean score of every item, [k]."""
        return np.asarray(self.scores.mean(0))

    @property
    def exact(self) -> Floats:
        """Mean exact effect of every item, [k]."""
        return np.asarray(self.effects.mean(0))

    @cached_property
    def pearson(self) -> Estimate:
        """Correlation of mean scores with mean effects over the items; NaN where either is constant."""
        return self._over_items(correlation)

    @cached_property
    def spearman(self) -> Estimate:
        """Rank correlation over the items."""
        return self._over_items(rank_correlation)

    @property
    def pearson_without_largest(self) -> float:
        """The correlation without the item of largest exact effect, which may make it all by itself."""
        kept = np.arange(len(self)) != np.abs(self.exact).argmax()
        return correlation(self.estimated[kept], self.exact[kept]) if len(self) > 2 else float("nan")

    @property
    def slope(self) -> float:
        """Of the least-squares line of exact effects on scores: 1 is right, below 1 the scores are too
        large. NaN where all scores are equal."""
        centred = self.estimated - self.estimated.mean()
        below = float((centred**2).sum())
        return float("nan") if below == 0 else float((centred * self.exact).sum() / below)

    @property
    def mean_absolute_error(self) -> Estimate:
        """Mean over items of |mean score - mean effect|, in the metric's unit."""
        return bootstrap_mean(np.abs(self.estimated - self.exact), seed=self.seed)

    @property
    def mean_absolute_effect(self) -> float:
        """Mean over items of |mean effect|, for comparison."""
        return float(np.abs(self.exact).mean())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        slope, rest = self.slope, self.pearson_without_largest
        return {
            "n_items": len(self),
            "n_prompts": len(self.prompts),
            "pearson": self.pearson.to_dict(),
            "pearson_without_largest": rest if np.isfinite(rest) else None,
            "spearman": self.spearman.to_dict(),
            "slope": slope if np.isfinite(slope) else None,
            "mean_absolute_error": self.mean_absolute_error.to_dict(),
            "mean_absolute_effect": self.mean_absolute_effect,
        }

    def _over_items(self, function: Any) -> Estimate:
        value = function(self.estimated, self.exact)
        if not np.isfinite(value):
            reason = "scores or effects of the items are all equal"
            return Estimate(float("nan"), None, len(self), "correlation over items", reason=reason)
        return bootstrap_statistic(function, self.estimated, self.exact, n_resamples=500, seed=self.seed)


def correlation(left: Floats, right: Floats) -> float:
    """Pearson correlation; NaN where a side is constant up to rounding."""
    if _constant(left) or _constant(right):
        return float("nan")
    a, b = left - left.mean(), right - right.mean()
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def rank_correlation(left: Floats, right: Floats) -> float:
    """Spearman correlation, ties at their mean rank."""
    from scipy.stats import rankdata

    if _constant(left) or _constant(right):
        return float("nan")
    return correlation(rankdata(left), rankdata(right))


def _constant(values: Floats) -> bool:
    """Whether values differ by no more than float32 rounding, which a correlation must not read."""
    return float(np.ptp(values)) <= 1e-5 * float(np.abs(values).max())


@dataclass(frozen=True)
class Claims:
    """Items chosen on one half of the groups, their exact effects on the other half.

    Attributes:
        items: their numbers, [k], largest |mean score| first; prompts: those quoted on.
        scores, effects: [prompt, k] on these prompts.
        groups: of these prompts.
        test: is an item's mean exact effect zero? Max-T over the k items.
    """

    items: Ints
    prompts: tuple[int, ...]
    scores: Floats
    effects: Floats
    groups: tuple[str, ...]
    test: MaxTResult
    seed: int = 0

    @cached_property
    def estimates(self) -> EstimateArray:
        """Mean exact effect of every item."""
        return bootstrap_columns(self.effects, groups=self.groups, seed=self.seed)

    @property
    def discovered(self) -> list[int]:
        """Items with an adjusted p of at most 0.05."""
        return [int(i) for i in self.items[self.test.significant()]]
