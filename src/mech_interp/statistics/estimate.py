"""A number with its interval, its n and the way both were made."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mech_interp.errors import InputError, MechError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Groups = Sequence[Hashable] | npt.NDArray[Any]

MIN_GROUPS = 8
"""Fewer groups than this give no bootstrap interval: the resampled values are too few to trust."""


class UnstableRatioError(MechError):
    """A ratio whose denominator cannot be told from zero."""

    exit_code = 2


@dataclass(frozen=True)
class Estimate:
    """A value with uncertainty.

    `interval` is (low, high) at `level`, or None with the `reason`. `n` counts prompts (or trials),
    `n_groups` the independent groups that were resampled.
    """

    value: float
    interval: tuple[float, float] | None
    n: int
    method: str
    level: float = 0.95
    reason: str = ""
    n_groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; a value or bound that is not finite becomes None."""
        finite = self.interval is not None and all(math.isfinite(bound) for bound in self.interval)
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "interval": list(self.interval) if finite and self.interval is not None else None,
            "n": self.n,
            "n_groups": self.n_groups,
            "level": self.level,
            "method": self.method,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        """The inverse of `to_dict` (None reads back as NaN)."""
        interval = data.get("interval")
        value = data.get("value")
        return cls(
            value=float("nan") if value is None else float(value),
            interval=None if interval is None else (float(interval[0]), float(interval[1])),
            n=int(data["n"]),
            method=str(data["method"]),
            level=float(data.get("level", 0.95)),
            reason=str(data.get("reason", "")),
            n_groups=data.get("n_groups"),
        )

    def format(self, digits: int = 2, unit: str = "") -> str:
        """`0.97 [0.91, 0.99], n = 40`, or `0.97 (no interval: reason), n = 3`."""
        suffix = f" {unit}" if unit else ""
        head = f"{rounded(self.value, digits)}{suffix}"
        if self.interval is not None:
            low, high = self.interval
            return f"{head} [{rounded(low, digits)}, {rounded(high, digits)}], n = {self.n}"
        why = self.reason or "none was computed"
        return f"{head} (no interval: {why}), n = {self.n}"

    def __str__(self) -> str:
        return self.format()


@dataclass(frozen=True)
class EstimateArray:
    """Estimates of many sites from one set of resamples.

    `value`, `low`, `high` and `n` share one shape; `low` and `high` are NaN where there is no
    interval, and `reasons` (same shape, strings) says why.
    """

    value: Floats
    low: Floats
    high: Floats
    n: Ints
    n_groups: Ints
    reasons: npt.NDArray[np.object_]
    method: str
    level: float = 0.95

    def at(self, *index: int) -> Estimate:
        """The `Estimate` of one site."""
        low, high = float(self.low[index]), float(self.high[index])
        return Estimate(
            value=float(self.value[index]),
            interval=None if math.isnan(low) else (low, high),
            n=int(self.n[index]),
            method=self.method,
            level=self.level,
            reason=str(self.reasons[index]),
            n_groups=int(self.n_groups[index]),
        )


def rounded(value: float, digits: int = 2) -> str:
    """A readable number: fixed decimals, scientific when those would hide it, never `-0.00`."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value != 0 and (abs(value) < 0.5 * 10**-digits or abs(value) >= 1e6):
        return f"{value:.{max(digits - 1, 1)}e}"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and float(text) == 0 else text


def as_values(values: npt.ArrayLike, what: str, *, ndim: int | None = 1, missing: bool = False) -> Floats:
    """Float64 array of per-prompt values; empty, misshapen or (unless `missing`) NaN is refused."""
    array = np.asarray(values, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise InputError(f"{what} have shape {array.shape}.", f"Give {ndim} dimension(s), prompts first.")
    if array.ndim == 0 or array.shape[0] == 0:
        raise InputError(f"There are no {what} to summarise.", "Give at least one prompt.")
    bad = np.isinf(array) if missing else ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{int(bad.sum())} of {array.size} {what} are not finite, the first at index {first}.",
            "Find the prompt that produced it; a statistic over NaN would hide it.",
        )
    return array


def group_index(groups: Groups | None, n: int) -> tuple[Ints, int]:
    """Integer group per prompt in order of first appearance, and the number of groups.

    None makes every prompt its own group.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64), n
    labels = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    if len(labels) != n:
        raise InputError(f"There are {len(labels)} group labels for {n} prompts.", "Give one per prompt.")
    seen: dict[Hashable, int] = {}
    index = np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)
    return index, len(seen)


def group_sums(values: Floats, index: Ints, n_groups: int) -> Floats:
    """Sums over prompts of each group: [n, ...] -> [n_groups, ...]."""
    out = np.zeros((n_groups, *values.shape[1:]), dtype=np.float64)
    np.add.at(out, index, values)
    return out


def group_means(values: Floats, index: Ints, n_groups: int) -> Floats:
    """Mean effect of each group: [n, ...] -> [n_groups, ...]."""
    counts = np.bincount(index, minlength=n_groups).astype(np.float64)
    sums = group_sums(values, index, n_groups)
    return np.asarray(sums / counts.reshape(-1, *[1] * (values.ndim - 1)), dtype=np.float64)


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    if not 0 < level < 1:
        raise InputError(f"The confidence level {level} is not between 0 and 1.", "Use for example 0.95.")
