"""Node methods scored against true nodes, and path patching against true edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mech_interp import planted
from mech_interp.methods.circuits.acdc import acdc_nodes
from mech_interp.methods.circuits.certificate.cases import BUDGET, Bench, Case, task_of
from mech_interp.methods.circuits.certificate.edges import EXACT_BAR, TAUS
from mech_interp.methods.circuits.certificate.result import Bar, Measure, worst
from mech_interp.methods.circuits.grade import edge_auc, ranking_auc
from mech_interp.methods.circuits.node_attribution import Node, exact_nodes, node_attribution
from mech_interp.methods.circuits.paths import path_patching
from mech_interp.methods.common import Floats
from mech_interp.sites import Site

AGREEMENT_BAR = Bar("at most", 1e-5)
_FEW = 4


def exact(case: Case) -> Floats:
    """Mean exact effect of patching every head and MLP with its corrupt value, [head or MLP]."""
    nodes = [
        Node(Site("z", writer.layer, writer.head) if writer.kind == "head" else Site("mlp_out", writer.layer))
        for writer in case.task.graph.writers[1:]
    ]
    effects = exact_nodes(case.task, nodes, "noising", range(len(case.task)), BUDGET)
    return np.asarray(effects.mean(0))


def attribution(**options: Any) -> Callable[[Case], Floats]:
    """Mean attribution score of every head and MLP."""

    def scores(case: Case) -> Floats:
        found = node_attribution(case.task, check=0, claims=0, memory_budget=BUDGET, **options)
        by_name = dict(zip(found.labels or (), found.scores.mean(0).tolist(), strict=True))
        return np.array([by_name[str(writer)] for writer in case.task.graph.writers[1:]])

    return scores


def pruning(case: Case) -> Floats:
    """The largest threshold at which ACDC over nodes keeps each; 0 where none does."""
    kept = np.zeros(len(case.task.graph.writers) - 1)
    for tau in TAUS:
        edges = acdc_nodes(case.task, tau, loss="metric", memory_budget=BUDGET).circuit.edges
        kept[edges[1:].any(1)] = tau
    return kept


SCORERS: Mapping[str, Callable[[Case], Floats]] = {
    "exact node patching": exact,
    "ACDC over nodes": pruning,
    "AtP": attribution(),
    "RelP": attribution(rules="relp"),
}


def nodes_section(bench: Bench) -> list[Measure]:
    """Heads and MLPs ranked by every node method, on circuits and gates under corrupt ablation."""
    measures = []
    for name in bench.scope.models:
        for gap in planted.GAPS:
            cases = [bench.case(name, gap, seed, "corrupt") for seed in bench.scope.seeds]
            for method, scorer in SCORERS.items():
                areas = [ranking_auc(np.abs(case.above_noise(scorer(case))), _true(case)) for case in cases]
                measures.append(_measure("nodes", method, name, "node AUC", worst(areas), len(cases), gap))
    return measures


def paths_section(bench: Bench) -> list[Measure]:
    """Path patching along direct edges: its own ranking, and its agreement with the edge engine's cuts.

    Agreement is measured in double precision: attention scores of hundreds of nats, where several places
    tie, leave single precision with errors of 1e-5.
    """
    measures = []
    for name in bench.circuits():
        for gap in planted.GAPS:
            cases = [bench.case(name, gap, seed, "corrupt") for seed in bench.scope.seeds]
            area = worst(
                [edge_auc(case.above_noise(direct_edges(case).mean(0)), case.truth) for case in cases]
            )
            error = max(_disagreement(name, gap, seed) for seed in bench.scope.seeds)
            method, n = "path patching, direct edge", len(cases)
            measures += [
                _measure("paths", method, name, "edge AUC", area, n, gap, EXACT_BAR),
                _measure("paths", method, name, "difference from edge cuts", error, n, gap, AGREEMENT_BAR),
            ]
    return measures


def _disagreement(name: str, gap: float, seed: int) -> float:
    """Largest difference from cutting the edge, relative to the largest value of the metric."""
    import torch

    made = planted.build(name, gap, seed, torch.float64)
    pairs = made.pairs(_FEW, seed=seed)
    case = Case(made, pairs, task_of(made.open(), pairs, name))
    return float(np.abs(direct_edges(case) - case.effects).max() / np.abs(case.task.full).max())


def direct_edges(case: Case) -> Floats:
    """Effects of all direct paths, one at a time, [pair, writer, reader], in nats."""
    graph = case.task.graph
    found = path_patching(
        case.task,
        [str(reader) for reader in graph.readers],
        "all",
        variant="direct_edge",
        normalise=False,
        control_cells=0,
        memory_budget=BUDGET,
    )
    return np.nan_to_num(found.differences).reshape(len(case.task), *graph.possible.shape)


def _true(case: Case) -> np.ndarray:
    nodes = set(case.truth.nodes())
    return np.array([writer in nodes for writer in case.task.graph.writers[1:]])


def _measure(
    section: str,
    method: str,
    model: str,
    quantity: str,
    value: float,
    n: int,
    gap: float,
    bar: Bar | None = None,
) -> Measure:
    return Measure(section, method, model, quantity, value, n, "draws of the model", gap, bar=bar)
