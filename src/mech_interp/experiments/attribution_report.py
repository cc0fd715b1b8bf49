"""Metrics, tables, views and sentences of attribution patching."""

from __future__ import annotations

from typing import Any

import numpy as np

from mech_interp.experiments.circuit_judging import Judged
from mech_interp.experiments.parts import flat
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.methods.circuits.attribution_result import AttributionResult
from mech_interp.methods.common import brief


def edge_report(found: AttributionResult, judged: Judged, most: float) -> Result:
    """The result of edge attribution: scores, their error, and the circuit of the top edges; `most` is the
    size of harmless rounding."""
    assert found.graph is not None
    metrics = {**_error(found), **_claims(found), **judged.metrics}
    apart, tables = found.positions, {**judged.tables}
    controls = list(judged.controls)
    if apart is not None:
        tables["positions"] = flat(apart.table())
        sums = "the scores of an edge at all positions sum to its score"
        controls.append(Control("positions_sum", sums, apart.error, apart.error < most, True))
    return Result(
        question=f"Which edges of {found.model} carry {found.task}?",
        method=(
            f"Edge attribution patching ({found.method}; {found.direction}): the first-order effect on the "
            f"{found.metric.replace('_', ' ')} of giving each edge its {found.ablation} value, from frozen "
            f"weights. {found.graph.convention}. The scores' own error is measured by exact interventions on "
            "random edges; the strongest edges are chosen on one half of the groups and tested exactly on "
            "the other (sign-flip max-T). The circuit holds the edges of largest score, pruned to paths."
        ),
        metrics=metrics,
        tables={"top": flat(found.table()), "claims": flat(found.claims_table()), **tables},
        tensors={"scores": found.matrix, **judged.tensors},
        views={**_views(found), **judged.views},
        graphs=judged.graphs,
        findings=[_wrong(found), *judged.findings],
        controls=controls,
        caveats=[*judged.caveats, *_caveats(found)],
    )


def node_report(found: AttributionResult, judged: Judged) -> Result:
    """The result of attribution at nodes or sites, which make no circuit of edges."""
    return Result(
        question=f"Which {found.what} of {found.model} carry {found.task}?",
        method=(
            f"Attribution patching ({found.method}; {found.direction}): the first-order effect on the "
            f"{found.metric.replace('_', ' ')} of patching each of {found.n_items} nodes. The scores' own "
            "error is measured by exact patches of random nodes; the strongest are chosen on one half of the "
            "groups and tested exactly on the other (sign-flip max-T)."
        ),
        metrics={**_error(found), **_claims(found), **judged.metrics},
        tables={"top": flat(found.table(found.n_items)), "claims": flat(found.claims_table())},
        tensors={"scores": found.mean},
        views=_views(found),
        findings=[_wrong(found)],
        controls=judged.controls,
        caveats=_caveats(found),
    )


def _views(found: AttributionResult) -> dict[str, Any]:
    named = {
        "top": found.view(),
        "positions": found.positions_view(),
        "approximation": found.approximation_view(),
        "claims": found.claims_view(),
    }
    return {name: view for name, view in named.items() if view is not None}


def _error(found: AttributionResult) -> dict[str, Metric]:
    """How far the scores are from exact effects."""
    checked = found.approximation
    if checked is None:
        return {}
    unit = found.metric.replace("_", " ")
    return {
        "approximation_pearson": Metric.of(checked.pearson, unit="correlation", better="higher"),
        "approximation_spearman": Metric.of(checked.spearman, unit="correlation", better="higher"),
        "approximation_error": Metric.of(
            checked.mean_absolute_error,
            unit=unit,
            better="lower",
            control={
                "name": "mean |exact effect| of the same items",
                "value": checked.mean_absolute_effect,
                "interval": None,
                "n": len(checked),
            },
        ),
    }


def _claims(found: AttributionResult) -> dict[str, Metric]:
    claims = found.claims
    if claims is None:
        return {}
    return {
        "discovered": Metric(
            value=len(claims.discovered),
            n=len(claims.items),
            unit=found.what,
            absolute=1.0,  # on another processor a borderline p may fall on the other side
            method="exact effect on the other half, max-T over the claimed items, p <= 0.05",
            reason="a count of tested items has no interval",
        )
    }


def _wrong(found: AttributionResult) -> Finding:
    """What the run says about its own approximation and its claims."""
    checked, claims = found.approximation, found.claims
    parts, evidence = [], ["top"]
    if checked is not None:
        parts.append(
            f"On {len(checked)} random {found.what} the scores correlate {brief(checked.pearson)} with exact "
            f"effects (mean absolute error {checked.mean_absolute_error.value:.2g} where effects are "
            f"{checked.mean_absolute_effect:.2g} on average)"
        )
        evidence.append("approximation_pearson")
    if claims is not None:
        parts.append(
            f"{len(claims.discovered)} of the {len(claims.items)} strongest {found.what} have an exact "
            "effect on the other half of the prompts"
        )
        evidence.append("discovered")
    strongest = found.label(found.top(1)[0])
    text = "; ".join(parts) or f"The largest score is that of {strongest}"
    return Finding(f"{text}.", evidence)


def _caveats(found: AttributionResult) -> list[str]:
    out = ["Scores are first-order: saturated attention and several edges at once are beyond them."]
    if found.weak_prompts:
        out.append(
            f"{len(found.weak_prompts)} of {len(found)} prompts differ little between clean and ablated runs."
        )
    if found.approximation is not None and not np.isfinite(found.approximation.pearson.value):
        out.append("The correlation with exact effects could not be computed.")
    return [*out, *(f"Note: {note}." for note in found.notes)]
