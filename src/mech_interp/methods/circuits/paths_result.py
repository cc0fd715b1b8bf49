"""What path patching found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.errors import InputError, MechError, nearest
from mech_interp.graph import parse_head
from mech_interp.methods.common import Floats, brief, count_note, interval_note, optional
from mech_interp.statistics import (
    Estimate,
    EstimateArray,
    MaxTResult,
    Selection,
    UnstableRatioError,
    bootstrap_columns,
    bootstrap_mean,
    max_t_test,
    select_then_quote,
)
from mech_interp.views import HeatMap, Table, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFINITIONS = {
    "three_pass": "three passes (Wang et al. 2023): heads frozen, MLPs and norms recomputed",
    "direct_edge": "direct edges (Goldowsky-Dill et al. 2023): the sender's part of the receiver's input",
}


@dataclass(frozen=True)
class PathPatchingResult:
    """Effects of patching paths in n pairs.

    Attributes:
        model, task: names.
        variant: ``three_pass`` or ``direct_edge``; `definition` says it in words.
        direction: "noising" (corrupt values into the clean run) or "denoising".
        senders, receivers: names along the axes; `members` are the receivers patched together in each
            column.
        positions: labels of the third axis; empty where all positions are patched together.
        differences: patched - base, [n, sender, receiver(, position)]; NaN where no path leads.
        control_differences: the same with an unrelated pair's values; NaN where not measured.
        base, other: the metric of the run patched into and of the run values come from, [n].
        groups: bootstrap group of every pair.
        normalised: whether `effects` are shares of mean(other - base).
        sanity: largest errors of the identities, relative to the metric's size.
        noise: differences up to this size are rounding, and never significant.
        notes: what a reader of the numbers should know.
    """

    model: str
    task: str
    variant: str
    direction: str
    metric: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    positions: tuple[str, ...]
    differences: Floats
    control_differences: Floats
    base: Floats
    other: Floats
    groups: tuple[str, ...]
    normalised: bool
    sanity: Mapping[str, float]
    noise: float = 0.0
    notes: tuple[str, ...] = ()
    seed: int = 0

    def __len__(self) -> int:
        return int(self.base.size)

    @property
    def definition(self) -> str:
        """The variant in words."""
        return DEFINITIONS[self.variant]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the map's axes."""
        return ("sender", "receiver", "position") if self.positions else ("sender", "receiver")

    @property
    def possible(self) -> np.ndarray:
        """The map's cells where a path leads, bool."""
        return np.asarray(~np.isnan(self.differences).all(0))

    @property
    def denominators(self) -> Floats:
        """other - base of every pair, [n]."""
        return self.other - self.base

    @property
    def effects(self) -> Floats:
        """Per-pair effects: shares of the mean denominator, or differences if not normalised."""
        return self.differences / (float(self.denominators.mean()) if self.normalised else 1.0)

    @cached_property
    def estimates(self) -> EstimateArray:
        """Mean effect of every cell (ratio of means when normalised)."""
        return self._estimate(self.differences)

    @cached_property
    def control_estimates(self) -> EstimateArray | None:
        """Mean effect of an unrelated pair's values; None where no pair has an unrelated partner."""
        if np.isnan(self.control_differences).all():
            return None
        try:
            return self._estimate(self.control_differences)
        except UnstableRatioError:
            # Only some pairs have a partner, and they alone do not fix the scale: keep that of all.
            scaled = self.control_differences / float(self.denominators.mean())
            return bootstrap_columns(scaled, groups=self.groups, seed=self.seed, allow_missing=True)

    @cached_property
    def baseline(self) -> tuple[Estimate, Estimate]:
        """Mean metric of the run patched into, and of the run patched from."""
        groups, seed = self.groups, self.seed
        return bootstrap_mean(self.base, groups, seed=seed), bootstrap_mean(self.other, groups, seed=seed)

    @cached_property
    def test(self) -> MaxTResult:
        """Is the mean effect of a path zero? Max-T over the possible cells, in their order."""
        return max_t_test(
            self.differences[:, self.possible], self.groups, seed=self.seed, noise_floor=self.noise
        )

    @cached_property
    def adjusted_p(self) -> Floats:
        """Max-T adjusted p of every cell; NaN where no path leads."""
        out = np.full(self.possible.shape, np.nan)
        out[self.possible] = self.test.adjusted_p
        return out

    @cached_property
    def top_path(self) -> Selection | None:
        """The strongest cell chosen on one half of the groups, its effect quoted on the other.

        None when the halves are too small or too weak for a ratio.
        """
        denominators = self.denominators if self.normalised else None
        try:
            found = select_then_quote(
                self.differences[:, self.possible], self.groups, denominators=denominators, seed=self.seed
            )
        except MechError:
            return None
        cell = tuple(int(i) for i in np.argwhere(self.possible)[found.site[0]])
        return Selection(cell, found.estimate, found.selected_value, found.n_selected_on)

    def label(self, cell: tuple[int, ...]) -> str:
        """A path by name: "a5.h5 to a9.h9<q>, position 4"."""
        text = f"{self.senders[cell[0]]} to {self.receivers[cell[1]]}"
        return f"{text}, position {self.positions[cell[2]]}" if self.positions else text

    def effect_of(self, sender: str, receiver: str) -> Floats:
        """Per-pair effects of one path, [n] or [n, position]."""
        found = []
        for name, known, what in ((sender, self.senders, "sender"), (receiver, self.receivers, "receiver")):
            if name not in known:
                raise InputError(
                    f"This map has no {what} {name!r}.",
                    nearest(name, known) or f"It has: {', '.join(known)}.",
                )
            found.append(known.index(name))
        return np.asarray(self.effects[:, found[0], found[1]])

    def top(self, k: int = 10) -> list[tuple[int, ...]]:
        """The k possible cells with the largest mean effect by magnitude."""
        size = np.where(self.possible, np.abs(self.estimates.value), -1.0)
        order = np.argsort(-size.ravel(), kind="stable")[: min(k, int(self.possible.sum()))]
        return [tuple(int(i) for i in np.unravel_index(int(flat), size.shape)) for flat in order]

    def table(self) -> list[dict[str, Any]]:
        """One row per possible cell: effect, control, adjusted p."""
        return [self._row(tuple(int(i) for i in cell)) for cell in np.argwhere(self.possible)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: aggregates, controls and per-pair effects (None where no path leads)."""
        base, other = self.baseline
        top = self.top_path
        effects = self.effects.astype(object)
        effects[np.isnan(self.effects)] = None
        return {
            "method": "path_patching",
            "model": self.model,
            "task": self.task,
            "variant": self.variant,
            "definition": self.definition,
            "direction": self.direction,
            "metric": self.metric,
            "normalised": self.normalised,
            "senders": list(self.senders),
            "receivers": {name: list(own) for name, own in zip(self.receivers, self.members, strict=True)},
            "positions": list(self.positions),
            "base": base.to_dict(),
            "other": other.to_dict(),
            "sanity": dict(self.sanity),
            "notes": list(self.notes),
            "smallest_p": self.test.smallest_p,
            "top_path": None
            if top is None
            else {
                "path": self.label(top.site),
                "estimate": top.estimate.to_dict(),
                "chosen_on": top.n_selected_on,
                "effect_where_chosen": top.selected_value,
            },
            "cells": self.table(),
            "effects": effects.tolist(),
        }

    def view(self) -> View:
        """The map: senders by receivers; layers by heads for one receiver; or senders by positions."""
        values, marked, rows, columns, axes = self._map()
        title = f"Path patching, {self.variant.replace('_', ' ')}, {self.direction}"
        if len(self.receivers) == 1:
            title += f", into {self.receivers[0]}"
        return HeatMap(
            title=f"{title} ({self.task}, {self.model})",
            values=[optional(row) for row in values],
            row_labels=rows,
            column_labels=columns,
            row_axis=axes[0],
            column_axis=axes[1],
            value_label=self._unit(),
            marked=[(int(row), int(column)) for row, column in np.argwhere(marked)],
            note=f"{self._note()}; outlined: p ≤ 0.05 after max-T over {int(self.possible.sum())} paths",
        )

    def table_view(self, k: int = 10) -> View:
        """The k strongest paths with interval, control and adjusted p."""
        rows: list[list[str | float]] = []
        for cell in self.top(k):
            control = None if self.control_estimates is None else self.control_estimates.at(*cell)
            measured = control is not None and control.n > 0
            rows.append(
                [
                    self.label(cell),
                    brief(self.estimates.at(*cell)),
                    brief(control) if control is not None and measured else "not measured",
                    float(self.adjusted_p[cell]),
                ]
            )
        return Table(
            title=f"Path patching, {self.direction}: strongest paths ({self.task}, {self.model})",
            columns=["path", self._unit(), "unrelated pair (control)", "adjusted p (max-T)"],
            rows=rows,
            note=f"{self._note()}; smallest attainable p {self.test.smallest_p:.2g}",
        )

    def views(self) -> list[View]:
        """All views."""
        return [self.view(), self.table_view()]

    def plot(self) -> Figure:
        """The map as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    def _map(self) -> tuple[Floats, np.ndarray, list[str], list[str], tuple[str, str]]:
        values = np.where(self.possible, self.estimates.value, np.nan)
        marked = np.nan_to_num(self.adjusted_p, nan=1.0) <= 0.05
        if self.positions:
            rows = [
                f"{s} to {r}" if len(self.receivers) > 1 else s for s in self.senders for r in self.receivers
            ]
            shape = (len(rows), len(self.positions))
            names = ("sender, receiver" if len(self.receivers) > 1 else "sender", "position of the sender")
            return values.reshape(shape), marked.reshape(shape), rows, list(self.positions), names
        if len(self.receivers) > 1 or not all(name.startswith("a") for name in self.senders):
            return values, marked, list(self.senders), list(self.receivers), ("sender", "receiver")
        places = [parse_head(name) for name in self.senders]
        layers, heads = (range(max(one) + 1) for one in zip(*places, strict=True))
        grid, stars = np.full((len(layers), len(heads)), np.nan), np.zeros((len(layers), len(heads)), bool)
        for i, place in enumerate(places):
            grid[place], stars[place] = values[i, 0], marked[i, 0]
        return grid, stars, [str(i) for i in layers], [str(i) for i in heads], ("layer", "head of the sender")

    def _estimate(self, differences: Floats) -> EstimateArray:
        return bootstrap_columns(
            differences,
            self.denominators if self.normalised else None,
            groups=self.groups,
            seed=self.seed,
            allow_missing=True,
        )

    def _row(self, cell: tuple[int, ...]) -> dict[str, Any]:
        control = None if self.control_estimates is None else self.control_estimates.at(*cell)
        labels = (self.senders, self.receivers, self.positions)
        return {
            **{axis: names[i] for axis, names, i in zip(self.axes, labels, cell, strict=False)},
            "effect": self.estimates.at(*cell).to_dict(),
            "control": None if control is None or control.n == 0 else control.to_dict(),
            "adjusted_p": float(self.adjusted_p[cell]),
        }

    def _unit(self) -> str:
        if self.normalised:
            return "effect (1 = all of the clean-corrupt difference)"
        return f"change of {self.metric.replace('_', ' ')}"

    def _note(self) -> str:
        first = f"{count_note(len(self), self.groups, 'pair')}; {interval_note(self.estimates)}"
        return "; ".join([first, self.definition, *self.notes])
