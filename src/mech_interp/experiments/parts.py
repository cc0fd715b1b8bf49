"""What families share: their data, batches of prompts, estimates as metrics and as table columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import InputError
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, load_data, target_positions
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.family import Family
from mech_interp.statistics import Estimate, Selection

Floats = npt.NDArray[np.float64]
P = TypeVar("P", bound=DataParams)
PROMPTS_PER_UNIT = 32
"""Prompts that one forward pass of a unit takes."""


class DataFamily(Family[P]):
    """A family whose parameters name prompts."""

    def check(self, params: P, facts: ModelFacts, tokenizer: Any) -> None:
        """Refuse answers, spans and lengths before weights load.

        Of a task two pairs are made, which shows whether its options and the tokenizer go together; the
        rest follow when `datasets` hashes them.
        """
        few = params.model_copy(update={"n": min(params.n, 2)}) if params.task else params
        found = load_data(few, tokenizer, 0)
        for number, pair in enumerate(found):
            length = len(tokenizer(pair.clean)["input_ids"])
            if facts.context is not None and length > facts.context:
                raise InputError(
                    f"Prompt {number} has {length} tokens, and {facts.name} reads {facts.context}.",
                    "Shorten it, or choose another model.",
                )
            for position in self.positions(params, pair):
                if not -length <= position < length:
                    raise InputError(
                        f"Position {position} does not exist in prompt {number}, which has {length} tokens.",
                        f"Use 0 to {length - 1}, or -{length} to -1 counted from the end.",
                    )
        self.check_data(params, facts, found)

    def check_data(self, params: P, facts: ModelFacts, data: TaskSet) -> None:
        """What a family checks besides; nothing by default."""

    def positions(self, params: P, pair: PromptPair) -> list[int]:
        """Token positions by number that a run reads or changes in a pair."""
        own = getattr(params, "position", None)
        return target_positions([pair]) if own is None else [own]

    def datasets(self, params: P, tokenizer: Any, seed: int) -> dict[str, str]:
        """Hash by name of the data that a run with this seed will use: part of its key."""
        data = load_data(params, tokenizer, seed)
        return {data.name: data.content_hash()}


def data_of(context: Context[P], tokenizer: Any | None = None) -> TaskSet:
    """The run's prompt pairs, declared to the context; what the task dropped is noted."""
    found = load_data(
        context.params, context.model.tokenizer if tokenizer is None else tokenizer, context.seed
    )
    context.dataset(found.name, found.content_hash(), len(found))
    if found.dropped:
        context.note(found.summary())
    return found


def portions(n: int, size: int = PROMPTS_PER_UNIT) -> list[tuple[int, int]]:
    """[start, stop) of batches of at most `size` out of n."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def by_group(values: npt.ArrayLike, groups: Sequence[str] | None) -> dict[str, float] | None:
    """Mean of per-prompt values in each group; None without groups."""
    if groups is None:
        return None
    found: dict[str, list[float]] = {}
    for value, group in zip(np.asarray(values, dtype=np.float64), groups, strict=True):
        found.setdefault(group, []).append(float(value))
    return {group: float(np.mean(own)) for group, own in found.items()}


def control(name: str, estimate: Estimate | None) -> dict[str, Any] | None:
    """A control for a metric, beside its value; None where it was not measured."""
    if estimate is None or estimate.n == 0:
        return None
    found = estimate.to_dict()
    return {"name": name, "value": found["value"], "interval": found["interval"], "n": found["n"]}


def flat(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table rows in which an estimate is columns: value under its own name, then `_low`, `_high`."""
    return [dict(_columns(row)) for row in rows]


def _columns(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping) and "interval" in value:
            low, high = value["interval"] or (None, None)
            yield from ((name, value["value"]), (f"{name}_low", low), (f"{name}_high", high))
        else:
            yield name, value


def check_layers(facts: ModelFacts, layers: Sequence[int] | None, what: str = "layers") -> None:
    """Refuse layers that the model lacks; layers count from 0."""
    for layer in layers or ():
        if not 0 <= layer < facts.n_layers:
            raise InputError(
                f"{what} names layer {layer}, but {facts.name} has {facts.n_layers} layers.",
                f"Use 0 to {facts.n_layers - 1}.",
            )


def halves(selection: Selection | None) -> str:
    """How a top site was chosen, as part of a sentence."""
    if selection is None:
        return "too few groups to choose on one half and quote on the other"
    return f"chosen on {selection.n_selected_on}, quoted on the other {selection.estimate.n}"


def number(estimate: Estimate, digits: int = 2, unit: str = "") -> str:
    """`0.97 [0.91, 0.99]` for a sentence; n stands in the metric."""
    return estimate.format(digits, unit).rpartition(", n =")[0]


def share(estimate: Estimate, digits: int = 2) -> str:
    """As `number`, for shares of a whole: what rounds to nothing is `0.00`, not a power of ten."""
    bounds = estimate.interval
    shown = None if bounds is None else (_snapped(bounds[0], digits), _snapped(bounds[1], digits))
    return number(replace(estimate, value=_snapped(estimate.value, digits), interval=shown), digits)


def span(values: Floats, digits: int = 2) -> str:
    """`0.01 to 0.14`: the least and the largest of several shares."""
    low, high = (f"{_snapped(float(one), digits):.{digits}f}" for one in (values.min(), values.max()))
    return f"{low} to {high}"


def _snapped(value: float, digits: int) -> float:
    return 0.0 if abs(value) < 0.5 * 10**-digits else value
