"""Transformers set exactly by hand, whose mechanism is known by construction, and nulls without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mech_interp.planted.registry import GAPS, build, models

if TYPE_CHECKING:
    from mech_interp.planted.model import Pairs, Planted

__all__ = ["GAPS", "Pairs", "Planted", "build", "models"]


def __getattr__(name: str) -> Any:
    """`Pairs` and `Planted`, which need torch, when they are first asked for."""
    if name in ("Pairs", "Planted"):
        from mech_interp.planted import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
