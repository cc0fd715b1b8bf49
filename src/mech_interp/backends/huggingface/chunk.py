"""One chunk of rows on its way through the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.entries import Reader
from mech_interp.backends.huggingface.base_state import BaseState
from mech_interp.backends.huggingface.block import (
    Frame,
    attention_to_mid,
    attention_z,
    mid_to_post,
    mlp_source,
    take_columns,
)
from mech_interp.backends.huggingface.stack import embed, logits_of
from mech_interp.backends.metrics import Metric
from mech_interp.backends.rows.plan import Chunk, Stage, Start

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.model import HuggingFaceModel


class ChunkRun:
    """Rows sorted by start, so that the rows under way are always the leading ones.

    Those that start later are appended with the base run's values when their place is reached. In the
    last layer, once keys and values are known, only the positions that the metric reads go on.
    """

    def __init__(
        self, model: HuggingFaceModel, metric: Metric, chunk: Chunk, state: BaseState, reader: Reader
    ) -> None:
        self.model, self.layout, self.metric = model, model.layout, metric
        self.chunk, self.state = chunk, state
        device = model.info.device
        edits = ed.Edits(model.info.windows)
        for row, job in enumerate(chunk.jobs):
            for intervention, positions in job.edits:
                n_heads = model.info.heads(intervention.site.kind)
                tokens, prompt = state.runs[job.base[0]], job.base[1]
                numbers, total = ed.numbers_of(intervention, tokens, prompt, positions)
                edits.add(intervention, [(row, prompt, positions)], n_heads, numbers, total)
        self.reads = torch.tensor([job.reads for job in chunk.jobs], device=device)
        lengths = torch.tensor([job.length for job in chunk.jobs], device=device)
        self.lengths = None if model.info.causal else lengths
        self.tap = ed.Tap(edits, first=chunk.first, reader=reader, lengths=self.lengths)
        self.tap.narrow_to = self.reads
        self.bases = torch.tensor([state.index[job.base] for job in chunk.jobs], device=device)
        self.positions = torch.arange(chunk.first, chunk.width, device=device)[None]
        self.active = 0

    def values(self) -> Tensor:
        """The metric of every job of the chunk, in the chunk's order."""
        n_layers = self.model.info.n_layers
        begin = self.chunk.jobs[0].start.layer
        x = self._embedded()
        rotary = self.layout.rotary(self.state.like, self.positions)
        frame = Frame(rotary, self.positions, self._keys_values, self.model.info.attention == "eager")
        for layer in range(begin, n_layers):
            x = self._layer(layer, x, frame)
        if begin == n_layers:
            self.tap.narrow()
        x = self._join(x, Start(n_layers, Stage.FINAL), self.state.resid)
        assert x is not None
        values = self._metric(x)
        self.tap.check_all_fired()
        return values

    def _embedded(self) -> Tensor | None:
        arrivals = self._arrive(Start(0, Stage.EMBED))
        if arrivals is None:
            return None
        ids = self.state.tokens.ids[arrivals, self.chunk.first : self.chunk.width]
        return embed(self.layout, ids, self.positions, self.tap)

    def _layer(self, layer: int, x: Tensor | None, frame: Frame) -> Tensor | None:
        block, tap = self.layout.blocks[layer], self.tap
        last = layer == self.model.info.n_layers - 1
        x = self._join(x, Start(layer, Stage.PRE), self.state.resid)
        z = side = mid = None
        if x is not None:
            x = tap("resid_pre", layer, x)
            if last:
                frame = replace(frame, query_columns=self.reads[: self.active] - self.chunk.first)
            if self.lengths is not None:
                frame = replace(frame, lengths=self.lengths[: self.active])
            z, side = attention_z(block, layer, x, frame, tap)
            if frame.query_columns is not None:
                x = take_columns(x, frame.query_columns)
        if last:
            tap.narrow()
        arrivals = self._arrive(Start(layer, Stage.Z))
        if arrivals is not None:
            entering = self._base(self.state.resid(layer), arrivals)
            z, x = _append(z, self._base(self.state.z(layer), arrivals)), _append(x, entering)
            side = _append(side, mlp_source(block, entering))
        if x is not None and z is not None:
            mid = attention_to_mid(block, layer, x, tap("z", layer, z), tap)
        arrivals = self._arrive(Start(layer, Stage.MID))
        if arrivals is not None:
            mid = _append(mid, self._base(self.state.mid(layer), arrivals))
            if block.parallel:
                side = _append(side, mlp_source(block, self._base(self.state.resid(layer), arrivals)))
        if mid is not None:
            x = mid_to_post(block, layer, tap("resid_mid", layer, mid), mid if side is None else side, tap)
        x = self._join(x, Start(layer, Stage.POST), lambda at: self.state.resid(at + 1))
        return x if x is None else tap("resid_post", layer, x)

    def _arrive(self, start: Start) -> Tensor | None:
        """Base indices of the rows that start here, now counted as under way."""
        end = self.active
        while end < len(self.chunk.jobs) and self.chunk.jobs[end].start == start:
            end += 1
        arrivals = self.bases[self.active : end]
        self.active = end
        return arrivals if len(arrivals) else None

    def _join(self, x: Tensor | None, start: Start, values: Callable[[int], Tensor]) -> Tensor | None:
        arrivals = self._arrive(start)
        return x if arrivals is None else _append(x, self._base(values(start.layer), arrivals))

    def _base(self, values: Tensor, arrivals: Tensor) -> Tensor:
        """The base run's values [base, position, ...] at the columns being computed for the new rows."""
        if self.tap.read_positions is None:
            return values[arrivals, self.chunk.first : self.chunk.width]
        return take_columns(values[arrivals], self.reads[self.active - len(arrivals) : self.active])

    def _keys_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.chunk.first == 0:
            return k, v
        keys, values = self.state.keys_values(layer)
        bases = self.bases[: len(k)]
        before = slice(0, self.chunk.first)
        return torch.cat((keys[bases, before], k), 1), torch.cat((values[bases, before], v), 1)

    def _metric(self, x: Tensor) -> Tensor:
        prompts = [job.base[1] for job in self.chunk.jobs]
        normed = self.tap("ln_final", None, self.layout.final_norm(x))
        wanted = self.metric.token_ids(prompts)
        if self.tap.wants("logits", None):
            logits = self.tap("logits", None, logits_of(self.layout, normed, None))
            if wanted is not None:
                logits = logits.gather(2, wanted.to(logits.device)[:, None].expand(-1, logits.shape[1], -1))
        else:
            logits = logits_of(self.layout, normed, None if wanted is None else wanted[:, None])
        return self.metric(logits, prompts)


def _append(x: Tensor | None, more: Tensor) -> Tensor:
    return more if x is None else torch.cat((x, more))
