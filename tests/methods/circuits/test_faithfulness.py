"""Faithfulness: its fixed ends, counts, areas by hand, random circuits, completeness, minimality, overlap."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph, jaccard
from mech_interp.methods.circuits.attribution import edge_attribution
from mech_interp.methods.circuits.common import CircuitTask
from mech_interp.methods.circuits.faithfulness import (
    FRACTIONS,
    faithfulness,
    faithfulness_curve,
    metric_of_circuits,
    ranked,
)
from mech_interp.methods.circuits.faithfulness_result import CurveResult, linear_area, log_area
from mech_interp.methods.circuits.minimality import MinimalityResult, completeness, minimality, without
from mech_interp.methods.circuits.random_circuits import random_circuits
from mech_interp.methods.circuits.stability import bootstrap_jaccard, jaccard_of_runs
from mech_interp.rendering.figure import figure
from mech_interp.statistics import UnstableRatioError

MakeTask = Callable[..., CircuitTask]
GRAPHS = (
    CircuitGraph(3, 4, 4),
    CircuitGraph(3, 4, 2),
    CircuitGraph(2, 4, 4, True),
    CircuitGraph(4, 2, 2, mlps=False),
)


@pytest.fixture(scope="module")
def task(model: Any, make_task: MakeTask) -> CircuitTask:
    return make_task(model)


@pytest.fixture(scope="module")
def scores(task: CircuitTask) -> np.ndarray:
    return edge_attribution(task, check=0, claims=0).matrix


def test_no_edges_are_zero_and_all_edges_one(task: CircuitTask) -> None:
    """Exactly, by construction; and running them on the engine gives the same."""
    graph = task.graph
    ends = [Circuit(graph, np.zeros_like(graph.possible)), Circuit(graph, graph.possible.copy())]
    found = [faithfulness(task, circuit, random=2).faithfulness.value for circuit in ends]
    assert found == [0.0, 1.0]
    known = metric_of_circuits(task, ends)
    assert np.allclose(task.evaluate(ends), known, atol=1e-9)
    assert np.abs(known[0] - known[1]).max() > 0.1


def test_one_circuit_by_hand(task: CircuitTask, scores: np.ndarray) -> None:
    """Means before the ratio, on the metric that the engine gives for the pruned circuit."""
    circuit = Circuit.top(task.graph, scores, 60)
    result = faithfulness(task, circuit, random=3, seed=1)
    value = task.evaluate([circuit.pruned()])[0]
    expected = (value.mean() - task.empty.mean()) / (task.full.mean() - task.empty.mean())
    assert result.faithfulness.value == pytest.approx(expected)
    assert result.faithfulness.interval is not None
    assert (result.n_before, len(result.circuit)) == (60, len(circuit.pruned()))
    assert set(result.random_sizes) == {len(circuit.pruned())}
    assert 0.25 <= result.beats_random <= 1
    json.dumps(result.to_dict(), allow_nan=False)


def test_pruning_changes_nothing_but_the_count(task: CircuitTask, scores: np.ndarray) -> None:
    circuit = Circuit.top(task.graph, scores, 30)
    assert len(circuit.pruned()) < 30
    values = task.evaluate([circuit, circuit.pruned()])
    assert np.allclose(values[0], values[1], atol=1e-9)


def test_curves_count_before_and_after_pruning(task: CircuitTask, scores: np.ndarray) -> None:
    curve = faithfulness_curve(task, scores, random=2)
    n = task.graph.n_edges
    assert curve.n_before == tuple(int(fraction * n) for fraction in FRACTIONS)
    assert all(after <= before for before, after in zip(curve.n_before, curve.n_edges, strict=True))
    assert curve.at(1.0).value == 1.0
    assert curve.n_edges[-1] == n
    i = FRACTIONS.index(0.5)
    value = task.evaluate([Circuit.top(task.graph, scores, int(0.5 * n))])[0]
    expected = (value - task.empty).mean() / task.differences.mean()
    assert curve.faithfulness.value[i] == pytest.approx(expected)
    assert set(curve.headline) == {0.01, 0.02, 0.05}
    sizes = [[len(one) for one in random_circuits(task.graph, curve.n_edges[i], 2, i)]]
    assert sizes == [[curve.n_edges[i]] * 2]
    json.dumps(curve.to_dict(), allow_nan=False)
    for view in curve.views():
        figure(view)


def made_up(f: list[float], fractions: tuple[float, ...]) -> CurveResult:
    """A curve with a given f on ten prompts whose model scores 2 and whose ablated run scores 1."""
    graph = CircuitGraph(1, 1, 1)
    values = np.repeat(1 + np.array(f)[:, None], 10, 1)
    none = Circuit(graph, np.zeros_like(graph.possible))
    return CurveResult(
        "m", "t", "x", "corrupt", "s", "magnitude", graph, fractions, (0,) * len(f), (0,) * len(f),
        (none,) * len(f), values, tuple(np.zeros((0, 10)) for _ in f), np.full(10, 2.0), np.ones(10),
        tuple(f"g{i}" for i in range(10)),
    )  # fmt: skip


def test_areas_by_hand() -> None:
    curve = made_up([0.0, 0.5, 1.5, 1.0], (0.001, 0.01, 0.1, 1.0))
    assert curve.cpr.value == pytest.approx(0.009 * 0.25 + 0.09 * 1.0 + 0.9 * 1.25)
    assert curve.cmd.value == pytest.approx(0.009 * 0.75 + 0.09 * 0.5 + 0.9 * 0.25)
    assert curve.log_area.value == pytest.approx((0.25 + 1.0 + 1.25) / 3)
    assert curve.log_distance.value == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    assert curve.smallest(0.9) == 2
    assert made_up([1.0, 0.5, 0.2], (0.1, 0.2, 0.3)).smallest() is None


def test_the_weights_of_the_linear_axis() -> None:
    """The board's weights per size, as published: of all sizes up to 5 % together 7.4 % of the area."""
    x = np.array(FRACTIONS)
    weights = [linear_area(x, np.eye(10)[i]) for i in range(10)]
    expected = [0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25]
    assert weights == pytest.approx(expected)
    assert log_area(x, np.ones(10)) == pytest.approx(1.0)


def test_helpful_ranking_follows_the_sign() -> None:
    graph = CircuitGraph(1, 2, 2)
    scores = np.zeros(graph.possible.shape)
    names = ["input->m0", "input->logits", "m0->logits"]
    for name, score in zip(names, (-3.0, 5.0, -1.0), strict=True):
        scores[graph.edge(name)] = score
    by_size = Circuit.top(graph, ranked(graph, scores, "magnitude", "noising"), 2)
    assert set(by_size.names()) == {"input->logits", "input->m0"}
    helpful = Circuit.top(graph, ranked(graph, scores, "helpful", "noising"), 2)
    assert set(helpful.names()) == {"input->m0", "m0->logits"}
    turned = Circuit.top(graph, ranked(graph, scores, "helpful", "denoising"), 1)
    assert turned.names() == ["input->logits"]
    last = Circuit.top(graph, ranked(graph, scores, "helpful", "noising"), graph.n_edges - 1)
    assert "input->logits" not in last.names()


@pytest.mark.parametrize("graph", GRAPHS)
def test_random_circuits_are_connected_and_of_the_size(graph: CircuitGraph) -> None:
    seen = np.zeros(graph.possible.shape)
    for n in (1, 3, 10, graph.n_edges // 2, graph.n_edges - 1, graph.n_edges):
        for circuit in random_circuits(graph, n, 20, seed=n):
            assert circuit.pruned() == circuit
            assert n - 2 <= len(circuit) <= n
            seen += circuit.edges if n == graph.n_edges // 2 else 0
    assert (seen[graph.possible] > 0).all()
    first, again = (random_circuits(graph, 10, 2, seed=5) for _ in range(2))
    assert first[0] == again[0]
    assert first[0] != first[1]


def test_completeness_by_hand(task: CircuitTask, scores: np.ndarray) -> None:
    circuit = Circuit.top(task.graph, scores, 60).pruned()
    names = [str(node) for node in circuit.nodes() if node.kind != "input"]
    result = completeness(task, circuit, groups={"first": names[:2]}, random=2, greedy=2)
    assert result.knocked[0] == ()
    assert result.knocked[1 : 1 + len(names)] == tuple((name,) for name in names)
    assert result.knocked[1 + len(names)] == tuple(names[:2])
    assert [len(knocked) for knocked in result.knocked[-2:]] == [1, 2]
    edges = circuit.edges.copy()
    edges[[task.graph.writer(name) for name in names[:2]]] = False
    everything = task.graph.possible.copy()
    everything[[task.graph.writer(name) for name in names[:2]]] = False
    inside, outside = task.evaluate([Circuit(task.graph, edges), Circuit(task.graph, everything)])
    expected = (inside - outside).mean() / task.differences.mean()
    assert result.incompleteness.value[1 + len(names)] == pytest.approx(expected)
    start = faithfulness(task, circuit, random=0).faithfulness.value - 1
    assert result.incompleteness.value[0] == pytest.approx(start)
    singles = np.abs(result.incompleteness.value[1 : 1 + len(names)])
    assert abs(result.incompleteness.value[-2]) == pytest.approx(singles.max())
    json.dumps(result.to_dict(), allow_nan=False)
    figure(result.view())


def test_the_whole_model_is_complete(task: CircuitTask) -> None:
    whole = Circuit(task.graph, task.graph.possible.copy())
    result = completeness(task, whole, random=3)
    assert np.abs(result.incompleteness.value).max() < 1e-9


def test_minimality_shows_backups_only_without_their_group(task: CircuitTask, scores: np.ndarray) -> None:
    circuit = Circuit.top(task.graph, scores, 60).pruned()
    alone = minimality(task, circuit)
    names = list(alone.nodes)
    pair = names[:2]
    grouped = minimality(task, circuit, groups={"pair": pair})
    knocked = [grouped.knocked[names.index(name)] for name in pair]
    assert set(knocked) <= {(), (pair[0],), (pair[1],)}
    values = task.evaluate([circuit, without(circuit, [names[0]]), without(circuit, pair)])
    first = values[0] - values[1]
    assert np.allclose(alone.differences[:, 0], first, atol=1e-9)
    second = task.evaluate([without(circuit, [pair[1]])])[0] - values[2]
    larger = max((first.mean(), second.mean()), key=abs)
    assert grouped.differences[:, 0].mean() == pytest.approx(larger)
    assert (np.abs(grouped.effects.value) >= np.abs(alone.effects.value) - 1e-12).all()
    figure(grouped.view())
    with pytest.raises(InputError, match="No node of group"):
        minimality(task, circuit, groups={"none": ["a9.h9"]})


def test_idle_nodes_are_named(gpt2: Any, make_task: MakeTask) -> None:
    differences = np.array([[0.0, 0.5, -0.004], [0.002, 0.7, -0.002]]).repeat(5, 0)
    result = MinimalityResult(
        ("a0.h0", "m0", "m1"), ((), (), ()), differences, np.ones(10), np.zeros(10), tuple("abcdefghij")
    )
    assert result.idle == ["a0.h0", "m1"]
    assert result.effects.value == pytest.approx([0.001, 0.6, -0.003])
    task = make_task(gpt2)
    with pytest.raises(InputError, match="no node between"):
        minimality(task, Circuit.named(task.graph, ["input->logits"]))


def test_overlap_of_identical_and_of_noisy_scores() -> None:
    graph = CircuitGraph(3, 4, 4)
    generator = np.random.default_rng(0)
    true = np.where(graph.possible, generator.normal(size=graph.possible.shape), 0)
    groups = [f"g{i}" for i in range(20)]
    same = bootstrap_jaccard(graph, np.repeat(true[None], 20, 0), 15, groups)
    assert same.mean == 1.0
    assert set(same.to_whole) == {1.0}
    assert "fewer than the 256" in same.flag
    noise = generator.normal(size=(20, *graph.possible.shape))
    none = bootstrap_jaccard(graph, noise, 15, groups, prune=False)
    some = bootstrap_jaccard(graph, true + noise, 15, groups, prune=False)
    assert none.mean < some.mean < 1.0
    assert len(none.pairwise) == 190
    flat = bootstrap_jaccard(graph, noise[:, graph.possible], 15, groups, prune=False)
    assert flat == none
    large = bootstrap_jaccard(graph, np.repeat(noise, 13, 0), 15, groups * 13)
    assert large.flag == ""
    assert (large.n_prompts, large.n_groups) == (260, 20)
    with pytest.raises(InputError, match="show no stability"):
        bootstrap_jaccard(graph, noise[:5], 15, groups[:5])


def test_overlap_of_runs() -> None:
    graph = CircuitGraph(3, 4, 4)
    circuits = random_circuits(graph, 20, 3)
    found = jaccard_of_runs(circuits)
    assert found.pairwise[0] == jaccard(circuits[0].edges, circuits[1].edges)
    assert len(found.pairwise) == 3
    with pytest.raises(InputError, match="at least two"):
        jaccard_of_runs(circuits[:1])


def test_refusals(task: CircuitTask, scores: np.ndarray) -> None:
    other = Circuit(CircuitGraph(1, 1, 1), np.zeros_like(CircuitGraph(1, 1, 1).possible))
    with pytest.raises(InputError, match="another graph"):
        faithfulness(task, other)
    for fractions in ((), (0.5, 0.1), (0.0, 1.0), (0.5, 2.0)):
        with pytest.raises(InputError, match="do not rise"):
            faithfulness_curve(task, scores, fractions=fractions)
    with pytest.raises(InputError, match="Scores of shape"):
        faithfulness_curve(task, scores[:1])
    with pytest.raises(InputError, match="no ranking"):
        faithfulness_curve(task, scores, ranking="signed")  # type: ignore[arg-type]
    none = replace(task, corrupt=task.clean)
    with pytest.raises(UnstableRatioError):
        faithfulness_curve(none, scores)
    with pytest.raises(InputError, match="not measured"):
        faithfulness_curve(task, scores, fractions=(0.1,), random=0).at(0.2)
