"""The planted models by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

    from mech_interp.planted.model import Planted

Kind = Literal["circuit", "gate", "null"]
# Attention gaps in nats: soft, where gradients see something, and saturated, where they do not.
GAPS = (6.0, 50.0)


@dataclass(frozen=True)
class _Entry:
    kind: Kind
    module: str
    function: str = "build"


_MODELS: dict[str, _Entry] = {
    "previous-token-copy": _Entry("circuit", "copying"),
    "induction": _Entry("circuit", "induction"),
    "duplicate-token": _Entry("circuit", "duplicates"),
    "reverse": _Entry("circuit", "reverse"),
    "proportion": _Entry("circuit", "proportion"),
    "ioi": _Entry("circuit", "ioi"),
    "or-gate": _Entry("gate", "gates", "build_or"),
    "and-gate": _Entry("gate", "gates", "build_and"),
    "null-random-weights": _Entry("null", "nulls", "build_random"),
    "null-shuffled-pairing": _Entry("null", "nulls", "build_shuffled"),
}


def models(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of the planted models: all, or the ``circuit``, ``gate`` or ``null`` ones.

    Raises:
        InputError: for another kind.
    """
    kinds = dict.fromkeys(entry.kind for entry in _MODELS.values())
    if kind is not None and kind not in kinds:
        raise InputError(f"There is no kind {kind!r} of planted model.", f"There are: {', '.join(kinds)}.")
    return tuple(name for name, entry in _MODELS.items() if kind in (None, entry.kind))


def build(name: str, gap: float = 6.0, seed: int = 0, dtype: torch.dtype | None = None) -> Planted:
    """A planted model.

    Args:
        name: one of `models()`.
        gap: by how many nats attention prefers what it looks for to the best of the rest (heads that
            read what soft heads wrote lose up to 0.3 of 6); `GAPS` holds the two that are certified.
            Random weights have none and ignore it.
        seed: of the residual stream's basis, the order of heads and the distractors; the function
            computed does not depend on it. For the null of random weights, the seed of the weights.
        dtype: of the weights; float32 by default.

    Raises:
        InputError: for an unknown name, or a gap that is not positive.
    """
    if name not in _MODELS:
        hint = nearest(name, _MODELS) or f"There are: {', '.join(_MODELS)}."
        raise InputError(f"There is no planted model {name!r}.", hint)
    if not (math.isfinite(gap) and gap > 0):
        raise InputError(f"An attention gap of {gap} nats is impossible.", "Use for example 6 or 50.")
    entry = _MODELS[name]
    maker: Any = getattr(import_module(f"mech_interp.planted.{entry.module}"), entry.function)
    made: Planted = maker(gap, seed, dtype)
    return made
