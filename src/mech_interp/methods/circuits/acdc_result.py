"""What ACDC decided: the circuit, why every edge or node went or stayed, and what the search cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mech_interp.graph import Circuit, owners
from mech_interp.graph_drawing import circuit_view
from mech_interp.methods.common import Floats, count_note
from mech_interp.views import Lines, Series, View


@dataclass(frozen=True)
class NodeDecision:
    """What was decided about one node.

    Attributes:
        writer: its number. kept: whether it stays.
        effect: the rise of the loss when it is removed. loss: the loss after the decision.
        close: the effect lies so near tau that rounding may decide.
    """

    writer: int
    kept: bool
    effect: float
    loss: float
    close: bool = False


@dataclass(frozen=True, eq=False)
class AcdcResult:
    """The circuit that ACDC found on n prompts.

    Attributes:
        level: "edges" or "nodes". loss: "kl" or "metric". tau: in the loss's unit.
        order: of writers at a reader. ablation: what removed edges carry.
        circuit: the edges that stay, before pruning to paths.
        effects: [writer, reader] rise of the loss that decided; NaN where nothing was evaluated.
        examined: names of edges (or nodes) in the order of their decisions.
        unevaluated: edges that went because their reader no longer reached the logits.
        close: names of those whose effect lies within rounding of tau.
        losses: after each reader (or node).
        rows, wasted: forward rows computed, and those that decided nothing.
    """

    model: str
    task: str
    metric: str
    ablation: str
    level: str
    loss: str
    tau: float
    order: str
    n: int
    circuit: Circuit
    effects: Floats
    examined: tuple[str, ...]
    unevaluated: int
    close: tuple[str, ...]
    losses: tuple[float, ...]
    rows: int
    wasted: int
    seed: int = 0

    def __len__(self) -> int:
        return self.n

    @property
    def pruned(self) -> Circuit:
        """The circuit without edges that lie on no path from the embedding to the logits."""
        return self.circuit.pruned()

    @property
    def share(self) -> float:
        """Edges of the pruned circuit over all possible edges."""
        return len(self.pruned) / self.circuit.graph.n_edges

    @property
    def nodes(self) -> list[str]:
        """Heads and MLPs of the pruned circuit."""
        return [str(node) for node in self.pruned.nodes() if node.kind != "input"]

    @property
    def scores(self) -> Floats:
        """[writer, reader] a ranking of all edges: the effects; those never evaluated lie below all others.

        With nodes, an edge ranks by the weaker of the two nodes that it joins, so that the first edges are
        all those among the strongest nodes.
        """
        graph = self.circuit.graph
        if self.level == "nodes":
            nodes = {node: float(np.nanmax(self.effects[i])) for i, node in enumerate(graph.writers) if i}
            most = max(nodes.values(), default=0.0)
            writers = np.array([nodes.get(node, most) for node in graph.writers])
            fed = [[nodes[owner] for owner in owners(graph, reader)] for reader in graph.readers]
            readers = np.array([max(own, default=most) for own in fed])
            return np.where(graph.possible, np.minimum(writers[:, None], readers[None]), 0.0)
        known = np.where(np.isnan(self.effects), -np.inf, self.effects)
        lowest = known[np.isfinite(known)].min(initial=0.0)
        return np.where(graph.possible, np.where(np.isfinite(known), known, lowest - 1.0), 0.0)

    def table(self) -> list[dict[str, Any]]:
        """One row per evaluated edge or node, in the order of the decisions."""
        graph, close = self.circuit.graph, set(self.close)
        rows = []
        for order, name in enumerate(self.examined):
            if self.level == "edges":
                at = graph.edge(name)
                effect, kept = float(self.effects[at]), bool(self.circuit.edges[at])
            else:
                writer = graph.writer(name)
                effect, kept = float(np.nanmax(self.effects[writer])), bool(self.circuit.edges[writer].any())
            rows.append(
                {
                    "order": order,
                    self.level[:-1]: name,
                    "effect": effect,
                    "kept": kept,
                    "close": name in close,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": "acdc" if self.level == "edges" else "acdc_lite",
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "ablation": self.ablation,
            "loss": self.loss,
            "tau": self.tau,
            "order": self.order,
            "n": self.n,
            "counted": self.circuit.graph.convention,
            "edges_before_pruning": len(self.circuit),
            "edges": len(self.pruned),
            "share": self.share,
            "nodes": self.nodes,
            "evaluated": len(self.examined),
            "unevaluated": self.unevaluated,
            "close": list(self.close),
            "rows": self.rows,
            "wasted": self.wasted,
        }

    def view(self, *, most: int = 60) -> View:
        """The circuit drawn in layers; edges as wide as the rise of the loss."""
        scores = np.where(np.isnan(self.effects), 0.0, self.effects)
        return circuit_view(
            self.pruned,
            scores,
            title=f"Circuit by {self._name}, tau {self.tau:g} ({self.task}, {self.model})",
            value_label=f"rise of the loss when removed ({self.unit})",
            most=most,
            note=f"{count_note(self.n, None)}; {self.ablation} ablation",
        )

    def loss_view(self) -> View:
        """The loss as edges or nodes go."""
        what = "readers" if self.level == "edges" else "nodes"
        return Lines(
            title=f"Loss along {self._name}, tau {self.tau:g} ({self.task}, {self.model})",
            x=list(range(1, len(self.losses) + 1)),
            series=[Series(name=f"loss ({self.loss})", y=list(self.losses))],
            x_axis=f"{what} decided, from the logits backwards",
            y_axis=f"mean loss ({self.unit})",
            note=f"{count_note(self.n, None)}; {self.ablation} ablation",
        )

    @property
    def unit(self) -> str:
        """Of the loss, the effects and tau."""
        return "nats" if self.loss == "kl" else self.metric.replace("_", " ")

    @property
    def _name(self) -> str:
        return "ACDC" if self.level == "edges" else "ACDC over nodes"
