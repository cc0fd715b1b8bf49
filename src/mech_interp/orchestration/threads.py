"""How many threads a run computes with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SMALL_BYTES = 24 * 2**20
"""Weights smaller than this are multiplied faster by one thread than by several that wait for each other."""


def wanted_threads(setting: int | None, device: str, weight_bytes: int) -> int | None:
    """Threads for a model: the setting, one for a small model on a CPU, else None (the library's choice)."""
    if setting is not None:
        return setting
    return 1 if device == "cpu" and weight_bytes < SMALL_BYTES else None


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads inside the block; does nothing where torch is not loaded."""
    torch = sys.modules.get("torch")
    if count is None or torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
