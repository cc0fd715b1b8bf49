"""How stable a circuit is: Jaccard overlap of top circuits over resampled prompts and over runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph, jaccard
from mech_interp.methods.common import Floats
from mech_interp.statistics import MIN_GROUPS, group_index

ENOUGH = 256
"""Prompts below which overlap over resamples is flagged."""


@dataclass(frozen=True)
class StabilityResult:
    """Overlap of circuits of n edges.

    Attributes:
        n_edges: taken, before pruning.
        pairwise: Jaccard of every two circuits; to_whole: of each with the circuit of all prompts.
        n_prompts, n_groups: what was resampled (0 for separate runs).
        flag: why the figure is to be read with care; empty for nothing.
    """

    n_edges: int
    pairwise: tuple[float, ...]
    to_whole: tuple[float, ...]
    n_prompts: int = 0
    n_groups: int = 0
    flag: str = ""

    @property
    def mean(self) -> float:
        """Mean Jaccard of two circuits."""
        return float(np.mean(self.pairwise))

    @property
    def spread(self) -> tuple[float, float]:
        """The 5th and 95th percentile of the pairwise overlaps."""
        low, high = np.quantile(self.pairwise, [0.05, 0.95])
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": "jaccard",
            "edges": self.n_edges,
            "pairwise_mean": self.mean,
            "pairwise_5_95": list(self.spread),
            "to_whole_mean": float(np.mean(self.to_whole)) if self.to_whole else None,
            "n_prompts": self.n_prompts,
            "n_groups": self.n_groups,
            "flag": self.flag,
        }


def bootstrap_jaccard(
    graph: CircuitGraph,
    scores: Floats,
    n_edges: int,
    groups: Sequence[str],
    *,
    prune: bool = True,
    n_resamples: int = 20,
    seed: int = 0,
) -> StabilityResult:
    """Resample groups of prompts, take the top circuit of the mean scores each time, compare.

    Args:
        scores: per prompt, [n, writer, reader] or [n, edges in order of `graph.possible`].
        n_edges: edges of each circuit, before pruning.

    Raises:
        InputError: for fewer than 8 groups, or fewer than two resamples.
    """
    index, n_groups = group_index(groups, len(scores))
    if n_groups < MIN_GROUPS or n_resamples < 2:
        raise InputError(
            f"{n_groups} groups in {n_resamples} resamples show no stability.",
            f"Use at least {MIN_GROUPS} groups and 2 resamples.",
        )
    flat = scores if scores.ndim == 2 else scores[:, graph.possible]
    generator = np.random.default_rng(seed)
    weights = np.stack(
        [
            np.bincount(generator.integers(0, n_groups, n_groups), minlength=n_groups)
            for _ in range(n_resamples)
        ]
    )[:, index].astype(np.float64)
    means = (weights @ flat) / weights.sum(1, keepdims=True)
    circuits = [_top(graph, mean, n_edges, prune) for mean in means]
    whole = _top(graph, flat.mean(0), n_edges, prune)
    flag = (
        f"{len(scores)} prompts are fewer than the {ENOUGH} that a stable overlap needs"
        if len(scores) < ENOUGH
        else ""
    )
    return StabilityResult(
        n_edges,
        _pairwise(circuits),
        tuple(jaccard(one.edges, whole.edges) for one in circuits),
        len(scores),
        n_groups,
        flag,
    )


def jaccard_of_runs(circuits: Sequence[Circuit]) -> StabilityResult:
    """Overlap of circuits found with several seeds (or orders, or prompt sets).

    Raises:
        InputError: for fewer than two circuits, or circuits of different graphs.
    """
    if len(circuits) < 2 or any(one.graph != circuits[0].graph for one in circuits):
        raise InputError("Overlap needs at least two circuits of one graph.", "Give those of several seeds.")
    size = round(float(np.mean([len(one) for one in circuits])))
    return StabilityResult(size, _pairwise(circuits), ())


def _pairwise(circuits: Sequence[Circuit]) -> tuple[float, ...]:
    return tuple(jaccard(a.edges, b.edges) for a, b in combinations(circuits, 2))


def _top(graph: CircuitGraph, mean: Floats, n_edges: int, prune: bool) -> Circuit:
    matrix = np.zeros(graph.possible.shape)
    matrix[graph.possible] = mean
    found = Circuit.top(graph, matrix, n_edges)
    return found.pruned() if prune else found
