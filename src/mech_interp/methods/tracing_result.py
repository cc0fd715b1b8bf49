"""What causal tracing found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.errors import InputError
from mech_interp.methods.common import Floats, brief, count_note, interval_note, optional
from mech_interp.statistics import (
    Estimate,
    EstimateArray,
    MaxTResult,
    Selection,
    bootstrap_columns,
    bootstrap_mean,
    max_t_test,
    select_then_quote,
)
from mech_interp.views import HeatMap, Lines, Series, Table, View, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = (
    "first subject",
    "middle subject",
    "last subject",
    "first after",
    "further",
    "last token",
)
_LAST_SUBJECT = 2
_NAMES = {"resid_post": "residual stream", "mlp_out": "MLP outputs", "attn_out": "attention outputs"}


@dataclass(frozen=True)
class TracingResult:
    """Causal traces of n facts.

    Attributes:
        model: its name.
        mode: "noise" or "interchange"; `noise` in units of sigma, `noise_std` the resulting standard
            deviation, `samples` draws per fact, `severed` None, "mlp" or "attn".
        kinds: what was restored; `window` layers at once for mlp_out and attn_out.
        prompts, tokens, subjects, answers: the facts; subjects are token columns [start, stop).
        clean: P(answer) of the clean run, [n]; `corrupted` of the corrupted runs, [n, samples].
        effects: per kind, per fact, the indirect effect [n_layers, n_tokens] (mean over samples).
        control: per kind [n, n_layers], an unrelated fact's clean state at the last subject token.
        groups: bootstrap group of every fact.
        known: share of all facts whose answer is the model's most likely token; `dropped` facts were not.
        sanity: largest errors of the identities, in probability.
        seed: of noise, donors and resampling.
    """

    model: str
    mode: str
    kinds: tuple[str, ...]
    window: int
    noise: float | None
    noise_std: float | None
    samples: int
    severed: str | None
    tokens: Sequence[Sequence[str]]
    subjects: tuple[tuple[int, int], ...]
    answers: tuple[str, ...]
    prompts: tuple[str, ...]
    clean: Floats
    corrupted: Floats
    effects: Mapping[str, Sequence[Floats]]
    control: Mapping[str, Floats]
    groups: tuple[str, ...]
    known: Estimate
    dropped: int
    sanity: Mapping[str, float]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.effects[self.kinds[0]][0].shape[0])

    @property
    def total_effects(self) -> Floats:
        """P(clean) - P(corrupted) of every fact, [n]."""
        return np.asarray(self.clean - self.corrupted.mean(1))

    @cached_property
    def total_effect(self) -> Estimate:
        """Mean total effect."""
        return bootstrap_mean(self.total_effects, self.groups, seed=self.seed)

    def binned(self, kind: str) -> Floats:
        """Indirect effects by role of the token, [n, n_layers, 6] in the order of `BINS`; NaN where empty.

        A subject of one token counts as its last; the prompt's last token counts as nothing else,
        unless it ends the subject.
        """
        self._check_kind(kind)
        out = np.full((len(self), self.n_layers, len(BINS)), np.nan)
        for i, effect in enumerate(self.effects[kind]):
            for number, columns in enumerate(_roles(*self.subjects[i], effect.shape[1])):
                if columns:
                    out[i, :, number] = effect[:, columns].mean(1)
        return out

    def estimates(self, kind: str) -> EstimateArray:
        """Mean indirect effect, [n_layers, 6]."""
        return self._cached("estimates", kind)

    def control_estimates(self, kind: str) -> EstimateArray | None:
        """Mean effect of an unrelated fact's state at the last subject token, [n_layers].

        None when no fact has an unrelated partner.
        """
        self._check_kind(kind)
        return None if np.isnan(self.control[kind]).all() else self._cached("control", kind)

    def test(self, kind: str) -> MaxTResult:
        """Is a mean indirect effect zero? Max-T over the cells that every fact has, [n_layers, columns].

        `tested_bins` names the columns.
        """
        return max_t_test(self.binned(kind)[:, :, self.tested_bins(kind)], self.groups, seed=self.seed)

    def tested_bins(self, kind: str) -> list[int]:
        """Numbers of the bins that every fact has."""
        present = ~np.isnan(self.binned(kind)).any((0, 1))
        return [int(i) for i in np.flatnonzero(present)]

    def top_site(self, kind: str) -> Selection | None:
        """The strongest (layer, bin), chosen on half of the groups and quoted on the rest.

        The bin is its number in `BINS`. None with fewer than two groups.
        """
        if len(set(self.groups)) < 2:
            return None
        bins = self.tested_bins(kind)
        found = select_then_quote(self.binned(kind)[:, :, bins], self.groups, by="highest", seed=self.seed)
        layer, column = found.site
        return Selection((layer, bins[column]), found.estimate, found.selected_value, found.n_selected_on)

    def table(self) -> list[dict[str, Any]]:
        """One row per kind, layer and bin."""
        rows = []
        for kind in self.kinds:
            bins = self.tested_bins(kind)
            adjusted = self.test(kind).adjusted_p
            control = self.control_estimates(kind)
            for layer, number in product(range(self.n_layers), range(len(BINS))):
                at_subject = number == _LAST_SUBJECT and control is not None
                rows.append(
                    {
                        "kind": kind,
                        "layer": layer,
                        "token": BINS[number],
                        "effect": self.estimates(kind).at(layer, number).to_dict(),
                        "control": control.at(layer).to_dict() if at_subject and control else None,
                        "adjusted_p": float(adjusted[layer, bins.index(number)]) if number in bins else None,
                    }
                )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: aggregates, controls and per-fact traces."""
        return {
            "method": "causal_tracing",
            "model": self.model,
            "mode": self.mode,
            "noise": self.noise,
            "noise_std": self.noise_std,
            "samples": self.samples,
            "window": self.window,
            "severed": self.severed,
            "known": self.known.to_dict(),
            "dropped": self.dropped,
            "total_effect": self.total_effect.to_dict(),
            "sanity": dict(self.sanity),
            "cells": self.table(),
            "facts": [self._fact(i) for i in range(len(self))],
        }

    def view(self, kind: str | None = None) -> View:
        """Mean indirect effect of one kind (the first by default): role of the token x layer."""
        kind = kind or self.kinds[0]
        estimates = self.estimates(kind)
        used = [i for i in range(len(BINS)) if (estimates.n[:, i] > 0).any()]
        return HeatMap(
            title=f"Causal tracing, {_NAMES[kind]}{self._variant(kind)} ({self.model})",
            values=[optional(estimates.value[:, i]) for i in used],
            row_labels=[BINS[i] for i in used],
            column_labels=[str(layer) for layer in range(self.n_layers)],
            row_axis="token restored",
            column_axis="layer",
            value_label="indirect effect (probability)",
            note=self._note(estimates),
        )

    def fact_view(self, fact: int = 0, kind: str | None = None) -> View:
        """One fact's indirect effects: token x layer."""
        kind = kind or self.kinds[0]
        self._check_kind(kind)
        start, stop = self.subjects[fact]
        answer = visible(self.answers[fact])
        labels = [
            f"{visible(token)}{'*' if start <= i < stop else ''}" for i, token in enumerate(self.tokens[fact])
        ]
        return HeatMap(
            title=f"Causal tracing, {_NAMES[kind]}{self._variant(kind)}: {answer!r} ({self.model})",
            values=[optional(row) for row in self.effects[kind][fact].T],
            row_labels=labels,
            column_labels=[str(layer) for layer in range(self.n_layers)],
            row_axis="token restored (* subject)",
            column_axis="layer",
            value_label="indirect effect (probability)",
            note=f"n = 1 fact, {self.samples} samples; P(clean) {self.clean[fact]:.2f}, "
            f"P(corrupted) {self.corrupted[fact].mean():.2f}",
        )

    def lines_view(self) -> View:
        """Effect at the last subject token by layer, every kind with its control."""
        series = []
        for kind in self.kinds:
            found = self.estimates(kind)
            at = found.value[:, _LAST_SUBJECT], found.low[:, _LAST_SUBJECT], found.high[:, _LAST_SUBJECT]
            y, low, high = (optional(one) for one in at)
            series.append(Series(name=_NAMES[kind], y=y, low=low, high=high))
            control = self.control_estimates(kind)
            if control is not None:
                series.append(Series(name=f"{_NAMES[kind]}, control", y=optional(control.value)))
        return Lines(
            title=f"Causal tracing at the last subject token ({self.model})",
            x=list(range(self.n_layers)),
            series=series,
            x_axis="layer",
            y_axis="indirect effect (probability)",
            references=[(self.total_effect.value, "total effect")],
            note=f"{self._note(self.estimates(self.kinds[0]))}; control: an unrelated fact's clean state",
        )

    def table_view(self, k: int = 10) -> View:
        """The k strongest cells over all kinds."""
        cells = [
            (kind, layer, number)
            for kind in self.kinds
            for layer in range(self.n_layers)
            for number in self.tested_bins(kind)
        ]
        cells.sort(key=lambda cell: -abs(float(self.estimates(cell[0]).value[cell[1:]])))
        rows: list[list[str | int | float]] = []
        for kind, layer, number in cells[:k]:
            adjusted = self.test(kind).adjusted_p[layer, self.tested_bins(kind).index(number)]
            effect = brief(self.estimates(kind).at(layer, number), 3)
            rows.append([_NAMES[kind], layer, BINS[number], effect, float(adjusted)])
        return Table(
            title=f"Causal tracing: strongest cells ({self.model})",
            columns=["restored", "layer", "token", "indirect effect (probability)", "adjusted p (max-T)"],
            rows=rows,
            note=self._note(self.estimates(self.kinds[0])),
        )

    def views(self) -> list[View]:
        """All views."""
        return [*(self.view(kind) for kind in self.kinds), self.lines_view(), self.table_view()]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    @cached_property
    def _cache(self) -> dict[tuple[str, str], EstimateArray]:
        return {}

    def _cached(self, what: str, kind: str) -> EstimateArray:
        if (what, kind) not in self._cache:
            values = self.control[kind] if what == "control" else self.binned(kind)
            self._cache[what, kind] = bootstrap_columns(
                values, groups=self.groups, seed=self.seed, allow_missing=True
            )
        return self._cache[what, kind]

    def _check_kind(self, kind: str) -> None:
        if kind not in self.kinds:
            raise InputError(f"{kind!r} was not traced.", f"Traced: {', '.join(self.kinds)}.")

    def _fact(self, i: int) -> dict[str, Any]:
        return {
            "prompt": self.prompts[i],
            "tokens": list(self.tokens[i]),
            "subject": list(self.subjects[i]),
            "answer": self.answers[i],
            "clean": float(self.clean[i]),
            "corrupted": self.corrupted[i].tolist(),
            "effects": {kind: self.effects[kind][i].tolist() for kind in self.kinds},
        }

    def _variant(self, kind: str) -> str:
        parts = [] if kind == "resid_post" else [f"window {self.window}"]
        parts += [f"{self.severed} severed"] if self.severed else []
        parts += ["interchange"] if self.mode == "interchange" else []
        return f" ({', '.join(parts)})" if parts else ""

    def _note(self, estimates: EstimateArray) -> str:
        draws = "" if self.mode == "interchange" else f" x {self.samples} noise samples"
        return (
            f"{count_note(len(self), self.groups, 'fact')}{draws}, {self.dropped} unknown dropped; "
            f"total effect {brief(self.total_effect)}; {interval_note(estimates)}"
        )


def _roles(start: int, stop: int, length: int) -> list[list[int]]:
    """Columns of each bin in one prompt."""
    after = list(range(stop, length - 1))
    return [
        [start] if stop - start > 1 else [],
        list(range(start + 1, stop - 1)),
        [stop - 1],
        after[:1],
        after[1:],
        [length - 1] if length > stop else [],
    ]
