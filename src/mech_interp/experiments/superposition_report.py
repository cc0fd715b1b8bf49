"""Metrics, tables, views and sentences of a measurement of superposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mech_interp.experiments.interference import QUANTILES, geometry, rows_of
from mech_interp.experiments.parts import number
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.statistics import Estimate
from mech_interp.views import Lines, Series, Table, View
from mech_interp.views.base import Cell

Floats = npt.NDArray[np.floating[Any]]
_WHAT = {
    "embed": "A token embedding",
    "unembed": "A token unembedding",
    "mlp_in": "An MLP input direction",
    "mlp_gate": "An MLP gate direction",
    "mlp_out": "An MLP output direction",
}
_NULL = "random directions of equal lengths"


@dataclass(frozen=True)
class Measured:
    """One set of n directions in d dimensions.

    `null` [replicates, 4]: mean dimensionality, mean crowding, mean nearest cosine and summed dimensionality
    of random sets. See `interference.Geometry` for the rest.
    """

    name: str
    layer: int | None
    n: int
    d: int
    zeros: int
    total: float
    effective_rank: float
    mean_share: float
    dimensionality: Floats
    crowding: Floats
    closest: Floats
    quantiles: Floats
    null_quantiles: Floats
    null: Floats

    def row(self) -> dict[str, Any]:
        """One line of the table."""
        own = {
            "mean_dimensionality": float(self.dimensionality.mean(dtype=np.float64)),
            "crowding": float(self.crowding.mean(dtype=np.float64)),
            "nearest_cosine": float(self.closest.mean(dtype=np.float64)),
            "dimensions_used": self.total,
        }
        random = dict(zip((f"random_{name}" for name in own), map(float, self.null.mean(0)), strict=True))
        return {
            "weights": self.name,
            "layer": self.layer,
            "directions": self.n,
            "dimensions": self.d,
            **own,
            **random,
            "effective_rank": self.effective_rank,
            "mean_direction_share": self.mean_share,
            "zeros": self.zeros,
        }


def report(found: Sequence[Measured], *, model: str, d_model: int, centred: bool) -> Result:
    """The result over all sets of directions."""
    names = list(dict.fromkeys(one.name for one in found))
    sets = {name: [one for one in found if one.name == name] for name in names}
    around = "around their mean" if centred else "from the origin"
    return Result(
        question=f"Do the weight directions of {model} share dimensions, and more than random ones would?",
        method=(
            "Feature dimensionality D = |W|^2 / sum over j of (W^ . W_j)^2 (Elhage et al. 2022): 1 for a "
            "direction "
            f"orthogonal to all others of its set, 1/2 in an antipodal pair. Directions are taken {around}, "
            "all of "
            "a matrix, each layer's by themselves. Crowding is the mean squared cosine to the others times "
            "the "
            f"number of dimensions (1 for random directions). Control: {_NULL}."
        ),
        metrics={key: metric for name in names for key, metric in _metrics(name, sets[name]).items()},
        tables={"weights": [one.row() for one in found]},
        tensors={
            f"dimensionality.{name}": np.stack([one.dimensionality for one in own])
            for name, own in sets.items()
        }
        if all(len({one.n for one in own}) == 1 for own in sets.values())
        else {},
        views=_views(sets, model),
        findings=[_finding(name, sets[name]) for name in names],
        controls=_controls(found, d_model),
        caveats=[
            "Geometry is not use: directions may overlap and never be active together. Selectivity of "
            "neurons "
            "(polysemanticity) and sparse dictionaries ask that.",
            "Tokens that training never met keep their initial or a common embedding and crowd each other.",
            "The gain of the norms is not folded in; a strongly uneven gain would change the angles.",
            *(
                []
                if centred
                else ["A large mean direction makes all directions look alike; centre: true removes it."]
            ),
        ],
    )


def _mean(values: Floats) -> Estimate:
    """Mean over directions with its normal interval; there are too many to resample."""
    array = np.asarray(values, dtype=np.float64)
    mean, error = float(array.mean()), float(array.std(ddof=1) / np.sqrt(array.size))
    bounds = (mean - 1.96 * error, mean + 1.96 * error) if error > 0 else None
    reason = "" if bounds else "all directions have the same value"
    return Estimate(
        mean, bounds, array.size, "mean over directions, normal interval", 0.95, reason, array.size
    )


def _metrics(name: str, own: Sequence[Measured]) -> dict[str, Metric]:
    columns = (
        (
            "dimensionality",
            np.concatenate([one.dimensionality for one in own]),
            0,
            "dimensions per direction",
        ),
        ("crowding", np.concatenate([one.crowding for one in own]), 1, "times random"),
        ("nearest", np.concatenate([one.closest for one in own]), 2, "|cosine|"),
    )
    return {
        f"{key}.{name}": Metric.of(
            _mean(values),
            unit=unit,
            control={
                "name": _NULL,
                "value": float(np.mean([one.null[:, column].mean() for one in own])),
                "n": int(own[0].null.shape[0]),
            },
        )
        for key, values, column, unit in columns
    }


def _finding(name: str, own: Sequence[Measured]) -> Finding:
    values = _mean(np.concatenate([one.dimensionality for one in own]))
    null = [float(one.null[:, 0].mean()) for one in own]
    crowd = float(np.mean([one.crowding.mean() for one in own]))
    below = sum(float(one.dimensionality.mean()) < float(one.null[:, 0].min()) for one in own)
    layers = f" in {below} of {len(own)} layers" if len(own) > 1 else ""
    what = (
        "less than every random set of equal lengths"
        if below
        else "not less than random sets of equal lengths"
    )
    text = (
        f"{_WHAT[name]} has {number(values, 3)} of a dimension to itself, where random ones have "
        f"{np.mean(null):.3f} ({what}{layers if below else ''}); the others of its set lie {crowd:.2f} times "
        "as "
        "close as random ones."
    )
    return Finding(text, [f"dimensionality.{name}", f"crowding.{name}", "weights"], ["bound"])


def _views(sets: dict[str, list[Measured]], model: str) -> dict[str, View]:
    tokens = {name: own for name, own in sets.items() if own[0].layer is None}
    deep = {name: own for name, own in sets.items() if own[0].layer is not None}
    views: dict[str, View] = {}
    for key, some in (("token_dimensionality", tokens), ("mlp_dimensionality", deep)):
        if some:
            views[key] = _quantiles(some, model)
    if any(len(own) > 1 for own in deep.values()):
        views["layers"] = _layers(deep, model)
    views["weights"] = _weights(sets, model)
    return views


def _quantiles(sets: dict[str, list[Measured]], model: str) -> View:
    series = []
    for name, own in sets.items():
        drawn = np.mean([one.null_quantiles for one in own], axis=0)
        series.append(Series(name=name, y=list(np.mean([one.quantiles for one in own], axis=0))))
        series.append(Series(name=f"{name}, random", y=list(drawn)))
    return Lines(
        title=f"Feature dimensionality of weight directions ({model})",
        x=list(QUANTILES),
        series=series,
        x_axis="share of directions",
        y_axis="dimensionality at that quantile",
        note=f"{_counted(sets)}; random: directions of equal lengths",
    )


def _weights(sets: dict[str, list[Measured]], model: str) -> View:
    keys = (
        "directions",
        "mean_dimensionality",
        "random_mean_dimensionality",
        "crowding",
        "nearest_cosine",
        "dimensions_used",
    )
    rows: list[list[Cell]] = []
    for one in (one for own in sets.values() for one in own):
        row = one.row()
        place = one.name if one.layer is None else f"{one.name} {one.layer}"
        rows.append([place, *(row[key] for key in keys)])
    return Table(
        title=f"Superposition in weights ({model})",
        columns=["weights", "directions", "D (mean)", "D (random)", "crowding", "nearest |cos|", "sum of D"],
        rows=rows,
        note=_counted(sets),
    )


def _counted(sets: dict[str, list[Measured]]) -> str:
    return "; ".join(f"{name}: {sum(one.n for one in own)} directions" for name, own in sets.items())


def _layers(deep: dict[str, list[Measured]], model: str) -> View:
    layers = sorted({one.layer for own in deep.values() for one in own if one.layer is not None})
    series = []
    for name, own in deep.items():
        found = {one.layer: _mean(one.dimensionality) for one in own}
        bounds = [found[layer].interval or (found[layer].value,) * 2 for layer in layers]
        series.append(
            Series(
                name=name,
                y=[found[layer].value for layer in layers],
                low=[bound[0] for bound in bounds],
                high=[bound[1] for bound in bounds],
            )
        )
        series.append(Series(name=f"{name}, random", y=[float(one.null[:, 0].mean()) for one in own]))
    return Lines(
        title=f"Mean feature dimensionality by layer ({model})",
        x=layers,
        series=series,
        x_axis="layer",
        y_axis="dimensions per direction",
        note="bands: 95 % normal intervals over directions; random: directions of equal lengths",
    )


def _controls(found: Sequence[Measured], d_model: int) -> list[Control]:
    frame = np.eye(min(d_model, 64)) * np.linspace(0.5, 2.0, min(d_model, 64))[:, None]
    alone = geometry(rows_of(frame)).dimensionality
    pairs = geometry(rows_of(np.concatenate([frame, -frame]))).dimensionality
    error = max(float(np.abs(alone - 1).max()), float(np.abs(pairs - 0.5).max()))
    excess = max(one.total / min(one.n, one.d) for one in found)
    return [
        Control(
            "known_geometry",
            "orthogonal directions have D = 1 and antipodal pairs D = 1/2",
            error,
            error <= 1e-9,
            sanity=True,
        ),
        Control(
            "bound",
            "the summed D of a set is at most its number of dimensions (ratio at most 1)",
            excess,
            excess <= 1 + 1e-6,
            sanity=True,
        ),
    ]
