"""Random circuits of a given size in which every edge lies on a path from the embedding to the logits."""

from __future__ import annotations

import numpy as np

from mech_interp.graph import Circuit, CircuitGraph, Reader, Writer, owners

_TRIES = 200


def random_circuits(graph: CircuitGraph, n_edges: int, count: int, seed: int = 0) -> list[Circuit]:
    """`count` random circuits of `n_edges` edges each, connected throughout.

    Edges are drawn one by one, each with a random path through it from the embedding to the logits where
    it has none yet. Without that, small random circuits would be nothing after pruning, too easy a
    control. A circuit has fewer edges only where no drawn path fits what is left.
    """
    generator = np.random.default_rng(seed)
    return [_draw(graph, n_edges, generator) for _ in range(count)]


def _draw(graph: CircuitGraph, n_edges: int, generator: np.random.Generator) -> Circuit:
    if n_edges >= graph.n_edges:
        return Circuit(graph, graph.possible.copy())
    edges = np.zeros_like(graph.possible)
    places = np.argwhere(graph.possible)
    joined = np.zeros(len(graph.writers), dtype=bool)  # writers on a path
    joined[0] = True
    fed = _fed(graph)
    size, at, misses = 0, 0, 0
    order = generator.permutation(len(places))
    while size < n_edges and misses < _TRIES:
        if at == len(order):
            order, at = generator.permutation(len(places)), 0
        writer, reader = (int(i) for i in places[order[at]])
        at += 1
        if edges[writer, reader]:
            continue
        path = _path(graph, writer, reader, joined, fed, generator)
        new = {edge for edge in path if not edges[edge]}
        if size + len(new) > n_edges:
            misses += 1
            continue
        for edge in new:
            edges[edge] = True
        joined[[edge[0] for edge in path]] = True
        size += len(new)
    if not size and n_edges:
        edges[0, -1] = True  # the shortest path there is
    return Circuit(graph, edges)


def _fed(graph: CircuitGraph) -> list[list[int]]:
    """The writers that each reader feeds; none for the logits."""
    return [[graph.writer_index[owner] for owner in owners(graph, reader)] for reader in graph.readers]


def _path(
    graph: CircuitGraph,
    writer: int,
    reader: int,
    joined: np.ndarray,
    fed: list[list[int]],
    generator: np.random.Generator,
) -> set[tuple[int, int]]:
    """The edge with a way back to a joined writer, and on to the logits or a joined writer."""
    path = {(writer, reader)}
    back = writer
    while not joined[back]:
        entry = _entry(graph, graph.writers[back], generator)
        source = int(generator.integers(graph.before(graph.readers[entry])))
        path.add((source, entry))
        back = source
    ahead = reader
    while fed[ahead] and not any(joined[owner] for owner in fed[ahead]):
        owner = fed[ahead][int(generator.integers(len(fed[ahead])))]
        later = np.flatnonzero(graph.possible[owner])
        ahead = int(later[generator.integers(len(later))])
        path.add((owner, ahead))
    return path


def _entry(graph: CircuitGraph, writer: Writer, generator: np.random.Generator) -> int:
    """One of a writer's own readers."""
    if writer.kind == "mlp":
        return graph.reader_index[Reader("mlp", writer.layer)]
    kind = "qkv"[int(generator.integers(3))]
    if kind == "q":
        return graph.reader_index[Reader("q", writer.layer, writer.head)]
    return graph.reader_index[graph.kv_reader("k" if kind == "k" else "v", writer.layer, writer.head)]
