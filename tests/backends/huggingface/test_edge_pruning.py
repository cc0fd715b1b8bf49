"""Batched ACDC against the sequential algorithm run on the exact edge engine, one edge per pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from edge_models import CLEAN, CORRUPT, HERE, METRIC, full, in_double
from torch import Tensor

from mech_interp.backends.huggingface.circuit_state import CircuitState
from mech_interp.backends.huggingface.edge_pruning import MOST_WASTED, ReaderDecisions, Work, prune_edges
from mech_interp.backends.huggingface.edges import EdgeEngine
from mech_interp.backends.huggingface.writers import run_writers, zeroed
from mech_interp.backends.metrics import KLDivergence, Metric
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.graph import owners


@dataclass(frozen=True)
class Negative:
    """A task metric as a loss."""

    metric: Metric

    @property
    def positions(self) -> tuple[int, ...]:
        return self.metric.positions

    def token_ids(self, prompts: Any) -> Tensor | None:
        return self.metric.token_ids(prompts)

    def __call__(self, logits: Tensor, prompts: Any) -> Tensor:
        return -self.metric(logits, prompts)


LOSS = Negative(METRIC)


@pytest.fixture(scope="module", params=HERE)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with in_double(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(model: Any) -> EdgeEngine:
    return EdgeEngine(model, Tokens.from_lists(CLEAN), Tokens.from_lists(CORRUPT))


def sequential(engine: EdgeEngine, loss: Metric, tau: float) -> tuple[Tensor, dict[tuple[int, int], float]]:
    """Algorithm 1 as printed: one edge, one pass. A reader without a way on loses its edges unseen."""
    graph = engine.graph
    mask = full(graph)
    effects: dict[tuple[int, int], float] = {}
    current = float(engine.evaluate(mask[None], loss).mean())
    for column in range(len(graph.readers) - 1, -1, -1):
        fed = [graph.writer_index[w] for w in owners(graph, graph.readers[column])]
        if fed and not bool(mask[fed].any()):
            mask[:, column] = 0
            continue
        for row in range(graph.before(graph.readers[column]) - 1, -1, -1):
            mask[row, column] = 0
            after = float(engine.evaluate(mask[None], loss).mean())
            effects[row, column] = after - current
            if after - current < tau:
                current = after
            else:
                mask[row, column] = 1
    return mask, effects


def as_mask(engine: EdgeEngine, decisions: list[ReaderDecisions]) -> Tensor:
    mask = torch.zeros_like(full(engine.graph))
    for one in decisions:
        mask[list(one.kept), one.reader] = 1
    return mask


@pytest.mark.parametrize("tau", [0.003, 0.03])
def test_decisions_are_those_of_the_sequential_algorithm(engine: EdgeEngine, tau: float) -> None:
    expected, effects = sequential(engine, LOSS, tau)
    decisions = list(prune_edges(engine, LOSS, tau))
    assert torch.equal(as_mask(engine, decisions), expected)
    found = {(w, one.reader): effect for one in decisions for w, effect in one.effects.items()}
    assert found.keys() == effects.keys()
    assert max(abs(found[edge] - effects[edge]) for edge in effects) < 1e-9
    assert 0 < expected.sum() < full(engine.graph).sum()


def test_decisions_by_divergence_and_zero_ablation(model: Any) -> None:
    tokens = Tokens.from_lists(CLEAN)
    engine = EdgeEngine(model, tokens, zeroed(run_writers(model, tokens)))
    kl = KLDivergence(model.forward(CLEAN, logits="last").logits)
    expected, _ = sequential(engine, kl, 0.01)
    assert torch.equal(as_mask(engine, list(prune_edges(engine, kl, 0.01))), expected)


def test_the_loss_told_is_that_of_the_circuit(engine: EdgeEngine) -> None:
    decisions = list(prune_edges(engine, LOSS, 0.02))
    exact = float(engine.evaluate(as_mask(engine, decisions)[None], LOSS).mean())
    assert decisions[-1].loss == pytest.approx(exact, abs=1e-9)


def test_the_number_of_rows_changes_no_decision(engine: EdgeEngine) -> None:
    masks = [as_mask(engine, list(prune_edges(engine, LOSS, 0.02, most_rows=n))) for n in (1, 5, 500)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("tau", [1e-4, 0.01, 0.1, 1.0])
def test_few_rows_are_wasted(engine: EdgeEngine, tau: float) -> None:
    work = Work()
    list(prune_edges(engine, LOSS, tau, work=work))
    assert work.wasted <= MOST_WASTED * work.rows
    assert work.rows > 0


def test_wrong_expectations_cost_rows_and_change_no_decision(
    engine: EdgeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = Work(), Work()
    expected = list(prune_edges(engine, LOSS, 0.02, work=right))
    slopes = CircuitState.slopes
    monkeypatch.setattr(CircuitState, "slopes", lambda *given: 0.04 - slopes(*given))
    found = list(prune_edges(engine, LOSS, 0.02, work=wrong))
    assert torch.equal(as_mask(engine, found), as_mask(engine, expected))
    assert right.surprises < wrong.surprises
    assert wrong.wasted <= MOST_WASTED * wrong.rows


def test_slopes_are_the_gradient_of_the_circuits_masks(model: Any, engine: EdgeEngine) -> None:
    """At a circuit from which edges were removed, reader by reader from the logits."""
    state, mask = CircuitState(engine, METRIC), full(engine.graph)
    for reader in range(len(engine.graph.readers) - 1, -1, -1):
        n = engine.graph.before(engine.graph.readers[reader])
        if state.reaches(reader):
            masks = mask[None].clone().requires_grad_()
            (slope,) = torch.autograd.grad(engine.evaluate(masks, METRIC).mean(), masks)
            expected = -slope[0][:n, reader]
            found = state.slopes(reader, list(range(n)), METRIC)
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
        gone = list(range(reader % 3, n, 3))
        mask[gone, reader] = 0
        state.commit(reader, gone)


def test_an_interrupted_search_goes_on(engine: EdgeEngine) -> None:
    whole = list(prune_edges(engine, LOSS, 0.02))
    for cut in (1, len(whole) // 2, len(whole) - 1):
        rest = list(prune_edges(engine, LOSS, 0.02, decided=whole[:cut]))
        assert [(one.reader, one.removed, one.kept) for one in rest] == [
            (one.reader, one.removed, one.kept) for one in whole[cut:]
        ]


def test_orders(engine: EdgeEngine) -> None:
    first = {
        order: next(iter(prune_edges(engine, LOSS, 1e9, order=order))) for order in ("reverse", "forward")
    }
    assert first["reverse"].removed == tuple(reversed(first["forward"].removed))
    a, b, c = (list(prune_edges(engine, LOSS, 0.02, order="random", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(as_mask(engine, a), as_mask(engine, b))
    assert [one.removed for one in a] != [one.removed for one in c]
    with pytest.raises(InputError, match="no order 'backward'"):
        list(prune_edges(engine, LOSS, 0.02, order="backward"))  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [None, METRIC])
def test_a_state_is_the_exact_circuit(model: Any, engine: EdgeEngine, metric: Metric | None) -> None:
    """After commits at several readers every later input is that of the edge engine."""
    state = CircuitState(engine, metric)
    mask = full(engine.graph)
    generator = torch.Generator().manual_seed(4)
    for reader in range(len(engine.graph.readers) - 1, -1, -1):
        n = engine.graph.before(engine.graph.readers[reader])
        gone = [w for w in range(n) if float(torch.rand((), generator=generator)) < 0.4]
        mask[gone, reader] = 0
        state.commit(reader, gone)
    exact = engine.evaluate(mask[None], METRIC)[0]
    assert torch.allclose(state.value(METRIC), exact, atol=1e-9)
