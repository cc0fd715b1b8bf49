"""ACDC in units of a run, and what its families share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mech_interp.experiments.acdc_report import report
from mech_interp.experiments.circuit_judging import Judged, judge, overlap_of, overlap_of_seeds
from mech_interp.experiments.circuit_task import CircuitFamily, JudgedParams, P, StoredTask, stored_task
from mech_interp.experiments.context import Context
from mech_interp.experiments.result import Metric, Result
from mech_interp.methods.circuits.acdc import (
    edge_decisions,
    edge_result,
    loss_of,
    node_decisions,
    node_result,
)
from mech_interp.methods.circuits.acdc_result import AcdcResult, NodeDecision
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.faithfulness import faithfulness
from mech_interp.methods.circuits.faithfulness_result import FaithfulnessResult
from mech_interp.statistics import MIN_GROUPS, group_index

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edge_pruning import Order, Work

PER_UNIT = 8
"""Readers (or nodes) that one stored unit decides, at least."""


class AcdcParams(JudgedParams):
    """Parameters of `acdc_edge` and `acdc_lite`."""

    tau: float = Field(
        default=0.01,
        gt=0,
        description="What is removed may raise the loss by less than this, in the loss's unit.",
    )
    loss: Literal["kl", "metric"] = Field(
        default="kl",
        description="Divergence from the full model at the last token (nats), or the negative metric.",
    )
    taus: list[float] | None = Field(
        default=None, min_length=1, description="Further thresholds to search at, for the sweep."
    )
    seeds: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Searches on further draws of the task's prompts, for the overlap of their circuits.",
    )
    repeats: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Searches repeated on bootstrap resamples of prompt groups, for the Jaccard overlap; at "
        "least 2, 0 for none.",
    )

    @model_validator(mode="after")
    def _all_positive(self) -> AcdcParams:
        if any(not tau > 0 for tau in self.taus or ()):
            raise ValueError("taus must be above 0")
        return self


class AcdcFamily(CircuitFamily[P]):
    """What both families do around their search."""

    level = "edges"

    def run(self, context: Context[P]) -> Result:
        """Search at every threshold, judge the circuit, repeat on resampled prompts."""
        params: Any = context.params
        task, _ = stored_task(context)
        found = self.search(context, task, params.tau, "main")
        judged = judge(
            context,
            task,
            found.circuit,
            scores=found.scores,
            ranking="helpful",
            direction="denoising",  # a rise of the loss helps, as a rise of the metric does there
            name="ACDC" if self.level == "edges" else "ACDC over nodes",
            facts={"tau": found.tau, "loss": found.loss, "order": found.order, "level": self.level},
            drawn=np.where(np.isnan(found.effects), 0.0, found.effects),
        )
        self._repeat(context, task, judged)
        overlap_of_seeds(
            context,
            task,
            found.circuit,
            lambda other, label: self.search(context, other, params.tau, label).circuit,
            judged,
        )
        return report(found, judged, self._sweep(context, task, found))

    def search(self, context: Context[P], task: CircuitTask, tau: float, label: str) -> AcdcResult:
        """One search, in units of several readers or nodes."""
        raise NotImplementedError

    def _sweep(
        self, context: Context[P], task: StoredTask, found: AcdcResult
    ) -> list[tuple[AcdcResult, FaithfulnessResult]]:
        params: Any = context.params
        others = [tau for tau in dict.fromkeys(params.taus or ()) if tau != params.tau]
        if not others:
            return []
        every = [found, *(self.search(context, task, tau, f"tau-{tau:g}") for tau in others)]
        budget = context.budget.memory_bytes
        return [(one, faithfulness(task, one.circuit, random=0, memory_budget=budget)) for one in every]

    def _repeat(self, context: Context[P], task: StoredTask, judged: Judged) -> None:
        params: Any = context.params
        n_groups = len(set(task.groups))
        if params.repeats < 2 or n_groups < MIN_GROUPS:
            why = f"{params.repeats} repeats over {n_groups} groups of prompts show no overlap"
            judged.metrics["jaccard"] = Metric(value=None, n=len(task), unit="Jaccard", reason=why)
            return
        circuits = []
        for repeat in range(params.repeats):
            drawn = resampled(task, context.seed + repeat)
            circuits.append(self.search(context, drawn, params.tau, f"repeat-{repeat}").pruned)
        how = f"{params.repeats} searches on bootstrap resamples of prompt groups"
        overlap_of(circuits, how, len(task), judged)


def resampled(task: CircuitTask, seed: int) -> CircuitTask:
    """The task on a bootstrap resample of its groups, prompts repeated as often as drawn."""
    index, n_groups = group_index(task.groups, len(task))
    drawn = np.random.default_rng([seed, 1]).integers(0, n_groups, n_groups)
    prompts = [int(i) for group in drawn for i in np.flatnonzero(index == group)]
    return CircuitTask(
        task.model,
        task.clean.select(prompts),
        task.corrupt.select(prompts),
        _Chosen(task.metric, tuple(prompts)),
        tuple(task.groups[i] for i in prompts),
        task.metric_name,
        task.name,
        task.ablation,
    )


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """A metric whose prompt i is prompt `prompts[i]` of another."""

    metric: Any
    prompts: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions read."""
        return tuple(self.metric.positions)

    def token_ids(self, prompts: Sequence[int]) -> Any:
        """Vocabulary ids read."""
        return self.metric.token_ids([self.prompts[p] for p in prompts])

    def __call__(self, logits: Any, prompts: Sequence[int]) -> Any:
        return self.metric(logits, [self.prompts[p] for p in prompts])


def search_edges(
    context: Context[Any], task: CircuitTask, tau: float, order: Order, label: str
) -> AcdcResult:
    """ACDC over edges; a unit decides several readers, and a killed search goes on where it stopped."""
    from mech_interp.backends.huggingface.edge_pruning import ReaderDecisions, Work

    params, work, decided = context.params, Work(), list[ReaderDecisions]()
    loss = loss_of(task, params.loss)

    def start(work: Work) -> Iterator[list[ReaderDecisions]]:
        live = edge_decisions(
            task,
            loss,
            tau,
            order=order,
            seed=context.seed,
            decided=decided,
            work=work,
            memory_budget=context.budget.memory_bytes,
        )
        return ([one] for one in live)

    for stored in _blocks(context, label, len(task.graph.readers), work, start):
        decided += [_reader(one) for one in stored]
    return edge_result(task, decided, tau, params.loss, order, work.rows, work.wasted, context.seed)


def search_nodes(context: Context[Any], task: CircuitTask, tau: float, label: str) -> AcdcResult:
    """ACDC over nodes, several to a unit."""
    from mech_interp.backends.huggingface.edge_pruning import Work

    params, work, decided = context.params, Work(), list[NodeDecision]()
    loss = loss_of(task, params.loss)

    def start(work: Work) -> Iterator[list[NodeDecision]]:
        budget = context.budget.memory_bytes
        return node_decisions(task, loss, tau, decided=decided, work=work, memory_budget=budget)

    for stored in _blocks(context, label, len(task.graph.writers) - 1, work, start):
        decided += [NodeDecision(**one) for one in stored]
    return node_result(task, decided, tau, params.loss, work.rows, work.wasted)


def _blocks(
    context: Context[Any], label: str, total: int, work: Work, start: Any
) -> Iterator[list[dict[str, Any]]]:
    """Decisions in units of several batches; the live search is begun anew behind units that were read back.

    `start` gives batches of decisions. A unit ends with a batch, so that a search that goes on behind it
    makes the same batches as one that was never stopped.
    """
    live: Iterator[list[Any]] | None = None
    at = 0
    while at < total:
        ran = False

        def compute(left: int = total - at) -> dict[str, Any]:
            nonlocal live, ran
            ran = True
            live = start(work) if live is None else live
            found: list[Any] = []
            while len(found) < min(PER_UNIT, left):
                found += next(live)
            return {"decisions": [_plain(one) for one in found], "work": dataclasses.asdict(work)}

        stored = context.unit(f"{label}/{at:05d}", compute)
        if not ran:
            live = None
            for name, value in stored["work"].items():
                setattr(work, name, value)
        at += len(stored["decisions"])
        context.progress(at, total, f"decisions ({label})")
        yield stored["decisions"]


def _plain(one: Any) -> dict[str, Any]:
    """Decisions as JSON: keys of mappings become text there, so they are stored as pairs."""
    data = dataclasses.asdict(one)
    if "effects" in data:
        data["effects"] = [[writer, effect] for writer, effect in data["effects"].items()]
    return data


def _reader(data: dict[str, Any]) -> Any:
    from mech_interp.backends.huggingface.edge_pruning import ReaderDecisions

    return ReaderDecisions(
        reader=data["reader"],
        removed=tuple(data["removed"]),
        kept=tuple(data["kept"]),
        effects={int(writer): effect for writer, effect in data["effects"]},
        loss=data["loss"],
        close=tuple(data["close"]),
        evaluated=data["evaluated"],
    )
