"""Planted models opened in float64, and what cutting each of their edges does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mech_interp import planted
from mech_interp.backends.huggingface.edges import EdgeEngine
from mech_interp.backends.huggingface.writers import run_writers, zeroed
from mech_interp.planted import Pairs, Planted


@dataclass(frozen=True)
class Cuts:
    """Effects of cutting single edges from the full model, [edge, pair], and which edges are true."""

    effects: Tensor
    true: Tensor
    names: tuple[str, ...]


@cache
def opened(name: str, gap: float, seed: int = 1) -> tuple[Planted, object]:
    """A planted model and its engine, float64."""
    made = planted.build(name, gap, seed, dtype=torch.float64)
    return made, made.open()


def engine_of(name: str, gap: float, pairs: Pairs, ablation: str = "corrupt") -> EdgeEngine:
    """The edge engine on pairs; `swapped` has the corrupt prompts live and the clean ones as baseline."""
    _, model = opened(name, gap)
    if ablation == "zero":
        return EdgeEngine(model, pairs.clean, zeroed(run_writers(model, pairs.clean)))
    if ablation == "swapped":
        return EdgeEngine(model, pairs.corrupt, pairs.clean)
    return EdgeEngine(model, pairs.clean, pairs.corrupt)


def cut_each(made: Planted, engine: EdgeEngine, pairs: Pairs, ablation: str | None = None) -> Cuts:
    """Every possible edge cut by itself."""
    graph = made.graph
    full = torch.tensor(graph.possible, dtype=torch.float64)
    writers, readers = full.nonzero(as_tuple=True)
    masks = full.repeat(len(writers) + 1, 1, 1)
    masks[range(len(writers)), writers, readers] = 0
    values = engine.evaluate(masks, pairs.metric)
    true = torch.tensor(made.truth(ablation).edges)[writers, readers]  # type: ignore[arg-type]
    names = tuple(graph.edge_name(w, r) for w, r in zip(writers.tolist(), readers.tolist(), strict=True))
    return Cuts(values[:-1] - values[-1], true, names)
