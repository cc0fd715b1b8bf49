"""Faithfulness of circuits: how much of the metric a circuit keeps, over sizes, beside random circuits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mech_interp.backends.protocol import Progress
from mech_interp.errors import InputError, nearest
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.faithfulness_result import CurveResult, FaithfulnessResult
from mech_interp.methods.circuits.random_circuits import random_circuits
from mech_interp.methods.common import Floats

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
Ranking = Literal["magnitude", "helpful"]


def faithfulness(
    task: CircuitTask,
    circuit: Circuit,
    *,
    name: str = "circuit",
    random: int = 10,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> FaithfulnessResult:
    """f(C) = (m(C) - m(none)) / (m(all) - m(none)), a ratio of means over prompts with its interval.

    m(none) is the metric with everything ablated, m(all) that of the model: f is 0 for no edges and 1 for
    all of them by construction, without running either. The circuit is pruned to the edges that lie on a
    path from the embedding to the logits; `random` connected circuits of the same size stand beside it.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 4; Hanna et al. 2024 (arXiv 2403.17806).

    Raises:
        UnstableRatioError: when m(all) and m(none) do not differ by three standard errors.
        InputError: for a circuit of another graph.
    """
    task.refuse_vanishing()
    check_graph(task, circuit)
    pruned = circuit.pruned()
    others = random_circuits(task.graph, len(pruned), random, seed)
    values = metric_of_circuits(task, [pruned, *others], memory_budget, progress)
    return FaithfulnessResult(
        model=task.model.info.name,
        task=task.name,
        metric=task.metric_name,
        ablation=task.ablation,
        name=name,
        circuit=pruned,
        n_before=len(circuit),
        values=values[0],
        random_values=values[1:],
        random_sizes=tuple(len(one) for one in others),
        full=task.full,
        empty=task.empty,
        groups=task.groups,
        seed=seed,
    )


def faithfulness_curve(
    task: CircuitTask,
    scores: Floats,
    *,
    fractions: Sequence[float] = FRACTIONS,
    ranking: Ranking = "magnitude",
    direction: str = "noising",
    random: int = 5,
    name: str = "scores",
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> CurveResult:
    """Faithfulness of the top edges by score at several sizes.

    At each fraction the top edges are taken (as many as the fraction of all possible edges, rounded
    down, which is how the MIB board counts) and pruned to paths; both counts are kept, and the result's
    areas follow the nominal fractions as the board's do.

    Source: Mueller et al. 2025 (arXiv 2504.13151), CMD and CPR; circuits over sizes.

    Args:
        scores: [writer, reader], such as `AttributionResult.matrix`.
        ranking: by ``magnitude``, or ``helpful``: edges that raise the metric most first (the board's
            signed ranking), which leaves inhibiting edges out and so can push f above 1.
        direction: of the scores, to know which sign helps.
        random: connected random circuits at each size, of as many edges as the pruned circuit.

    Raises:
        UnstableRatioError: when m(all) and m(none) do not differ by three standard errors.
        InputError: for scores of another graph, or fractions that do not rise within 0 to 1.
    """
    task.refuse_vanishing()
    chosen = _checked_fractions(fractions)
    graph = task.graph
    order = ranked(graph, scores, ranking, direction)
    before = [int(fraction * graph.n_edges + 1e-9) for fraction in chosen]
    circuits = [Circuit.top(graph, order, n).pruned() for n in before]
    bands = [
        random_circuits(graph, len(circuit), random, seed + i) if 0 < len(circuit) < graph.n_edges else []
        for i, circuit in enumerate(circuits)
    ]
    flat = [*circuits, *(one for band in bands for one in band)]
    values = metric_of_circuits(task, flat, memory_budget, progress)
    randoms, at = [], len(circuits)
    for band in bands:
        randoms.append(values[at : at + len(band)])
        at += len(band)
    return CurveResult(
        model=task.model.info.name,
        task=task.name,
        metric=task.metric_name,
        ablation=task.ablation,
        name=name,
        ranking=ranking,
        graph=graph,
        fractions=tuple(chosen),
        n_before=tuple(before),
        n_edges=tuple(len(circuit) for circuit in circuits),
        circuits=tuple(circuits),
        values=values[: len(circuits)],
        random_values=tuple(randoms),
        full=task.full,
        empty=task.empty,
        groups=task.groups,
        seed=seed,
    )


def ranked(graph: CircuitGraph, scores: Floats, ranking: str, direction: str) -> Floats:
    """Scores whose magnitude is the wanted order.

    Raises:
        InputError: for scores of another shape, or an unknown ranking or direction.
    """
    if scores.shape != graph.possible.shape:
        raise InputError(
            f"Scores of shape {scores.shape} do not fit a graph of {graph.possible.shape}.",
            "Give one for every writer and reader.",
        )
    known = ("magnitude", "helpful")
    if ranking not in known:
        raise InputError(f"There is no ranking {ranking!r}.", nearest(ranking, known) or "Use magnitude.")
    if direction not in ("noising", "denoising"):
        raise InputError(f"There is no direction {direction!r}.", "Use noising or denoising.")
    if ranking == "magnitude":
        return scores
    helps = -scores if direction == "noising" else scores
    flat = np.where(graph.possible, helps, -np.inf).ravel()
    places = np.empty(flat.size)
    places[np.argsort(-flat, kind="stable")] = np.arange(flat.size, 0, -1)
    return places.reshape(scores.shape)


def metric_of_circuits(
    task: CircuitTask,
    circuits: Sequence[Circuit],
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> Floats:
    """The metric of circuits, [circuit, prompt]; none and all edges are known and are not run."""
    out = np.zeros((len(circuits), len(task)))
    run = []
    for i, circuit in enumerate(circuits):
        if not len(circuit):
            out[i] = task.empty
        elif len(circuit) == task.graph.n_edges:
            out[i] = task.full
        else:
            run.append(i)
    if run:
        chosen = [circuits[i] for i in run]
        out[run] = task.evaluate(chosen, memory_budget=memory_budget, progress=progress)
    return out


def check_graph(task: CircuitTask, circuit: Circuit) -> None:
    """Refuse a circuit of another graph."""
    if circuit.graph != task.graph:
        raise InputError(
            f"The circuit is of another graph ({circuit.graph.convention}).",
            f"{task.model.info.name} has {task.graph.convention}.",
        )


def _checked_fractions(fractions: Sequence[float]) -> list[float]:
    chosen = [float(fraction) for fraction in fractions]
    rising = all(a < b for a, b in itertools.pairwise(chosen))
    if not chosen or not rising or not 0 < chosen[0] <= chosen[-1] <= 1:
        raise InputError(
            f"The fractions {chosen} do not rise from above 0 to 1.", "Use for example 0.01, 0.1, 1."
        )
    return chosen
