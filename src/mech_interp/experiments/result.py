"""What a family returns: numbers with their uncertainty, tables, tensors, views, findings, controls."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.experiments.errors import FamilyError

if TYPE_CHECKING:
    import numpy as np

    from mech_interp.statistics import Estimate
    from mech_interp.storage.contents import Contents
    from mech_interp.views import View

Better = Literal["higher", "lower"]
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
# What single-precision sums lose when they are added up in another order.
TOLERANCE, ABSOLUTE = 1e-4, 1e-6


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a run.

    Attributes:
        value: None where it could not be had; `reason` then says why.
        interval: (low, high) at `level`, or None with the `reason`.
        n: how many prompts, trials or places it rests on.
        unit: of the value, e.g. ``logit``, ``layer``, ``fraction``.
        better: the direction in which more is better, or None where neither is.
        tolerance: how far a replay may be off, relative to the value.
        absolute: how far it may be off besides, in the value's unit.
        control: the same measurement where the effect must be absent or total: ``{"name": …, "value": …}``.
        per_group: the effect of each independent group, by its label, so that runs can be compared in pairs.
        method: how value and interval were made.
    """

    value: float | None
    n: int
    interval: tuple[float, float] | None = None
    unit: str = ""
    better: Better | None = None
    tolerance: float = TOLERANCE
    absolute: float = ABSOLUTE
    control: Mapping[str, Any] | None = None
    per_group: Mapping[str, float] | None = None
    n_groups: int | None = None
    level: float = 0.95
    method: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise FamilyError(f"A metric is {self.value}.", "Give None with a reason.")
        if self.interval is not None and not all(math.isfinite(bound) for bound in self.interval):
            raise FamilyError(f"An interval is {self.interval}.", "Give None with a reason.")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise FamilyError(f"The interval {self.interval} is upside down.", "Give (low, high).")
        if self.value is None and not self.reason:
            raise FamilyError("A metric has neither a value nor a reason.", "Say why there is none.")
        if self.n < 0 or self.tolerance < 0 or self.absolute < 0:
            raise FamilyError("n and tolerances are not negative.", "Correct them.")

    @classmethod
    def of(cls, estimate: Estimate, **more: Any) -> Metric:
        """The metric of an estimate; a value or bound that is not finite becomes None with a reason."""
        plain = estimate.to_dict()
        interval, reason = plain["interval"], plain["reason"]
        if plain["value"] is None:
            interval, reason = None, reason or "the value is not finite"
        given = {key: plain[key] for key in ("value", "n", "n_groups", "level", "method")}
        return cls(interval=None if interval is None else tuple(interval), reason=reason, **{**given, **more})

    def agrees(self, other: Metric) -> bool:
        """Whether another run's value is the same within this metric's tolerance."""
        if self.value is None or other.value is None:
            return self.value is other.value
        room = self.absolute + self.tolerance * max(abs(self.value), abs(other.value))
        return abs(self.value - other.value) <= room

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is empty is left out, value and interval never."""
        optional = {
            "better": self.better,
            "control": None if self.control is None else dict(self.control),
            "per_group": None if self.per_group is None else dict(self.per_group),
            "n_groups": self.n_groups,
            "method": self.method or None,
            "reason": self.reason or None,
        }
        return {
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "n": self.n,
            "unit": self.unit,
            "level": self.level,
            "tolerance": self.tolerance,
            "absolute": self.absolute,
            **{key: value for key, value in optional.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metric:
        """The inverse of `to_dict`."""
        interval = data.get("interval")
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "interval": None if interval is None else (interval[0], interval[1])})


@dataclass(frozen=True)
class Control:
    """A measurement whose answer is known beforehand.

    A failed `sanity` control (patching a prompt with itself changes nothing) voids the run; any
    other (a random direction has no effect) is shown beside the claim.
    """

    name: str
    expected: str
    value: float | str | None
    passed: bool
    sanity: bool = False


@dataclass(frozen=True)
class Finding:
    """A sentence, the names of the metrics, tables, tensors or views that show it, and of its controls."""

    sentence: str
    evidence: Sequence[str]
    controls: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that a run found.

    Attributes:
        question: what was asked, as a sentence.
        method: what was done, in a few sentences.
        metrics, tables, tensors, views: by name; names are lower case with underscores and dots.
        graphs: text of circuit graphs by file name, such as ``circuit.json``.
        findings, controls: see the classes.
        caveats: what would change the conclusion, one sentence each.
    """

    question: str
    method: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    views: Mapping[str, View] = field(default_factory=dict)
    graphs: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    controls: Sequence[Control] = ()
    caveats: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.method.strip():
            raise FamilyError("A result states no question or no method.", "Write both as sentences.")
        named = {*self.metrics, *self.tables, *self.tensors, *self.views}
        for name in sorted(named):
            if not _NAME.fullmatch(name):
                raise FamilyError(
                    f"{name!r} is no name for a metric, table, tensor or view.",
                    "Use lower case, underscores and dots.",
                )
        controls = [control.name for control in self.controls]
        if len(set(controls)) < len(controls):
            raise FamilyError("Two controls have the same name.", "Give each its own.")
        for finding in self.findings:
            lost = [name for name in finding.evidence if name not in named]
            lost += [name for name in finding.controls if name not in controls]
            if lost or not finding.evidence:
                what = f"refers to {lost[0]!r}, which the result lacks" if lost else "has no evidence"
                raise FamilyError(f"The finding {finding.sentence!r:.80} {what}.", "Name what shows it.")

    @property
    def failed(self) -> list[Control]:
        """The sanity controls that came out wrong."""
        return [control for control in self.controls if control.sanity and not control.passed]

    @property
    def status(self) -> Literal["complete", "void"]:
        """``void`` when a sanity control failed: then no number of the run counts."""
        return "void" if self.failed else "complete"

    def contents(self, *, report: str | None = None, figures: Mapping[str, bytes] | None = None) -> Contents:
        """The result in the form that a run folder stores."""
        from mech_interp.storage.contents import Contents

        return Contents(
            metrics={name: metric.to_dict() for name, metric in self.metrics.items()},
            tables=self.tables,
            tensors=self.tensors,
            views={name: view.to_dict() for name, view in self.views.items()},
            figures=figures or {},
            graphs=self.graphs,
            findings=[asdict(finding) for finding in self.findings],
            controls=[asdict(control) for control in self.controls],
            notes={"question": self.question, "method": self.method, "caveats": list(self.caveats)},
            report=report,
        )
