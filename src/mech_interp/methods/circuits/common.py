"""What circuit methods share: a task on a model, the metric at both ends, batches that shrink."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import InstrumentedModel, Progress, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import CapabilityError, InputError, OutOfMemoryError, nearest
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.methods.common import Floats, SanityError, as_floats
from mech_interp.methods.paired import prepare
from mech_interp.statistics import UnstableRatioError, group_standard_error
from mech_interp.statistics.estimate import rounded

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine

Ablation = Literal["corrupt", "zero", "mean", "positional-mean"]
ABLATIONS: tuple[Ablation, ...] = ("corrupt", "zero", "mean", "positional-mean")
Direction = Literal["noising", "denoising"]
DIRECTIONS: tuple[Direction, ...] = ("noising", "denoising")
WEAK = 0.25
"""A prompt whose own clean-corrupt difference is below this share of the mean is listed as weak."""
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


@dataclass(frozen=True, eq=False)
class CircuitTask:
    """Pairs of prompts on a model, a metric, and what removed edges carry.

    Attributes:
        clean, corrupt: the prompts, pair by pair equally long.
        metric: read from the logits; prompt i of the metric is pair i.
        groups: bootstrap group of every pair.
        ablation: ``corrupt`` (the corrupt run's values), ``zero``, ``mean`` over the clean prompts' real
            tokens, ``positional-mean`` over the prompts at each position.
    """

    model: InstrumentedModel
    clean: Tokens
    corrupt: Tokens
    metric: Metric
    groups: tuple[str, ...]
    metric_name: str = "metric"
    name: str = "pairs"
    ablation: Ablation = "corrupt"

    def __post_init__(self) -> None:
        if self.ablation not in ABLATIONS:
            hint = nearest(self.ablation, ABLATIONS) or f"Use {', '.join(ABLATIONS)}."
            raise InputError(f"There is no ablation {self.ablation!r}.", hint)
        if len(self.groups) != len(self.clean):
            raise InputError(
                f"There are {len(self.groups)} groups for {len(self.clean)} prompts.", "Give one per pair."
            )

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def engine(self) -> EdgeEngine:
        """The edge engine on these pairs.

        Raises:
            CapabilityError: for a backend or an architecture without edges.
        """
        from mech_interp.backends.huggingface.edges import EdgeEngine
        from mech_interp.backends.huggingface.model import HuggingFaceModel
        from mech_interp.backends.huggingface.writers import averaged, run_writers, zeroed

        model = self.model
        if not isinstance(model, HuggingFaceModel):
            raise CapabilityError(
                f"The backend {model.info.backend} has no edge-level graph.",
                "Open the model with the default backend, huggingface.",
            )
        if self.ablation == "corrupt":
            return EdgeEngine(model, self.clean, self.corrupt)
        own = run_writers(model, self.clean.to(model.info.device))
        if self.ablation == "zero":
            return EdgeEngine(model, self.clean, zeroed(own))
        mask = self.clean.to(model.info.device).mask
        positional = self.ablation == "positional-mean"
        return EdgeEngine(model, self.clean, averaged(own, mask, positional=positional))

    @cached_property
    def exchanged(self) -> CircuitTask:
        """The same task with clean and corrupt exchanged: its noising is this one's denoising.

        Raises:
            InputError: for ablations that have no prompts of their own.
        """
        if self.ablation != "corrupt":
            raise InputError(
                f"Denoising patches into the corrupt run, and {self.ablation} ablation has none.",
                "Use direction noising, or ablation corrupt.",
            )
        return replace(self, clean=self.corrupt, corrupt=self.clean)

    @property
    def graph(self) -> CircuitGraph:
        """The model's circuit graph."""
        return self.engine.graph

    @cached_property
    def full(self) -> Floats:
        """The metric of the clean run, [n]: that of the circuit of all edges."""
        return self.plain(self.clean)

    @cached_property
    def empty(self) -> Floats:
        """The metric with everything ablated, [n]: that of the circuit without edges."""
        if self.ablation == "corrupt":
            return self.plain(self.corrupt)
        none = Circuit(self.graph, np.zeros_like(self.graph.possible))
        return np.asarray(self.evaluate([none])[0])

    @property
    def differences(self) -> Floats:
        """full - empty of every pair, [n]."""
        return self.full - self.empty

    def plain(self, tokens: Tokens) -> Floats:
        """The metric of plain runs, [n]."""
        rows = [Row(i) for i in range(len(tokens))]
        return row_values(self.model, {"base": tokens}, rows, self.metric)

    def evaluate(
        self,
        circuits: Sequence[Circuit],
        *,
        prompts: Sequence[int] | None = None,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """The metric of circuits run on the edge engine, [circuit, prompt]."""
        masks = np.stack([circuit.edges for circuit in circuits])
        return self.evaluate_masks(masks, prompts, memory_budget, progress)

    def evaluate_masks(
        self,
        masks: np.ndarray,
        prompts: Sequence[int] | None = None,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """The same for masks [circuit, writer, reader] of numbers from 0 (ablated) to 1 (live)."""
        import torch

        from mech_interp.backends.huggingface.edges import DEFAULT_BUDGET

        engine, budget = self.engine, memory_budget or DEFAULT_BUDGET

        def run(part: Sequence[int]) -> Floats:
            nonlocal budget
            chosen = torch.as_tensor(masks[list(part)]).to(engine.clean.embed)
            while True:
                try:
                    with torch.no_grad():
                        found = engine.evaluate(chosen, self.metric, prompts=prompts, memory_budget=budget)
                    return as_floats(found)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error) or budget < 2:
                        raise
                budget //= 2
                self.tell(f"Memory ran out; circuits were run within {budget / 2**20:,.0f} MiB.")

        parts, _ = shrinking(range(len(masks)), 64, run, progress)
        values = np.concatenate(parts)
        if np.isnan(values).any():
            raise SanityError("The metric of a circuit is not a number.", "Check the weights and the metric.")
        return values

    def tell(self, sentence: str) -> None:
        """Say what was done differently; kept where a run is recorded."""

    @property
    def weak_prompts(self) -> list[int]:
        """Prompts whose own difference is below a quarter of the mean, or of the other sign."""
        share = self.differences / self.differences.mean()
        return [int(i) for i in np.flatnonzero(share < WEAK)]

    def refuse_vanishing(self) -> None:
        """Refuse pairs that do not differ in the metric.

        Raises:
            UnstableRatioError: when the mean difference is within three standard errors of zero.
        """
        mean = float(self.differences.mean())
        error = float(np.nan_to_num(group_standard_error(self.differences, self.groups)))
        if abs(mean) > 3 * error:
            return
        raise UnstableRatioError(
            f"Clean and {self.ablation} runs do not differ in {self.metric_name}: the mean difference "
            f"{rounded(mean, 4)} is within three standard errors ({rounded(error, 4)} each) of zero.",
            "Use prompts on which they differ clearly, or another metric.",
        )


def circuit_task(
    model: InstrumentedModel,
    pairs: TaskSet | Sequence[PromptPair],
    *,
    metric: str | Metric | None = None,
    ablation: Ablation = "corrupt",
) -> CircuitTask:
    """A task from prompt pairs; the metric is the task's own by default.

    Raises:
        InputError: for pairs that do not line up.
    """
    paired = prepare(model, pairs)
    name, measure = paired.metric(metric)
    return CircuitTask(
        model, paired.clean, paired.corrupt, measure, tuple(paired.groups), name, paired.name, ablation
    )


def row_values(
    model: InstrumentedModel,
    runs: Mapping[str, Tokens],
    rows: Sequence[Row],
    metric: Metric,
    *,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> Floats:
    """The metric of every row, [row]."""
    values = np.full(len(rows), np.nan)
    for result in model.rows(runs, rows, metric, memory_budget=memory_budget, progress=progress):
        if result.value.numel() != 1:
            raise InputError("The metric gives several values per row.", "Use a metric with one value.")
        values[result.index] = float(result.value)
    if np.isnan(values).any():
        raise SanityError(
            f"The metric of row {int(np.flatnonzero(np.isnan(values))[0])} is not a number.",
            "Check the model's weights and the metric.",
        )
    return values


def shrinking(
    items: Sequence[_Item],
    size: int,
    run: Callable[[Sequence[_Item]], _Found],
    progress: Progress | None = None,
) -> tuple[list[_Found], int]:
    """Run items in batches, halving the batch when memory runs out; results and the last batch size.

    Raises:
        OutOfMemoryError: when a single item does not fit.
    """
    found: list[_Found] = []
    at, size = 0, max(1, size)
    while at < len(items):
        part = items[at : at + size]
        try:
            found.append(run(part))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise OutOfMemoryError(
                    "Not even one item fits into memory.", "Use shorter prompts or a smaller model."
                ) from error
            size = len(part) // 2
            continue
        at += len(part)
        if progress is not None:
            progress(at, len(items))
    return found, size


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: a plain RuntimeError on a CPU."""
    import torch

    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def chosen_prompts(n: int, most: int | None, seed: int) -> list[int]:
    """All prompts, or a random few of them in order."""
    if most is None or most >= n:
        return list(range(n))
    picked = np.random.default_rng(seed).choice(n, most, replace=False)
    return sorted(int(i) for i in picked)


def plain_json(value: Any) -> Any:
    """A float that is not finite becomes None."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
