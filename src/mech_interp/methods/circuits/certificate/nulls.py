"""Discovery: how often the stated test finds something where there is nothing, and what on circuits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mech_interp import planted
from mech_interp.methods.circuits.certificate.cases import Bench, Case, cut_each, task_of
from mech_interp.methods.circuits.certificate.result import Bar, Measure, worst
from mech_interp.methods.common import Floats
from mech_interp.statistics import max_t_test, wilson

ALPHA = 0.05
RATE_BAR = Bar("interval begins at or below", ALPHA)


def sign_flip_max_t(effects: Floats, noise: float) -> np.ndarray:
    """Edges [edge] bool with an adjusted p of at most 0.05, from exact effects [pair, edge]."""
    return max_t_test(effects, noise_floor=noise).significant(ALPHA)


_TEST = "sign-flip max-T"
TESTS: dict[str, Callable[[Floats, float], np.ndarray]] = {_TEST: sign_flip_max_t}


def discovery_section(bench: Bench) -> list[Measure]:
    """The family-wise error rate on nulls, and the same test on circuits.

    A discovery is an edge whose exact per-prompt effect has a sign-flip max-T adjusted p of at most 0.05
    over all edges of the graph.
    """
    measures = []
    for name in planted.models("null"):
        gaps = planted.GAPS[:1] if name == "null-random-weights" else planted.GAPS
        for gap in gaps:
            measures.append(_error_rate(bench, name, gap))
    for name in bench.circuits():
        for gap in planted.GAPS:
            cases = [bench.case(name, gap, seed, "corrupt") for seed in bench.scope.seeds]
            shares, false = zip(*(_found(case) for case in cases), strict=True)
            measures += [
                Measure("discovery", _TEST, name, quantity, value, len(cases), "draws of the model", gap)
                for quantity, value in (
                    ("share of true edges found", worst(shares)),
                    ("false edges found", max(false)),
                )
            ]
    return measures


def _error_rate(bench: Bench, name: str, gap: float) -> Measure:
    """Replicates with any discovery at all; each has prompts of its own."""
    scope = bench.scope
    each = scope.replicates // scope.null_seeds
    hits = 0
    for seed in range(scope.null_seeds):
        made, model = bench.opened(name, gap, seed)
        pairs = made.pairs(each * scope.null_pairs, seed=seed)
        case = Case(made, pairs, task_of(model, pairs, name))
        effects = cut_each(case.task)[:, case.task.graph.possible]
        for part in np.split(effects, each):
            hits += bool(TESTS[_TEST](part, case.noise).any())
    n = each * scope.null_seeds
    rate = wilson(hits, n)
    return Measure(
        "discovery",
        _TEST,
        name,
        "family-wise error rate",
        hits / n,
        n,
        "replicates",
        None if name == "null-random-weights" else gap,
        f"{scope.null_pairs} pairs",
        rate.interval,
        RATE_BAR,
    )


def _found(case: Case) -> tuple[float, float]:
    """Share of true edges discovered, and how many false ones are."""
    possible = case.task.graph.possible
    hit = TESTS[_TEST](case.effects[:, possible], case.noise)
    true = case.truth.edges[possible]
    return float(hit[true].mean()), float(hit[~true].sum())
