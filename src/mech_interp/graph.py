"""The circuit graph: writers add to the residual stream, readers take it in, edges join them.

Writers are the embedding (token and position as one), every attention head and every MLP; readers are
the query input of every head, the key and value inputs of every key/value head, every MLP and the
logits. An edge joins a writer to a reader that comes after it. Biases and norms belong to no writer;
norms stand inside the reader. Names are those of the EAP-IG graphs: ``input``, ``a9.h7``, ``m4``,
``a9.h7<q>``, ``logits``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mech_interp.errors import InputError, nearest

WriterKind = Literal["input", "head", "mlp"]
ReaderKind = Literal["q", "k", "v", "mlp", "logits"]


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream: the embedding, one head or one MLP."""

    kind: WriterKind
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        return {"input": "input", "head": f"a{self.layer}.h{self.head}", "mlp": f"m{self.layer}"}[self.kind]


@dataclass(frozen=True)
class Reader:
    """What takes the residual stream in: q, k or v of one head, one MLP, or the logits.

    The head of k and v is a key/value head, except in an ungrouped graph.
    """

    kind: ReaderKind
    layer: int = -1
    head: int = -1

    def __str__(self) -> str:
        if self.kind in ("mlp", "logits"):
            return f"m{self.layer}" if self.kind == "mlp" else "logits"
        return f"a{self.layer}.h{self.head}<{self.kind}>"


@dataclass(frozen=True)
class CircuitGraph:
    """Writers, readers and edges of one architecture.

    Attributes:
        n_kv_heads: key/value heads, each with one k and one v reader.
        parallel: attention and MLP of a block read the same stream, so no head writes into its own
            block's MLP.
        mlps: whether blocks have MLPs.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    mlps: bool = True

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """All writers in order of computation."""
        found = [Writer("input")]
        for layer in range(self.n_layers):
            found += [Writer("head", layer, head) for head in range(self.n_heads)]
            found += [Writer("mlp", layer)] if self.mlps else []
        return tuple(found)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """All readers in order of computation: q, k, v of a layer, its MLP; the logits last."""
        found: list[Reader] = []
        for layer in range(self.n_layers):
            found += [Reader("q", layer, head) for head in range(self.n_heads)]
            found += [Reader("k", layer, head) for head in range(self.n_kv_heads)]
            found += [Reader("v", layer, head) for head in range(self.n_kv_heads)]
            found += [Reader("mlp", layer)] if self.mlps else []
        return (*found, Reader("logits"))

    @cached_property
    def writer_index(self) -> dict[Writer, int]:
        """Number of each writer."""
        return {writer: i for i, writer in enumerate(self.writers)}

    @cached_property
    def reader_index(self) -> dict[Reader, int]:
        """Number of each reader."""
        return {reader: i for i, reader in enumerate(self.readers)}

    def before(self, reader: Reader) -> int:
        """How many writers come before a reader: edges into it come from the first so many."""
        per_layer = self.n_heads + self.mlps
        if reader.kind == "logits":
            return len(self.writers)
        own = self.n_heads if reader.kind == "mlp" and not self.parallel else 0
        return 1 + reader.layer * per_layer + own

    @cached_property
    def possible(self) -> np.ndarray:
        """[writer, reader] bool: the edges there are."""
        found = np.zeros((len(self.writers), len(self.readers)), dtype=bool)
        for column, reader in enumerate(self.readers):
            found[: self.before(reader), column] = True
        return found

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.possible.sum())

    @property
    def convention(self) -> str:
        """How edges are counted, in one sentence."""
        kv = "grouped" if self.n_kv_heads < self.n_heads else "one per head"
        return (
            f"{self.n_edges:,} edges: {len(self.writers):,} writers (token and position embedding as one) "
            f"into {len(self.readers):,} readers (q, k, v inputs apart; key/value inputs {kv})"
        )

    def ungrouped(self) -> CircuitGraph:
        """The graph with k and v readers copied to every query head, as EAP-IG counts them."""
        return CircuitGraph(self.n_layers, self.n_heads, self.n_heads, self.parallel, self.mlps)

    def kv_reader(self, kind: Literal["k", "v"], layer: int, query_head: int) -> Reader:
        """The k or v reader that serves a query head."""
        return Reader(kind, layer, query_head * self.n_kv_heads // self.n_heads)

    def edge(self, name: str) -> tuple[int, int]:
        """(writer, reader) numbers of an edge written ``a5.h5->a9.h9<q>``.

        Raises:
            InputError: when the text names no edge of this graph.
        """
        left, arrow, right = name.replace(" ", "").partition("->")
        if not arrow:
            raise InputError(f"{name!r} names no edge.", "Write for example a5.h5->a9.h9<q>.")
        at = (self._find(left, self._writer_names, "writer"), self._find(right, self._reader_names, "reader"))
        if not self.possible[at]:
            raise InputError(
                f"There is no edge {name}: {left} does not come before {right}.",
                "Edges go from an earlier writer to a later reader.",
            )
        return at

    def writer(self, name: str) -> int:
        """The number of a writer named ``input``, ``a9.h7`` or ``m4``."""
        return self._find(name, self._writer_names, "writer")

    def reader(self, name: str) -> int:
        """The number of a reader named ``a9.h7<q>``, ``m4`` or ``logits``."""
        return self._find(name, self._reader_names, "reader")

    def edge_name(self, writer: int, reader: int) -> str:
        """The text form of an edge."""
        return f"{self.writers[writer]}->{self.readers[reader]}"

    @cached_property
    def _writer_names(self) -> dict[str, int]:
        return {str(writer): i for i, writer in enumerate(self.writers)}

    @cached_property
    def _reader_names(self) -> dict[str, int]:
        return {str(reader): i for i, reader in enumerate(self.readers)}

    def _find(self, name: str, known: dict[str, int], what: str) -> int:
        if name not in known:
            hint = nearest(name, known) or f"There are for example {', '.join(list(known)[:3])}."
            raise InputError(f"There is no {what} {name!r} in this graph.", hint)
        return known[name]


class Circuit:
    """A set of edges of a graph, [writer, reader] bool."""

    def __init__(self, graph: CircuitGraph, edges: np.ndarray) -> None:
        if edges.shape != graph.possible.shape:
            raise InputError(
                f"A circuit of this graph is a {graph.possible.shape} matrix, not {edges.shape}.",
                "Give one truth value for every writer and reader.",
            )
        if bool((edges & ~graph.possible).any()):
            writer, reader = np.argwhere(edges & ~graph.possible)[0]
            raise InputError(
                f"There is no edge {graph.edge_name(int(writer), int(reader))}.",
                "Edges go from an earlier writer to a later reader.",
            )
        self.graph, self.edges = graph, edges.astype(bool)

    @classmethod
    def named(cls, graph: CircuitGraph, names: Iterable[str]) -> Circuit:
        """A circuit of named edges (``a5.h5->a9.h9<q>``)."""
        edges = np.zeros_like(graph.possible)
        for name in names:
            edges[graph.edge(name)] = True
        return cls(graph, edges)

    @classmethod
    def top(cls, graph: CircuitGraph, scores: np.ndarray, n: int) -> Circuit:
        """The n possible edges of largest |score|; ties go to the earlier edge."""
        flat = np.where(graph.possible, np.abs(scores), -1.0).ravel()
        chosen = np.argsort(-flat, kind="stable")[: min(n, graph.n_edges)]
        edges = np.zeros(flat.shape, dtype=bool)
        edges[chosen] = True
        return cls(graph, edges.reshape(graph.possible.shape))

    def __len__(self) -> int:
        return int(self.edges.sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit) or self.graph != other.graph:
            return False
        return bool((self.edges == other.edges).all())

    __hash__ = None  # type: ignore[assignment]  # the matrix may be edited before the circuit is handed on

    def names(self) -> list[str]:
        """Edges by name, in order of the reader."""
        pairs = sorted(map(tuple, np.argwhere(self.edges)), key=lambda at: (at[1], at[0]))
        return [self.graph.edge_name(int(writer), int(reader)) for writer, reader in pairs]

    def nodes(self) -> list[Writer]:
        """Writers with an edge of the circuit leaving them."""
        return [w for i, w in enumerate(self.graph.writers) if self.edges[i].any()]

    def pruned(self) -> Circuit:
        """Without the edges that lie on no path from the embedding to the logits.

        A head is one node: what enters its q, k or v comes out as its output.
        """
        forward = self._reached(forward=True)
        backward = self._reached(forward=False)
        rows = np.array([w in forward and w in backward for w in self.graph.writers])
        columns = np.array([self._owners(r, backward) for r in self.graph.readers])
        return Circuit(self.graph, self.edges & rows[:, None] & columns[None])

    def _owners(self, reader: Reader, reached: set[Writer]) -> bool:
        return reader.kind == "logits" or any(owner in reached for owner in owners(self.graph, reader))

    def _reached(self, *, forward: bool) -> set[Writer]:
        """Writers with a path from the embedding (or to the logits) inside the circuit."""
        graph = self.graph
        if forward:
            found = {Writer("input")}
            for column, reader in enumerate(graph.readers[:-1]):
                sources = [graph.writers[i] for i in np.flatnonzero(self.edges[:, column])]
                if any(source in found for source in sources):
                    found |= set(owners(graph, reader))
            return found
        found = {graph.writers[i] for i in np.flatnonzero(self.edges[:, -1])}
        for column in range(len(graph.readers) - 2, -1, -1):
            if any(owner in found for owner in owners(graph, graph.readers[column])):
                found |= {graph.writers[i] for i in np.flatnonzero(self.edges[:, column])}
        return found


def owners(graph: CircuitGraph, reader: Reader) -> list[Writer]:
    """The writers whose output a reader feeds; none for the logits."""
    if reader.kind == "logits":
        return []
    if reader.kind == "mlp":
        return [Writer("mlp", reader.layer)]
    if reader.kind == "q":
        return [Writer("head", reader.layer, reader.head)]
    shared = graph.n_heads // graph.n_kv_heads
    return [Writer("head", reader.layer, reader.head * shared + i) for i in range(shared)]


def parse_head(text: str) -> tuple[int, int]:
    """(layer, head) of ``9.7``, ``a9.h7`` or ``L9H7``.

    Raises:
        InputError: when the text names no head.
    """
    match = re.fullmatch(r"(?:a|L|l)?(\d+)[.]?(?:h|H)?(\d+)", text.strip())
    if match is None or (text.strip().isdigit()):
        raise InputError(f"{text!r} names no head.", "Write for example 9.7 or a9.h7.")
    return int(match[1]), int(match[2])


def jaccard(left: Sequence[bool] | np.ndarray, right: Sequence[bool] | np.ndarray) -> float:
    """Size of the intersection over size of the union; 1 for two empty sets."""
    a, b = np.asarray(left, dtype=bool), np.asarray(right, dtype=bool)
    union = int((a | b).sum())
    return 1.0 if union == 0 else int((a & b).sum()) / union
