"""What the certificate holds: measures, each with the bar it must keep where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Relation = Literal["at least", "at most", "exactly", "interval holds", "interval begins at or below"]
_HALF_DIGIT = 0.005


@dataclass(frozen=True)
class Bar:
    """A bound on a value, or on its interval.

    An interval holds a limit when it holds a number that prints as the limit does in two decimals.
    """

    relation: Relation
    limit: float

    def kept(self, value: float, interval: tuple[float, float] | None) -> bool:
        """Whether the bound is kept; never by a value that is not a number, or without an interval needed."""
        if math.isnan(value):
            return False
        if self.relation == "at least":
            return value >= self.limit
        if self.relation == "at most":
            return value <= self.limit
        if self.relation == "exactly":
            return value == self.limit
        if interval is None:
            return False
        if self.relation == "interval holds":
            return interval[0] < self.limit + _HALF_DIGIT and interval[1] >= self.limit - _HALF_DIGIT
        return interval[0] <= self.limit

    def __str__(self) -> str:
        return f"{self.relation} " + (
            f"{self.limit:.2f}" if self.relation == "interval holds" else f"{self.limit:g}"
        )


@dataclass(frozen=True)
class Measure:
    """One number of the certificate.

    Attributes:
        section: which part of the certificate it belongs to.
        method: what was scored; quantity: by what, with its unit in words.
        model: the planted model or architecture, or a group of them.
        gap: attention gap in nats; None where it does not matter or gaps are pooled.
        condition: ablation, direction or hypothesis.
        value, interval: over n things counted by `of` ("draws of the model", "replicates", "prompts").
        bar: what must hold; None for a number that is shown only.
        note: what a reader should know.
    """

    section: str
    method: str
    model: str
    quantity: str
    value: float
    n: int
    of: str
    gap: float | None = None
    condition: str = ""
    interval: tuple[float, float] | None = None
    bar: Bar | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether its bar is kept; true without one."""
        return self.bar is None or self.bar.kept(self.value, self.interval)

    @property
    def about(self) -> str:
        """Model, gap and condition in a few words."""
        gap = "" if self.gap is None else f"{self.gap:g} nats"
        return ", ".join(part for part in (self.model, gap, self.condition) if part)

    def __str__(self) -> str:
        said = f"{self.section}: {self.method} on {self.about}: {self.quantity} {number(self.value)}"
        if self.interval is not None:
            said += f" [{number(self.interval[0])}, {number(self.interval[1])}]"
        return said + ("" if self.bar is None else f" (bar: {self.bar})")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a value that is not finite becomes None."""
        bar = None if self.bar is None else {"relation": self.bar.relation, "limit": self.bar.limit}
        ends = None if self.interval is None else [_finite(end) for end in self.interval]
        plain = {
            key: value for key, value in self.__dict__.items() if key not in ("bar", "interval", "value")
        }
        return {**plain, "value": _finite(self.value), "interval": ends, "bar": bar, "holds": self.holds}


@dataclass(frozen=True)
class Certificate:
    """All measures of one calibration.

    Attributes:
        scope: "full" or "quick".
        settings: the sections chosen, seeds, pairs, replicates and so on.
        seconds: by section.
        models: hashes of the weights that were measured, by model, gap and draw.
    """

    scope: str
    settings: dict[str, Any]
    measures: tuple[Measure, ...]
    seconds: dict[str, float]
    models: dict[str, str] = field(default_factory=dict)

    @property
    def missed(self) -> list[Measure]:
        """Measures whose bar is missed."""
        return [measure for measure in self.measures if not measure.holds]

    @property
    def holds(self) -> bool:
        """Whether something was measured against a bar and every bar is kept."""
        return any(measure.bar is not None for measure in self.measures) and not self.missed

    @property
    def sections(self) -> tuple[str, ...]:
        """Sections in order."""
        return tuple(dict.fromkeys(measure.section for measure in self.measures))

    def of(self, section: str) -> list[Measure]:
        """The measures of one section."""
        return [measure for measure in self.measures if measure.section == section]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "scope": self.scope,
            "holds": self.holds,
            "bars": sum(measure.bar is not None for measure in self.measures),
            "missed": [str(measure) for measure in self.missed],
            "settings": self.settings,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "models": self.models,
            "measures": [measure.to_dict() for measure in self.measures],
        }


def worst(values: Sequence[float]) -> float:
    """The least; NaN as soon as one is none."""
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def number(value: float | None) -> str:
    """A value in four figures, small ones as powers of ten."""
    if value is None or not math.isfinite(value):
        return "none"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return f"{value:.1e}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
