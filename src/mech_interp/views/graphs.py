"""Graphs drawn in layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mech_interp.errors import InputError
from mech_interp.views.base import Number, View, as_numbers, check_labels, check_length, register


@register
@dataclass(frozen=True, kw_only=True)
class LayeredGraph(View):
    """Nodes on levels, 0 at the bottom, and edges between them.

    `edges` are (source, target) indices of `nodes`; `values` (one per edge, None where unknown) give
    width and colour; `edge_labels` a short text per edge. `level_labels` names the levels.
    """

    kind: ClassVar[str] = "layered_graph"
    nodes: Sequence[str]
    levels: Sequence[int]
    edges: Sequence[tuple[int, int]]
    values: Sequence[Number]
    value_label: str
    level_labels: Sequence[str] = ()
    edge_labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_labels(self, "nodes", "level_labels")
        self._set("levels", tuple(int(level) for level in self.levels))
        check_length(self.title, "levels", self.levels, len(self.nodes))
        edges = tuple((int(source), int(target)) for source, target in self.edges)
        self._set("edges", edges)
        if any(not 0 <= end < len(self.nodes) for edge in edges for end in edge):
            raise InputError(f"View {self.title!r} joins a node that it lacks.", "Use indices of nodes.")
        if any(self.levels[source] >= self.levels[target] for source, target in edges):
            raise InputError(f"View {self.title!r} has an edge that does not go up.", "Put targets higher.")
        self._set("values", as_numbers(self.values, self.title))
        check_length(self.title, "values", self.values, len(edges))
        if any(level < 0 for level in self.levels):
            raise InputError(f"View {self.title!r} has a level below 0.", "Count levels from 0.")
        if self.edge_labels is not None:
            check_labels(self, "edge_labels")
            check_length(self.title, "edge labels", self.edge_labels or (), len(edges))

    def level_name(self, level: int) -> str:
        """The name of a level, or its number."""
        return self.level_labels[level] if level < len(self.level_labels) else str(level)
