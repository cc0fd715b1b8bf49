"""Intervals, sign-flip tests, multiplicity and honest selection.

Effects are computed per prompt first and aggregated here. Everything resamples or flips *groups*
(template x item), since prompts that share a template or an item are not independent.
"""

from __future__ import annotations

from mech_interp.statistics.bootstrap import (
    bootstrap_columns,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    group_standard_error,
    group_standard_errors,
)
from mech_interp.statistics.estimate import (
    MIN_GROUPS,
    Estimate,
    EstimateArray,
    UnstableRatioError,
    group_index,
)
from mech_interp.statistics.multiplicity import (
    MaxTResult,
    SignFlipResult,
    benjamini_hochberg,
    max_t_test,
    sign_flip_test,
)
from mech_interp.statistics.rates import wilson
from mech_interp.statistics.selection import Selection, select_then_quote, split_halves

__all__ = [
    "MIN_GROUPS",
    "Estimate",
    "EstimateArray",
    "MaxTResult",
    "Selection",
    "SignFlipResult",
    "UnstableRatioError",
    "benjamini_hochberg",
    "bootstrap_columns",
    "bootstrap_mean",
    "bootstrap_ratio",
    "bootstrap_statistic",
    "group_index",
    "group_standard_error",
    "group_standard_errors",
    "max_t_test",
    "select_then_quote",
    "sign_flip_test",
    "split_halves",
    "wilson",
]
