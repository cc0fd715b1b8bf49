"""At which positions the parts of a circuit still matter: everywhere, where the metric reads, or nowhere.

Keys and values are looked up from later positions, so what feeds them matters everywhere. Queries and MLPs
work position by position, and matter where their own output does. Edges are only ever removed, so what
matters only shrinks.
"""

from __future__ import annotations

import numpy as np

from mech_interp.graph import CircuitGraph

NOWHERE, READ, EVERYWHERE = 0, 1, 2


def needed_at(graph: CircuitGraph, present: np.ndarray, read: int = READ) -> tuple[np.ndarray, np.ndarray]:
    """Where each writer [writer] and each reader [reader] matters, as one of the constants.

    `present` [writer, reader] are the edges; `read` is where the logits matter.
    """
    n_heads, n_kv = graph.n_heads, graph.n_kv_heads
    writers, readers = np.zeros(len(graph.writers), dtype=int), np.zeros(len(graph.readers), dtype=int)
    readers[-1] = read
    n_attention = n_heads + 2 * n_kv

    def heard(first: int, end: int) -> np.ndarray:
        """What the readers settled so far make of some writers."""
        found: np.ndarray = np.where(present[first:end], readers, NOWHERE).max(1)
        return found

    for layer in range(graph.n_layers - 1, -1, -1):
        writer = 1 + layer * (n_heads + graph.mlps)
        reader = layer * (n_attention + graph.mlps)
        if graph.mlps:
            writers[writer + n_heads] = heard(writer + n_heads, writer + n_heads + 1)[0]
            readers[reader + n_attention] = writers[writer + n_heads]
        heads = heard(writer, writer + n_heads)
        writers[writer : writer + n_heads] = heads
        readers[reader : reader + n_heads] = heads
        shared = np.where(heads.reshape(n_kv, -1).max(1) > NOWHERE, EVERYWHERE, NOWHERE)
        readers[reader + n_heads : reader + n_attention] = np.tile(shared, 2)
    writers[0] = heard(0, 1)[0]
    return writers, readers
