"""Where the parts of a circuit matter, against reachability worked out position by position."""

from __future__ import annotations

import numpy as np
import pytest

from mech_interp.backends.huggingface.needed import EVERYWHERE, NOWHERE, READ, needed_at
from mech_interp.graph import CircuitGraph, owners

GRAPHS = {
    "plain": CircuitGraph(3, 4, 4),
    "grouped": CircuitGraph(3, 4, 2),
    "parallel": CircuitGraph(2, 2, 2, parallel=True),
    "attention only": CircuitGraph(3, 2, 1, mlps=False),
}


def reaches_logits(graph: CircuitGraph, present: np.ndarray, writer: int, position: int) -> bool:
    """Whether a writer at position 0, or at 1, which the logits are read at, has a path to them."""
    for column in np.flatnonzero(present[writer]):
        reader = graph.readers[column]
        if reader.kind == "logits":
            if position == 1:
                return True
            continue
        later = range(position, 2) if reader.kind in ("k", "v") else [position]
        for owner in owners(graph, reader):
            if any(reaches_logits(graph, present, graph.writer_index[owner], at) for at in later):
                return True
    return False


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("density", [0.05, 0.15, 0.5])
def test_what_matters_is_what_reaches_the_logits(name: str, density: float) -> None:
    graph = GRAPHS[name]
    for seed in range(8):
        present = graph.possible & (np.random.default_rng(seed).random(graph.possible.shape) < density)
        writers, readers = needed_at(graph, present)
        for writer in range(len(graph.writers)):
            early, late = (reaches_logits(graph, present, writer, at) for at in (0, 1))
            expected = EVERYWHERE if early else READ if late else NOWHERE
            assert writers[writer] == expected, graph.writers[writer]
        for column, reader in enumerate(graph.readers[:-1]):
            need = max(writers[graph.writer_index[owner]] for owner in owners(graph, reader))
            assert readers[column] == (EVERYWHERE if reader.kind in ("k", "v") and need else need)


def test_nothing_but_the_read_columns_matters_in_the_last_layer() -> None:
    graph = GRAPHS["plain"]
    writers, readers = needed_at(graph, graph.possible)
    assert set(writers[graph.writer("a2.h0") :]) == {READ}
    assert set(writers[: graph.writer("a2.h0")]) == {EVERYWHERE}
    assert readers[graph.reader("a2.h1<q>")] == READ
    assert readers[graph.reader("a2.h1<k>")] == EVERYWHERE
    assert set(needed_at(graph, graph.possible, EVERYWHERE)[0]) == {EVERYWHERE}
