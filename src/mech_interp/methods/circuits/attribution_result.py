"""What attribution found: scores, the error of their approximation, and claims tested exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.methods.circuits.approximation import Approximation, Claims
from mech_interp.methods.circuits.common import WEAK
from mech_interp.methods.circuits.edge_positions import EdgePositions
from mech_interp.methods.common import Floats, brief, count_note, interval_note
from mech_interp.statistics import (
    EstimateArray,
    MaxTResult,
    bootstrap_columns,
    bootstrap_mean,
    max_t_test,
)
from mech_interp.views import Bars, Scatter, Table, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AttributionResult:
    """Scores of all edges or nodes on n prompts, in the metric's unit.

    Attributes:
        what: "edges" or "nodes". method: the variant of the scores.
        direction: "noising" or "denoising". ablation: what the ablated run carries.
        labels: names of nodes, None for edges. graph: of edges, None for nodes.
        scores: [n, items]; edges in order of `graph.possible`.
        full, empty: the metric of the clean and of the ablated run, [n].
        groups: bootstrap group of every prompt.
        approximation: exact effects of random items, None where not measured.
        claims: the largest items tested exactly, None where there were too few groups.
        at_once: prompts in one batch. notes: what a reader should know.
        positions: the strongest edges by position, None where that was not asked for.
    """

    model: str
    task: str
    what: str
    method: str
    direction: str
    ablation: str
    metric: str
    labels: tuple[str, ...] | None
    graph: CircuitGraph | None
    scores: Floats
    full: Floats
    empty: Floats
    groups: tuple[str, ...]
    approximation: Approximation | None
    claims: Claims | None
    seed: int = 0
    at_once: int = 0
    notes: tuple[str, ...] = ()
    positions: EdgePositions | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def n_items(self) -> int:
        """Number of edges or nodes."""
        return int(self.scores.shape[1])

    @cached_property
    def mean(self) -> Floats:
        """Mean score of every item, [items]."""
        return np.asarray(self.scores.mean(0))

    @property
    def weak_prompts(self) -> list[int]:
        """Prompts whose own difference is below a quarter of the mean, or of the other sign."""
        gap = self.full - self.empty
        return [int(i) for i in np.flatnonzero(gap / gap.mean() < WEAK)]

    def label(self, item: int) -> str:
        """The name of an item, such as ``a5.h5->a9.h9<q>`` or ``a9.h9``."""
        if self.labels is not None:
            return self.labels[item]
        assert self.graph is not None
        writer, reader = self._edges[item]
        return self.graph.edge_name(int(writer), int(reader))

    def score_of(self, name: str) -> Floats:
        """Scores of a named item on every prompt, [n]."""
        if self.graph is not None:
            writer, reader = self.graph.edge(name)
            return self.per_edge[:, writer, reader]
        assert self.labels is not None
        if name not in self.labels:
            raise InputError(f"There is no node {name!r} here.", f"There is for example {self.labels[0]}.")
        return self.scores[:, self.labels.index(name)]

    @property
    def per_edge(self) -> Floats:
        """[n, writer, reader], 0 where there is no edge."""
        graph = self._need_graph()
        out = np.zeros((len(self), *graph.possible.shape))
        out[:, graph.possible] = self.scores
        return out

    @property
    def matrix(self) -> Floats:
        """Mean scores of edges, [writer, reader], 0 where there is no edge."""
        graph = self._need_graph()
        out = np.zeros(graph.possible.shape)
        out[graph.possible] = self.mean
        return out

    def circuit(self, n: int) -> Circuit:
        """The n edges of largest |mean score|, before pruning."""
        return Circuit.top(self._need_graph(), self.matrix, n)

    def top(self, k: int = 10) -> list[int]:
        """The k items with the largest mean score by magnitude."""
        return [int(i) for i in np.argsort(-np.abs(self.mean), kind="stable")[:k]]

    def estimates(self, items: Sequence[int]) -> EstimateArray:
        """Mean scores of some items with their intervals."""
        return bootstrap_columns(self.scores[:, list(items)], groups=self.groups, seed=self.seed)

    @cached_property
    def test(self) -> MaxTResult:
        """Is an item's mean score zero? Max-T over all items (2,000 sign patterns at most)."""
        return max_t_test(self.scores, self.groups, n_permutations=2000, seed=self.seed)

    def table(self, k: int = 20) -> list[dict[str, Any]]:
        """The k strongest items with score, adjusted p, and exact effect where it was claimed."""
        chosen = self.top(k)
        found = self.estimates(chosen)
        return [
            {
                "item": self.label(item),
                "score": found.at(i).to_dict(),
                "adjusted_p": float(self.test.adjusted_p[item]),
            }
            for i, item in enumerate(chosen)
        ]

    def claims_table(self) -> list[dict[str, Any]]:
        """Claimed items with score and exact effect on the half that did not choose them."""
        claims = self.claims
        if claims is None:
            return []
        return [
            {
                "item": self.label(int(item)),
                "score": float(claims.scores[:, i].mean()),
                "effect": claims.estimates.at(i).to_dict(),
                "adjusted_p": float(claims.test.adjusted_p[i]),
            }
            for i, item in enumerate(claims.items)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: aggregates, the approximation's error, claims."""
        return {
            "method": f"{self.what[:-1]}_attribution",
            "variant": self.method,
            "model": self.model,
            "task": self.task,
            "direction": self.direction,
            "ablation": self.ablation,
            "metric": self.metric,
            "n": len(self),
            "items": self.n_items,
            "counted": "" if self.graph is None else self.graph.convention,
            "full": bootstrap_mean(self.full, self.groups, seed=self.seed).to_dict(),
            "empty": bootstrap_mean(self.empty, self.groups, seed=self.seed).to_dict(),
            "weak_prompts": self.weak_prompts,
            "approximation": None if self.approximation is None else self.approximation.to_dict(),
            "claims": self.claims_table(),
            "claims_smallest_p": None if self.claims is None else self.claims.test.smallest_p,
            "top": self.table(),
            "prompts_at_once": self.at_once,
            "notes": list(self.notes),
        }

    def view(self, k: int = 16) -> View:
        """The k largest mean scores."""
        chosen = self.top(k)
        found = self.estimates(chosen)
        bars = [found.at(i) for i in range(len(chosen))]
        return Bars(
            title=f"{self.what.capitalize()} by {self.method}, {self.direction} ({self.task}, {self.model})",
            labels=[self.label(item) for item in chosen],
            values=[one.value for one in bars],
            intervals=[one.interval for one in bars],
            value_label=f"estimated effect on {self.metric}",
            label_axis=self.what[:-1],
            diverging=True,
            note=f"{self._note()}; {interval_note(found)}",
        )

    def approximation_view(self) -> View | None:
        """Exact effects against scores of the random items."""
        found = self.approximation
        if found is None:
            return None
        return Scatter(
            title=f"How wrong the scores are: {len(found)} random {self.what} ({self.task}, {self.model})",
            x=found.estimated.tolist(),
            y=found.exact.tolist(),
            x_axis=f"estimated effect on {self.metric}",
            y_axis=f"exact effect on {self.metric}",
            identity=True,
            note=f"Pearson {brief(found.pearson)} ({found.pearson_without_largest:.2f} without the largest "
            f"effect), Spearman {brief(found.spearman)}, slope "
            f"{found.slope:.2f}, mean absolute error {found.mean_absolute_error.value:.2g} (mean effect "
            f"{found.mean_absolute_effect:.2g}); {count_note(len(found.prompts), None)}",
        )

    def claims_view(self) -> View | None:
        """The claimed items, tested on the half that did not choose them."""
        claims = self.claims
        if claims is None:
            return None
        rows: list[list[str | float]] = [
            [
                self.label(int(item)),
                float(claims.scores[:, i].mean()),
                brief(claims.estimates.at(i)),
                float(claims.test.adjusted_p[i]),
            ]
            for i, item in enumerate(claims.items)
        ]
        return Table(
            title=f"Claimed {self.what}, exact effects on the other half ({self.task}, {self.model})",
            columns=[self.what[:-1], "score", f"exact effect ({self.metric})", "adjusted p (max-T)"],
            rows=rows,
            note=f"{count_note(len(claims.prompts), claims.groups)}; {interval_note(claims.estimates)}; "
            f"smallest attainable p {claims.test.smallest_p:.2g}",
        )

    def positions_view(self) -> View | None:
        """The strongest edges by position."""
        if self.positions is None:
            return None
        title = f"Where the strongest edges act, {self.method} ({self.task}, {self.model})"
        return self.positions.view(title, self.metric)

    def views(self) -> list[View]:
        """All views."""
        found = [self.view(), self.positions_view(), self.approximation_view(), self.claims_view()]
        return [view for view in found if view is not None]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    @cached_property
    def _edges(self) -> np.ndarray:
        return np.argwhere(self._need_graph().possible)

    def _need_graph(self) -> CircuitGraph:
        if self.graph is None:
            raise InputError("Nodes have no matrix of edges.", "Attribute edges.")
        return self.graph

    def _note(self) -> str:
        weak = len(self.weak_prompts)
        parts = [count_note(len(self), self.groups), *self.notes]
        parts += [f"{weak} prompt{'' if weak == 1 else 's'} with a small difference"] if weak else []
        return "; ".join(parts)
