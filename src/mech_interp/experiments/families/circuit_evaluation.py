"""Circuit evaluation: how faithful, complete, minimal and stable a stated circuit is."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mech_interp.errors import InputError
from mech_interp.experiments.circuit_judging import Judged, judge, overlap, overlap_of_seeds
from mech_interp.experiments.circuit_task import CircuitFamily, JudgedParams, StoredTask, stored_task
from mech_interp.experiments.context import Context
from mech_interp.experiments.edge_scoring import score_edges, top_edges
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.result import Metric, Result
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.graph_io import FORMAT, SavedCircuit, from_dict, from_eap_ig, grouped
from mech_interp.methods.circuits.grade import grade_heads, load_reference
from mech_interp.methods.common import Floats

_SOURCES = ("circuit", "edges", "nodes", "scores")


class CircuitEvaluationParams(JudgedParams):
    """Parameters of `circuit_evaluation`."""

    circuit: str | None = Field(
        default=None,
        min_length=1,
        description="A circuit file: JSON that a run wrote (graphs/circuit.json), or an EAP-IG graph.",
    )
    edges: list[str] | None = Field(
        default=None, min_length=1, description="The circuit's edges, such as a5.h5->a9.h9<q>."
    )
    nodes: list[str] | None = Field(
        default=None, min_length=1, description="Heads and MLPs; the circuit is all edges among them."
    )
    scores: Literal["eap", "ig-inputs", "ig-activations", "clean-corrupt"] | None = Field(
        default=None, description="Edges ranked by a method's scores, measured here."
    )
    steps: int = Field(default=5, ge=1, le=1000, description="Points of integrated gradients.")
    circuit_fraction: float = Field(
        default=0.1, gt=0, le=1, description="Edges of the circuit that scores give, a fraction of all."
    )
    reference: str | None = Field(
        default=None, min_length=1, description="A published circuit to grade heads against, or a file."
    )

    @model_validator(mode="after")
    def _one_circuit(self) -> CircuitEvaluationParams:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"the circuit is given as {' and as '.join(given)}" if given else "no circuit is given"
            raise ValueError(f"{what}; give one of {', '.join(_SOURCES)}")
        return self


class CircuitEvaluation(CircuitFamily[CircuitEvaluationParams]):
    """Judges a circuit that is given."""

    name, version = "circuit_evaluation", 2
    summary = "How faithful, complete, minimal and stable a circuit is, beside random ones of its size."
    Params = CircuitEvaluationParams

    def check_circuit(self, params: CircuitEvaluationParams, facts: ModelFacts) -> None:
        """The circuit against the model's sizes."""
        graph = CircuitGraph(facts.n_layers, facts.n_heads, facts.n_kv_heads)
        if params.reference is not None:
            load_reference(params.reference)
        if params.circuit is not None:
            read_circuit(params.circuit)
        if params.edges is not None:
            Circuit.named(graph, params.edges)
        for name in params.nodes or ():
            graph.writer(name)

    def datasets(self, params: CircuitEvaluationParams, tokenizer: Any, seed: int) -> dict[str, str]:
        """The prompts, and the content of the circuit file."""
        found = super().datasets(params, tokenizer, seed)
        return found if params.circuit is None else {**found, "circuit": _sha256(params.circuit)}

    def run(self, context: Context[CircuitEvaluationParams]) -> Result:
        """Evaluate in units of several circuits."""
        params = context.params
        task, _ = stored_task(context)
        per_prompt: Floats | None = None
        if params.scores is not None:
            per_prompt = score_edges(context, task, params.scores, params.steps, "noising")
            matrix = np.zeros(task.graph.possible.shape)
            matrix[task.graph.possible] = per_prompt.mean(0)
            n_edges = max(1, int(params.circuit_fraction * task.graph.n_edges))
            saved = SavedCircuit(Circuit.top(task.graph, matrix, n_edges), matrix)
        else:
            saved = self._given(context, task.graph)
        name = params.scores or "the stated circuit"
        usable = saved.scores is not None and bool(np.isfinite(saved.scores).all())
        judged = judge(
            context,
            task,
            saved.circuit,
            scores=saved.scores if usable else None,
            name=name,
            drawn=saved.scores,
        )
        if per_prompt is not None:
            overlap(context, task, per_prompt, len(saved.circuit), judged)
            again = partial(_again, context, len(saved.circuit))
            overlap_of_seeds(context, task, saved.circuit, again, judged)
        if params.reference is not None:
            _grade(saved.circuit, params.reference, judged)
        return Result(
            question=f"How good is {name} of {task.model.info.name} on {task.name}?",
            method=(
                f"Circuit evaluation: the edges outside the circuit carry their {task.ablation} value; f(C) "
                "= (m(C) - m(none)) / (m(all) - m(none)), a ratio of means over prompts. "
                f"{task.graph.convention}. Beside it random connected circuits of equal size. 95 % intervals "
                "by cluster bootstrap over groups."
            ),
            metrics=judged.metrics,
            tables=judged.tables,
            tensors=judged.tensors,
            views=judged.views,
            graphs=judged.graphs,
            findings=judged.findings,
            controls=judged.controls,
            caveats=judged.caveats,
        )

    def _given(self, context: Context[CircuitEvaluationParams], graph: CircuitGraph) -> SavedCircuit:
        params = context.params
        if params.circuit is not None:
            saved = read_circuit(params.circuit)
            context.dataset("circuit", _sha256(params.circuit), len(saved.circuit))
            if saved.graph != graph and saved.graph == graph.ungrouped():
                saved = grouped(saved, graph.n_kv_heads)
            return saved
        if params.edges is not None:
            return SavedCircuit(Circuit.named(graph, params.edges))
        return SavedCircuit(circuit_of_nodes(graph, params.nodes or []))


def _again(context: Context[CircuitEvaluationParams], n_edges: int, task: StoredTask, label: str) -> Circuit:
    """The circuit that scores give on other prompts."""
    params = context.params
    assert params.scores is not None
    return top_edges(
        task.graph, score_edges(context, task, params.scores, params.steps, "noising", label=label), n_edges
    )


def circuit_of_nodes(graph: CircuitGraph, names: list[str]) -> Circuit:
    """All edges among named nodes, the embedding and the logits."""
    edges = graph.possible.copy()
    kept = {0, *(graph.writer(name) for name in names)}
    edges[[i for i in range(len(graph.writers)) if i not in kept]] = False
    return Circuit(graph, edges).pruned()


def read_circuit(path: str) -> SavedCircuit:
    """A circuit file: our own JSON, or the graph JSON of EAP-IG.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        data = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The circuit file {path!r} cannot be read: {error}.", "Check the path.") from None
    return from_dict(data) if data.get("format") == FORMAT else from_eap_ig(data)


def _sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"The circuit file {path!r} cannot be read: {error}.", "Check the path.") from None


def _grade(circuit: Circuit, reference: str, judged: Judged) -> None:
    grade = grade_heads(circuit, load_reference(reference))
    judged.metrics["reference_recall"] = Metric.of(
        grade.overall,
        unit="fraction of the reference's heads",
        control={"name": "as many random heads", "value": grade.chance, "interval": None, "n": grade.total},
    )
    if grade.precision is not None:
        judged.metrics["reference_precision"] = Metric.of(grade.precision, unit="fraction of found heads")
    judged.views["grade"] = grade.view()


FAMILY = CircuitEvaluation()
