"""Attribution patching: first-order scores of sites, nodes or edges, and how wrong they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from mech_interp.experiments.attribution_report import edge_report, node_report
from mech_interp.experiments.circuit_judging import Judged, judge, overlap, overlap_of_seeds, tell_ends
from mech_interp.experiments.circuit_task import CircuitFamily, JudgedParams, StoredTask, room, stored_task
from mech_interp.experiments.context import Context
from mech_interp.experiments.edge_scoring import prompts_at_once, score_edges, top_edges
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.result import Result
from mech_interp.experiments.resumable import resumable
from mech_interp.graph import Circuit
from mech_interp.methods.circuits.attribution import edge_result, method_name
from mech_interp.methods.circuits.attribution_result import AttributionResult
from mech_interp.methods.circuits.node_attribution import node_attribution
from mech_interp.methods.common import Floats
from mech_interp.sites import Site


class AttributionPatchingParams(JudgedParams):
    """Parameters of `attribution_patching`."""

    level: Literal["sites", "nodes", "edges"] = Field(
        default="edges",
        description="What is scored: edges of the circuit graph, its nodes (heads and MLPs), or sites.",
    )
    variant: Literal["eap", "ig-inputs", "ig-activations", "clean-corrupt"] = Field(
        default="ig-inputs",
        description="Where gradients of edges are taken: at one end, or averaged over points between the "
        "embeddings, between the outputs of each group of writers, or over both ends.",
    )
    steps: int = Field(
        default=5, ge=1, le=1000, description="Points of the variants with integrated gradients."
    )
    direction: Literal["noising", "denoising"] = Field(
        default="noising", description="Corrupt into clean (noising) or clean into corrupt (denoising)."
    )
    rules: Literal["none", "relp"] = Field(
        default="none",
        description="Backward rules: plain gradients, or those of relevance patching (RelP).",
    )
    sites: list[str] | None = Field(
        default=None, min_length=1, description="Kinds of sites for level sites, such as resid_post, z, q."
    )
    by_position: bool = Field(
        default=False,
        description="Score every position of a site apart (prompts of one length), or take the strongest "
        "edges apart by position, counted from the end.",
    )
    qk_fix: bool = Field(
        default=False, description="Score queries and keys through an exactly recomputed softmax."
    )
    check: int = Field(
        default=64, ge=0, le=10_000, description="Random edges or nodes intervened on exactly."
    )
    check_prompts: int | None = Field(
        default=64, ge=1, description="Prompts of that check; null for all of them."
    )
    claims: int = Field(
        default=16, ge=0, le=10_000, description="Strongest edges or nodes tested exactly on the other half."
    )
    circuit_fraction: float = Field(
        default=0.1, gt=0, le=1, description="Edges of the circuit that is kept, a fraction of all edges."
    )
    ranking: Literal["magnitude", "helpful"] = Field(
        default="magnitude", description="Edges by |score|, or those first that raise the metric."
    )

    @model_validator(mode="after")
    def _fits(self) -> AttributionPatchingParams:
        if self.level != "sites" and (self.sites or self.qk_fix):
            raise ValueError("sites and qk_fix belong to level sites")
        if self.level == "nodes" and self.by_position:
            raise ValueError("nodes are pooled over positions; use level sites or edges by position")
        if self.level != "edges" and self.ablation != "corrupt":
            raise ValueError("sites and nodes are patched with the corrupt run: ablation corrupt")
        return self

    def kinds(self) -> tuple[str, ...]:
        """Kinds of the sites or nodes that are scored."""
        return tuple(self.sites or ("resid_post",)) if self.level == "sites" else ("z", "mlp_out")


class AttributionPatching(CircuitFamily[AttributionPatchingParams]):
    """Scores everything with a few backward passes, then measures its own error."""

    name, version = "attribution_patching", 2
    summary = "First-order effect of every edge, node or site, with the error of the approximation."
    Params = AttributionPatchingParams

    def check_circuit(self, params: AttributionPatchingParams, facts: ModelFacts) -> None:
        """The kinds of sites, where sites are scored."""
        for kind in params.kinds() if params.level != "edges" else ():
            facts.check_site(Site(kind, 0), "sites", changed=True)

    def run(self, context: Context[AttributionPatchingParams]) -> Result:
        """Scores in units of prompts, exact checks, the circuit of the top edges."""
        params = context.params
        task, _ = stored_task(context)
        if params.level != "edges":
            judged = Judged()
            tell_ends(task, judged)
            return node_report(_nodes(context, task), judged)
        found = _edges(context, task)
        graph = task.graph
        n_edges = max(1, int(params.circuit_fraction * graph.n_edges))
        circuit = found.circuit(n_edges)
        judged = judge(
            context,
            task,
            circuit,
            scores=found.matrix,
            ranking=params.ranking,
            direction=params.direction,
            name=found.method,
            facts={"direction": params.direction, "variant": found.method},
        )
        overlap(context, task, found.scores, n_edges, judged)
        overlap_of_seeds(context, task, circuit, partial(_again, context, n_edges), judged)
        return edge_report(found, judged, room(task))


def _edges(context: Context[AttributionPatchingParams], task: StoredTask) -> AttributionResult:
    params = context.params
    if params.direction == "denoising":
        _ = task.exchanged.full  # refused here for ablations without prompts
    scores = score_edges(context, task, params.variant, params.steps, params.direction, rules=params.rules)
    return edge_result(
        task,
        scores,
        method_name(params.variant, params.steps, params.rules),
        params.direction,
        check=params.check,
        check_prompts=params.check_prompts,
        claims=params.claims,
        seed=context.seed,
        memory_budget=context.budget.memory_bytes,
        at_once=prompts_at_once(context, task),
        by_position=partial(_apart, context, task) if params.by_position else None,
    )


def _again(
    context: Context[AttributionPatchingParams], n_edges: int, task: StoredTask, label: str
) -> Circuit:
    """The circuit on other prompts."""
    params = context.params
    given = params.variant, params.steps, params.direction
    scores = score_edges(context, task, *given, rules=params.rules, label=label)
    return top_edges(task.graph, scores, n_edges)


def _apart(context: Context[AttributionPatchingParams], task: StoredTask, items: Sequence[int]) -> Floats:
    params = context.params
    given = params.variant, params.steps, params.direction
    return score_edges(context, task, *given, rules=params.rules, apart=items)


def _nodes(context: Context[AttributionPatchingParams], task: StoredTask) -> AttributionResult:
    params = context.params
    if params.rules == "none":  # other rules change the blocks themselves, so they need the bare model
        task = _with_model(task, resumable(task.model, context, "nodes"))
    return node_attribution(
        task,
        kinds=params.kinds(),
        by_position=params.by_position,
        direction=params.direction,
        qk_fix=params.qk_fix,
        rules=params.rules,
        check=params.check,
        check_prompts=params.check_prompts,
        claims=params.claims,
        seed=context.seed,
        memory_budget=context.budget.memory_bytes,
        progress=lambda done, total: context.progress(done, total, "prompts scored"),
    )


def _with_model(task: StoredTask, model: Any) -> StoredTask:
    """The task on a model whose exact rows are stored; what both ends measured is kept."""
    other = replace(task, model=model)
    other.__dict__.update({name: task.__dict__[name] for name in ("full", "empty") if name in task.__dict__})
    return other


FAMILY = AttributionPatching()
