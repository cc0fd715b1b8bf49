"""Every circuit result carries the same figures: how faithful, how small, how stable, against what."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mech_interp.experiments.circuit_task import JudgedParams, StoredTask, ends_errors, room, stored_task
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import load_data
from mech_interp.experiments.parts import by_group, share, span
from mech_interp.experiments.result import Control, Finding, Metric
from mech_interp.graph import Circuit
from mech_interp.graph_drawing import circuit_view, to_dot
from mech_interp.graph_io import SavedCircuit, to_dict, to_eap_ig
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.faithfulness import faithfulness, faithfulness_curve
from mech_interp.methods.circuits.faithfulness_result import CurveResult, FaithfulnessResult
from mech_interp.methods.circuits.minimality import completeness, minimality
from mech_interp.methods.circuits.stability import (
    ENOUGH,
    StabilityResult,
    bootstrap_jaccard,
    jaccard_of_runs,
)
from mech_interp.methods.common import Floats
from mech_interp.statistics import MIN_GROUPS, bootstrap_mean
from mech_interp.views import View

SHARE = "fraction of m(all) - m(none)"
Again = Callable[[StoredTask, str], Circuit]
"""(a task on other prompts, a label for its units) to the circuit found on it."""
_UNITS = {"logit_difference": "logits", "kl": "nats"}


@dataclass
class Judged:
    """Parts of a result that judge a circuit."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    graphs: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


def judge(
    context: Context[Any],
    task: CircuitTask,
    circuit: Circuit,
    *,
    scores: Floats | None = None,
    ranking: str = "magnitude",
    direction: str = "noising",
    name: str = "circuit",
    facts: Mapping[str, Any] | None = None,
    drawn: Floats | None = None,
) -> Judged:
    """Faithfulness of a circuit, the curve of the edges by score, completeness, files.

    `scores` [writer, reader] rank the edges of the curve; without them there is no curve. `drawn` colours
    the figure's edges (the scores by default).
    """
    params: JudgedParams = context.params
    out = Judged()
    tell_ends(task, out)
    budget = context.budget.memory_bytes

    def progress(what: str) -> Any:
        return lambda done, total: context.progress(done, total, what)

    found = faithfulness(
        task,
        circuit,
        name=name,
        random=params.random_circuits,
        seed=context.seed,
        memory_budget=budget,
        progress=progress("random circuits"),
    )
    _faithfulness(found, task, out)
    if scores is not None:
        curve = faithfulness_curve(
            task,
            scores,
            fractions=params.fractions,
            ranking=ranking,  # type: ignore[arg-type]  # checked where it comes from
            direction=direction,
            random=params.curve_random,
            name=name,
            seed=context.seed,
            memory_budget=budget,
            progress=progress("circuits of the curve"),
        )
        _curve(curve, out)
    if params.completeness and any(node.kind != "input" for node in circuit.pruned().nodes()):
        _completeness(context, task, circuit, out)
    shown = scores if drawn is None else drawn
    out.views["circuit"] = circuit_view(
        found.circuit,
        shown,
        title=f"Circuit by {name} ({task.name}, {task.model.info.name})",
        value_label="score",
        most=60,
        note=f"faithfulness {share(found.faithfulness)}",
    )
    _files(found, task, shown, facts or {}, out)
    return out


def tell_ends(task: CircuitTask, out: Judged) -> None:
    """The metric at both ends, and whether the circuits of all and of no edges reach them."""
    unit = _UNITS.get(task.metric_name, task.metric_name.replace("_", " "))
    for name, values in (("model_metric", task.full), ("ablated_metric", task.empty)):
        out.metrics[name] = Metric.of(
            bootstrap_mean(values, task.groups), unit=unit, per_group=by_group(values, task.groups)
        )
    expected = {
        "all_edges": "the circuit of all edges is the model",
        "no_edges": "the circuit without edges is the corrupt run",
    }
    for name, error in ends_errors(task).items():
        out.controls.append(Control(name, expected[name], error, error <= room(task), sanity=True))


def _faithfulness(found: FaithfulnessResult, task: CircuitTask, out: Judged) -> None:
    random = found.random
    beside = None
    if len(random):
        beside = {
            "name": "random connected circuits of equal size (median; lowest and highest)",
            "value": float(np.median(random)),
            "interval": [float(random.min()), float(random.max())],
            "n": len(random),
        }
        own = abs(1 - found.faithfulness.value)
        out.controls.append(
            Control(
                "random_circuits",
                f"none of {len(random)} random circuits of equal size is as faithful",
                float(random[np.abs(1 - random).argmin()]),
                bool((np.abs(1 - random) > own).all()),
            )
        )
    gap = float((found.full - found.empty).mean())
    out.metrics["faithfulness"] = Metric.of(
        found.faithfulness,
        unit=SHARE,
        control=beside,
        per_group=by_group((found.values - found.empty) / gap, task.groups),
    )
    counted = found.circuit.graph.convention
    for key, value, unit in (
        ("circuit_edges", len(found.circuit), "edges"),
        ("circuit_share", found.share, "fraction of all edges"),
        ("circuit_nodes", sum(node.kind != "input" for node in found.circuit.nodes()), "heads and MLPs"),
    ):
        out.metrics[key] = _count(
            value, found.circuit.graph.n_edges, unit, f"after pruning to paths; {counted}"
        )
    out.tables["circuit_edges"] = [{"edge": edge} for edge in found.circuit.names()]
    size = f"{len(found.circuit):,} of {found.circuit.graph.n_edges:,} edges ({found.share:.1%})"
    band = f", random circuits {span(random)}" if len(random) else ""
    out.findings.append(
        Finding(
            f"{found.name}: {size} keep {share(found.faithfulness)} of what tells the model from the "
            f"{found.ablation} ablation on {found.task}{band}.",
            ["faithfulness", "circuit_share", "circuit"],
            ["all_edges", *(["random_circuits"] if len(random) else [])],
        )
    )
    out.caveats += [
        f"Faithfulness depends on what removed edges carry ({found.ablation}); another ablation asks another "
        "question.",
        "That a circuit suffices does not make it the only one: overlap with a reference says nothing of "
        "faithfulness, and the reverse.",
    ]


def _count(value: float, n: int, unit: str, method: str) -> Metric:
    return Metric(value=value, n=n, unit=unit, method=method, reason="a count of edges has no interval")


def _curve(curve: CurveResult, out: Judged) -> None:
    n = f"{len(curve.fractions)} sizes, edges taken before pruning"
    for fraction, estimate in curve.headline.items():
        out.metrics[f"faithfulness_at.{fraction * 100:g}_percent"] = Metric.of(estimate, unit=SHARE)
    for key, estimate, better in (
        ("log_area", curve.log_area, "higher"),
        ("log_distance", curve.log_distance, "lower"),
    ):
        out.metrics[key] = Metric.of(estimate, unit="mean of f", better=better)
    for key, better in (("cmd", "lower"), ("cpr", "higher")):
        if curve.reaches_all:
            out.metrics[key] = Metric.of(getattr(curve, key), unit=f"area ({n})", better=better)
        else:
            why = f"the curve ends at {curve.fractions[-1]:.1%} of the edges, and the area is one up to all"
            out.metrics[key] = Metric(value=None, n=len(curve), unit=f"area ({n})", reason=why)
    size = curve.smallest()
    if size is None:
        why = "no size keeps 0.9 from there on"
        out.metrics["share_for_0_9"] = Metric(
            value=None, n=len(curve), unit="fraction of all edges", reason=why
        )
    else:
        smallest = curve.n_edges[size] / curve.graph.n_edges
        out.metrics["share_for_0_9"] = _count(
            smallest,
            curve.graph.n_edges,
            "fraction of all edges",
            "smallest measured size from which on f >= 0.9",
        )
    out.views |= {"curve": curve.view(), "curve_sizes": curve.table_view()}
    out.tables["curve"] = [
        {
            "fraction": fraction,
            "edges_taken": curve.n_before[i],
            "edges": curve.n_edges[i],
            "faithfulness": curve.faithfulness.at(i).value,
            "faithfulness_low": (curve.faithfulness.at(i).interval or (None, None))[0],
            "faithfulness_high": (curve.faithfulness.at(i).interval or (None, None))[1],
            "random_low": float(curve.random[i].min()) if len(curve.random[i]) else None,
            "random_high": float(curve.random[i].max()) if len(curve.random[i]) else None,
        }
        for i, fraction in enumerate(curve.fractions)
    ]
    shown = ", ".join(f"{one:.0%}: {share(found)}" for one, found in curve.headline.items())
    whole = curve.reaches_all
    areas = f", CMD {share(curve.cmd, 3)}, CPR {share(curve.cpr, 3)}" if whole else ""
    out.findings.append(
        Finding(
            f"Along the ranking of {curve.name}, f at {shown or 'no headline size'}; log-axis mean "
            f"{share(curve.log_area)}{areas}.",
            ["log_area", "cmd", "cpr", "curve"],
            ["all_edges"],
        )
    )


def _completeness(context: Context[Any], task: CircuitTask, circuit: Circuit, out: Judged) -> None:
    params: JudgedParams = context.params
    budget = context.budget.memory_bytes
    whole = completeness(task, circuit, random=params.completeness, seed=context.seed, memory_budget=budget)
    least = minimality(task, circuit, seed=context.seed, memory_budget=budget)
    out.metrics["worst_incompleteness"] = Metric.of(
        whole.incompleteness.at(whole.worst),
        unit=SHARE,
        control={
            "name": f"knocked out: {', '.join(whole.knocked[whole.worst]) or 'nothing'}",
            "value": 0.0,
            "interval": None,
            "n": len(whole.knocked),
        },
    )
    out.metrics["idle_nodes"] = _count(
        len(least.idle), len(least.nodes), "nodes", "nodes that move the metric by less than one per cent"
    )
    out.views |= {"completeness": whole.view(), "minimality": least.view()}
    out.tables["minimality"] = [
        {
            "node": name,
            "effect": float(least.effects.value[i]),
            "after_knocking_out": ", ".join(least.knocked[i]),
        }
        for i, name in enumerate(least.nodes)
    ]


def overlap(
    context: Context[Any], task: CircuitTask, scores: Floats, n_edges: int, out: Judged
) -> StabilityResult | None:
    """Bootstrap Jaccard of the top circuit over groups of prompts; `scores` [n, edges]."""
    params: JudgedParams = context.params
    if params.resamples < 2 or len(set(task.groups)) < MIN_GROUPS:
        why = f"{len(set(task.groups))} groups of prompts in {params.resamples} resamples"
        out.metrics["jaccard"] = Metric(value=None, n=len(task), unit="Jaccard", reason=f"{why} show none")
        return None
    found = bootstrap_jaccard(
        task.graph, scores, n_edges, task.groups, n_resamples=params.resamples, seed=context.seed
    )
    tell_overlap(found, f"{params.resamples} bootstrap resamples of prompt groups", len(task), out)
    return found


def overlap_of_seeds(
    context: Context[Any], task: StoredTask, circuit: Circuit, again: Again, out: Judged
) -> None:
    """Jaccard of circuits found on other draws of the task's prompts, the run's own among them."""
    params, circuits = context.params, [circuit.pruned()]
    first = context.seed if params.data_seed is None else params.data_seed
    why = "" if params.seeds else "no further draws of the prompts were asked for"
    why = why if params.task is not None else "the prompts are given, and not drawn from a task"
    for seed in range(first + 1, first + 1 + params.seeds) if not why else ():
        fresh = params.model_copy(update={"data_seed": seed})
        drawn = load_data(fresh, context.model.tokenizer, context.seed)
        other, _ = stored_task(context, data=drawn, label=f"seed-{seed}")
        if _prompts(other) == _prompts(task):
            why = "every draw has all prompts of the task"
            break
        circuits.append(again(other, f"seed-{seed}").pruned())
    if why:
        out.metrics["jaccard_seeds"] = Metric(value=None, n=len(task), unit="Jaccard", reason=why)
        return
    tell_overlap(
        jaccard_of_runs(circuits), f"{len(circuits)} draws of prompts", len(task), out, "jaccard_seeds"
    )


def overlap_of(circuits: Sequence[Circuit], how: str, n: int, out: Judged) -> None:
    """Jaccard of circuits found anew on resampled groups or with other seeds."""
    tell_overlap(jaccard_of_runs(circuits), how, n, out)


def _prompts(task: CircuitTask) -> set[tuple[int, ...]]:
    return {tuple(task.clean.row(i)) for i in range(len(task))}


def tell_overlap(found: StabilityResult, how: str, n: int, out: Judged, name: str = "jaccard") -> None:
    """The metric and, below 256 prompts, the caveat."""
    low, high = found.spread
    out.metrics[name] = Metric(
        value=found.mean,
        n=n,
        unit="Jaccard",
        better="higher",
        method=f"mean over pairs of {how}; 5th to 95th percentile {low:.2f} to {high:.2f}",
        reason="overlaps of pairs are not independent, so there is no interval",
    )
    few = f"The overlap rests on {n} prompts, fewer than the {ENOUGH} that a stable one needs."
    if n < ENOUGH and few not in out.caveats:
        out.caveats.append(few)


def _files(
    found: FaithfulnessResult,
    task: CircuitTask,
    scores: Floats | None,
    facts: Mapping[str, Any],
    out: Judged,
) -> None:
    said = {
        "model": found.model,
        "task": found.task,
        "metric": found.metric,
        "ablation": found.ablation,
        "method": found.name,
        "faithfulness": found.faithfulness.to_dict(),
        **facts,
    }
    saved = SavedCircuit(found.circuit, scores, said)
    info = task.model.info
    out.graphs["circuit.json"] = json.dumps(to_dict(saved), ensure_ascii=False, allow_nan=False, indent=1)
    title = f"{found.name} ({found.task}, {found.model})"
    out.graphs["circuit.dot"] = to_dot(saved, title=title)
    out.graphs["circuit.eap-ig.json"] = json.dumps(to_eap_ig(saved, info.d_model), allow_nan=False)
