"""Where along the prompt the strongest edges act: their scores taken apart by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mech_interp.methods.common import Floats, count_note, interval_note
from mech_interp.statistics import EstimateArray, bootstrap_columns
from mech_interp.views import HeatMap

MOST = 16
"""Edges that are taken apart."""
ByPosition = Callable[[Sequence[int]], Floats]
"""(items) to their scores, [prompt, position, item]; positions are those of the longest prompt."""


@dataclass(frozen=True)
class EdgePositions:
    """Scores of some edges by position, counted from the end of each prompt.

    Prompts of different lengths share their last positions; what comes before is summed, so that a row sums
    to the score of its edge.

    Attributes:
        edges: their names, strongest first.
        columns: what each column is: ``earlier`` where prompts differ in length, then -n to -1.
        scores: [prompt, edge, column], in the metric's unit.
        error: largest difference of a sum over positions from the pooled score, over the largest score.
    """

    edges: tuple[str, ...]
    columns: tuple[str, ...]
    scores: Floats
    groups: tuple[str, ...]
    error: float
    seed: int = 0

    @cached_property
    def estimates(self) -> EstimateArray:
        """Means over prompts with their intervals, [edge, column]."""
        return bootstrap_columns(self.scores, groups=self.groups, seed=self.seed)

    def table(self) -> list[dict[str, Any]]:
        """A row for every edge and position."""
        return [
            {"edge": edge, "position": column, "score": self.estimates.at(i, j).to_dict()}
            for i, edge in enumerate(self.edges)
            for j, column in enumerate(self.columns)
        ]

    def view(self, title: str, metric: str) -> HeatMap:
        """Edges by positions."""
        return HeatMap(
            title=title,
            values=self.estimates.value.tolist(),
            row_labels=list(self.edges),
            column_labels=list(self.columns),
            row_axis="edge",
            column_axis="position from the end",
            value_label=f"estimated effect on {metric}",
            note=f"{count_note(len(self.scores), self.groups)}; {interval_note(self.estimates)} in the table",
        )


def edge_positions(
    by_position: Floats,
    pooled: Floats,
    edges: Sequence[str],
    lengths: Sequence[int],
    groups: Sequence[str],
    seed: int = 0,
) -> EdgePositions:
    """Align scores [prompt, position, edge] by the ends of their prompts; `pooled` is [prompt, edge]."""
    shared, ragged = min(lengths), len(set(lengths)) > 1
    rows = []
    for values, length in zip(by_position, lengths, strict=True):
        last = values[length - shared : length]
        rows.append(np.concatenate([values[: length - shared].sum(0)[None], last]) if ragged else last)
    size = max(float(np.abs(pooled).max()), np.finfo(float).tiny)
    return EdgePositions(
        edges=tuple(edges),
        columns=(*(["earlier"] if ragged else []), *(str(at) for at in range(-shared, 0))),
        scores=np.stack(rows).transpose(0, 2, 1),
        groups=tuple(groups),
        error=float(np.abs(by_position.sum(1) - pooled).max()) / size,
        seed=seed,
    )
