"""ACDC over edges: the decisions of the sequential algorithm, taken many at a time.

Conmy et al. 2023, Algorithm 1: readers from the logits backwards, and for each the writers in a stated
order; an edge goes when removing it raises the loss D by less than tau. Here one backward pass per reader
estimates to first order what each removal would do, and with it what the sequential algorithm will decide; a
batch holds the rows that it would then evaluate. Every decision is taken on its exact effect, up to the first
that goes against expectation, behind which the next batch begins. What was computed beyond it is wasted; the
number of rows adapts so that at most a quarter is.
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
FEW = 6
"""Fewer edges than this are tried without an estimate."""


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
    """Rows computed so far, and how many of them decided nothing; backward passes are not counted."""

    rows: int = 0
    wasted: int = 0
    expected: int = field(default=0, repr=False)
    surprises: int = field(default=0, repr=False)

    def count(self, used: int, size: int, surprise: bool) -> None:
        """Note a batch of `size` rows of which `used` decided something, the last perhaps a surprise."""
        self.rows += size
        self.wasted += size - used
        self.expected += used - surprise
        self.surprises += surprise

    def size(self, left: int) -> int:
        """How many rows to run next: about as long as expectations hold, and never so many that the
        share of wasted rows could pass a quarter."""
        likely = 1 + self.expected // (self.surprises + 1)
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
    expected = _expectations(state, reader, loss, tau, writers)
    removed: list[int] = []
    kept: list[int] = []
    close: list[int] = []
    effects: dict[int, float] = {}
    at, most = 0, min(most_rows, state.rows_in_cache(reader))
    while at < len(writers):
        batch = slice(at, at + min(most, work.size(len(writers) - at)))
        tried, surprise = writers[batch], False
        losses = _means(state.trials(reader, removed, tried, expected[batch], loss))
        for writer, goes, after in zip(tried, expected[batch], losses, strict=True):
            effects[writer] = after - current
            at += 1
            if abs(effects[writer] - tau) < _noise(state, current, after):
                close.append(writer)
            gone = effects[writer] < tau
            (removed if gone else kept).append(writer)
            current = after if gone else current
            surprise = gone != goes
            if surprise:
                break
        work.count(at - batch.start, len(tried), surprise)
    return ReaderDecisions(reader, tuple(removed), tuple(kept), effects, current, tuple(close))


def _expectations(
    state: CircuitState, reader: int, loss: Metric, tau: float, writers: list[int]
) -> list[bool]:
    """Whether each edge is expected to go; all are where there are too few for a backward pass to pay."""
    if len(writers) < FEW:
        return [True] * len(writers)
    goes: list[bool] = (state.slopes(reader, writers, loss) < tau).tolist()
    return goes


def _means(values: Tensor) -> list[float]:
    means: list[float] = values.double().mean(1).tolist()
    return means


def _noise(state: CircuitState, *losses: float) -> float:
    """What rounding may make of a difference of losses: some hundred units in the last place."""
    unit = float(torch.finfo(state.deltas.dtype).eps)
    return 128 * unit * max(1.0, *(abs(loss) for loss in losses))
