"""Families of experiments: what each asks for, how it runs, what it returns; and the registry of them.

from mech_interp.experiments import names, get
get("logit_lens").summary
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.experiments.context import Budget, Context
    from mech_interp.experiments.facts import ModelFacts
    from mech_interp.experiments.family import Family, FamilyParams
    from mech_interp.experiments.registry import get, listing, names
    from mech_interp.experiments.result import Control, Finding, Metric, Result

_HOMES = {
    "Budget": "context",
    "Context": "context",
    "Control": "result",
    "Family": "family",
    "FamilyParams": "family",
    "Finding": "result",
    "Metric": "result",
    "ModelFacts": "facts",
    "Result": "result",
    "get": "registry",
    "listing": "registry",
    "names": "registry",
}

__all__ = [
    "Budget",
    "Context",
    "Control",
    "Family",
    "FamilyParams",
    "Finding",
    "Metric",
    "ModelFacts",
    "Result",
    "get",
    "listing",
    "names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
