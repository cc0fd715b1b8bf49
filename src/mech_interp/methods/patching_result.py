"""What activation patching found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.errors import MechError
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
from mech_interp.views import Bars, HeatMap, Table, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = {
    "logit_difference": "logits",
    "probability": "probability",
    "probability_difference": "probability",
    "kl": "nats",
}
WEAK = 0.25
"""A pair whose own clean-corrupt difference is below this share of the mean is listed as weak."""


@dataclass(frozen=True)
class PatchingResult:
    """Effects of patching n pairs in every cell of a grid.

    Attributes:
        model, task: names.
        direction: "denoising" (clean into corrupt) or "noising" (corrupt into clean).
        metric: its name.
        axes, labels: names of the grid's axes, and of the values along each.
        differences: patched - base in the metric's unit, [n, *grid].
        control_differences: the same with an unrelated pair's activation; NaN where not measured.
        base, other: the metric of the run patched into and of the run patched from, [n].
        groups: bootstrap group of every pair.
        normalised: whether `effects` are shares of mean(other - base).
        sanity: largest errors of the identities, relative to the metric's size.
        donors: the unrelated pair used for each pair, or None.
        patched_what: the site kind, or "sites".
        seed: of donors, halves and resampling.
    """

    model: str
    task: str
    direction: str
    metric: str
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    differences: Floats
    control_differences: Floats
    base: Floats
    other: Floats
    groups: tuple[str, ...]
    normalised: bool
    sanity: Mapping[str, float]
    donors: tuple[int | None, ...]
    patched_what: str
    seed: int = 0

    def __len__(self) -> int:
        return int(self.base.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid's shape."""
        return tuple(self.differences.shape[1:])

    @property
    def denominators(self) -> Floats:
        """other - base of every pair, [n]."""
        return self.other - self.base

    @property
    def effects(self) -> Floats:
        """Per-pair effects [n, *grid]: shares of the mean denominator, or differences if not normalised."""
        return self.differences / self._scale

    @property
    def control_effects(self) -> Floats:
        """The same for the unrelated patch; NaN where it was not measured."""
        return self.control_differences / self._scale

    @property
    def weak_pairs(self) -> list[int]:
        """Pairs whose own denominator is below a quarter of the mean, or of the other sign."""
        share = self.denominators / self.denominators.mean()
        return [int(i) for i in np.flatnonzero(share < WEAK)]

    @cached_property
    def estimates(self) -> EstimateArray:
        """Mean effect of every cell (ratio of means when normalised)."""
        return self._estimate(self.differences)

    @cached_property
    def control_estimates(self) -> EstimateArray | None:
        """Mean effect of the unrelated patch, per cell; None when no pair has an unrelated partner."""
        if np.isnan(self.control_differences).all():
            return None
        try:
            return self._estimate(self.control_differences)
        except UnstableRatioError:
            # Only some pairs have a partner, and they alone do not fix the scale: keep that of all.
            return bootstrap_columns(
                self.control_effects, groups=self.groups, seed=self.seed, allow_missing=True
            )

    @cached_property
    def baseline(self) -> tuple[Estimate, Estimate]:
        """Mean metric of the run patched into, and of the run patched from."""
        groups, seed = self.groups, self.seed
        return bootstrap_mean(self.base, groups, seed=seed), bootstrap_mean(self.other, groups, seed=seed)

    @cached_property
    def test(self) -> MaxTResult:
        """Is a cell's mean effect zero? Max-T over all cells."""
        return max_t_test(self.differences, self.groups, seed=self.seed)

    @cached_property
    def top_site(self) -> Selection | None:
        """The strongest cell chosen on one half of the groups, its effect quoted on the other.

        None when the halves are too small or too weak for a ratio.
        """
        denominators = self.denominators if self.normalised else None
        try:
            return select_then_quote(self.differences, self.groups, denominators=denominators, seed=self.seed)
        except MechError:
            return None

    def label(self, cell: tuple[int, ...]) -> str:
        """A cell's name, such as "layer 3, head 1"."""
        parts = zip(self.axes, self.labels, cell, strict=True)
        return ", ".join(f"{axis} {names[i]}" if axis != "site" else names[i] for axis, names, i in parts)

    def effect_of(self, **where: str | int) -> Floats:
        """Per-pair effects at chosen labels: `effect_of(layer=3, head=1)` is [n]."""
        index: list[Any] = [slice(None)]
        for axis, names in zip(self.axes, self.labels, strict=True):
            index.append(names.index(str(where[axis])) if axis in where else slice(None))
        return np.asarray(self.effects[tuple(index)])

    def top(self, k: int = 10) -> list[tuple[int, ...]]:
        """The k cells with the largest mean effect by magnitude."""
        order = np.argsort(-np.abs(self.estimates.value).ravel(), kind="stable")[:k]
        return [tuple(int(i) for i in np.unravel_index(int(flat), self.shape)) for flat in order]

    def table(self) -> list[dict[str, Any]]:
        """One row per cell: effect, control, adjusted p."""
        return [self._cell(cell) for cell in product(*(range(size) for size in self.shape))]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: aggregates, controls and per-pair effects."""
        base, other = self.baseline
        top = self.top_site
        return {
            "method": "activation_patching",
            "model": self.model,
            "task": self.task,
            "direction": self.direction,
            "metric": self.metric,
            "normalised": self.normalised,
            "axes": list(self.axes),
            "labels": [list(one) for one in self.labels],
            "base": base.to_dict(),
            "other": other.to_dict(),
            "sanity": dict(self.sanity),
            "weak_pairs": self.weak_pairs,
            "smallest_p": self.test.smallest_p,
            "top_site": None
            if top is None
            else {
                "site": self.label(top.site),
                "estimate": top.estimate.to_dict(),
                "chosen_on": top.n_selected_on,
                "effect_where_chosen": top.selected_value,
            },
            "cells": self.table(),
            "effects": self.effects.tolist(),
        }

    def view(self) -> View:
        """Mean effect over the grid: a heat map, or bars for one axis."""
        values, note = self.estimates.value, self._note()
        title = f"Activation patching, {self.direction}: {self.patched_what} ({self.task}, {self.model})"
        if values.ndim == 1:
            found = [self.estimates.at(i) for i in range(values.size)]
            return Bars(
                title=title,
                labels=self.labels[0],
                values=[one.value for one in found],
                intervals=[one.interval for one in found],
                value_label=self._unit(),
                label_axis=self.axes[0],
                diverging=True,
                note=note,
            )
        rows = [", ".join(names) for names in product(*self.labels[:-1])]
        flat = values.reshape(len(rows), -1)
        marked = np.argwhere(self.test.significant().reshape(flat.shape))
        return HeatMap(
            title=title,
            values=[optional(row) for row in flat],
            row_labels=rows,
            column_labels=self.labels[-1],
            row_axis=" x ".join(self.axes[:-1]),
            column_axis=self.axes[-1],
            value_label=self._unit(),
            marked=[(int(row), int(column)) for row, column in marked],
            note=f"{note}; outlined: p ≤ 0.05 after max-T over {flat.size} cells",
        )

    def table_view(self, k: int = 10) -> View:
        """The k strongest cells with interval, control and adjusted p."""
        rows: list[list[str | float]] = []
        for cell in self.top(k):
            control = None if self.control_estimates is None else self.control_estimates.at(*cell)
            measured = control is not None and control.n > 0
            rows.append(
                [
                    self.label(cell),
                    brief(self.estimates.at(*cell)),
                    brief(control) if control is not None and measured else "not measured",
                    float(self.test.adjusted_p[cell]),
                ]
            )
        return Table(
            title=f"Activation patching, {self.direction}: strongest cells ({self.task}, {self.model})",
            columns=["site", self._unit(), "unrelated pair (control)", "adjusted p (max-T)"],
            rows=rows,
            note=f"{self._note()}; smallest attainable p {self.test.smallest_p:.2g}",
        )

    def views(self) -> list[View]:
        """All views."""
        return [self.view(), self.table_view()]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    @property
    def _scale(self) -> float:
        return float(self.denominators.mean()) if self.normalised else 1.0

    def _estimate(self, differences: Floats) -> EstimateArray:
        return bootstrap_columns(
            differences,
            self.denominators if self.normalised else None,
            groups=self.groups,
            seed=self.seed,
            allow_missing=True,
        )

    def _cell(self, cell: tuple[int, ...]) -> dict[str, Any]:
        control = None if self.control_estimates is None else self.control_estimates.at(*cell)
        names = {axis: names[i] for axis, names, i in zip(self.axes, self.labels, cell, strict=True)}
        return {
            **names,
            "effect": self.estimates.at(*cell).to_dict(),
            "control": None if control is None or control.n == 0 else control.to_dict(),
            "adjusted_p": float(self.test.adjusted_p[cell]),
        }

    def _unit(self) -> str:
        if self.normalised:
            return "effect (1 = all of the clean-corrupt difference)"
        unit = _UNITS.get(self.metric)
        return f"change of {self.metric.replace('_', ' ')}{f' ({unit})' if unit else ''}"

    def _note(self) -> str:
        weak = len(self.weak_pairs)
        base = f"{count_note(len(self), self.groups, 'pair')}; {interval_note(self.estimates)}"
        return base + (f"; {weak} pair{'' if weak == 1 else 's'} with a small difference" if weak else "")
