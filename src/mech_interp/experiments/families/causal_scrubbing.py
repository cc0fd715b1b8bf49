"""Causal scrubbing: resample everything that a hypothesis says does not matter, and see what is left."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mech_interp.backends.metrics import Metric as RowMetric
from mech_interp.backends.protocol import Capability
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import TaskSet
from mech_interp.errors import InputError, nearest
from mech_interp.experiments.circuit_task import check_edges
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, Need, target_positions
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.family import FamilyParams
from mech_interp.experiments.parts import DataFamily, by_group, control, data_of, share
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.graph import CircuitGraph
from mech_interp.methods.circuits.scrubbing import AnswerLoss, causal_scrubbing, features_of
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis, find_part
from mech_interp.methods.circuits.scrubbing_result import ScrubbingResult
from mech_interp.methods.circuits.scrubbing_sites import site_scrubbing
from mech_interp.methods.common import rounding
from mech_interp.methods.paired import Paired
from mech_interp.statistics import UnstableRatioError
from mech_interp.views import View

UNITS = {
    "logit_difference": "logits",
    "probability": "probability",
    "probability_difference": "probability",
    "loss": "nats",
}
FEW = 4.0


class HypothesisNode(FamilyParams):
    """One claim of a hypothesis."""

    sites: list[str] = Field(
        min_length=1, description="Parts of the model: a1.h0, m3, a1.h0<q>, a0.h2->a1.h0<k>, or sites."
    )
    depends_on: list[str] = Field(
        default_factory=list, description="Features on which an input that stands in must agree."
    )
    inputs: list[str] = Field(default_factory=list, description="Names of the nodes that feed it and matter.")


class HypothesisParams(FamilyParams):
    """A hypothesis: what the logits depend on, node by node."""

    name: str = Field(default="hypothesis", min_length=1, description="What figures call it.")
    logits: list[str] = Field(min_length=1, description="Names of the nodes that the logits depend on.")
    nodes: dict[str, HypothesisNode] = Field(description="The nodes by name.")


class CausalScrubbingParams(DataParams):
    """Parameters of `causal_scrubbing`."""

    hypothesis: HypothesisParams | None = Field(
        default=None, description="Nodes, the sites they stand for, the features they depend on."
    )
    protected_sites: list[str] | None = Field(
        default=None, min_length=1, description="Sites that take values from an input with an equal label."
    )
    scrubbed_sites: list[str] | None = Field(
        default=None, min_length=1, description="Sites that take values from any one input."
    )
    equivalence_label: str | None = Field(
        default=None, min_length=1, description="The feature whose value is the label of the site form."
    )
    metric: Literal["logit_difference", "probability", "probability_difference", "loss"] | None = Field(
        default=None,
        description="What is read off the logits at the last token; the task's own by default. `loss` is the "
        "answer's cross-entropy in nats.",
    )
    samples: int = Field(default=8, ge=1, le=10_000, description="Draws per prompt.")
    samples_per_unit: int = Field(default=4, ge=1, le=10_000, description="Draws that one stored unit makes.")
    unimportant: Literal["shared", "separate"] = Field(
        default="shared",
        description="One input for all unimportant inputs of a node (as published), or one for each.",
    )
    within: list[str] = Field(
        default_factory=list, description="Features in which every input drawn equals the prompt's own."
    )

    @model_validator(mode="after")
    def _one_form(self) -> CausalScrubbingParams:
        sites = [self.protected_sites, self.scrubbed_sites, self.equivalence_label]
        if self.hypothesis is not None and any(one is not None for one in sites):
            raise ValueError("the hypothesis is given both as nodes and as lists of sites; give one")
        if self.hypothesis is None and any(one is None for one in sites):
            raise ValueError(
                "give a hypothesis, or protected_sites, scrubbed_sites and equivalence_label together"
            )
        if self.hypothesis is None and (self.within or self.unimportant != "shared"):
            raise ValueError("within and unimportant belong to a hypothesis")
        return self

    def need(self) -> Need:
        """Answers and foils; other inputs are those of the data set itself."""
        return "wrong"

    def stated(self) -> Hypothesis | None:
        """The hypothesis as the method takes it."""
        return None if self.hypothesis is None else Hypothesis.from_dict(self.hypothesis.model_dump())

    def features(self) -> list[str]:
        """Features that are used, besides `prompt`."""
        found = self.stated()
        named = [self.equivalence_label or ""] if found is None else [*found.features, *self.within]
        return [name for name in dict.fromkeys(named) if name != "prompt"]


class CausalScrubbing(DataFamily[CausalScrubbingParams]):
    """Tests a stated hypothesis by resampling."""

    name, version = "causal_scrubbing", 2
    summary = (
        "How much of a behaviour a stated hypothesis explains, by resampling the rest (causal scrubbing)."
    )
    needs = frozenset({Capability.EDGES.value})
    Params = CausalScrubbingParams

    def check_data(self, params: CausalScrubbingParams, facts: ModelFacts, data: TaskSet) -> None:
        """The architecture, the hypothesis itself, the sites, the features."""
        check_edges(facts)
        if set(target_positions(data)) - {-1}:
            raise InputError("The answer is read at the last token.", "Leave target_position out.")
        stated = params.stated()
        graph = CircuitGraph(facts.n_layers, facts.n_heads, facts.n_kv_heads)
        for name, node in {} if stated is None else stated.nodes.items():
            find_part(name, node, graph)
        for site in (*(params.protected_sites or ()), *(params.scrubbed_sites or ())):
            facts.check_site(site, "a site of the hypothesis", changed=True)
        known = features_of(data)
        for name in params.features():
            if name not in known:
                hint = nearest(name, known) or f"The data have: {', '.join(known)}, prompt."
                raise InputError(f"The data have no feature {name!r}.", hint)

    def run(self, context: Context[CausalScrubbingParams]) -> Result:
        """Scrub, a unit per portion of the draws."""
        params, data = context.params, data_of(context)
        sizes = [
            min(params.samples_per_unit, params.samples - at)
            for at in range(0, params.samples, params.samples_per_unit)
        ]

        def draws(number: int) -> Mapping[str, Any]:
            found = _scrub(context, data, sizes[number], context.seed + number)
            return {
                "scrubbed": found.scrubbed,
                "random": found.random,
                "shuffled": found.shuffled,
                "computed": found.computed,
                "recursive": found.recursive,
            }

        parts = list(
            context.each(list(range(len(sizes))), lambda i: f"draws/{i:04d}", draws, "portions of draws")
        )
        first = _scrub(context, data, 1, context.seed, few=True)  # nodes and identities, the same for all
        return report(_joined(first, parts, params.samples), data.name, rounding(context.model))


def _scrub(
    context: Context[CausalScrubbingParams], data: TaskSet, samples: int, seed: int, *, few: bool = False
) -> ScrubbingResult:
    params, model = context.params, context.model
    stated = params.stated()
    tokens = model.tokens([pair.clean for pair in data])
    features: dict[str, list[Hashable]] = features_of(data)
    (name, metric), groups = _metric(context, data, tokens), [pair.group for pair in data]
    budget = context.budget.memory_bytes
    if stated is None:
        return site_scrubbing(
            model,
            tokens,
            metric,
            params.protected_sites or [],
            params.scrubbed_sites or [],
            features[params.equivalence_label or ""],
            groups=groups,
            samples=samples,
            control=not few,
            metric_name=name,
            seed=seed,
            memory_budget=budget,
        )
    return causal_scrubbing(
        model,
        tokens,
        metric,
        stated,
        features,
        groups=groups,
        samples=samples,
        unimportant=params.unimportant,
        within=params.within,
        control=not few,
        metric_name=name,
        seed=seed,
        memory_budget=budget,
    )


def _metric(context: Context[CausalScrubbingParams], data: TaskSet, tokens: Tokens) -> tuple[str, RowMetric]:
    """Name and metric; prompts stand beside themselves, since nothing here needs corrupt ones."""
    paired = Paired(context.model, data.pairs, tokens, tokens, data.name, data.metric)
    if context.params.metric == "loss":
        return "loss", AnswerLoss(tuple(paired.answers("answer")))
    return paired.metric(context.params.metric)


def _joined(first: ScrubbingResult, parts: list[dict[str, Any]], samples: int) -> ScrubbingResult:
    """All draws side by side."""

    def cat(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(part[name]) for part in parts], 1)

    return replace(
        first,
        samples=samples,
        scrubbed=cat("scrubbed"),
        random=cat("random"),
        shuffled=cat("shuffled"),
        computed=sum(part["computed"] for part in parts),
        recursive=sum(part["recursive"] for part in parts),
    )


def report(found: ScrubbingResult, task: str, most: float) -> Result:
    """Metrics, tables, views and sentences; `most` is the size of harmless rounding."""
    unit = UNITS[found.metric]
    means = found.means
    metrics = {
        name: Metric.of(means[key], unit=unit, per_group=by_group(values, found.groups))
        for name, key, values in (
            ("model_metric", "model", found.plain),
            ("scrubbed_metric", "scrubbed", found.scrubbed.mean(1)),
            ("unrelated_metric", "random", found.random.mean(1)),
        )
    }
    controls = [
        Control(name, f"the identity {name.replace('_', ' ')} holds to rounding", error, error <= most, True)
        for name, error in found.sanity.items()
    ]
    views: dict[str, View] = {"draws": found.table_view()}
    caveats = []
    try:
        recovered, shuffled = found.recovered, found.control
    except UnstableRatioError as error:
        metrics["recovered"] = Metric(value=None, n=len(found), unit="fraction", reason=error.message)
        sentence = f"The recovered share cannot be stated: {error.message}"
    else:
        views = {"recovered": found.view(), **views}
        metrics["recovered"] = Metric.of(
            recovered,
            unit="fraction of m(model) - m(unrelated input)",
            better="higher",
            control=control("the same hypothesis with features dealt out at random", shuffled),
        )
        name = str(found.hypothesis.get("name", "the list of sites"))
        sentence = f"Under the hypothesis {name!r}, {share(recovered)} of {task} is recovered"
        if shuffled is not None:
            sentence += f"; with features dealt out at random {share(shuffled)}"
            controls.append(
                Control(
                    "shuffled_features",
                    "features dealt out at random recover less",
                    float(shuffled.value),
                    shuffled.value < recovered.value,
                )
            )
        sentence += "."
    few = [node for node in found.nodes if node.agreeing < FEW and node.alone < 1]
    if few:
        caveats.append(
            f"Few inputs agree for {', '.join(node.name for node in few)}: on average "
            f"{min(node.agreeing for node in few):.1f}, the prompt itself among them. A prompt drawn in its "
            "own place counts as recovered, in the control too."
        )
    if found.vacuous:
        caveats.append(f"No other input agrees for {', '.join(found.vacuous)}: these claims are not tested.")
    return Result(
        question=f"How much of {task} on {found.model} does the hypothesis explain?",
        method=(
            "Causal scrubbing (Chan et al. 2022): what matters takes its value on a uniformly drawn input "
            f"that agrees on the stated features, the rest on unrelated inputs ({found.unimportant}); "
            f"{found.samples} draws per prompt. Recovered: (scrubbed - unrelated) / (model - unrelated), a "
            f"ratio of means. {found.computed:,} values of nodes computed, {found.recursive:,} by plain "
            "recursion. 95 % intervals by cluster bootstrap over groups."
        ),
        metrics=metrics,
        tables={
            "nodes": [
                {
                    "node": node.name,
                    "parts": ", ".join(node.parts),
                    "places": node.places,
                    "agreeing": node.agreeing,
                    "alone": node.alone,
                }
                for node in found.nodes
            ]
        },
        tensors={"scrubbed": found.scrubbed},
        views=views,
        findings=[Finding(sentence, ["recovered", "nodes"], [one.name for one in controls])],
        controls=controls,
        caveats=[
            *caveats,
            "A hypothesis that recovers everything may still be coarser than need be, and one that recovers "
            "nothing may fail at a single node: scrub its parts one by one.",
            *(f"Note: {note}." for note in found.notes),
        ],
    )


FAMILY = CausalScrubbing()
