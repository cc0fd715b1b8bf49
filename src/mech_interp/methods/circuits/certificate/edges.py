"""Edge methods scored against true edges: exact patching, ACDC, gates, attribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mech_interp import planted
from mech_interp.graph import Circuit
from mech_interp.methods.circuits.approximation import correlation
from mech_interp.methods.circuits.certificate.cases import Bench, Case, cut_each
from mech_interp.methods.circuits.certificate.result import Bar, Measure, worst
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.grade import circuits_auc, edge_auc
from mech_interp.methods.common import Floats
from mech_interp.planted.model import Ablation

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.backward_rules import Rules
    from mech_interp.backends.metrics import Metric

EXACT_BAR = Bar("at least", 0.99)
COMPILED_BAR = Bar("at least", 1.0)
GRADIENT_BAR = Bar("at least", 0.95)
COMPILED = ("reverse", "proportion")
"""The classic compiled tasks, on which zero-ablation ACDC must be perfect."""
VARIANTS = ("eap", "ig-inputs", "ig-activations", "clean-corrupt")
INTEGRATED = VARIANTS[1:]
"""Those that average gradients over several points: EAP-IG."""
INTEGRALS = ("ig-inputs", "ig-activations")
"""Those that follow a path; the mean of the two ends alone sees nothing that is flat at both."""
_GRADED = ("edge AUC", "edge AUC above rounding", "correlation with exact effects")
STEPS = 5
TAUS = tuple(10.0**exponent for exponent in np.arange(-2.0, 1.01, 0.5))
"""Thresholds of the task loss, in nats."""
KL_TAUS = tuple(10.0**exponent for exponent in np.arange(-6.0, 1.01, 1.0))
BRANCHES = {
    ("or-gate", "noising"): 1,
    ("or-gate", "denoising"): 2,
    ("and-gate", "noising"): 2,
    ("and-gate", "denoising"): 1,
}
"""Branches that greedy pruning keeps, by gate and direction."""
_DRAWS = "draws of the model"


def exact_scores(case: Case) -> Floats:
    """Mean exact effect of cutting each edge, [writer, reader]."""
    return np.asarray(case.effects.mean(0))


def attribution(variant: str, rules: Rules = "none") -> Callable[[Case], Floats]:
    """Scores of one attribution method."""

    def scores(case: Case) -> Floats:
        from mech_interp.backends.huggingface.edge_gradients import edge_scores

        engine, metric = case.task.engine, case.task.metric
        found = edge_scores(engine, metric, variant=variant, steps=STEPS, rules=rules)  # type: ignore[arg-type]
        return np.asarray(found.double().mean(0).cpu().numpy())

    return scores


SCORERS: Mapping[str, Callable[[Case], Floats]] = {
    "exact edge patching": exact_scores,
    **{variant: attribution(variant) for variant in VARIANTS},
    "relp": attribution("eap", "relp"),
}


def acdc(task: CircuitTask, loss: Metric, tau: float) -> Circuit:
    """The circuit that ACDC keeps, as it is, unpruned."""
    from mech_interp.backends.huggingface.edge_pruning import prune_edges

    edges = np.zeros_like(task.graph.possible)
    for decisions in prune_edges(task.engine, loss, tau):
        edges[list(decisions.kept), decisions.reader] = True
    return Circuit(task.graph, edges)


def exact_section(bench: Bench) -> list[Measure]:
    """Exact edge patching: every edge cut by itself, ranked by its mean effect."""
    measures = []
    for name, gap, ablation in _truths(bench):
        found = [
            edge_auc(case.above_noise(SCORERS["exact edge patching"](case)), case.truth)
            for case in (bench.case(name, gap, seed, ablation) for seed in bench.scope.seeds)
        ]
        measures.append(
            _auc("exact", "exact edge patching", name, gap, f"{ablation} ablation", found, EXACT_BAR)
        )
    return measures


def acdc_section(bench: Bench) -> list[Measure]:
    """ACDC over thresholds, with the task loss and with the divergence from the full model."""
    measures = []
    for name, gap, ablation in _truths(bench):
        by_loss: dict[str, list[float]] = {"task loss": [], "KL": []}
        for seed in bench.scope.seeds:
            case = bench.case(name, gap, seed, ablation)
            for loss, taus in (("task loss", TAUS), ("KL", KL_TAUS)):
                circuits = [acdc(case.task, loss_of(case, loss), tau) for tau in taus]
                by_loss[loss].append(circuits_auc(circuits, case.truth))
        perfect = ablation == "zero" and name in COMPILED
        for loss, found in by_loss.items():
            bar = COMPILED_BAR if perfect else EXACT_BAR
            measures.append(_auc("acdc", f"ACDC, {loss}", name, gap, f"{ablation} ablation", found, bar))
    return measures


def loss_of(case: Case, kind: str) -> Metric:
    """What ACDC keeps low: the wrong answer's lead, or the divergence from the full model."""
    from mech_interp.backends.metrics import KLDivergence, LogitDifference

    if kind == "task loss":
        return LogitDifference(case.pairs.wrong, case.pairs.answer)
    logits = case.task.model.forward(case.pairs.clean, logits="last").logits
    assert logits is not None
    return KLDivergence(logits)


def gates_section(bench: Bench) -> list[Measure]:
    """OR and AND: which branches ACDC keeps from either end, and which single cuts show."""
    measures = []
    for name in bench.gates():
        for gap in planted.GAPS:
            for direction in ("noising", "denoising"):
                kept, seen = [], []
                for seed in bench.scope.seeds:
                    case = bench.case(name, gap, seed, "corrupt")
                    kept.append(_branches_kept(case, direction))
                    seen.append(_branches_seen(case, direction))
                wanted = BRANCHES[name, direction]
                bar, n = Bar("exactly", wanted), len(kept)
                measures += [
                    Measure(
                        "gates",
                        method,
                        name,
                        quantity,
                        _furthest(found, wanted),
                        n,
                        _DRAWS,
                        gap,
                        direction,
                        bar=bar if method == "ACDC, task loss" or wanted == 2 else None,
                    )
                    for method, quantity, found in (
                        ("ACDC, task loss", "branches kept", kept),
                        ("exact edge patching", "branches with an effect", seen),
                    )
                ]
    return measures


def gradients_section(bench: Bench) -> list[Measure]:
    """Attribution on circuits and gates: its ranking, what it sees at all, how near it is to exact effects.

    An area above rounding counts scores as zeros, all tied, where no exact measurement could tell them from
    zero: where a gradient has vanished, the order of what is left of it is no finding.
    """
    measures = []
    for gap in planted.GAPS:
        for variant in (*VARIANTS, "relp"):
            found = {
                name: np.array(
                    [
                        _graded(case, SCORERS[variant](case))
                        for case in (bench.case(name, gap, seed, "corrupt") for seed in bench.scope.seeds)
                    ]
                )
                for name in bench.scope.models
            }
            for name, graded in found.items():
                measures += [
                    Measure("gradients", variant, name, quantity, worst(column), len(column), _DRAWS, gap)
                    for quantity, column in zip(_GRADED, graded.T.tolist(), strict=True)
                ]
            means = np.array([graded.mean(0) for graded in found.values()]).mean(0)
            for quantity, mean in zip(_GRADED[:2], means[:2].tolist(), strict=True):
                soft = gap == min(planted.GAPS)
                barred = soft and variant in (INTEGRATED if quantity == "edge AUC" else INTEGRALS)
                measures.append(
                    Measure(
                        "gradients",
                        variant,
                        "all models",
                        f"mean {quantity}",
                        mean,
                        len(found),
                        "models",
                        gap,
                        bar=GRADIENT_BAR if barred else None,
                    )
                )
    return measures


def _truths(bench: Bench) -> list[tuple[str, float, Ablation]]:
    return [
        (name, gap, ablation)
        for name in bench.circuits()
        for gap in planted.GAPS
        for ablation in bench.truths(name)
    ]


def _auc(
    section: str, method: str, model: str, gap: float, condition: str, found: list[float], bar: Bar
) -> Measure:
    return Measure(
        section, method, model, "edge AUC", worst(found), len(found), _DRAWS, gap, condition, bar=bar
    )


def _graded(case: Case, scores: Floats) -> tuple[float, float, float]:
    """Edge AUC; the same with scores within rounding as zeros; correlation with exact effects."""
    possible = case.task.graph.possible
    return (
        edge_auc(scores, case.truth),
        edge_auc(case.above_noise(scores), case.truth),
        correlation(scores[possible], exact_scores(case)[possible]),
    )


def _branches(case: Case) -> list[set[tuple[int, int]]]:
    """The two edges of each branch of a gate."""
    heads = [case.made.groups[side][0] for side in ("left", "right")]
    graph = case.task.graph
    return [{graph.edge(f"input->{head}<v>"), graph.edge(f"{head}->m1")} for head in heads]


def _branches_kept(case: Case, direction: str) -> float:
    """Branches that ACDC keeps, and nothing but them and their way to the logits, at every threshold.

    NaN where thresholds differ, a branch is kept in part, or anything else is.
    """
    task, loss = case.task, loss_of(case, "task loss")
    if direction == "denoising":  # the corrupt run is live, and must stay without the answer
        task, loss = task.exchanged, case.pairs.metric
    way_out = {task.graph.edge("m1->logits")}
    counts = set()
    for tau in TAUS:
        kept = set(map(tuple, np.argwhere(acdc(task, loss, tau).edges).tolist()))
        whole = [branch for branch in _branches(case) if branch <= kept]
        counts.add(len(whole) if kept == way_out.union(*whole) else math.nan)
    return counts.pop() if len(counts) == 1 else math.nan


def _branches_seen(case: Case, direction: str) -> float:
    """Branches of which cutting some single edge changes the answer's lead by more than rounding."""
    effects = case.effects if direction == "noising" else cut_each(case.task.exchanged)
    mean = np.abs(effects.mean(0))
    return sum(any(mean[edge] > case.noise for edge in branch) for branch in _branches(case))


def _furthest(found: list[float], wanted: float) -> float:
    """The value furthest from the one wanted; NaN counts as furthest."""
    return math.nan if any(map(math.isnan, found)) else max(found, key=lambda value: abs(value - wanted))
