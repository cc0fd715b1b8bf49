"""What causal scrubbing found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.methods.common import Floats, brief, count_note
from mech_interp.statistics import Estimate, UnstableRatioError, bootstrap_mean, bootstrap_ratio
from mech_interp.views import Bars, Table, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NodeDraws:
    """How free the inputs of one node are.

    Attributes:
        name: the node; `parts` what it stands for.
        places: how often it occurs in the unrolled tree.
        agreeing: mean number of inputs to draw from, the reference included.
        alone: share of prompts with no other input to draw; at 1 the node tests nothing.
    """

    name: str
    parts: tuple[str, ...]
    places: int
    agreeing: float
    alone: float


@dataclass(frozen=True)
class ScrubbingResult:
    """A hypothesis scrubbed on n prompts.

    Attributes:
        model: its name.
        hypothesis: plain data: the nodes, or the protected and scrubbed sites.
        form: ``hypothesis`` (the recursive algorithm) or ``sites``.
        unimportant: how what does not matter was resampled: ``shared`` or ``separate``.
        scrubbed: the metric under scrubbing, [n, sample].
        random: that of the model on unrelated inputs, by the prompt's label, [n, sample].
        plain: that of the model, [n].
        shuffled: as `scrubbed` with features dealt out at random (control); None where not measured.
        groups: bootstrap group of every prompt.
        nodes: how free the draws are.
        sanity: largest errors of the identities, relative to the metric's size.
        computed, recursive: values of nodes computed, and how many plain recursion would have computed.
        pools: kinds of prompts that only stand in for their own kind (by length and `within`).
        notes: what a reader of the numbers should know.
    """

    model: str
    hypothesis: Mapping[str, Any]
    form: str
    metric: str
    unimportant: str
    samples: int
    scrubbed: Floats
    random: Floats
    plain: Floats
    shuffled: Floats | None
    groups: tuple[str, ...]
    nodes: tuple[NodeDraws, ...] = ()
    sanity: Mapping[str, float] = field(default_factory=dict)
    computed: int = 0
    recursive: int = 0
    pools: int = 1
    within: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0

    def __len__(self) -> int:
        return int(self.plain.size)

    @cached_property
    def recovered(self) -> Estimate:
        """(scrubbed - random) / (model - random), a ratio of means.

        Raises:
            UnstableRatioError: when the model and random inputs do not differ by three standard errors.
        """
        return self._recovered(self.scrubbed)

    @cached_property
    def control(self) -> Estimate | None:
        """The same with features dealt out at random."""
        return None if self.shuffled is None else self._recovered(self.shuffled)

    @cached_property
    def means(self) -> dict[str, Estimate]:
        """Mean metric of the model, under scrubbing, and on unrelated inputs."""
        columns = {"model": self.plain, "scrubbed": self.scrubbed.mean(1), "random": self.random.mean(1)}
        return {name: bootstrap_mean(own, self.groups, seed=self.seed) for name, own in columns.items()}

    @property
    def vacuous(self) -> list[str]:
        """Nodes that test nothing: no prompt has another input that agrees."""
        return [node.name for node in self.nodes if node.alone == 1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: aggregates, controls and per-prompt values."""
        control = self.control
        return {
            "method": "causal_scrubbing",
            "model": self.model,
            "form": self.form,
            "hypothesis": dict(self.hypothesis),
            "metric": self.metric,
            "unimportant": self.unimportant,
            "samples": self.samples,
            "recovered": self.recovered.to_dict(),
            "control": None if control is None else control.to_dict(),
            "means": {name: one.to_dict() for name, one in self.means.items()},
            "nodes": [{**asdict(node), "parts": list(node.parts)} for node in self.nodes],
            "vacuous": self.vacuous,
            "sanity": dict(self.sanity),
            "computed": self.computed,
            "recursive": self.recursive,
            "pools": self.pools,
            "within": list(self.within),
            "notes": list(self.notes),
            "plain": self.plain.tolist(),
            "scrubbed": self.scrubbed.tolist(),
            "random": self.random.tolist(),
        }

    def view(self) -> View:
        """Recovered share of the hypothesis and of its control, between 0 (random) and 1 (the model)."""
        found = {str(self.hypothesis.get("name", "hypothesis")): self.recovered}
        if self.control is not None:
            found["shuffled features (control)"] = self.control
        return Bars(
            title=f"Causal scrubbing ({self.model})",
            labels=list(found),
            values=[one.value for one in found.values()],
            intervals=[one.interval for one in found.values()],
            value_label=f"share of the {self.metric.replace('_', ' ')} recovered",
            label_axis="hypothesis",
            reference=1.0,
            reference_label="the model",
            note=self._note(),
        )

    def table_view(self) -> View:
        """The means, and how free the draws of every node are."""
        rows: list[list[str | float]] = [
            [f"{name} (mean {self.metric.replace('_', ' ')})", brief(one, 3), "", ""]
            for name, one in self.means.items()
        ]
        rows += [
            [node.name, ", ".join(node.parts), node.places, f"{node.agreeing:.1f} ({node.alone:.0%} alone)"]
            for node in self.nodes
        ]
        return Table(
            title=f"Causal scrubbing: nodes ({self.model})",
            columns=["node", "value or parts", "places in the tree", "inputs that agree"],
            rows=rows,
            note=self._note(),
        )

    def views(self) -> list[View]:
        """All views."""
        return [self.view(), self.table_view()]

    def plot(self) -> Figure:
        """The main view as a matplotlib figure."""
        from mech_interp.rendering.figure import figure

        return figure(self.view())

    def _recovered(self, values: Floats) -> Estimate:
        random = self.random.mean(1)
        return bootstrap_ratio(
            np.asarray(values.mean(1) - random), self.plain - random, self.groups, seed=self.seed
        )

    def _note(self) -> str:
        parts = [
            f"{count_note(len(self), self.groups)}, {self.samples} draws each",
            f"unimportant inputs resampled {'jointly' if self.unimportant == 'shared' else 'separately'}",
        ]
        try:
            if self.recovered.interval is None:
                parts.append(f"no interval: {self.recovered.reason}")
        except UnstableRatioError as error:
            parts.append(f"no recovered share: {error.message}")
        if self.vacuous:
            parts.append(f"these nodes test nothing: {', '.join(self.vacuous)}")
        return "; ".join([*parts, *self.notes])
