"""First-order scores of every edge from a few backward passes (edge attribution patching, with or
without integrated gradients).

The score of edge u -> v on a prompt is ``sum_positions <b_u - live_u, dm/d input_v>``: the first-order
estimate of what cutting the edge does to the metric (Nanda 2023; Syed et al. 2023, eq. 3; Hanna et al.
2024, eq. 3 for the averaged gradients). Weights are frozen, so a backward pass costs about one forward.
In the last layer only the columns that the metric reads are computed behind keys and values, and plain
scores leave out the positions before the first one where clean and corrupt prompts differ: nothing changes
there, so that only their keys and values are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mech_interp.backends.huggingface.backward_rules import Rules, backward_rules
from mech_interp.backends.huggingface.edge_contraction import Changes, contract
from mech_interp.backends.huggingface.edge_passes import BEGIN, Part, Start, frozen_scales, gradients
from mech_interp.backends.metrics import Metric
from mech_interp.errors import InputError

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine

Variant = Literal["eap", "ig-inputs", "ig-activations", "clean-corrupt"]


def edge_scores(
    engine: EdgeEngine,
    metric: Metric,
    *,
    variant: Variant = "eap",
    steps: int = 5,
    direction: Literal["noising", "denoising"] = "noising",
    rules: Rules = "none",
    by_position: bool = False,
    prompts: Sequence[int] | None = None,
) -> Tensor:
    """Scores of all edges, [prompt, writer, reader], in the accumulation type (at least float32).

    Args:
        variant: ``eap`` takes the gradient at one end; ``ig-inputs`` averages it over `steps` points
            between the corrupt and the clean embedding, the clean one included; ``ig-activations``
            over points between the two outputs of each group of writers (a layer's heads, an MLP),
            everything before it clean; ``clean-corrupt`` over the two ends.
        direction: ``noising`` estimates what giving the edge its baseline value does to the clean run,
            ``denoising`` what giving it its clean value does to the baseline's run.
        rules: how gradients pass norms, activations and gates: plainly, or by those of relevance patching
            (see `backward_rules`), the readers' own norms included.
        by_position: keep apart what the sum over positions is made of, [prompt, position, writer, reader]:
            the score of the edge at one position alone.
        prompts: numbers of the prompts; all by default.

    Raises:
        InputError: for a metric whose gradient vanishes everywhere it was taken, such as the divergence
            from the clean run at the clean run.
        CapabilityError: for rules that the model cannot use.
    """
    with backward_rules(engine.model, rules):
        found = _scores(
            engine, metric, variant, steps, direction, prompts, _Taken(rules == "relp", by_position)
        )
    return _checked(found)


@dataclass(frozen=True)
class _Taken:
    """How scores are taken: with the scales of readers' norms `held` constant, each position by itself."""

    held: bool
    by_position: bool

    def scores(
        self,
        part: Part,
        metric: Metric,
        changes: Changes,
        stream: Tensor,
        start: Start = BEGIN,
        members: slice = slice(None),
    ) -> Tensor:
        """From the gradients of one pass over a stream."""
        found, _ = gradients(part, metric, stream, start, held=self.held)
        return contract(changes, found, members, by_position=self.by_position)


def _scores(
    engine: EdgeEngine,
    metric: Metric,
    variant: Variant,
    steps: int,
    direction: Literal["noising", "denoising"],
    prompts: Sequence[int] | None,
    taken: _Taken,
) -> Tensor:
    chosen = list(range(len(engine.tokens))) if prompts is None else list(prompts)
    part = Part.whole(engine, metric, chosen)
    post = any(block.post_attention is not None for block in engine.model.layout.blocks)
    if variant == "eap" and direction == "noising" and not post and "clean" not in vars(engine):
        return _in_one_pass(part, metric, taken)
    index = torch.tensor(chosen, device=part.ids.device)
    clean, base = engine.clean.select(index), engine.baseline.select(index)
    ends = (clean, base) if direction == "noising" else (base, clean)
    changes = Changes.between(engine, *ends)
    with frozen_scales(engine, index, part.columns):
        if variant == "ig-activations":
            return _by_groups(part, metric, changes, steps, direction, taken)
        parts = []
        for weight in _points(variant, steps, direction):
            stream = _between(base.embed, clean.embed, weight)
            parts.append(taken.scores(part, metric, changes, stream))
        return torch.stack(parts).mean(0)


def _checked(scores: Tensor) -> Tensor:
    """The scores, unless nothing but rounding is left: a task metric moves by far more along some edge."""
    if bool(scores.abs().max() < 1e-3 * torch.finfo(scores.dtype).eps ** 0.5):
        raise InputError(
            "The gradient of the metric vanishes: every edge would score exactly zero.",
            "The divergence from the clean run is least at the clean run; use variant ig-inputs, or a task "
            "metric such as the logit difference.",
        )
    return scores


def _in_one_pass(part: Part, metric: Metric, taken: _Taken) -> Tensor:
    """Plain scores where the clean run is not known yet: the pass that is differentiated also gives it."""
    engine = part.engine
    own, first = "baseline" not in vars(engine) and engine.corrupt is not None, 0
    if engine.corrupt is None or not own:
        base = engine.baseline.select(torch.tensor(part.prompts, device=part.ids.device))
        base = base.narrowed(part.columns)
    else:
        other = engine.corrupt.ids[list(part.prompts)]
        first = _first_difference(part, other)
        part = part.after(first) if first else part
        base = part.writers(other[:, first:])
    found, clean = gradients(part, metric, part.embed(part.ids), writers=True, held=taken.held)
    assert clean is not None
    changes = Changes.between(engine, clean, base, part.columns, consume=own)
    del clean  # as large as the changes
    scores = contract(changes, found, by_position=taken.by_position)
    if taken.by_position and first:  # nothing changes at the positions that were left out
        scores = torch.cat((scores.new_zeros(len(scores), first, *scores.shape[2:]), scores), 1)
    return scores


def _first_difference(part: Part, other: Tensor) -> int:
    """The first position where a prompt differs from its other run, or that is read, if that is earlier."""
    differs = (part.ids != other).any(0).nonzero().flatten()[:1]
    return int(torch.cat([differs, part.columns.min()[None]]).min())


def _points(variant: Variant, steps: int, direction: str) -> list[float]:
    """Where gradients are taken, 0 at the baseline's embedding and 1 at the clean one."""
    if variant == "ig-inputs":
        return [k / steps for k in range(1, steps + 1)]
    if variant == "clean-corrupt":
        return [0.0, 1.0]
    return [1.0 if direction == "noising" else 0.0]


def _between(low: Tensor, high: Tensor, weight: float) -> Tensor:
    return high if weight == 1.0 else low + weight * (high - low)


def _by_groups(
    part: Part, metric: Metric, changes: Changes, steps: int, direction: str, taken: _Taken
) -> Tensor:
    """Gradients averaged while the outputs of one group of writers move between their two values."""
    total = None
    for members, after, start in _groups(part, direction):
        moved = changes.expand(members=members).sum(0).to(after.dtype)
        for k in range(1, steps + 1):
            stream = after + (1 - k / steps) * moved
            found = taken.scores(part, metric, changes, stream, start, members) / steps
            total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _groups(part: Part, direction: str) -> Iterator[tuple[slice, Tensor, Start]]:
    """The embedding, each layer's heads, each MLP: its writers, the stream after it, where that stands."""
    engine, index = part.engine, list(part.prompts)
    graph, n_heads = engine.graph, engine.graph.n_heads
    own = engine.clean if direction == "noising" else engine.baseline
    x = own.embed[index]
    yield slice(0, 1), x, BEGIN
    at = 1
    for layer in range(graph.n_layers):
        entering = x if graph.parallel else None
        x = x + own.added(engine.model, layer)[index]
        yield slice(at, at + n_heads), x, Start(layer, True, entering)
        at += n_heads
        if graph.mlps:
            x = x + own.mlps[layer][index]
            yield slice(at, at + 1), x, Start(layer + 1)
            at += 1
