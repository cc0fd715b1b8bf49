"""Faithfulness of one circuit, and of circuits over sizes with the areas that the field quotes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.methods.common import Floats, brief, count_note, interval_note
from mech_interp.statistics import (
    Estimate,
    EstimateArray,
    bootstrap_columns,
    bootstrap_ratio,
    bootstrap_statistic,
)
from mech_interp.views import Lines, Series, Table, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLINE = (0.01, 0.02, 0.05)


@dataclass(frozen=True, eq=False)
class FaithfulnessResult:
    """One circuit on n prompts.

    Attributes:
        circuit: pruned to paths; n_before: its edges before.
        values: the metric of the circuit, [n]; random_values: of random circuits, [k, n].
        random_sizes: edges of each random circuit.
        full, empty: the metric of the model, and with everything ablated, [n].
    """

    model: str
    task: str
    metric: str
    ablation: str
    name: str
    circuit: Circuit
    n_before: int
    values: Floats
    random_values: Floats
    random_sizes: tuple[int, ...]
    full: Floats
    empty: Floats
    groups: tuple[str, ...]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def faithfulness(self) -> Estimate:
        """f with its interval; exactly 0 for no edges and 1 for all."""
        return bootstrap_ratio(self.values - self.empty, self.full - self.empty, self.groups, seed=self.seed)

    @property
    def share(self) -> float:
        """Edges of the pruned circuit over all possible edges."""
        return len(self.circuit) / self.circuit.graph.n_edges

    @property
    def random(self) -> Floats:
        """f of every random circuit of the same size, [k]."""
        gap = self.full.mean() - self.empty.mean()
        return np.asarray((self.random_values.mean(1) - self.empty.mean()) / gap)

    @property
    def beats_random(self) -> float:
        """p of the hypothesis that the circuit is one of the random ones: (1 + those as faithful) / (1 + k).

        Nearer to 1 is more faithful.
        """
        own = abs(1 - self.faithfulness.value)
        return (1 + int((np.abs(1 - self.random) <= own).sum())) / (1 + len(self.random))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": "faithfulness",
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "ablation": self.ablation,
            "name": self.name,
            "edges": len(self.circuit),
            "edges_before_pruning": self.n_before,
            "counted": self.circuit.graph.convention,
            "share": self.share,
            "nodes": [str(node) for node in self.circuit.nodes()],
            "faithfulness": self.faithfulness.to_dict(),
            "random": self.random.tolist(),
            "random_sizes": list(self.random_sizes),
            "random_p": self.beats_random,
        }


@dataclass(frozen=True, eq=False)
class CurveResult:
    """Circuits of the top edges over sizes, on n prompts.

    Attributes:
        ranking: how edges were ordered.
        fractions: of all possible edges, taken before pruning. n_before, n_edges: edges before and after.
        circuits: pruned, one per fraction.
        values: the metric of every circuit, [size, n]; random_values: of random ones at each size, [k, n].
        full, empty: the metric of the model, and with everything ablated, [n].
    """

    model: str
    task: str
    metric: str
    ablation: str
    name: str
    ranking: str
    graph: CircuitGraph
    fractions: tuple[float, ...]
    n_before: tuple[int, ...]
    n_edges: tuple[int, ...]
    circuits: tuple[Circuit, ...]
    values: Floats
    random_values: tuple[Floats, ...]
    full: Floats
    empty: Floats
    groups: tuple[str, ...]
    seed: int = 0

    def __len__(self) -> int:
        return int(self.values.shape[1])

    @cached_property
    def faithfulness(self) -> EstimateArray:
        """f at every size."""
        return bootstrap_columns(
            (self.values - self.empty).T, self.full - self.empty, groups=self.groups, seed=self.seed
        )

    @property
    def reaches_all(self) -> bool:
        """Whether the curve goes on to all edges: on a linear axis its area means little otherwise."""
        return len(self.fractions) > 1 and self.fractions[-1] == 1

    @cached_property
    def cpr(self) -> Estimate:
        """Circuit performance ratio: area under f on a linear axis of the fraction (trapezoid), over the
        fractions measured; comparable where the curve `reaches_all`."""
        return self._area(linear_area, lambda f: f)

    @cached_property
    def cmd(self) -> Estimate:
        """Circuit-model distance: area under |1 - f| on a linear axis of the fraction; see `cpr`."""
        return self._area(linear_area, lambda f: np.abs(1 - f))

    @cached_property
    def log_area(self) -> Estimate:
        """Mean of f over the logarithm of the fraction: small circuits weigh as much as large ones."""
        return self._area(log_area, lambda f: f)

    @cached_property
    def log_distance(self) -> Estimate:
        """Mean of |1 - f| over the logarithm of the fraction."""
        return self._area(log_area, lambda f: np.abs(1 - f))

    def at(self, fraction: float) -> Estimate:
        """f at one of the fractions.

        Raises:
            InputError: for a fraction that was not measured.
        """
        near = np.flatnonzero(np.isclose(self.fractions, fraction))
        if not len(near):
            raise InputError(f"f was not measured at {fraction:.3%}.", f"It was at {self.fractions}.")
        return self.faithfulness.at(int(near[0]))

    @property
    def headline(self) -> dict[float, Estimate]:
        """f at 1, 2 and 5 % of the edges, where measured."""
        here = [one for one in HEADLINE if np.isclose(self.fractions, one).any()]
        return {one: self.at(one) for one in here}

    @property
    def random(self) -> list[Floats]:
        """f of the random circuits at each size; empty where there were none."""
        gap = self.full.mean() - self.empty.mean()
        return [np.asarray((band.mean(1) - self.empty.mean()) / gap) for band in self.random_values]

    def smallest(self, level: float = 0.9) -> int | None:
        """The first size, as its number, from which on f stays at `level` or above; None for no size."""
        enough = self.faithfulness.value >= level
        kept = np.flatnonzero(np.cumprod(enough[::-1])[::-1])
        return int(kept[0]) if len(kept) else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        sizes = [
            {
                "fraction": fraction,
                "edges_before_pruning": self.n_before[i],
                "edges": self.n_edges[i],
                "faithfulness": self.faithfulness.at(i).to_dict(),
                "random": self.random[i].tolist(),
            }
            for i, fraction in enumerate(self.fractions)
        ]
        return {
            "method": "faithfulness_curve",
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "ablation": self.ablation,
            "name": self.name,
            "ranking": self.ranking,
            "counted": self.graph.convention,
            "log_area": self.log_area.to_dict(),
            "log_distance": self.log_distance.to_dict(),
            "headline": {f"{one:g}": found.to_dict() for one, found in self.headline.items()},
            "cmd": self.cmd.to_dict(),
            "cpr": self.cpr.to_dict(),
            "sizes": sizes,
        }

    def view(self) -> View:
        """f over the fraction of edges, with the band of random circuits."""
        f = self.faithfulness
        ends = [(None, None) if not len(band) else (band.min(), band.max()) for band in self.random]
        middle = [None if not len(band) else float(np.median(band)) for band in self.random]
        series = [
            Series(name=self.name, y=f.value.tolist(), low=f.low.tolist(), high=f.high.tolist()),
            Series(
                name="random circuits of equal size",
                y=middle,
                low=[low for low, _ in ends],
                high=[high for _, high in ends],
            ),
        ]
        return Lines(
            title=f"Faithfulness over circuit size ({self.task}, {self.model})",
            x=list(self.fractions),
            series=series,
            x_axis="edges taken, fraction of all (before pruning)",
            y_axis=f"faithfulness ({self.metric})",
            references=[(1.0, "model"), (0.0, f"all ablated ({self.ablation})")],
            log_x=True,
            note=f"{count_note(len(self), self.groups)}; {interval_note(f)}; random: median and range of "
            f"{max((len(band) for band in self.random), default=0)}; {self.graph.convention}",
        )

    def table_view(self) -> View:
        """Sizes, counts and f."""
        rows: list[list[str | float]] = [
            [
                f"{fraction:.1%}",
                self.n_before[i],
                self.n_edges[i],
                brief(self.faithfulness.at(i)),
                brief_range(self.random[i]),
            ]
            for i, fraction in enumerate(self.fractions)
        ]
        areas = f"linear axis: CMD {brief(self.cmd)}, CPR {brief(self.cpr)}; " if self.reaches_all else ""
        return Table(
            title=f"Faithfulness over circuit size ({self.task}, {self.model})",
            columns=["edges", "taken", "after pruning", "f", "random circuits"],
            rows=rows,
            note=f"log-axis mean of f {brief(self.log_area)}; {areas}{count_note(len(self), self.groups)}",
        )

    def views(self) -> list[View]:
        """All views."""
        return [self.view(), self.table_view()]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    def _area(self, area: Callable[[Floats, Floats], float], turned: Callable[[Floats], Floats]) -> Estimate:
        x = np.asarray(self.fractions)

        def statistic(above: Floats, below: Floats) -> float:
            return area(x, turned(above.sum(0) / below.sum()))

        return bootstrap_statistic(
            statistic,
            (self.values - self.empty).T,
            self.full - self.empty,
            groups=self.groups,
            seed=self.seed,
        )


def linear_area(x: Floats, y: Floats) -> float:
    """Trapezoid over x as it is, from its first to its last value."""
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def log_area(x: Floats, y: Floats) -> float:
    """Trapezoid over the logarithm of x, divided by its length: a mean of y; y itself for one point."""
    if len(x) == 1:
        return float(y[0])
    log = np.log(x)
    return linear_area(log, y) / float(log[-1] - log[0])


def brief_range(values: Floats) -> str:
    """Lowest to highest, or a dash."""
    return "–" if not len(values) else f"{values.min():.2f} to {values.max():.2f}"
