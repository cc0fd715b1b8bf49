"""Circuits as files and drawings: round trips, the fields of EAP-IG, grouped heads, layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp import graph_io as io
from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.graph_drawing import circuit_view, level_of, node_edges, to_dot
from mech_interp.rendering.figure import figure
from mech_interp.rendering.terminal import to_text
from mech_interp.views import view_from_json

GRAPH = CircuitGraph(2, 4, 2)
NAMES = ["input->a0.h1<q>", "input->a0.h0<v>", "a0.h1->m1", "m1->logits", "a0.h0->a1.h0<k>", "a1.h0->logits"]


def saved(graph: CircuitGraph = GRAPH, n: int = 12, seed: int = 0) -> io.SavedCircuit:
    scores = np.random.default_rng(seed).normal(size=graph.possible.shape) * graph.possible
    return io.SavedCircuit(Circuit.top(graph, scores, n), scores, {"model": "tiny"})


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 40),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_json_holds_everything(
    layers: int, kv: int, parallel: bool, mlps: bool, n: int, with_scores: bool
) -> None:
    graph = CircuitGraph(layers, 4, kv, parallel, mlps)
    one = saved(graph, n)
    one = one if with_scores else io.SavedCircuit(one.circuit, None, {"tau": 0.5})
    again = io.from_dict(json.loads(json.dumps(io.to_dict(one), allow_nan=False)))
    assert again.circuit == one.circuit
    assert again.graph == graph
    assert dict(again.facts) == dict(one.facts)
    if with_scores:
        assert np.array_equal(again.scores, one.scores)
    else:
        assert again.scores is None


def test_files(tmp_path: Path) -> None:
    one = saved()
    assert io.load(io.save(tmp_path / "c.json", one)).circuit == one.circuit
    with pytest.raises(InputError, match="does not exist"):
        io.save(tmp_path / "none" / "c.json", one)
    with pytest.raises(InputError, match="cannot be read"):
        io.load(tmp_path / "other.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        io.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(InputError, match="holds no mapping"):
        io.load(tmp_path / "c.json")


def test_files_that_do_not_fit_are_refused() -> None:
    data = io.to_dict(saved())
    for change, message in (
        ({"format": "x"}, "no circuit file"),
        ({"version": 9}, "version 9"),
        ({"graph": {}}, "do not fit"),
        ({"edges": ["logits->m0"]}, "no writer 'logits'"),
        ({"edges": ["m1->m0"]}, "There is no edge"),
    ):
        with pytest.raises(InputError, match=message):
            io.from_dict({**data, **change})


def test_the_fields_of_eap_ig() -> None:
    """cfg, nodes and edges as its loader reads them: every possible edge, q, k and v of every head."""
    graph = CircuitGraph(2, 4, 4)
    one = saved(graph, 10)
    data = json.loads(json.dumps(io.to_eap_ig(one, 32)))
    assert data["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert set(data["nodes"]) == {str(w) for w in graph.writers} | {"logits"}
    assert data["nodes"]["logits"] == {"in_graph": True}
    assert len(data["edges"]) == graph.n_edges
    edge = data["edges"]["input->a1.h3<v>"]
    assert set(edge) == {"score", "in_graph"}
    assert edge["score"] == one.scores[graph.edge("input->a1.h3<v>")]
    inside = {name for name, node in data["nodes"].items() if node["in_graph"]} - {"logits"}
    assert inside == {str(node) for node in one.circuit.pruned().nodes()}
    again = io.from_eap_ig(data)
    assert again.circuit == one.circuit
    assert np.array_equal(again.scores, one.scores)


def test_grouped_heads_are_written_once_for_every_query_head() -> None:
    one = saved()
    data = io.to_eap_ig(one, 32)
    shares = [data["edges"][f"input->a1.h{head}<k>"]["score"] for head in (2, 3)]
    assert shares == [one.scores[GRAPH.edge("input->a1.h1<k>")] / 2] * 2
    writer = GRAPH.writer("m0")
    total = sum(info["score"] for name, info in data["edges"].items() if name.startswith("m0->"))
    assert total == pytest.approx(one.scores[writer].sum())
    back = io.grouped(io.from_eap_ig(data), 2)
    assert back.circuit == one.circuit
    assert np.allclose(back.scores, one.scores)
    assert io.from_eap_ig(data).graph == GRAPH.ungrouped()
    for heads in (3, 0):
        with pytest.raises(InputError, match="cannot be grouped"):
            io.grouped(io.from_eap_ig(data), heads)


def test_an_edge_of_one_copy_is_an_edge_of_the_group() -> None:
    wide = Circuit.named(GRAPH.ungrouped(), ["input->a0.h3<v>"])
    assert io.grouped(io.SavedCircuit(wide), 2).circuit.names() == ["input->a0.h1<v>"]


def test_eap_ig_files_by_others(tmp_path: Path) -> None:
    """A graph with node scores and choices of neurons, edges in no order, some left out."""
    data = {
        "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": True, "d_model": 4, "model": "x"},
        "nodes": {
            "input": {"in_graph": True, "score": 1.0, "neurons": [True] * 4},
            "a0.h0": {"in_graph": True},
            "m0": {"in_graph": False},
            "logits": {"in_graph": True},
        },
        "edges": {
            "a0.h0->logits": {"score": -2.0, "in_graph": True},
            "input->a0.h0<v>": {"score": 1.5, "in_graph": True},
            "input->m0": {"score": 0.1, "in_graph": False},
        },
    }
    path = tmp_path / "g.json"
    path.write_text(json.dumps(data))
    found = io.read_eap_ig(path)
    assert found.graph == CircuitGraph(1, 1, 1, parallel=True)
    assert found.circuit.names() == ["input->a0.h0<v>", "a0.h0->logits"]
    assert found.scores[found.graph.edge("a0.h0->logits")] == -2.0
    assert "neurons" in found.facts["left_out"]
    bad = {**data, "edges": {"a0.h0->m0": {"score": 0, "in_graph": True}}}
    with pytest.raises(InputError, match="There is no edge"):
        io.from_eap_ig(bad)
    with pytest.raises(InputError, match="no EAP-IG graph"):
        io.from_eap_ig({"cfg": {}})
    assert io.read_eap_ig(io.write_eap_ig(path, found, 4)).circuit == found.circuit


def test_circuits_without_scores_are_written_as_zeros_and_ones() -> None:
    circuit = Circuit.named(CircuitGraph(1, 1, 1), ["input->logits"])
    data = io.to_eap_ig(io.SavedCircuit(circuit), 4)
    assert [name for name, info in data["edges"].items() if info["score"] == 1.0] == ["input->logits"]


def test_levels_and_edges_between_nodes() -> None:
    circuit = Circuit.named(GRAPH, NAMES)
    levels = [level_of(GRAPH, name) for name in ("input", "a0.h3", "m0", "a1.h0", "m1", "logits")]
    assert levels == [0, 1, 2, 3, 4, 5]
    scores = np.zeros(GRAPH.possible.shape)
    scores[GRAPH.edge("a0.h0->a1.h0<k>")] = -2.0
    found = {(source, target): (score, inputs) for source, target, score, inputs in node_edges(
        io.SavedCircuit(circuit, scores))}  # fmt: skip
    # One key/value head serves two query heads: its edge leads to both.
    assert found["a0.h0", "a1.h0"] == found["a0.h0", "a1.h1"] == (-2.0, "k")
    assert found["input", "a0.h1"] == (0.0, "qv")
    assert found["m1", "logits"] == (0.0, "")


def test_graphviz_text() -> None:
    one = io.SavedCircuit(Circuit.named(GRAPH, NAMES), saved().scores)
    text = to_dot(one, title='a "quoted" title')
    assert text.count("->") == len(NAMES) + 2  # two edges into grouped heads are drawn twice
    assert '"a0.h1" -> "m1"' in text
    assert r'label="a \"quoted\" title"' in text
    assert text.count("{") == text.count("}")
    assert to_dot(io.SavedCircuit(one.circuit)).count("grey50") == len(NAMES) + 2


def test_the_layered_view_draws() -> None:
    one = saved(CircuitGraph(3, 4, 4), 40)
    view = circuit_view(one.circuit, one.scores, title="Circuit", most=25)
    assert len(view.edges) == 25
    assert "the 25 strongest of" in view.note
    assert f"40 of {one.graph.n_edges:,} edges" in view.note
    assert view_from_json(view.to_json()) == view
    strongest = max(abs(value) for value in view.values)
    assert strongest == pytest.approx(np.abs(one.scores[one.circuit.edges]).max())
    figure(view)
    for width in (60, 100):
        text = to_text(view, width)
        assert all(name in text for name in view.nodes)
    empty = circuit_view(Circuit(GRAPH, np.zeros_like(GRAPH.possible)))
    assert "no nodes" in to_text(empty)
    figure(empty)
