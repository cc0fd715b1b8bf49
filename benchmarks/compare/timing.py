"""Timing in turn: every repeat runs all sides, in alternating order, and ratios pair within a repeat.

Wall time decides. Processor time of the process is kept beside it, as it hardly moves on a machine that
is busy with something else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One run of one side: seconds of wall and processor time, and what it returned."""

    wall: float
    cpu: float
    value: Tensor


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of a ratio over repeats."""

    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, slow: list[float], fast: list[float]) -> Ratio:
        """slow / fast, repeat by repeat."""
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def measure(function: Callable[[], Tensor], scale: float = 1.0) -> Sample:
    """Run once; seconds are multiplied by `scale` (for a sample of the cells)."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return Sample((time.perf_counter() - wall) * scale, (time.process_time() - cpu) * scale, value)


def in_turn(
    functions: Mapping[str, Callable[[], Tensor]],
    repeats: int,
    scales: Mapping[str, float] | None = None,
    progress: Callable[[str, int, Sample], None] | None = None,
) -> dict[str, list[Sample]]:
    """Samples per side, `repeats` each; every second repeat runs the sides backwards."""
    samples: dict[str, list[Sample]] = {name: [] for name in functions}
    for repeat in range(repeats):
        order = list(functions)[:: 1 if repeat % 2 == 0 else -1]
        for name in order:
            sample = measure(functions[name], (scales or {}).get(name, 1.0))
            samples[name].append(sample)
            if progress is not None:
                progress(name, repeat, sample)
    return samples
