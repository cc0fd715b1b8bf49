"""Intervals for rates."""

from __future__ import annotations

import math

from mech_interp.errors import InputError
from mech_interp.statistics.estimate import Estimate, check_level


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """Wilson score interval of a rate (Wilson 1927, without continuity correction).

    Never of zero width and never outside [0, 1], also at 0 and n successes. Treats the trials as
    independent.
    """
    from scipy.special import ndtri

    check_level(level)
    if n < 1:
        raise InputError("A rate over no trials has no value.", "Give at least one trial.")
    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes in {n} trials is impossible.", "Count again.")
    rate = successes / n
    z = float(ndtri(0.5 + level / 2))
    shrink = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(rate, (low, high), n, "Wilson score interval", level, n_groups=n)
