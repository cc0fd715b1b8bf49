"""ACDC on a task: nodes against a literal sequential search, edges as the engine decides them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp.backends.metrics import KLDivergence
from mech_interp.errors import InputError
from mech_interp.graph import Circuit, owners
from mech_interp.methods.circuits import acdc
from mech_interp.methods.circuits.acdc import acdc_edges, acdc_nodes, loss_of, node_decisions
from mech_interp.methods.circuits.acdc_result import NodeDecision


def mean_loss(task: Any, edges: np.ndarray, loss: str) -> float:
    """The loss of one circuit, by the edge engine one circuit at a time and by hand for the divergence."""
    import torch

    mask = torch.tensor(edges[None], dtype=torch.float64)
    if loss == "metric":
        return -float(task.engine.evaluate(mask, task.metric).mean())
    full = task.model.forward(task.clean, logits="last").logits
    return float(task.engine.evaluate(mask, KLDivergence(full)).mean())


def sequential(task: Any, tau: float, loss: str) -> tuple[list[str], dict[str, float]]:
    """One node, one pass, from the latest backwards."""
    graph = task.graph
    edges = graph.possible.copy()
    current, kept, effects = mean_loss(task, edges, loss), [], {}
    for i in range(len(graph.writers) - 1, 0, -1):
        tried = edges.copy()
        tried[i] = False
        after = mean_loss(task, tried, loss)
        effects[str(graph.writers[i])] = after - current
        if after - current < tau:
            edges, current = tried, after
        else:
            kept.append(str(graph.writers[i]))
    return kept, effects


@pytest.mark.parametrize(("loss", "tau"), [("kl", 0.005), ("kl", 0.02), ("metric", 0.1)])
def test_nodes_are_those_of_the_sequential_search(model: Any, make_task: Any, loss: str, tau: float) -> None:
    task = make_task(model, n=4)
    kept, effects = sequential(task, tau, loss)
    found = acdc_nodes(task, tau, loss=loss)
    assert [row["node"] for row in found.table() if row["kept"]] == kept
    assert list(found.examined) == list(effects)
    for row in found.table():
        assert row["effect"] == pytest.approx(effects[row["node"]], abs=1e-9)
    assert found.rows - found.wasted == len(effects)


def test_both_outcomes_occur(gpt2: Any, make_task: Any) -> None:
    """Otherwise the comparison above would compare nothing."""
    kept, effects = sequential(make_task(gpt2, n=4), 0.005, "kl")
    assert 0 < len(kept) < len(effects)


@pytest.mark.parametrize("ablation", ["zero", "mean", "positional-mean"])
def test_nodes_under_other_ablations(gpt2: Any, make_task: Any, ablation: str) -> None:
    task = make_task(gpt2, n=16, seed=1, ablation=ablation)
    kept, _ = sequential(task, 0.005, "kl")
    assert [row["node"] for row in acdc_nodes(task, 0.005).table() if row["kept"]] == kept


def test_a_continued_search_is_the_undisturbed_one(gpt2: Any, make_task: Any) -> None:
    task = make_task(gpt2, n=4)
    loss = loss_of(task, "kl")

    def decisions(*decided: NodeDecision) -> list[NodeDecision]:
        return [one for batch in node_decisions(task, loss, 0.005, decided=decided) for one in batch]

    whole = decisions()
    for at in (1, len(whole) // 2, len(whole)):
        assert [d.kept for d in decisions(*whole[:at])] == [d.kept for d in whole[at:]]


@pytest.mark.parametrize("loss", ["kl", "metric"])
def test_edges_raise_the_loss_where_they_stay_and_the_last_loss_is_the_circuits(
    gpt2: Any, make_task: Any, loss: str
) -> None:
    task = make_task(gpt2, n=4)
    found = acdc_edges(task, 0.005, loss=loss)
    assert found.losses[-1] == pytest.approx(mean_loss(task, found.circuit.edges, loss), abs=1e-9)
    assert (found.effects[found.circuit.edges] >= 0.005).all()
    assert len(found.examined) + found.unevaluated == task.graph.n_edges
    gone = ~np.isnan(found.effects) & ~found.circuit.edges
    assert (found.effects[gone] < 0.005).all()
    assert gone.any()
    assert found.circuit.edges.any()


def test_scores_rank_what_was_never_evaluated_last(gpt2: Any, make_task: Any) -> None:
    found = acdc_edges(make_task(gpt2, n=4), 0.1)
    possible = found.circuit.graph.possible
    unseen = np.isnan(found.effects) & possible
    assert unseen.any()
    assert found.scores[unseen].max() < found.scores[possible & ~unseen].min()


def test_the_first_edges_are_those_among_the_strongest_nodes(gpt2: Any, make_task: Any) -> None:
    found = acdc_nodes(make_task(gpt2, n=4), 0.005)
    graph = found.circuit.graph
    order = sorted(found.table(), key=lambda row: -row["effect"])
    for k in (1, 2, len(order) // 2):
        strongest = {"input", *(row["node"] for row in order[:k])}
        among = np.zeros_like(graph.possible)
        for w, r in np.argwhere(graph.possible):
            fed = {str(owner) for owner in owners(graph, graph.readers[r])} or {"input"}
            among[w, r] = str(graph.writers[w]) in strongest and bool(fed & strongest)
        rest = graph.possible & ~among
        assert found.scores[among].min() > found.scores[rest].max()


def test_memory_that_runs_out_halves_the_rows(
    gpt2: Any, make_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(gpt2, n=4)
    expected = acdc_edges(task, 0.02)
    from mech_interp.backends.huggingface import edge_pruning

    real, sizes = edge_pruning.prune_edges, []

    def tight(*args: Any, most_rows: int, **more: Any) -> Any:
        sizes.append(most_rows)
        for i, found in enumerate(real(*args, most_rows=most_rows, **more)):
            if most_rows > 4 and i == 2:
                raise MemoryError
            yield found

    monkeypatch.setattr(edge_pruning, "prune_edges", tight)
    found = acdc.acdc_edges(task, 0.02)
    assert sizes == [64, 32, 16, 8, 4]
    assert found.circuit == expected.circuit


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_tau_that_is_no_threshold_is_refused(gpt2: Any, make_task: Any, tau: float) -> None:
    with pytest.raises(InputError, match="tau"):
        acdc_edges(make_task(gpt2, n=4), tau)


def test_an_unknown_loss_is_refused(gpt2: Any, make_task: Any) -> None:
    with pytest.raises(InputError, match="no loss 'kk'"):
        loss_of(make_task(gpt2, n=4), "kk")


def test_views_draw_and_state_what_was_done(gpt2: Any, make_task: Any) -> None:
    from mech_interp.rendering.terminal import to_text

    found = acdc_edges(make_task(gpt2, n=4), 0.02)
    assert isinstance(found.circuit, Circuit)
    assert "tau 0.02" in to_text(found.view())
    assert "mean loss (nats)" in to_text(found.loss_view())
    assert found.to_dict()["evaluated"] == len(found.examined)
