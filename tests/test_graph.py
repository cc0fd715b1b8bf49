"""The circuit graph: counts that are known, order, names, pruning against a path search."""

from __future__ import annotations

import numpy as np
import pytest

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph, Reader, Writer, jaccard, owners, parse_head

GPT2 = CircuitGraph(12, 12, 12)
SMALL = CircuitGraph(2, 4, 2)


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (GPT2, 32_491),
        (CircuitGraph(12, 12, 12, parallel=True), 32_347),
        (CircuitGraph(24, 14, 2).ungrouped(), 179_749),
        (CircuitGraph(24, 14, 2), 79_813),
        (CircuitGraph(26, 8, 4).ungrouped(), 74_218),
        (CircuitGraph(26, 8, 4), 50_610),
        (CircuitGraph(32, 32, 8).ungrouped(), 1_592_881),
        (CircuitGraph(32, 32, 8), 805_681),
    ],
)
def test_edges_of_known_architectures(graph: CircuitGraph, edges: int) -> None:
    assert graph.n_edges == edges
    assert f"{edges:,} edges" in graph.convention


def test_every_edge_goes_forward() -> None:
    """Written out: a writer of an earlier layer, or a head into its own block's MLP."""
    for parallel in (False, True):
        graph = CircuitGraph(3, 2, 1, parallel=parallel)
        for i, writer in enumerate(graph.writers):
            for j, reader in enumerate(graph.readers):
                late = graph.n_layers if reader.kind == "logits" else reader.layer
                own = writer.kind == "head" and reader.kind == "mlp" and writer.layer == late and not parallel
                assert graph.possible[i, j] == (writer.layer < late or own)


def test_without_mlps() -> None:
    graph = CircuitGraph(2, 3, 3, mlps=False)
    assert len(graph.writers) == 7
    assert len(graph.readers) == 19
    assert graph.n_edges == 9 * 1 + 9 * 4 + 7


def test_names_go_both_ways() -> None:
    for i, j in np.argwhere(SMALL.possible):
        assert SMALL.edge(SMALL.edge_name(i, j)) == (i, j)
    assert SMALL.edge("a0.h3 -> m0") == (SMALL.writer("a0.h3"), SMALL.reader("m0"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a0.h0", "names no edge"),
        ("a9.h0->logits", "no writer"),
        ("m0->a1.h2<k>", "no reader"),
        ("m0->m0", "does not come before"),
        ("a1.h0->a0.h0<q>", "does not come before"),
    ],
)
def test_impossible_edges_are_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        SMALL.edge(name)


def test_a_circuit_cannot_hold_an_impossible_edge() -> None:
    edges = np.zeros_like(SMALL.possible)
    edges[SMALL.writer("m1"), SMALL.reader("m0")] = True
    with pytest.raises(InputError, match="no edge m1->m0"):
        Circuit(SMALL, edges)


def test_key_value_readers_serve_groups_of_heads() -> None:
    assert owners(SMALL, Reader("k", 1, 1)) == [Writer("head", 1, 2), Writer("head", 1, 3)]
    assert SMALL.kv_reader("v", 0, 3) == Reader("v", 0, 1)
    assert owners(GPT2, Reader("v", 3, 5)) == [Writer("head", 3, 5)]


def paths(circuit: Circuit) -> set[tuple[int, int]]:
    """Edges on some path from the embedding to the logits, by walking every path."""
    graph, found = circuit.graph, set()

    def walk(writer: Writer, taken: list[tuple[int, int]]) -> None:
        row = graph.writer_index[writer]
        for column in np.flatnonzero(circuit.edges[row]):
            here = [*taken, (row, int(column))]
            reader = graph.readers[column]
            if reader.kind == "logits":
                found.update(here)
            for owner in owners(graph, reader):
                walk(owner, here)

    walk(Writer("input"), [])
    return found


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_pruning_keeps_exactly_the_edges_on_paths(density: float) -> None:
    random = np.random.default_rng(int(100 * density))
    pruned_some = False
    for _ in range(12):
        circuit = Circuit(SMALL, SMALL.possible & (random.random(SMALL.possible.shape) < density))
        kept = circuit.pruned()
        assert set(map(tuple, np.argwhere(kept.edges))) == paths(circuit)
        pruned_some |= len(kept) < len(circuit)
    assert pruned_some or density == 0.5


def test_top_takes_the_largest_scores() -> None:
    scores = np.random.default_rng(0).normal(size=SMALL.possible.shape)
    circuit = Circuit.top(SMALL, scores, 7)
    assert len(circuit) == 7
    outside = np.abs(scores)[SMALL.possible & ~circuit.edges].max()
    assert np.abs(scores)[circuit.edges].min() > outside
    assert len(Circuit.top(SMALL, scores, 10**6)) == SMALL.n_edges


def test_named_circuits() -> None:
    names = ["input->a0.h1<q>", "a0.h1->m1", "m1->logits"]
    circuit = Circuit.named(SMALL, names)
    assert sorted(circuit.names()) == sorted(names)
    assert [str(node) for node in circuit.nodes()] == ["input", "a0.h1", "m1"]
    assert circuit.pruned() == circuit


@pytest.mark.parametrize(("text", "head"), [("9.7", (9, 7)), ("a10.h11", (10, 11)), ("L3H0", (3, 0))])
def test_heads_are_read_in_the_usual_forms(text: str, head: tuple[int, int]) -> None:
    assert parse_head(text) == head


@pytest.mark.parametrize("text", ["97", "", "a9", "h7", "9.7.1"])
def test_what_names_no_head_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="names no head"):
        parse_head(text)


def test_jaccard() -> None:
    assert jaccard([True, True, False], [True, False, True]) == pytest.approx(1 / 3)
    assert jaccard([False], [False]) == 1.0
