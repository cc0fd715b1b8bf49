"""What a comparison of backends found: typed, printable, storable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.methods.parity import Comparison


@dataclass(frozen=True)
class MetricGap:
    """A family's metric on a backend beside the reference's; `gap` is relative (see `metric_gaps`)."""

    family: str
    metric: str
    wanted: float | None
    found: float | None
    gap: float


@dataclass(frozen=True)
class BackendParity:
    """One backend beside the reference; `problem` instead where the model could not be run on it.

    `refused`: families that the backend cannot run, with the reason; `failed`: those that broke off on it,
    which the reference finished.
    """

    backend: str
    bound: float
    kl_bound: float
    package: str = ""
    sites: Comparison | None = None
    metrics: tuple[MetricGap, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    attention: str = ""
    seconds: float = 0.0
    problem: str = ""

    @property
    def misses(self) -> list[str]:
        """Every bound that is missed, as sentences."""
        if self.problem or self.sites is None:
            return [self.problem or "nothing was compared"]
        found = [
            f"{one.kind} differs by {one.gap:.2g}" for one in self.sites.sites if not one.gap <= self.bound
        ]
        if not self.sites.tokens_equal:
            found.append("the prompts were read as other tokens")
        if not self.sites.continuations_equal:
            found.append("greedy continuations differ")
        if not self.sites.kl <= self.kl_bound:
            found.append(f"next-token distributions differ by {self.sites.kl:.2g} nats")
        found += [
            f"{one.family}: {one.metric} differs by {one.gap:.2g}"
            for one in self.metrics
            if not one.gap <= self.bound
        ]
        return found + [f"{family} broke off: {why}" for family, why in self.failed.items()]

    @property
    def holds(self) -> bool:
        """Whether every bound is kept."""
        return not self.misses

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: a gap that is not finite is None."""
        about: dict[str, Any] = {
            "backend": self.backend,
            "package": self.package,
            "attention": self.attention,
            "holds": self.holds,
            "misses": self.misses,
            "bound": self.bound,
            "kl_bound": self.kl_bound,
            "seconds": round(self.seconds, 2),
        }
        if self.sites is None:
            return about
        return about | {
            "kl": _finite(self.sites.kl),
            "tokens_equal": self.sites.tokens_equal,
            "continuations_equal": self.sites.continuations_equal,
            "sites": {
                one.kind: {"gap": _finite(one.gap), "layer": one.layer, "n": one.n}
                for one in self.sites.sites
            },
            "not_shown": dict(self.sites.not_shown),
            "metrics": {
                f"{one.family}.{one.metric}": {
                    "gap": _finite(one.gap),
                    "reference": one.wanted,
                    "value": one.found,
                }
                for one in self.metrics
            },
            "refused": dict(self.refused),
        }


@dataclass(frozen=True)
class ParityReport:
    """A model on every backend beside the reference.

    `absent`: backends that are not installed, with the command that installs them; `families`: those that
    ran on the reference; `refused`: why others did not.
    """

    model: Mapping[str, Any]
    reference: str
    dtype: str
    device: str
    prompts: tuple[int, ...]
    families: tuple[str, ...]
    refused: Mapping[str, str]
    backends: tuple[BackendParity, ...]
    absent: Mapping[str, str]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every backend that was run keeps every bound."""
        return all(one.holds for one in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "holds": self.holds,
            "model": dict(self.model),
            "reference": self.reference,
            "dtype": self.dtype,
            "device": self.device,
            "prompt_lengths": list(self.prompts),
            "families": list(self.families),
            "families_refused": dict(self.refused),
            "backends": [one.to_dict() for one in self.backends],
            "not_installed": dict(self.absent),
            "seconds": round(self.seconds, 2),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
