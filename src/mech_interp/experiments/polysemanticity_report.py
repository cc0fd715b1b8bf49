"""Metrics, tables, views and sentences of a measurement of polysemanticity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mech_interp.experiments.parts import Floats, number
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.experiments.selectivity import Selectivity
from mech_interp.statistics import Estimate, bootstrap_mean, wilson
from mech_interp.views import Bars, HeatMap, Table, View

_SHUFFLED, _BASIS = "shuffled labels", "random directions of the same activations"
_MOST = 6  # classes at which the chart lumps together
_LISTED = 200
BORDERLINE = 0.005
"""Share of neurons that may fall on the other side of a bar on another processor."""


@dataclass(frozen=True)
class Measured:
    """Responses of the neurons of some layers, `widths` neurons each, concatenated in this order.

    `replicated`: (how many, of how many) responses of one half of the texts that the other half shows.
    `random`: the same measurement along random directions, or None.
    """

    model: str
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    found: Selectivity
    replicated: tuple[int, int]
    random: Selectivity | None
    labels: str
    n_texts: int

    @property
    def parts(self) -> list[slice]:
        """Where each layer's neurons stand."""
        ends = np.cumsum(self.widths)
        return [slice(int(end) - width, int(end)) for end, width in zip(ends, self.widths, strict=True)]


def report(own: Measured) -> Result:
    """The result of a measurement."""
    found = own.found
    what = "kinds of document" if own.labels == "document" else "classes of token"
    return Result(
        question=f"How many {what} does each MLP neuron of {own.model} respond to?",
        method=(
            f"Activations behind the MLP's nonlinearity, {sum(found.n_cells)} observations of "
            f"{len(found.classes)} {what} from {own.n_texts} texts. A neuron responds to a class when the "
            "area "
            f"under the ROC curve of class against rest is at least {found.min_auc:g} and its permutation p "
            f"passes Benjamini-Hochberg at {found.q:g} over all neurons and classes (one-sided; labels "
            "shuffled"
            f"{' within texts' if own.labels == 'token' else ''}). Controls: shuffled labels judged by the "
            "same "
            "bars, random directions of the same activations, and the other half of the texts."
        ),
        metrics=_metrics(own),
        tables={"layers": _layers(own), "neurons": _neurons(own), "classes": _classes(own)},
        tensors={"auc": found.auc.astype(np.float32), "classes_per_neuron": found.counts},
        views=_views(own),
        findings=[_finding(own)],
        controls=_controls(own),
        caveats=[
            f"Classes are given, not discovered: a neuron that responds to several {what} may respond to one "
            "thing that they share, and one that responds to none may be selective for something not asked.",
            "Intervals over neurons take these neurons for a sample; what other texts would change is shown "
            "by "
            "the replication on the other half.",
            "The correlations of activations with classes say nothing about what a neuron does to the "
            "output.",
        ],
    )


def _metrics(own: Measured) -> dict[str, Metric]:
    found, counts = own.found, own.found.counts
    n = counts.size
    metrics: dict[str, Metric] = {}
    for name, least, exact in (
        ("selective_share", 1, False),
        ("monosemantic_share", 1, True),
        ("polysemantic_share", 2, False),
    ):
        hit = counts == least if exact else counts >= least
        null = found.null_counts == least if exact else found.null_counts >= least
        metrics[name] = Metric.of(
            wilson(int(hit.sum()), n),
            unit="fraction of neurons",
            absolute=BORDERLINE,
            control={"name": _SHUFFLED, "value": float(null.mean()), "n": int(found.null_counts.shape[0])},
        )
    metrics["classes_per_selective_neuron"] = _classes_metric(counts[counts > 0])
    done, of = own.replicated
    metrics["replicated_share"] = (
        Metric.of(wilson(done, of), unit="fraction of responses", better="higher")
        if of
        else Metric(
            value=None,
            n=0,
            unit="fraction of responses",
            reason="nothing responds on the first half, or a class is too rare to be halved",
        )
    )
    if own.random is not None:
        theirs = own.random.counts
        metrics["random_basis_selective_share"] = Metric.of(
            wilson(int((theirs >= 1).sum()), theirs.size),
            unit="fraction of directions",
            absolute=BORDERLINE,
        )
        metrics["random_basis_polysemantic_share"] = Metric.of(
            wilson(int((theirs >= 2).sum()), theirs.size),
            unit="fraction of directions",
            absolute=BORDERLINE,
        )
    return metrics


def _classes_metric(counts: Any) -> Metric:
    if counts.size == 0:
        return Metric(value=None, n=0, unit="classes", reason="no neuron responds to a class")
    values = counts.astype(np.float64)
    if values.size <= 4000:
        return Metric.of(bootstrap_mean(values, n_resamples=1000), unit="classes")
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
    bounds = (mean - 1.96 * error, mean + 1.96 * error)
    return Metric.of(
        Estimate(mean, bounds, values.size, "mean over neurons, normal interval", n_groups=values.size),
        unit="classes",
    )


def _shares(counts: Any) -> dict[str, float]:
    return {
        "selective_share": float((counts >= 1).mean()),
        "polysemantic_share": float((counts >= 2).mean()),
        "mean_classes": float(counts.mean()),
    }


def _layers(own: Measured) -> list[dict[str, Any]]:
    rows = []
    for layer, part in zip(own.layers, own.parts, strict=True):
        null = _shares(own.found.null_counts[:, part])
        row: dict[str, Any] = {"layer": layer, "neurons": part.stop - part.start}
        row |= _shares(own.found.counts[part])
        row |= {f"shuffled_{name}": value for name, value in null.items()}
        if own.random is not None:
            row |= {f"random_basis_{k}": v for k, v in _shares(own.random.counts[part]).items()}
        rows.append(row)
    return rows


def _place(own: Measured, neuron: int) -> tuple[int, int]:
    """(layer, neuron in the layer)."""
    for layer, part in zip(own.layers, own.parts, strict=True):
        if part.start <= neuron < part.stop:
            return layer, neuron - part.start
    raise IndexError(neuron)


def _strongest(own: Measured) -> list[int]:
    """Neurons by number of classes, then by their best area."""
    found = own.found
    order = np.lexsort((-found.auc.max(0), -found.counts))
    return [int(i) for i in order[:_LISTED]]


def _neurons(own: Measured) -> list[dict[str, Any]]:
    found = own.found
    rows = []
    for neuron in _strongest(own):
        layer, number_ = _place(own, neuron)
        chosen = [i for i in np.argsort(-found.auc[:, neuron]) if found.responds[i, neuron]]
        best = int(found.auc[:, neuron].argmax())
        rows.append(
            {
                "layer": layer,
                "neuron": number_,
                "classes": int(found.counts[neuron]),
                "responds_to": ", ".join(found.classes[i] for i in chosen),
                "best_class": found.classes[best],
                "best_auc": float(found.auc[best, neuron]),
                "adjusted_p": float(found.adjusted_p[best, neuron]),
            }
        )
    return rows


def _classes(own: Measured) -> list[dict[str, Any]]:
    return [
        {
            "class": name,
            "observations": own.found.n_cells[i],
            "neurons": int(own.found.responds[i].sum()),
            "share": float(own.found.responds[i].mean()),
            "best_auc": float(own.found.auc[i].max()),
        }
        for i, name in enumerate(own.found.classes)
    ]


def _finding(own: Measured) -> Finding:
    counts, n = own.found.counts, own.found.counts.size
    many, some = wilson(int((counts >= 2).sum()), n), wilson(int((counts >= 1).sum()), n)
    null = float((own.found.null_counts >= 2).mean())
    text = (
        f"{number(many)} of {n} MLP neurons respond to two classes or more of {len(own.found.classes)} "
        f"({number(some)} to at least one), where shuffled labels give {null:.2g}"
    )
    names = ["shuffled_labels"]
    if own.random is not None:
        text += f" and random directions of the same activations {float((own.random.counts >= 2).mean()):.2f}"
        names.append("random_basis")
    return Finding(f"{text}.", ["polysemantic_share", "selective_share", "counts", "neurons"], names)


def _controls(own: Measured) -> list[Control]:
    found = own.found
    null, share = float((found.null_counts >= 1).mean()), float((found.counts >= 1).mean())
    ordered = found.auc.min() >= -1e-9 and found.auc.max() <= 1 + 1e-9
    weights = np.array(found.n_cells, dtype=np.float64)
    # Areas of classes against the rest are tied together: the rank sums of all classes add up.
    total, n = weights.sum(), weights * (weights.sum() - weights)
    sums = (found.auc * n[:, None]).sum(0) + (weights * (weights + 1) / 2).sum()
    error = float(np.abs(sums / (total * (total + 1) / 2) - 1).max())
    controls = [
        Control(
            "rank_sums",
            "the rank sums of all classes add up to that of all observations",
            error,
            bool(ordered and error <= 1e-9),
            sanity=True,
        ),
        Control(
            "shuffled_labels",
            "shuffled labels make fewer neurons respond than the labels do",
            null,
            null < share or share == 0.0,
        ),
    ]
    done, of = own.replicated
    if of:
        controls.append(
            Control(
                "other_half",
                "most responses seen on half of the texts are seen on the other",
                done / of,
                done > of / 2,
            )
        )
    if own.random is not None:
        theirs = float((own.random.counts >= 1).mean())
        controls.append(
            Control(
                "random_basis",
                "random directions respond to classes less often than neurons do",
                theirs,
                theirs < share,
            )
        )
    return controls


def _views(own: Measured) -> dict[str, View]:
    found = own.found
    bars = f"AUC >= {found.min_auc:g}, FDR {found.q:g}"
    note = f"n = {found.counts.size} neurons, {sum(found.n_cells)} observations; a response: {bars}"
    share: Sequence[Floats] = [found.responds[:, part].mean(1) for part in own.parts]
    rows = [
        [f"{layer}.{neuron}", row["classes"], row["responds_to"], row["best_class"], row["best_auc"]]
        for row in _neurons(own)[:12]
        for layer, neuron in [(row["layer"], row["neuron"])]
    ]
    return {
        "counts": _histogram(own, note),
        "responses": HeatMap(
            title=f"Share of neurons that respond to each class ({own.model})",
            values=[list(map(float, row)) for row in share],
            row_labels=[str(layer) for layer in own.layers],
            column_labels=list(found.classes),
            row_axis="layer",
            column_axis="class",
            value_label="share of neurons",
            diverging=False,
            note=note,
        ),
        "neurons": Table(
            title=f"Neurons that respond to most classes ({own.model})",
            columns=["neuron", "classes", "responds to", "best class", "best AUC"],
            rows=rows,
            note=note,
        ),
    }


def _histogram(own: Measured, note: str) -> View:
    counts, n = own.found.counts, own.found.counts.size
    top = min(_MOST, len(own.found.classes))
    labels = [*(str(i) for i in range(top)), f"{top} or more"]
    hits = [int((counts == i).sum()) for i in range(top)] + [int((counts >= top).sum())]
    found = [wilson(hit, n) for hit in hits]
    theirs = "" if own.random is None else f"; random directions: {_text(own.random.counts, top)}"
    return Bars(
        title=f"Number of classes a neuron responds to ({own.model})",
        labels=labels,
        values=[one.value for one in found],
        intervals=[one.interval for one in found],
        value_label="share of neurons",
        label_axis="classes",
        note=f"{note}; shuffled labels: {_text(own.found.null_counts, top)}{theirs}",
    )


def _text(counts: Any, top: int) -> str:
    shares = [float((counts == i).mean()) for i in range(top)] + [float((counts >= top).mean())]
    return " ".join(f"{share:.2f}" for share in shares)
