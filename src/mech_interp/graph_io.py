"""Circuits as files: our own JSON and the graph JSON of EAP-IG, which the MIB board reads.

Scores are signed, one number for each possible edge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph, Reader

FORMAT = "mech-circuit"
VERSION = 1
_SIZES = ("n_layers", "n_heads", "n_kv_heads", "parallel", "mlps")


@dataclass(frozen=True, eq=False)
class SavedCircuit:
    """A circuit with what is known of it.

    Attributes:
        circuit: the edges.
        scores: [writer, reader] signed scores of all possible edges, or None.
        facts: plain JSON about where it comes from (model, task, method, tau).
    """

    circuit: Circuit
    scores: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> CircuitGraph:
        """The graph that the circuit is part of."""
        return self.circuit.graph


def to_dict(saved: SavedCircuit) -> dict[str, Any]:
    """Plain JSON: the graph's sizes, the circuit's edges by name, the scores by edge name."""
    graph = saved.graph
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "graph": {name: getattr(graph, name) for name in _SIZES},
        "edges": saved.circuit.names(),
        "facts": dict(saved.facts),
    }
    if saved.scores is not None:
        scores = _checked(graph, saved.scores)
        data["scores"] = {
            graph.edge_name(writer, reader): _number(scores[writer, reader])
            for writer, reader in _places(graph)
        }
    return data


def from_dict(data: Mapping[str, Any]) -> SavedCircuit:
    """The inverse of `to_dict`.

    Raises:
        InputError: for fields that are missing or name what the graph lacks.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise InputError(
            f"This is no circuit file: its format is not {FORMAT!r}.",
            "Give a file that mech wrote, or read an EAP-IG graph with read_eap_ig.",
        )
    if data.get("version") != VERSION:
        raise InputError(
            f"Circuit files of version {data.get('version')!r} are not known here.",
            "Read it with the version that wrote it.",
        )
    try:
        sizes = data["graph"]
        graph = CircuitGraph(**{name: sizes[name] for name in _SIZES})
        circuit = Circuit.named(graph, data["edges"])
        scores = _matrix(graph, data["scores"]) if "scores" in data else None
        return SavedCircuit(circuit, scores, dict(data.get("facts", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"The fields of this circuit file do not fit: {error}.", "Restore it.") from error


def save(path: str | Path, saved: SavedCircuit) -> Path:
    """Write a circuit as JSON."""
    return _write(path, json.dumps(to_dict(saved), ensure_ascii=False, allow_nan=False, indent=1))


def load(path: str | Path) -> SavedCircuit:
    """Read what `save` wrote."""
    return from_dict(_read(path))


def to_eap_ig(saved: SavedCircuit, d_model: int) -> dict[str, Any]:
    """The graph JSON of EAP-IG: `cfg`, `nodes` and `edges` with `score` and `in_graph`.

    Key and value edges of grouped heads are written once for every query head, with an equal share of
    the score, so that a writer's edges still sum to its score. Without scores, edges of the circuit score
    1 and the others 0.
    """
    wide = ungrouped(saved)
    graph, circuit = wide.graph, wide.circuit
    scores = circuit.edges.astype(np.float64) if wide.scores is None else _checked(graph, wide.scores)
    inside = {str(node) for node in circuit.pruned().nodes()}
    nodes = {str(writer): {"in_graph": str(writer) in inside} for writer in graph.writers}
    return {
        "cfg": {
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "parallel_attn_mlp": graph.parallel,
            "d_model": d_model,
        },
        "nodes": {**nodes, "logits": {"in_graph": True}},
        "edges": {
            graph.edge_name(writer, reader): {
                "score": float(scores[writer, reader]),
                "in_graph": bool(circuit.edges[writer, reader]),
            }
            for writer, reader in _places(graph)
        },
    }


def from_eap_ig(data: Mapping[str, Any]) -> SavedCircuit:
    """An EAP-IG graph, key and value readers one to each query head as it has them.

    Raises:
        InputError: for missing fields, or edges that the sizes in `cfg` do not have.
    """
    try:
        cfg, edges = data["cfg"], data["edges"]
        mlps = "m0" in data["nodes"]
        parallel = bool(cfg.get("parallel_attn_mlp", False))
        layers, heads = int(cfg["n_layers"]), int(cfg["n_heads"])
        graph = CircuitGraph(layers, heads, heads, parallel, mlps)
        scores = _matrix(graph, {name: info.get("score") for name, info in edges.items()})
        circuit = Circuit.named(graph, [name for name, info in edges.items() if info["in_graph"]])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"This is no EAP-IG graph: {error} does not fit.",
            "It needs cfg, nodes and edges, every edge with score and in_graph.",
        ) from error
    facts = {"format": "EAP-IG", "cfg": dict(cfg)}
    if any("neurons" in info for info in data["nodes"].values()):
        facts["left_out"] = "choices of single neurons, which circuits of edges do not have"
    return SavedCircuit(circuit, scores, facts)


def write_eap_ig(path: str | Path, saved: SavedCircuit, d_model: int) -> Path:
    """Write the graph JSON of EAP-IG."""
    return _write(path, json.dumps(to_eap_ig(saved, d_model)))


def read_eap_ig(path: str | Path) -> SavedCircuit:
    """Read the graph JSON of EAP-IG."""
    return from_eap_ig(_read(path))


def ungrouped(saved: SavedCircuit) -> SavedCircuit:
    """The same circuit with key and value readers copied to every query head, each with its share."""
    graph = saved.graph
    if graph.n_kv_heads == graph.n_heads:
        return saved
    wide, shared = graph.ungrouped(), graph.n_heads // graph.n_kv_heads
    columns = [_native(graph, reader) for reader in wide.readers]
    share = np.array([1 / shared if reader.kind in "kv" else 1.0 for reader in wide.readers])
    scores = None if saved.scores is None else _checked(graph, saved.scores)[:, columns] * share
    return SavedCircuit(Circuit(wide, saved.circuit.edges[:, columns]), scores, saved.facts)


def grouped(saved: SavedCircuit, n_kv_heads: int) -> SavedCircuit:
    """The inverse of `ungrouped`: shares are summed; an edge is there where any of its copies is.

    Raises:
        InputError: when the heads do not divide into so many groups.
    """
    wide = saved.graph
    if n_kv_heads < 1 or wide.n_heads % n_kv_heads or wide.n_kv_heads != wide.n_heads:
        raise InputError(
            f"{wide.n_heads} heads cannot be grouped into {n_kv_heads} key/value heads.",
            "Give the model's own number of key/value heads, for a graph that is not grouped yet.",
        )
    graph = replace(wide, n_kv_heads=n_kv_heads)
    columns = [_native(graph, reader) for reader in wide.readers]
    edges = np.zeros_like(graph.possible)
    scores = None if saved.scores is None else np.zeros(graph.possible.shape)
    for column, own in enumerate(columns):
        edges[:, own] |= saved.circuit.edges[:, column]
        if scores is not None and saved.scores is not None:
            scores[:, own] += saved.scores[:, column]
    return SavedCircuit(Circuit(graph, edges), scores, saved.facts)


def _native(graph: CircuitGraph, reader: Reader) -> int:
    """The number in a grouped graph of a reader that was copied to a query head."""
    if reader.kind in ("k", "v"):
        return graph.reader_index[graph.kv_reader(reader.kind, reader.layer, reader.head)]
    return graph.reader_index[reader]


def _places(graph: CircuitGraph) -> list[tuple[int, int]]:
    """Possible edges, reader by reader."""
    return [(int(writer), int(reader)) for reader, writer in np.argwhere(graph.possible.T)]


def _checked(graph: CircuitGraph, scores: np.ndarray) -> np.ndarray:
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != graph.possible.shape:
        raise InputError(
            f"Scores of shape {array.shape} do not fit a graph of {graph.possible.shape}.",
            "Give one for every writer and reader.",
        )
    return array


def _matrix(graph: CircuitGraph, scores: Mapping[str, Any]) -> np.ndarray:
    found = np.zeros(graph.possible.shape)
    for name, score in scores.items():
        found[graph.edge(name)] = math.nan if score is None else float(score)
    return found


def _number(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None


def _read(path: str | Path) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"The graph file {str(path)!r} cannot be read: {error}.", "Check the path."
        ) from error
    except ValueError as error:
        raise InputError(f"The graph file {str(path)!r} is not JSON: {error}.", "Restore it.") from error
    if not isinstance(data, dict):
        raise InputError(f"The graph file {str(path)!r} holds no mapping.", "Give a graph file.")
    return data


def _write(path: str | Path, text: str) -> Path:
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"The folder {str(target.parent)!r} does not exist.", "Create it first.")
    target.write_text(text, encoding="utf-8")
    return target
