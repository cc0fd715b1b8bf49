"""Runs path patches: records what reaches the receivers, then replaces their inputs row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mech_interp.backends.huggingface.edges import DEFAULT_BUDGET, EdgeEngine
from mech_interp.backends.huggingface.stack import logits_of
from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import Progress, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.graph import CircuitGraph, Reader, Writer
from mech_interp.interventions import EditContext, Intervention, Operation
from mech_interp.methods.circuits.common import row_values
from mech_interp.methods.circuits.path_streams import Paths, Recorded, Run, sender_batches, site_of
from mech_interp.methods.common import Floats, as_floats

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.model import HuggingFaceModel
    from mech_interp.methods.circuits.paths import Cells, Columns

_LOGITS = Reader("logits")
_READ_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class SetRecorded(Operation):
    """Set a receiver's projection or output to a recorded one, [prompt, position, features].

    The first prompt recorded is prompt `first`. One operation serves all rows of a path, so that they
    are written in one call.
    """

    values: Tensor
    first: int

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return self.values[context.prompts - self.first, context.positions].to(live)


class PathSweep:
    """Path patches into one base run.

    Attributes:
        notes: what a reader of the numbers should know.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        graph: CircuitGraph,
        base: Tokens,
        metric: Metric,
        variant: str,
        budget: int | None = None,
    ) -> None:
        self.model, self.graph, self.metric, self.variant = model, graph, metric, variant
        self.base = base.to(model.info.device)
        self.budget = DEFAULT_BUDGET if budget is None else budget
        self._shared: list[int] = []
        # The edge engine holds the scale of a norm behind attention; plain rows would let it move.
        self._frozen = variant == "direct_edge" and any(
            block.post_attention is not None for block in model.layout.blocks
        )
        self.notes = (
            ("the scale of the norm behind attention is frozen at the base run",) if self._frozen else ()
        )

    def measure(
        self,
        cells: Cells,
        other: Tokens,
        *,
        prompts: Sequence[int] | None = None,
        only: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """The metric with each path patched, [prompt, sender, receiver, position].

        NaN where no path leads, for prompts not in `prompts`, and for cells not in `only`.
        """
        wanted = np.repeat(cells.possible(self.graph)[:, :, None], len(cells.columns), axis=2)
        wanted &= True if only is None else only
        chosen = list(range(len(self.base))) if prompts is None else list(prompts)
        values = np.full((len(self.base), *wanted.shape), np.nan)
        other = other.to(self.model.info.device)
        self._shared = [_shared_prefix(self.base.row(p), other.row(p)) for p in range(len(self.base))]
        done, total = 0, int(wanted.sum()) * len(chosen)
        for column, group in enumerate(cells.receivers):
            if len(group) > 1 and _LOGITS in group and self.variant == "three_pass":
                raise InputError(
                    f"The receivers {cells.names[column]} name the logits beside others.",
                    "What enters the logits decides the output alone; give them a column of their own.",
                )
        engine_columns = [c for c, g in enumerate(cells.receivers) if self._by_engine(g)]
        if engine_columns:
            part = wanted.copy()
            part[:, [c for c in range(wanted.shape[1]) if c not in engine_columns]] = False
            self._cut_edges(cells, other, chosen, part, values)
            wanted[:, engine_columns] = False
            done += int(part.sum()) * len(chosen)
        if not wanted.any():
            return values
        for block in self._blocks(chosen):
            paths = Paths(
                self.model,
                self.graph,
                Run.of(self.model, self.base.select(block)),
                Run.of(self.model, other.select(block)),
            )
            senders = [w for i, w in enumerate(cells.senders) if wanted[i].any()]
            per_sender = self._bytes_per_sender(cells, len(block))
            for batch in sender_batches(senders, per_sender, self.budget // 2):
                numbers = [cells.senders.index(sender) for sender in batch]
                self._batch(cells, paths, block, numbers, wanted, values)
                done += int(wanted[numbers].sum()) * len(block)
                if progress is not None:
                    progress(done, total)
        return values

    def everything(self, other: Tokens) -> Floats:
        """The metric with all writers at the other run, which must be that run's own, [prompt]."""
        values, other = np.full(len(self.base), np.nan), other.to(self.model.info.device)
        if self._frozen:
            engine = EdgeEngine(self.model, self.base, other)
            none = torch.zeros(1, *self.graph.possible.shape, device=self.base.ids.device)
            found: Floats = as_floats(engine.evaluate(none, self.metric, memory_budget=self.budget))[0]
            return found
        for block in self._blocks(range(len(self.base))):
            base, source = (Run.of(self.model, tokens.select(block)) for tokens in (self.base, other))
            paths = Paths(self.model, self.graph, base, source)
            final = paths.everything() if self.variant == "three_pass" else paths.all_edges()
            values[list(block)] = as_floats(self._read(final, block))
        return values

    def _by_engine(self, group: Sequence[Reader]) -> bool:
        """Whether a column needs the edge engine: receivers that may hear of each other, or a held scale."""
        return self.variant == "direct_edge" and (self._frozen or len(group) > 1)

    def _batch(
        self,
        cells: Cells,
        paths: Paths,
        block: Sequence[int],
        numbers: Sequence[int],
        wanted: np.ndarray,
        values: Floats,
    ) -> None:
        """Fill `values` for some senders on a block of neighbouring prompts."""
        senders = [cells.senders[i] for i in numbers]
        readers = {r for c, group in enumerate(cells.receivers) if wanted[numbers, c].any() for r in group}
        follow = paths.three_pass if self.variant == "three_pass" else paths.direct_edge
        recorded = follow(senders, sorted(readers, key=self.graph.reader_index.__getitem__))
        rows: list[Row] = []
        places: list[tuple[int, int, int, int]] = []
        for column, group in enumerate(cells.receivers):
            for number, sender in zip(numbers, senders, strict=True):
                if group == (_LOGITS,):
                    self._into_logits(cells, paths, block, (number, column), recorded, wanted, values)
                    continue
                made = self._interventions(recorded, sender, group, block[0])
                for at, columns in enumerate(cells.columns):
                    if not wanted[number, column, at]:
                        continue
                    for prompt in block:
                        own = self._changing(prompt) if columns is None else tuple(columns[prompt])
                        rows.append(Row(prompt, _placed(made, own)))
                        places.append((prompt, number, column, at))
        if rows:
            found = row_values(
                self.model, {"base": self.base}, rows, self.metric, memory_budget=max(1, self.budget // 2)
            )
            values[tuple(np.array(places).T)] = found

    def _interventions(
        self, recorded: Recorded, sender: Writer, group: Sequence[Reader], first: int
    ) -> list[tuple[Reader, SetRecorded]]:
        return [
            (reader, SetRecorded(recorded[sender, reader], first))
            for reader in group
            if (sender, reader) in recorded
        ]

    def _changing(self, prompt: int) -> tuple[int, ...]:
        """Positions where a sender can differ: all from the first token in which the runs differ."""
        return tuple(range(self._shared[prompt], self.base.lengths[prompt]))

    def _into_logits(
        self,
        cells: Cells,
        paths: Paths,
        block: Sequence[int],
        cell: tuple[int, int],
        recorded: Recorded,
        wanted: np.ndarray,
        values: Floats,
    ) -> None:
        """Paths into the final stream: nothing has to run after it."""
        number, column = cell
        moved = recorded.get((cells.senders[number], _LOGITS))
        for at, columns in enumerate(cells.columns):
            if moved is None or not wanted[number, column, at]:
                continue
            final = moved
            if columns is not None:
                mask = torch.zeros(moved.shape[:2], dtype=torch.bool, device=moved.device)
                for i, prompt in enumerate(block):
                    mask[i, list(columns[prompt])] = True
                final = torch.where(mask[..., None], moved, paths.base.pre[-1])
            values[list(block), number, column, at] = as_floats(self._read(final, block))

    @torch.no_grad()
    def _read(self, final: Tensor, block: Sequence[int]) -> Tensor:
        """The metric from final streams [prompt, position, d_model] of some prompts."""
        layout, found = self.model.layout, []
        for at in range(0, len(block), _READ_AT_ONCE):
            some = list(block[at : at + _READ_AT_ONCE])
            columns = [[self.base.position(p, one) for one in self.metric.positions] for p in some]
            rows = torch.arange(at, at + len(some), device=final.device)[:, None]
            chosen = final[rows, torch.tensor(columns, device=final.device)]
            wanted = self.metric.token_ids(some)
            ids = None if wanted is None else wanted.to(final.device)[:, None]
            found.append(self.metric(logits_of(layout, layout.final_norm(chosen), ids), some))
        return torch.cat(found)

    def _cut_edges(
        self, cells: Cells, other: Tokens, prompts: Sequence[int], wanted: np.ndarray, values: Floats
    ) -> None:
        """The same by the edge engine: the circuit of all edges but those of a cell."""
        engine = EdgeEngine(self.model, self.base, other)
        for at, columns in enumerate(cells.columns):
            here = np.argwhere(wanted[:, :, at])
            for own, same in _by_columns(columns, prompts).items():
                for part in np.array_split(here, max(1, -(-len(here) // 32))):
                    masks = [self._mask(cells, int(s), int(r), own) for s, r in part]
                    if not masks:
                        continue
                    with torch.no_grad():
                        found = engine.evaluate(
                            torch.stack(masks), self.metric, prompts=same, memory_budget=self.budget
                        )
                    for (sender, receiver), row in zip(part, as_floats(found), strict=True):
                        values[same, sender, receiver, at] = row

    def _mask(self, cells: Cells, sender: int, receiver: int, columns: tuple[int, ...] | None) -> Tensor:
        mask = torch.tensor(self.graph.possible, dtype=torch.float32)
        writer = self.graph.writer_index[cells.senders[sender]]
        readers = [self.graph.reader_index[r] for r in cells.receivers[receiver]]
        if columns is None:
            mask[writer, readers] = 0
            return mask.to(self.model.info.device)
        spread = mask[..., None].repeat(1, 1, self.base.ids.shape[1])
        for reader in readers:
            spread[writer, reader, list(columns)] = 0
        return spread.to(self.model.info.device)

    def _blocks(self, prompts: Sequence[int]) -> list[range]:
        """Neighbouring prompts whose two runs fit a quarter of the budget."""
        info, width = self.model.info, self.base.ids.shape[1]
        size = torch.empty((), dtype=getattr(torch, info.dtype)).element_size()
        per_prompt = 2 * width * size * info.n_layers * (3 * info.d_model + info.n_heads * info.d_head)
        step = max(1, self.budget // 4 // per_prompt)
        stop = max(prompts) + 1
        return [range(at, min(at + step, stop)) for at in range(min(prompts), stop, step)]

    def _bytes_per_sender(self, cells: Cells, n_prompts: int) -> int:
        """Recorded values, and the streams and MLP of a sender's own rows while they are made."""
        info, width = self.model.info, self.base.ids.shape[1]
        readers = [reader for group in cells.receivers for reader in group]
        vectors = sum(info.d_head if r.kind in ("q", "k", "v") else info.d_model for r in readers)
        vectors += 8 * info.d_model + 3 * info.d_mlp + 3 * info.n_heads * info.d_head
        return n_prompts * width * vectors * torch.empty((), dtype=getattr(torch, info.dtype)).element_size()


def _placed(made: Sequence[tuple[Reader, SetRecorded]], columns: tuple[int, ...]) -> tuple[Intervention, ...]:
    return tuple(Intervention(site_of(reader), operation, columns) for reader, operation in made)


def _by_columns(columns: Columns | None, prompts: Sequence[int]) -> dict[tuple[int, ...] | None, list[int]]:
    """Prompts by the positions that are cut in them."""
    found: dict[tuple[int, ...] | None, list[int]] = {}
    for prompt in prompts:
        found.setdefault(None if columns is None else tuple(columns[prompt]), []).append(prompt)
    return found


def _shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two prompts share; none for equal ones, so that something is replaced."""
    differing = (i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
    return next(differing, 0)
