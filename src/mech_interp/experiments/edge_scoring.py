"""First-order scores of all edges as units of a run, several prompts in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.experiments.context import Context
from mech_interp.experiments.parts import portions
from mech_interp.graph import Circuit, CircuitGraph
from mech_interp.methods.circuits.common import CircuitTask, shrinking
from mech_interp.methods.common import Floats, as_floats

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.backward_rules import Rules
    from mech_interp.backends.huggingface.edge_gradients import Variant
    from mech_interp.methods.circuits.common import Direction

PROMPTS_PER_UNIT = 32


def score_edges(
    context: Context[Any],
    task: CircuitTask,
    variant: Variant,
    steps: int,
    direction: Direction,
    *,
    rules: Rules = "none",
    apart: Sequence[int] | None = None,
    label: str = "",
) -> Floats:
    """[prompt, edge], edges in order of `graph.possible`; see `edge_scores`.

    Of some edges, by number, taken `apart`: [prompt, position, edge]. `label` tells the units of several
    tasks apart.
    """
    from mech_interp.backends.huggingface.edge_gradients import edge_scores

    engine, graph = task.engine, task.graph

    def run(prompts: Sequence[int]) -> Floats:
        found = edge_scores(
            engine,
            task.metric,
            variant=variant,
            steps=steps,
            direction=direction,
            rules=rules,
            by_position=apart is not None,
            prompts=list(prompts),
        )
        scores = as_floats(found)[..., graph.possible]
        return scores if apart is None else scores[..., list(apart)]

    def chunk(part: tuple[int, int]) -> dict[str, Any]:
        start, end = part
        found, used = shrinking(range(start, end), end - start, run)
        if used < end - start:
            context.note(f"Memory ran out with {end - start} prompts at once; {used} were scored at once.")
        return {"scores": np.concatenate(found)}

    _ = engine.clean, engine.baseline  # known beforehand, so that every unit takes the same way
    parts = portions(len(task), prompts_at_once(context, task, by_position=apart is not None))
    what = "scores" if apart is None else "positions"
    stem = f"{label}/{what}" if label else what
    stored = context.each(parts, lambda part: f"{stem}/{part[0]:05d}", chunk, f"batches of {what}")
    return np.concatenate([np.asarray(one["scores"]) for one in stored])


def top_edges(graph: CircuitGraph, scores: Floats, n_edges: int) -> Circuit:
    """The edges of largest |mean score|, before pruning; `scores` [prompt, edge]."""
    matrix = np.zeros(graph.possible.shape)
    matrix[graph.possible] = scores.mean(0)
    return Circuit.top(graph, matrix, n_edges)


def prompts_at_once(context: Context[Any], task: CircuitTask, *, by_position: bool = False) -> int:
    """Prompts of a unit within the memory budget: changes of all writers and the gradients of a pass."""
    info, width = task.model.info, task.clean.ids.shape[1]
    streams = 3 * len(task.graph.writers) + info.n_layers * (20 + 3 * info.n_heads)
    row = width * 4 * (streams * info.d_model + 4 * info.n_layers * info.d_mlp)
    row += 2 * width * 4 * task.graph.possible.size if by_position else 0
    return max(1, min(PROMPTS_PER_UNIT, (context.budget.memory_bytes or 1 << 30) // row))
