"""What the logit lens found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.methods.common import Floats, Ints, brief, count_note, interval_note, optional
from mech_interp.statistics import (
    Estimate,
    EstimateArray,
    bootstrap_columns,
    bootstrap_mean,
    bootstrap_statistic,
    wilson,
)
from mech_interp.views import HeatMap, Lines, Series, Table, View, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TargetReading:
    """One token per prompt, read in every residual stream; arrays are [prompt, n_layers + 1].

    `rank` counts from 1, `cross_entropy` is in nats.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    rank: Ints
    probability: Floats
    cross_entropy: Floats

    @property
    def crossover(self) -> tuple[int | None, ...]:
        """Per prompt the first layer after which the token is top-1; -1 is the embedding."""
        return tuple(_first(row == 1) for row in self.rank)

    @property
    def decision(self) -> tuple[int | None, ...]:
        """Per prompt the first layer from which the token stays top-1 to the end; -1 is the embedding."""
        return tuple(_first(np.logical_and.accumulate(row[::-1] == 1)[::-1]) for row in self.rank)


@dataclass(frozen=True)
class LensResult:
    """Logit lens readings of n prompts in n_layers + 1 residual streams.

    Stream 0 is the embedding (label "embed"), stream l + 1 the stream after layer l (label "l").

    Attributes:
        model: the model's name.
        prompts: the prompts as text (or ids, where no text was given).
        positions: where each was read.
        target: the tokens asked for.
        control: tokens that should not be predicted, read the same way.
        control_kind: where the control tokens come from.
        top_texts: [prompt][stream][k] most likely tokens; `top_probability` [prompt, stream, k].
        final_gap: largest difference between the last stream's logits and the model's own, relative to
            max(1, |logit|).
        groups: bootstrap groups, or None.
        seed: of control and resampling.
    """

    model: str
    prompts: tuple[str, ...]
    positions: tuple[int, ...]
    target: TargetReading
    control: TargetReading
    control_kind: str
    top_texts: Sequence[Sequence[Sequence[str]]]
    top_probability: Floats
    final_gap: float
    groups: tuple[str, ...] | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def n_layers(self) -> int:
        """Number of layers; there is one stream more."""
        return int(self.target.rank.shape[1]) - 1

    @property
    def labels(self) -> list[str]:
        """Names of the streams: "embed", "0", ..."""
        return ["embed", *(str(layer) for layer in range(self.n_layers))]

    @property
    def crossover_layers(self) -> tuple[int | None, ...]:
        """Per prompt the first layer after which the target is top-1 (-1: embedding; None: never)."""
        return self.target.crossover

    @property
    def decision_layers(self) -> tuple[int | None, ...]:
        """Per prompt the first layer from which the target stays top-1 (-1: embedding; None: never)."""
        return self.target.decision

    @property
    def crossover_layer(self) -> int | None:
        """First layer after which the target is top-1; over several prompts the (lower) median.

        -1 is the embedding; None when the prompt, or at least half of the prompts, never gets there.
        """
        return _median(self.crossover_layers)

    @property
    def decision_layer(self) -> int | None:
        """First layer from which the target stays top-1; over several prompts the (lower) median."""
        return _median(self.decision_layers)

    @cached_property
    def crossover_estimate(self) -> Estimate:
        """Mean crossover layer with interval; prompts that never cross count as n_layers."""
        return self._mean_layer(self.crossover_layers)

    @cached_property
    def decision_estimate(self) -> Estimate:
        """Mean decision layer with interval; prompts that never decide count as n_layers."""
        return self._mean_layer(self.decision_layers)

    @cached_property
    def decision_median(self) -> Estimate:
        """Median decision layer with a bootstrap interval; never counts as n_layers."""
        layers = _filled(self.decision_layers, self.n_layers)
        return bootstrap_statistic(_nanmedian, layers, groups=self.groups, seed=self.seed, n_resamples=1000)

    @cached_property
    def probability(self) -> EstimateArray:
        """Mean target probability per stream."""
        return self._mean(self.target.probability)

    @cached_property
    def control_probability(self) -> EstimateArray:
        """Mean probability of the control tokens per stream."""
        return self._mean(self.control.probability)

    @cached_property
    def cross_entropy(self) -> EstimateArray:
        """Mean target cross-entropy per stream, nats."""
        return self._mean(self.target.cross_entropy)

    @cached_property
    def control_cross_entropy(self) -> EstimateArray:
        """Mean cross-entropy of the control tokens per stream, nats."""
        return self._mean(self.control.cross_entropy)

    @cached_property
    def top1_rates(self) -> list[Estimate]:
        """Share of prompts whose most likely token is the target, per stream, with Wilson intervals."""
        return [wilson(int(hits), len(self)) for hits in (self.target.rank == 1).sum(0)]

    @cached_property
    def log_rank(self) -> EstimateArray:
        """Mean natural logarithm of the target's rank per stream; exp gives the geometric mean rank."""
        return self._mean(np.log(self.target.rank))

    def table(self) -> list[dict[str, Any]]:
        """One row per stream: means over prompts with intervals, next to the control."""
        return [
            {
                "layer": label,
                "probability": self.probability.at(i).to_dict(),
                "cross_entropy": self.cross_entropy.at(i).to_dict(),
                "top1_rate": self.top1_rates[i].to_dict(),
                "median_rank": float(np.median(self.target.rank[:, i])),
                "control_probability": self.control_probability.at(i).to_dict(),
                "control_cross_entropy": self.control_cross_entropy.at(i).to_dict(),
            }
            for i, label in enumerate(self.labels)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: per-prompt readings and the aggregates."""
        return {
            "method": "logit_lens",
            "model": self.model,
            "labels": self.labels,
            "crossover_layer": self.crossover_layer,
            "decision_layer": self.decision_layer,
            "crossover": self.crossover_estimate.to_dict(),
            "decision": self.decision_estimate.to_dict(),
            "control_kind": self.control_kind,
            "final_gap": self.final_gap,
            "layers": self.table(),
            "prompts": [self._prompt(i) for i in range(len(self))],
        }

    def view(self) -> View:
        """Mean target probability by layer, with the control."""
        both = (("target", self.probability), ("control", self.control_probability))
        crossing = self.crossover_layer
        name = "crossover" if len(self) == 1 else "median crossover"
        return Lines(
            title=f"Logit lens: probability of the target ({self.model})",
            x=list(range(self.n_layers + 1)),
            x_labels=self.labels,
            x_axis="residual stream after layer",
            y_axis="probability",
            series=[
                Series(name=name, y=optional(one.value), low=optional(one.low), high=optional(one.high))
                for name, one in both
            ],
            markers=() if crossing is None else [(crossing + 1, name)],
            note=f"{count_note(len(self), self.groups)}; {interval_note(self.probability)}; "
            f"control: {self.control_kind}",
        )

    def prompt_view(self, prompt: int = 0) -> View:
        """The most likely tokens of every stream for one prompt."""
        k = self.top_probability.shape[2]
        return HeatMap(
            title=f"Logit lens: most likely tokens after {_tail(self.prompts[prompt])!r}",
            values=self.top_probability[prompt].tolist(),
            cell_text=[[visible(text) for text in row] for row in self.top_texts[prompt]],
            row_labels=self.labels,
            column_labels=[str(i + 1) for i in range(k)],
            row_axis="residual stream after layer",
            column_axis="rank",
            value_label="probability",
            diverging=False,
            limits=(0.0, 1.0),
            marked=[(i, int(rank) - 1) for i, rank in enumerate(self.target.rank[prompt]) if rank <= k],
            note=f"outlined: the target {visible(self.target.texts[prompt])}; n = 1",
        )

    def table_view(self) -> View:
        """The table of means as a view."""
        columns = ["layer", "probability", "cross-entropy (nats)", "top-1 rate", "control probability"]
        rows = [
            [
                label,
                brief(self.probability.at(i), 3),
                brief(self.cross_entropy.at(i)),
                brief(self.top1_rates[i]),
                brief(self.control_probability.at(i), 3),
            ]
            for i, label in enumerate(self.labels)
        ]
        return Table(
            title=f"Logit lens ({self.model})",
            columns=columns,
            rows=rows,
            note=count_note(len(self), self.groups),
        )

    def views(self) -> list[View]:
        """All views: the curve, the first prompt in detail, the table."""
        return [self.view(), self.prompt_view(0), self.table_view()]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    def _prompt(self, i: int) -> dict[str, Any]:
        return {
            "prompt": self.prompts[i],
            "position": self.positions[i],
            "target": self.target.texts[i],
            "target_id": self.target.ids[i],
            "control": self.control.texts[i],
            "crossover_layer": self.crossover_layers[i],
            "decision_layer": self.decision_layers[i],
            "rank": self.target.rank[i].tolist(),
            "probability": self.target.probability[i].tolist(),
            "cross_entropy": self.target.cross_entropy[i].tolist(),
            "control_probability": self.control.probability[i].tolist(),
            "top": [list(row) for row in self.top_texts[i]],
            "top_probability": self.top_probability[i].tolist(),
        }

    def _mean(self, values: Any) -> EstimateArray:
        return bootstrap_columns(values, groups=self.groups, seed=self.seed)

    def _mean_layer(self, layers: Sequence[int | None]) -> Estimate:
        return bootstrap_mean(_filled(layers, self.n_layers), self.groups, seed=self.seed)


def _first(hit: Any) -> int | None:
    """The layer of the first true stream (stream 0, the embedding, is layer -1)."""
    found = np.flatnonzero(hit)
    return int(found[0]) - 1 if found.size else None


def _filled(layers: Sequence[int | None], never: int) -> Floats:
    return np.array([never if layer is None else layer for layer in layers], dtype=np.float64)


def _median(layers: Sequence[int | None]) -> int | None:
    """The lower median with None as later than every layer; None when half or more are None."""
    known = sorted(layer for layer in layers if layer is not None)
    middle = (len(layers) - 1) // 2
    return known[middle] if 2 * len(known) > len(layers) else None


def _nanmedian(values: Floats) -> float:
    return float(np.median(values))


def _tail(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else "…" + text[-limit + 1 :]
