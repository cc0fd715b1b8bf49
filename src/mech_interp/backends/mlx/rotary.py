"""Rotary position embedding, written out from its definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mech_interp.errors import CapabilityError


def inverse_frequencies(options: Mapping[str, Any], d_head: int, name: str) -> np.ndarray:
    """The angle per position of each pair of features, [d_head / 2] float32.

    `options` are the config's `rope_parameters`: the types ``default``, ``linear`` (all angles divided
    by a factor) and ``llama3`` (only those of long wavelengths, with a smooth passage).

    Raises:
        CapabilityError: for another kind of scaling.
    """
    kind = options.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or options.get("partial_rotary_factor", 1.0) != 1.0:
        what = f"rotary scaling of the type {kind!r}" if kind != "default" else "partial rotary embedding"
        raise CapabilityError(
            f"{name} has {what}, which the mlx backend does not run.", "Use the backend huggingface."
        )
    exponents = np.arange(0, d_head, 2, dtype=np.float32) / np.float32(d_head)
    plain = (1.0 / np.float32(options["rope_theta"]) ** exponents).astype(np.float32)
    if kind == "default":
        return plain
    factor = np.float32(options["factor"])
    return plain / factor if kind == "linear" else _stretched(plain, factor, options)


def _stretched(plain: np.ndarray, factor: np.float32, options: Mapping[str, Any]) -> np.ndarray:
    """Llama 3.1: how often a pair turns within the original context decides how far it is slowed."""
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    turns = options["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(kept * plain + (1 - kept) * plain / factor, dtype=np.float32)


def tables(frequencies: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [row, position, d_head / 2] at positions [row, position], float32."""
    angles = positions[..., None].astype(np.float32) * frequencies
    return np.cos(angles), np.sin(angles)
