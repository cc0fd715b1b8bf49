"""Metrics, tables, views and sentences of an activation capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mech_interp.datasets.pairs import TaskSet
from mech_interp.experiments.parts import by_group, flat, number
from mech_interp.experiments.places import short
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.methods.common import brief, count_note, optional
from mech_interp.sites import Site
from mech_interp.statistics import Estimate, bootstrap_columns, bootstrap_mean, bootstrap_ratio
from mech_interp.views import Lines, Series, Table, View
from mech_interp.views.base import Cell

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SiteStatistics:
    """Sums over the tokens that count, per prompt [n], and over all of them, [features].

    Attributes:
        norm, first_norm: sum of the vectors' lengths; length at the prompt's first token.
        total, square: sums of entries and of squared entries.
        largest: largest entry by magnitude.
        zeros: entries that are exactly zero. tokens: tokens that count.
        vector: the sum of all vectors.
    """

    site: Site
    norm: Floats
    first_norm: Floats
    total: Floats
    square: Floats
    largest: Floats
    zeros: Floats
    tokens: Floats
    vector: Floats
    groups: tuple[str, ...]
    seed: int

    @property
    def n_tokens(self) -> int:
        """Tokens that count, in all prompts."""
        return int(self.tokens.sum())

    @cached_property
    def mean_norm(self) -> Estimate:
        """Mean length of a token's vector; prompts weigh by their tokens."""
        return bootstrap_ratio(self.norm, self.tokens, self.groups, seed=self.seed)

    @cached_property
    def mean_first(self) -> Estimate:
        """Mean length at the first token."""
        return bootstrap_mean(self.first_norm, self.groups, seed=self.seed)

    @property
    def mean(self) -> float:
        """Mean of all entries."""
        return float(self.total.sum() / (self.n_tokens * self.vector.size))

    @property
    def std(self) -> float:
        """Standard deviation of all entries."""
        return float(np.sqrt(max(self.square.sum() / (self.n_tokens * self.vector.size) - self.mean**2, 0.0)))

    @property
    def shared(self) -> float:
        """Share of the mean squared length that lies in the mean vector: 1 when all tokens agree."""
        power = float(self.square.sum()) / self.n_tokens
        return float((self.vector**2).sum()) / self.n_tokens**2 / power if power else 0.0

    @property
    def zero_share(self) -> float:
        """Share of entries that are exactly zero."""
        return float(self.zeros.sum() / (self.n_tokens * self.vector.size))

    def row(self) -> dict[str, Any]:
        """One line of the table."""
        return {
            "site": str(self.site),
            "layer": self.site.layer,
            "features": int(self.vector.size),
            "tokens": self.n_tokens,
            "mean_norm": self.mean_norm.to_dict(),
            "first_token_norm": self.mean_first.to_dict(),
            "mean": self.mean,
            "std": self.std,
            "largest": float(self.largest.max()),
            "zero_share": self.zero_share,
            "mean_vector_share": self.shared,
        }


def report(
    found: Sequence[SiteStatistics],
    *,
    model: str,
    data: TaskSet,
    samples: Mapping[str, npt.NDArray[Any]],
    gap: float,
    room: float,
    skipped: bool,
) -> Result:
    """The result of a capture; `gap` is what batching changed, `room` what rounding excuses."""
    return Result(
        question=f"How large, how spread and how sparse are the activations of {model} ({data.name})?",
        method=(
            f"One forward pass per prompt, {len(found)} sites captured at {found[0].n_tokens} tokens"
            f"{' (first tokens left out)' if skipped else ''}; lengths are Euclidean norms of a token's "
            "vector, "
            "heads joined. Means weigh prompts by their tokens; 95 % intervals by cluster bootstrap over "
            "groups."
        ),
        metrics=_metrics(found),
        tables={"sites": flat(one.row() for one in found)},
        tensors=dict(samples),
        views=_views(found, model),
        findings=[_finding(found)],
        controls=[
            Control(
                "batching",
                "a prompt by itself gives the same activations as beside a longer one, to rounding",
                gap,
                gap <= room,
                sanity=True,
            )
        ],
        caveats=[
            "Lengths depend on the prompts: other texts, longer ones above all, may give others.",
            *(
                []
                if skipped
                else ["A prompt's first token often has another size; skip_first leaves it out."]
            ),
        ],
    )


def _metrics(found: Sequence[SiteStatistics]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for one in found:
        name = short(one.site)
        metrics[f"norm.{name}"] = Metric.of(
            one.mean_norm,
            unit="norm",
            control={"name": "the first token of each prompt", "value": one.mean_first.value},
            per_group=by_group(one.norm / one.tokens, one.groups),
        )
        for key, value, unit in (
            ("std", one.std, "activation"),
            ("mean_vector_share", one.shared, "fraction"),
        ):
            metrics[f"{key}.{name}"] = Metric(
                value=value,
                n=one.n_tokens,
                unit=unit,
                method="over all captured tokens",
                reason="a description of these tokens, without an interval",
            )
    return metrics


def _finding(found: Sequence[SiteStatistics]) -> Finding:
    largest = max(found, key=lambda one: one.mean_norm.value)
    smallest = min(found, key=lambda one: one.mean_norm.value)
    text = f"A token's vector at {largest.site} has length {number(largest.mean_norm)}"
    if smallest is not largest:
        other = f"{smallest.site}, {number(smallest.mean_norm)}"
        text += f", the largest of {len(found)} sites; the smallest, {other}"
    names = dict.fromkeys(f"norm.{short(one.site)}" for one in (largest, smallest))
    return Finding(f"{text}.", [*names, "sites"], ["batching"])


def _views(found: Sequence[SiteStatistics], model: str) -> dict[str, View]:
    note = f"{count_note(found[0].norm.size, found[0].groups)}, {found[0].n_tokens} tokens"
    rows: list[list[Cell]] = [
        [str(one.site), brief(one.mean_norm), one.std, float(one.largest.max()), one.zero_share, one.shared]
        for one in found
    ]
    table = Table(
        title=f"Activations ({model})",
        columns=["site", "norm", "std of entries", "largest entry", "share of zeros", "share of mean vector"],
        rows=rows,
        note=note,
    )
    kinds = list(dict.fromkeys(one.site.kind for one in found if one.site.layer is not None))
    layers = sorted({one.site.layer for one in found if one.site.layer is not None})
    whole = [one for one in found if one.site.head is None]
    if len(layers) < 2 or not kinds or len(whole) < 2:
        return {"sites": table}
    series = []
    for kind in kinds:
        own = {one.site.layer: one for one in whole if one.site.kind == kind}
        columns = [own.get(layer) for layer in layers]
        if not own:
            continue
        value = bootstrap_columns(
            np.stack([_per_token(one, found[0].norm.size) for one in columns], axis=1),
            groups=found[0].groups,
            seed=found[0].seed,
            allow_missing=True,
        )
        series.append(
            Series(name=kind, y=optional(value.value), low=optional(value.low), high=optional(value.high))
        )
    lines = Lines(
        title=f"Length of a token's vector by layer ({model})",
        x=layers,
        series=series,
        x_axis="layer",
        y_axis="norm, mean over prompts",
        note=note,
    )
    return {"norms": lines, "sites": table}


def _per_token(one: SiteStatistics | None, n: int) -> Floats:
    return np.full(n, np.nan) if one is None else one.norm / one.tokens
