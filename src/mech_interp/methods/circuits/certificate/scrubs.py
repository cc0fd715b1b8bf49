"""Causal scrubbing on planted models: the true mechanism recovers everything, wrong ones nothing."""

from __future__ import annotations

from typing import Any

from mech_interp import planted
from mech_interp.methods.circuits.certificate.cases import BUDGET, Bench
from mech_interp.methods.circuits.certificate.claims import Claims, claims_about
from mech_interp.methods.circuits.certificate.result import Bar, Measure
from mech_interp.methods.circuits.scrubbing import causal_scrubbing
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis
from mech_interp.statistics import Estimate

TRUE_BAR = Bar("interval holds", 1.0)
WRONG_BAR = Bar("at most", 0.05)


def recovered(model: Any, claims: Claims, hypothesis: Hypothesis, samples: int) -> Estimate:
    """The share of the answer's lead that a hypothesis recovers, with its interval."""
    found = causal_scrubbing(
        model,
        claims.prompts,
        claims.metric,
        hypothesis,
        claims.features,
        samples=samples,
        control=False,
        metric_name="logit difference",
        memory_budget=BUDGET,
    )
    return found.recovered


def scrubbing_section(bench: Bench) -> list[Measure]:
    """Every hypothesis on every circuit and gate of the scope."""
    scope, measures = bench.scope, []
    for name in scope.models:
        for gap in planted.GAPS:
            made, model = bench.opened(name, gap, scope.seeds[0])
            claims = claims_about(made, scope.prompts)
            for hypothesis in (claims.true, *claims.wrong):
                found = recovered(model, claims, hypothesis, scope.samples)
                measures.append(
                    Measure(
                        "scrubbing",
                        "causal scrubbing",
                        name,
                        "share recovered",
                        found.value,
                        len(claims.prompts),
                        "prompts",
                        gap,
                        hypothesis.name,
                        found.interval,
                        TRUE_BAR if hypothesis is claims.true else WRONG_BAR,
                    )
                )
    return measures
