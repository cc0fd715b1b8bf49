"""What direct logit attribution found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.methods.common import Floats, brief, count_note, interval_note, optional
from mech_interp.statistics import (
    Estimate,
    EstimateArray,
    MaxTResult,
    bootstrap_columns,
    bootstrap_mean,
    max_t_test,
)
from mech_interp.views import Bars, HeatMap, Lines, Series, Table, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {
    "embed": "token embedding",
    "pos_embed": "position embedding",
    "norm_bias": "final norm bias",
    "unembed_bias": "unembedding bias",
    "remainder": "rounding remainder",
}


@dataclass(frozen=True)
class Component:
    """One term.

    `kind` is embed, pos_embed, head, attn_bias, attn, mlp, norm_bias, unembed_bias or remainder.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    @property
    def label(self) -> str:
        """Short name: "L3H1" is head 1 of layer 3."""
        if self.kind == "head":
            return f"L{self.layer}H{self.head}"
        named = {"attn_bias": "b_O", "attn": "attention", "mlp": "MLP"}
        return f"L{self.layer} {named[self.kind]}" if self.kind in named else _NAMES[self.kind]

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class DLAResult:
    """Terms of logit(correct) - logit(wrong) for n prompts, in logits (nats).

    Attributes:
        model: the model's name.
        prompts, positions: what was read and where.
        correct, wrong: the answer tokens as text.
        components: names of the terms, in order of computation.
        terms: [n, components]; rows sum to `logit_difference` [n].
        control_terms, control_difference: the same along other answers.
        control_kind: where those came from.
        gap: largest |sum of terms - logit difference| per max(1, |logit|).
        softcapped: whether the logits attributed are those before the model's softcap.
        n_layers, n_heads: the model's sizes.
        groups: bootstrap groups, or None.
        seed: of control and resampling.
    """

    model: str
    prompts: tuple[str, ...]
    positions: tuple[int, ...]
    correct: tuple[str, ...]
    wrong: tuple[str, ...]
    components: list[Component]
    terms: Floats
    logit_difference: Floats
    control_terms: Floats
    control_difference: Floats
    control_kind: str
    gap: float
    softcapped: bool
    n_layers: int
    n_heads: int
    groups: tuple[str, ...] | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def term(self, kind: str, layer: int | None = None, head: int | None = None) -> Floats:
        """One component's contribution per prompt, [n]."""
        return self.terms[:, self.components.index(Component(kind, layer, head))]

    @cached_property
    def estimates(self) -> EstimateArray:
        """Mean contribution of each component."""
        return bootstrap_columns(self.terms, groups=self.groups, seed=self.seed)

    @cached_property
    def control_estimates(self) -> EstimateArray:
        """Mean contribution of each component along the control answers."""
        return bootstrap_columns(self.control_terms, groups=self.groups, seed=self.seed)

    @cached_property
    def total(self) -> Estimate:
        """Mean logit difference."""
        return bootstrap_mean(self.logit_difference, self.groups, seed=self.seed)

    @cached_property
    def control_total(self) -> Estimate:
        """Mean logit difference of the control answers."""
        return bootstrap_mean(self.control_difference, self.groups, seed=self.seed)

    @cached_property
    def test(self) -> MaxTResult:
        """Is a component's mean contribution zero? Max-T over all components."""
        return max_t_test(self.terms, self.groups, seed=self.seed)

    def top(self, k: int = 10) -> list[int]:
        """Indices of the k components with the largest mean contribution by magnitude."""
        return [int(i) for i in np.argsort(-np.abs(self.estimates.value), kind="stable")[:k]]

    @property
    def heads(self) -> Floats:
        """Head contributions [n, n_layers, n_heads]; NaN where a layer has no separate heads."""
        out = np.full((len(self), self.n_layers, self.n_heads), np.nan)
        for i, component in enumerate(self.components):
            if component.kind == "head":
                out[:, component.layer, component.head] = self.terms[:, i]
        return out

    @property
    def accumulated_labels(self) -> list[str]:
        """Points of `accumulated`: embeddings, then after attention and after the MLP of each layer."""
        return ["embed", *(f"{layer} {part}" for layer in range(self.n_layers) for part in ("attn", "MLP"))]

    @property
    def accumulated(self) -> Floats:
        """Logit difference written so far, [n, 1 + 2 n_layers], at the final norm's own scale.

        Starts from the input-independent bias terms, so that the last point is the logit difference.
        """
        return _accumulate(self.terms, self.components, self.n_layers)

    def table(self) -> list[dict[str, Any]]:
        """One row per component, with its control and adjusted p."""
        return [
            {
                "component": component.label,
                "kind": component.kind,
                "layer": component.layer,
                "head": component.head,
                "contribution": self.estimates.at(i).to_dict(),
                "control": self.control_estimates.at(i).to_dict(),
                "adjusted_p": float(self.test.adjusted_p[i]),
            }
            for i, component in enumerate(self.components)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: aggregates and per-prompt terms."""
        return {
            "method": "direct_logit_attribution",
            "model": self.model,
            "logit_difference": self.total.to_dict(),
            "control_logit_difference": self.control_total.to_dict(),
            "control_kind": self.control_kind,
            "before_softcap": self.softcapped,
            "gap": self.gap,
            "smallest_p": self.test.smallest_p,
            "components": self.table(),
            "prompts": [
                {
                    "prompt": self.prompts[i],
                    "position": self.positions[i],
                    "correct": self.correct[i],
                    "wrong": self.wrong[i],
                    "logit_difference": float(self.logit_difference[i]),
                    "terms": self.terms[i].tolist(),
                }
                for i in range(len(self))
            ],
        }

    def view(self, k: int = 12) -> View:
        """The k largest contributions, largest first."""
        chosen = self.top(k)
        found = [self.estimates.at(i) for i in chosen]
        control = float(np.abs(self.control_estimates.value[chosen]).max())
        return Bars(
            title=f"Direct logit attribution ({self.model})",
            labels=[self.components[i].label for i in chosen],
            values=[one.value for one in found],
            intervals=[one.interval for one in found],
            value_label=f"contribution to {self._quantity} (logits)",
            label_axis="component",
            diverging=True,
            note=f"{count_note(len(self), self.groups)}; {interval_note(self.estimates)}; control "
            f"({self.control_kind}): at most {control:.2f} in size over these components",
        )

    def heads_view(self) -> View:
        """Mean contribution of every head, layer x head."""
        mean = self.heads.mean(0)
        return HeatMap(
            title=f"Heads' direct contribution ({self.model})",
            values=[optional(row) for row in mean],
            row_labels=[str(layer) for layer in range(self.n_layers)],
            column_labels=[str(head) for head in range(self.n_heads)],
            row_axis="layer",
            column_axis="head",
            value_label=f"contribution to {self._quantity} (logits)",
            note=count_note(len(self), self.groups),
        )

    def accumulated_view(self) -> View:
        """The logit difference as it builds up through the layers, with the control answers'."""
        curves = (
            ("answers", self.accumulated),
            ("control", _accumulate(self.control_terms, self.components, self.n_layers)),
        )
        series = []
        for name, values in curves:
            one = bootstrap_columns(values, groups=self.groups, seed=self.seed)
            series.append(
                Series(name=name, y=optional(one.value), low=optional(one.low), high=optional(one.high))
            )
        return Lines(
            title=f"Logit difference accumulated through the layers ({self.model})",
            x=list(range(2 * self.n_layers + 1)),
            x_labels=self.accumulated_labels,
            x_axis="after",
            y_axis=f"{self._quantity} (logits)",
            series=series,
            note=f"{count_note(len(self), self.groups)}; final norm's scale frozen; "
            f"control: {self.control_kind}",
        )

    def table_view(self, k: int = 20) -> View:
        """The k largest contributions as a table."""
        rows: list[list[str | float]] = [
            [
                self.components[i].label,
                brief(self.estimates.at(i)),
                brief(self.control_estimates.at(i)),
                float(self.test.adjusted_p[i]),
            ]
            for i in self.top(k)
        ]
        return Table(
            title=f"Direct logit attribution ({self.model})",
            columns=["component", "contribution (logits)", "control (logits)", "adjusted p (max-T)"],
            rows=rows,
            note=f"{count_note(len(self), self.groups)}; smallest attainable p {self.test.smallest_p:.2g}",
        )

    def views(self) -> list[View]:
        """All views."""
        return [self.view(), self.heads_view(), self.accumulated_view(), self.table_view()]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    @property
    def _quantity(self) -> str:
        return "logit difference before the softcap" if self.softcapped else "logit difference"


def _accumulate(terms: Floats, components: list[Component], n_layers: int) -> Floats:
    steps = np.zeros((len(terms), 2 * n_layers + 1))
    for i, component in enumerate(components):
        step = 0
        if component.layer is not None:
            step = 2 * component.layer + (2 if component.kind == "mlp" else 1)
        steps[:, step] += terms[:, i]
    return np.cumsum(steps, axis=1)
