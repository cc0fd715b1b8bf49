"""What families of circuits share: parameters, refusals, and a task whose evaluations are stored units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field, field_validator

from mech_interp.backends.protocol import Capability, Progress
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import TaskSet
from mech_interp.errors import CapabilityError, InputError
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, target_positions
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import DataFamily, data_of, portions
from mech_interp.graph import Circuit
from mech_interp.methods.circuits.common import Ablation, CircuitTask
from mech_interp.methods.circuits.faithfulness import FRACTIONS
from mech_interp.methods.common import Floats, rounding
from mech_interp.methods.paired import prepare

CIRCUITS_PER_UNIT = 16
"""Circuits that one stored unit evaluates on all prompts."""
MetricName = Literal["logit_difference", "probability", "probability_difference", "kl"]
_Unit = Callable[[str, Callable[[], Mapping[str, Any]]], dict[str, Any]]


class CircuitParams(DataParams):
    """Parameters of all families that find or judge circuits."""

    metric: MetricName | None = Field(
        default=None, description="What is read off the logits at the last token; the task's own by default."
    )
    ablation: Ablation = Field(
        default="corrupt",
        description="What removed edges carry: the corrupt run's values, zero, the mean over all real "
        "tokens, or the mean at each position.",
    )


class JudgedParams(CircuitParams):
    """Parameters by which circuits are judged."""

    fractions: list[float] = Field(
        default_factory=lambda: list(FRACTIONS),
        min_length=1,
        description="Sizes of the faithfulness curve, fractions of all edges, rising to at most 1.",
    )
    random_circuits: int = Field(
        default=10, ge=0, le=1000, description="Connected random circuits of equal size, for comparison."
    )
    curve_random: int = Field(
        default=5, ge=0, le=1000, description="Random circuits at every size of the curve."
    )
    completeness: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Random sets of nodes knocked out of circuit and model, beside each node alone; 0 leaves "
        "completeness and minimality out.",
    )
    resamples: int = Field(
        default=20, ge=0, le=1000, description="Bootstrap resamples of prompt groups for the Jaccard overlap."
    )
    seeds: int = Field(
        default=2,
        ge=0,
        le=100,
        description="Further draws of the task's prompts on which the circuit is found anew, for overlap.",
    )

    @field_validator("fractions")
    @classmethod
    def _rise(cls, value: list[float]) -> list[float]:
        if not 0 < value[0] <= value[-1] <= 1 or any(a >= b for a, b in itertools.pairwise(value)):
            raise ValueError(f"{value} do not rise from above 0 to at most 1")
        return value


P = TypeVar("P", bound=CircuitParams)


class CircuitFamily(DataFamily[P]):
    """A family that works on the circuit graph."""

    needs = frozenset({Capability.EDGES.value, Capability.GRADIENTS.value})

    def check_data(self, params: P, facts: ModelFacts, data: TaskSet) -> None:
        """Refuse architectures without edges, pairs of unequal length and answers read elsewhere."""
        check_edges(facts)
        if set(target_positions(data)) - {-1}:
            raise InputError("Circuits are read at the last token.", "Leave target_position out.")
        self.check_circuit(params, facts)

    def check_circuit(self, params: P, facts: ModelFacts) -> None:
        """What a family checks besides; nothing by default."""


def check_edges(facts: ModelFacts) -> None:
    """Refuse an architecture that has no edge-level graph here.

    Raises:
        CapabilityError: naming those that have one.
    """
    from mech_interp.backends.huggingface.writers import EDGE_LEVEL

    if facts.architecture not in EDGE_LEVEL:
        known = ", ".join(name for name in EDGE_LEVEL if not name.startswith("mech"))
        raise CapabilityError(
            f"{facts.name} has no edge-level graph: edges of {facts.architecture} are not checked in this "
            "version.",
            f"Architectures with edges: {known}. Heads and MLPs as whole sites: family circuit_patching.",
        )


@dataclass(frozen=True, eq=False)
class StoredTask(CircuitTask):
    """A circuit task that keeps its evaluations of circuits as units of the run.

    Evaluations are told apart by their order, which is that of a deterministic method.
    """

    unit: _Unit | None = None
    note: Callable[[str], None] | None = None
    label: str = "circuits"
    calls: list[int] = field(default_factory=lambda: [0, 0])

    def tell(self, sentence: str) -> None:
        """A note of the run."""
        if self.note is not None:
            self.note(sentence)

    def plain(self, tokens: Tokens) -> Floats:
        """The metric of plain runs, [n]."""
        assert self.unit is not None
        self.calls[0] += 1
        key = f"{self.label}/plain/{self.calls[0]}"
        stored = self.unit(key, lambda: {"values": CircuitTask.plain(self, tokens)})
        return np.asarray(stored["values"])

    def evaluate_masks(
        self,
        masks: np.ndarray,
        prompts: Sequence[int] | None = None,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """The metric of circuits, [circuit, prompt], a unit per portion of circuits."""
        assert self.unit is not None
        self.calls[1] += 1
        found = []
        for start, stop in portions(len(masks), CIRCUITS_PER_UNIT):

            def compute(part: np.ndarray = masks[start:stop]) -> Mapping[str, Any]:
                return {"values": CircuitTask.evaluate_masks(self, part, prompts, memory_budget)}

            stored = self.unit(f"{self.label}/{self.calls[1]:03d}/{start:05d}", compute)
            found.append(np.asarray(stored["values"]))
            if progress is not None:
                progress(stop, len(masks))
        return np.concatenate(found)


def stored_task(
    context: Context[P],
    *,
    data: TaskSet | None = None,
    label: str = "circuits",
    metric: MetricName | None = None,
) -> tuple[StoredTask, TaskSet]:
    """The run's task and its pairs; what both ends measure is stored at once.

    Raises:
        InputError: for pairs that do not line up.
        UnstableRatioError: when clean and ablated runs do not differ by three standard errors.
    """
    params, model = context.params, context.model
    pairs = data_of(context) if data is None else data
    paired = prepare(model, pairs)
    name, measure = paired.metric(metric or params.metric)
    task = StoredTask(
        model,
        paired.clean,
        paired.corrupt,
        measure,
        tuple(paired.groups),
        name,
        paired.name,
        params.ablation,
        unit=context.unit,
        note=context.note,
        label=label,
    )
    task.refuse_vanishing()
    if task.weak_prompts:
        context.note(
            f"{len(task.weak_prompts)} of {len(task)} prompts have a clean-ablated difference below a "
            "quarter of the mean, or of the other sign."
        )
    return task, pairs


def ends_errors(task: CircuitTask) -> dict[str, float]:
    """How far the circuits of all and of no edges are from the model and from the ablated run.

    Largest difference over prompts, as a share of the metric's size.
    """
    graph = task.graph
    masks = np.stack([graph.possible, np.zeros_like(graph.possible)])
    everything, nothing = task.evaluate([Circuit(graph, mask) for mask in masks])
    size = max(1.0, float(np.abs(task.full).max()), float(np.abs(task.empty).max()))
    errors = {"all_edges": everything - task.full}
    if task.ablation == "corrupt":
        errors["no_edges"] = nothing - task.empty
    return {name: float(np.abs(error).max()) / size for name, error in errors.items()}


def room(task: CircuitTask) -> float:
    """The relative size of harmless rounding."""
    return rounding(task.model)
