"""ACDC over edges: the decisions of the sequential algorithm, taken many at a time.

Conmy et al. 2023, Algorithm 1: readers from the logits backwards, and for each the writers in a stated
order; an edge goes when removing it raises the loss D by less than tau. Here a batch holds the rows that
would follow if every candidate in turn were removed; decisions are accepted up to the first edge that
stays, after which the next batch begins. What was computed beyond that edge is wasted; the number of rows
adapts so that at most a quarter is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mech_interp.backends.huggingface.circuit_state import CircuitState
from mech_interp.backends.metrics import Metric
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine

Order = Literal["reverse", "forward", "random"]
MOST_WASTED = 0.25


@dataclass(frozen=True)
class ReaderDecisions:
    """What was decided at one reader.

    Attributes:
        reader: its number.
        removed, kept: writers, in the order of examination.
        effects: by writer, the rise of the loss that decided; absent where nothing was evaluated.
        loss: the loss after these decisions.
        close: writers whose effect lies so near tau that rounding may decide.
        evaluated: False where the reader no longer reaches the logits, so that its edges went unseen.
    """

    reader: int
    removed: tuple[int, ...]
    kept: tuple[int, ...]
    effects: dict[int, float]
    loss: float
    close: tuple[int, ...] = ()
    evaluated: bool = True


@dataclass
class Work:
    """Rows computed so far, and how many of them decided nothing."""

    rows: int = 0
    wasted: int = 0
    removed: int = field(default=0, repr=False)
    kept: int = field(default=0, repr=False)

    def size(self, left: int) -> int:
        """How many rows to run next: about as long as removals last, and never so many that the
        share of wasted rows could pass a quarter."""
        likely = 1 + self.removed // (self.kept + 1)
        allowed = int((MOST_WASTED * self.rows - self.wasted + 1) / (1 - MOST_WASTED))
        return max(1, min(left, 2 * likely, allowed))


def prune_edges(
    engine: EdgeEngine,
    loss: Metric,
    tau: float,
    *,
    order: Order = "reverse",
    seed: int = 0,
    decided: Sequence[ReaderDecisions] = (),
    most_rows: int = 64,
    work: Work | None = None,
) -> Iterator[ReaderDecisions]:
    """Run ACDC reader by reader; yields each reader's decisions as they are final.

    Args:
        engine: clean prompts and baseline.
        loss: lower is better, averaged over prompts: a divergence from the full model, or the negative
            of a task metric.
        tau: an edge is removed when the loss rises by less than this.
        order: of writers at a reader; ``reverse`` starts with the latest.
        decided: decisions of an earlier, interrupted call with the same arguments: they are not taken
            again, and not yielded.
        most_rows: removals tried at once.
        work: counts rows.
    """
    if order not in ("reverse", "forward", "random"):
        raise InputError(
            f"There is no order {order!r}.",
            nearest(order, ("reverse", "forward", "random")) or "Use reverse.",
        )
    state, work = CircuitState(engine, loss), work or Work()
    for earlier in decided:
        state.commit(earlier.reader, earlier.removed)
    # The loss as it was told, so that a continued search equals an undisturbed one to the last bit.
    current = decided[-1].loss if decided else float(state.value(loss).mean())
    done = {earlier.reader for earlier in decided}
    for reader in range(len(engine.graph.readers) - 1, -1, -1):
        if reader in done:
            continue
        found = _decide(
            state, reader, loss, tau, current, _ordered(state, reader, order, seed), most_rows, work
        )
        state.commit(reader, found.removed)
        current = found.loss
        yield found


def _ordered(state: CircuitState, reader: int, order: Order, seed: int) -> list[int]:
    writers = list(range(state.graph.before(state.graph.readers[reader])))
    if order == "reverse":
        return writers[::-1]
    if order == "random":
        generator = torch.Generator().manual_seed(seed * 1_000_003 + reader)
        return [writers[i] for i in torch.randperm(len(writers), generator=generator).tolist()]
    return writers


def _decide(
    state: CircuitState,
    reader: int,
    loss: Metric,
    tau: float,
    current: float,
    writers: list[int],
    most_rows: int,
    work: Work,
) -> ReaderDecisions:
    if not state.reaches(reader):
        return ReaderDecisions(reader, tuple(writers), (), {}, current, evaluated=False)
    removed: list[int] = []
    kept: list[int] = []
    close: list[int] = []
    effects: dict[int, float] = {}
    at = 0
    while at < len(writers):
        batch = writers[at : at + min(most_rows, work.size(len(writers) - at))]
        losses = _means(state.removals(reader, removed, batch, loss))
        used = 0
        for writer, after in zip(batch, losses, strict=True):
            effects[writer] = after - current
            used += 1
            if abs(effects[writer] - tau) < _noise(state, current, after):
                close.append(writer)
            if effects[writer] < tau:
                removed.append(writer)
                current = after
            else:
                kept.append(writer)
                break
        work.rows += len(batch)
        work.wasted += len(batch) - used
        work.removed, work.kept = (
            work.removed + used,
            work.kept + (used < len(batch) or effects[batch[-1]] >= tau),
        )
        at += used
    return ReaderDecisions(reader, tuple(removed), tuple(kept), effects, current, tuple(close))


def _means(values: Tensor) -> list[float]:
    means: list[float] = values.double().mean(1).tolist()
    return means


def _noise(state: CircuitState, *losses: float) -> float:
    """What rounding may make of a difference of losses: some hundred units in the last place."""
    unit = float(torch.finfo(state.deltas.dtype).eps)
    return 128 * unit * max(1.0, *(abs(loss) for loss in losses))
