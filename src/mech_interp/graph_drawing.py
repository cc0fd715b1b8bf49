"""Circuits drawn: GraphViz text, and a layered graph as a view that needs no other program."""

from __future__ import annotations

import numpy as np

from mech_interp.graph import Circuit, CircuitGraph, owners
from mech_interp.graph_io import SavedCircuit
from mech_interp.views import LayeredGraph

MOST_DRAWN = 150


def to_dot(saved: SavedCircuit, *, title: str = "") -> str:
    """GraphViz text: nodes of one layer on one rank; edges by reader input, as wide as their score.

    Blue edges have positive scores, orange ones negative; grey where there are none.
    """
    graph, circuit = saved.graph, saved.circuit
    edges = _node_edges(saved)
    nodes = sorted({node for edge in edges for node in edge[:2]}, key=lambda n: _order(graph, n))
    reach = max((abs(edge[3]) for edge in edges if edge[3] is not None), default=0.0)
    lines = [
        "digraph circuit {",
        "  rankdir=BT;",
        '  node [shape=box, style="rounded", fontname="Helvetica"];',
    ]
    if title:
        lines.append(f"  label={_quoted(title)};")
    ranks: dict[int, list[str]] = {}
    for node in nodes:
        lines.append(f"  {_quoted(node)};")
        ranks.setdefault(level_of(graph, node), []).append(node)
    for members in ranks.values():
        lines.append("  { rank=same; " + " ".join(f"{_quoted(node)};" for node in members) + " }")
    for source, target, kind, score in edges:
        colour = "grey50" if score is None else "#2166ac" if score >= 0 else "#b35806"
        wide = 1.0 if score is None or reach == 0 else 0.5 + 3.5 * abs(score) / reach
        label = f", label={_quoted(kind)}" if kind else ""
        shown = "" if score is None else f", tooltip={_quoted(f'{score:.4g}')}"
        lines.append(
            f'  {_quoted(source)} -> {_quoted(target)} [color="{colour}", penwidth={wide:.2f}{label}{shown}];'
        )
    return "\n".join([*lines, f"  // {len(circuit)} edges", "}", ""])


def circuit_view(
    circuit: Circuit,
    scores: np.ndarray | None = None,
    *,
    title: str = "Circuit",
    value_label: str = "score",
    most: int = MOST_DRAWN,
    note: str = "",
) -> LayeredGraph:
    """The circuit as a layered graph, from the embedding below to the logits above.

    The q, k and v edges between two heads are one line, as strong as the strongest. Beyond `most` lines
    the weakest are left out, and the note says how many.
    """
    graph = circuit.graph
    edges = node_edges(SavedCircuit(circuit, scores))
    drawn = edges
    if len(edges) > most:
        drawn = sorted(edges, key=lambda edge: -abs(edge[2] or 0.0))[:most]
    names = sorted({name for edge in drawn for name in edge[:2]}, key=lambda name: _order(graph, name))
    place = {name: i for i, name in enumerate(names)}
    count = f"{len(circuit):,} of {graph.n_edges:,} edges"
    if len(drawn) < len(edges):
        count += f"; the {len(drawn)} strongest of {len(edges):,} connections are drawn"
    return LayeredGraph(
        title=title,
        nodes=names,
        levels=[level_of(graph, name) for name in names],
        level_labels=_level_labels(graph),
        edges=[(place[source], place[target]) for source, target, _, _ in drawn],
        values=[score for _, _, score, _ in drawn],
        edge_labels=[inputs for _, _, _, inputs in drawn],
        value_label=value_label,
        note="; ".join(part for part in (count, note) if part),
    )


def _level_labels(graph: CircuitGraph) -> list[str]:
    parts = [f"layer {layer} {part}" for layer in range(graph.n_layers) for part in ("heads", "MLP")]
    return ["input", *parts, "logits"]


def level_of(graph: CircuitGraph, node: str) -> int:
    """The row of a node in a layered drawing: the embedding 0, then attention and MLP of every layer."""
    if node == "logits":
        return 2 * graph.n_layers + 1
    writer = graph.writers[graph.writer(node)]
    return 0 if writer.kind == "input" else 1 + 2 * writer.layer + (writer.kind == "mlp")


def _node_edges(saved: SavedCircuit) -> list[tuple[str, str, str, float | None]]:
    """Edges as (source node, target node, q, k, v or nothing, score); a grouped reader feeds every head."""
    graph, found = saved.graph, []
    for writer, reader in np.argwhere(saved.circuit.edges):
        score = None if saved.scores is None else float(saved.scores[writer, reader])
        end = graph.readers[reader]
        targets = [str(owner) for owner in owners(graph, end)] or ["logits"]
        kind = end.kind if end.kind in "qkv" else ""
        found += [(str(graph.writers[writer]), target, kind, score) for target in targets]
    return found


def node_edges(saved: SavedCircuit) -> list[tuple[str, str, float | None, str]]:
    """Edges between nodes, (source, target, score, inputs): a head's q, k and v edges as one.

    The score is the one of largest size; `inputs` names the inputs, such as ``qk``.
    """
    merged: dict[tuple[str, str], tuple[float | None, str]] = {}
    for source, target, kind, score in _node_edges(saved):
        known, kinds = merged.get((source, target), (None, ""))
        larger = known if score is None or (known is not None and abs(known) >= abs(score)) else score
        merged[source, target] = larger, kinds + kind
    return [(source, target, score, kinds) for (source, target), (score, kinds) in merged.items()]


def _order(graph: CircuitGraph, node: str) -> int:
    return len(graph.writers) if node == "logits" else graph.writer(node)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
