"""A circuit held in memory with the value of every writer, and what removing edges at one reader does.

ACDC looks at readers from the logits backwards, so everything before the reader under examination is as
in the full model, and only what can be reached from it inside the circuit has to be computed anew. One
call evaluates many removals at one reader; heads and MLPs that no row can reach, or that nothing hears,
are not run, and those that matter only at the columns that the metric reads are run at these alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.block import attend, mlp_of, take_columns
from mech_interp.backends.huggingface.edge_contraction import Changes
from mech_interp.backends.huggingface.edge_passes import columns_of
from mech_interp.backends.huggingface.needed import EVERYWHERE, NOWHERE, READ, needed_at
from mech_interp.backends.huggingface.stack import frame_for, logits_of
from mech_interp.backends.huggingface.writers import head_weights
from mech_interp.backends.metrics import Metric
from mech_interp.graph import Reader, Writer, owners
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine
    from mech_interp.backends.huggingface.layouts.base import Block


IN_CACHE = 12 << 20
"""Bytes of an MLP's activations; with several times that a row takes half as long again."""
_PROJECTIONS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")


@dataclass
class _Moved:
    """What rows changed, as differences from the state's own (projections and z: new values).

    Every prompt has `rows` rows; tensors are [row, prompt, position, ...], where the positions are all or
    the read columns, as the state's `writer_need` says.
    """

    rows: int
    writers: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    projections: dict[Reader, Tensor] = field(default_factory=dict)
    at_columns: dict[int, Tensor] = field(default_factory=dict)


class CircuitState:
    """The circuit of all edges on the engine's prompts; `commit` removes edges, reader by reader.

    Edges must be removed in reverse order of their readers, as ACDC does. Given a `metric`, only metrics
    that read the same positions may be asked for.
    """

    def __init__(self, engine: EdgeEngine, metric: Metric | None = None) -> None:
        self.engine, self.graph = engine, engine.graph
        self.device = engine.clean.embed.device
        self.present = self.graph.possible.copy()
        self.deltas = _differences(engine)
        self.heads = [z.clone() for z in engine.clean.heads]
        places = [Site(kind, layer) for layer in range(self.graph.n_layers) for kind in _PROJECTIONS]
        seen = engine.model.forward(engine.tokens, capture=places, logits="none").activations
        self.projections = {(p.kind, p.layer): seen[p].clone() for p in places}
        self.prompts = torch.arange(len(engine.tokens), device=self.device)
        self.columns = None if metric is None else columns_of(engine.tokens, metric, self.prompts.tolist())
        self._streams = engine.clean.streams(engine.model)
        self._inputs: dict[int, Tensor] = {}
        self._partial: tuple[int, list[int], Tensor] | None = None
        self._weights = [block.weights() for block in engine.model.layout.blocks]
        self._frame = frame_for(engine.model.layout, engine.clean.embed, engine.positions)
        self._tap = ed.Tap(ed.Edits())
        self._look()

    def _look(self) -> None:
        """Find out anew at which positions writers and readers matter."""
        read = EVERYWHERE if self.columns is None else READ
        self.writer_need, self.reader_need = needed_at(self.graph, self.present, read)

    def reaches(self, reader: int) -> bool:
        """Whether what the reader feeds still has a way to the logits."""
        return bool(self.reader_need[reader] != NOWHERE)

    def rows_in_cache(self, reader: int) -> int:
        """How many trials at a reader to run at once so that a CPU's cache holds an MLP's activations."""
        if self.device.type != "cpu":
            return sys.maxsize
        read = self.columns is not None and self.reader_need[reader] == READ
        width = self.columns.shape[1] if read and self.columns is not None else self.deltas.shape[2]
        info = self.engine.model.info
        row = len(self.prompts) * width * max(info.d_mlp, info.d_model) * self.deltas.element_size()
        return max(1, IN_CACHE // row)

    def value(self, metric: Metric) -> Tensor:
        """The metric of the circuit as it stands, [prompt]."""
        return self._read(self._input(len(self.graph.readers) - 1)[None], metric)[0]

    @torch.no_grad()
    def trials(
        self,
        reader: int,
        removed: Sequence[int],
        candidates: Sequence[int],
        expected: Sequence[bool],
        metric: Metric,
    ) -> Tensor:
        """The metric after removing `removed`, one of `candidates`, and those before it expected to go.

        All are writers with an edge into `reader`. Returns [len(candidates), prompt].
        """
        lost = self._deltas(candidates, reader)
        gone = lost * torch.tensor(list(expected), device=self.device)[:, None, None, None]
        lost[1:] += gone.cumsum(0)[:-1]
        inputs = torch.sub(self._without(reader, removed), lost, out=lost)
        return self._onward(reader, inputs, metric)

    def slopes(self, reader: int, writers: Sequence[int], metric: Metric) -> Tensor:
        """First-order estimate of what removing each of `writers` at a reader does to the mean metric."""
        with torch.enable_grad():
            inputs = self._input(reader)[None].detach().requires_grad_()
            value = self._onward(reader, inputs, metric).mean()
            (gradient,) = torch.autograd.grad(value, inputs)
        return -torch.einsum("wptd,ptd->w", self._deltas(writers, reader), gradient[0])

    def _onward(self, reader: int, inputs: Tensor, metric: Metric) -> Tensor:
        """The metric when a reader takes in `inputs` [row, prompt, position, d_model], [row, prompt]."""
        last = len(self.graph.readers) - 1
        if reader == last:
            return self._read(inputs, metric)
        moved = _Moved(len(inputs))
        self._enter(reader, inputs, moved)
        self._follow(reader, moved)
        return self._read(self._moved_input(last, moved), metric)

    @torch.no_grad()
    def commit(self, reader: int, removed: Sequence[int]) -> None:
        """Remove the edges from `removed` writers into a reader for good."""
        if not len(removed):
            return
        full = self._stored(reader) - self.deltas[:, list(removed)].sum(1)
        self.present[list(removed), reader] = False
        self._partial = None
        self._look()
        if self.present[:, reader].any():
            self._inputs[reader] = full
        if self.graph.readers[reader].kind == "logits" or not self.reaches(reader):
            return
        moved = _Moved(1)
        self._enter(reader, self._at(full, self.reader_need[reader])[None], moved)
        self._follow(reader, moved)
        for writer, change in moved.writers.items():
            need = self.writer_need[writer]
            self._add(self.deltas[:, writer], change[0], need)
            for later in np.flatnonzero(self.present[writer]):
                self._inputs[int(later)] = self._stored(int(later))
                self._add(self._inputs[int(later)], change[0], need)
        for (layer, head), z in moved.heads.items():
            need = self.writer_need[self.graph.writer_index[Writer("head", layer, head)]]
            self._put(self.heads[layer][:, :, head], z[0], need)
        for at, projected in moved.projections.items():
            need = self.reader_need[self.graph.reader_index[at]]
            self._put(self.projections[at.kind, at.layer][:, :, at.head], projected[0], need)

    def _stored(self, reader: int) -> Tensor:
        """What a reader takes in at all positions, in memory of its own once edges before it are gone."""
        found = self._inputs.get(reader)
        return self._stream(self.graph.readers[reader]).clone() if found is None else found

    def _stream(self, reader: Reader) -> Tensor:
        before_attention, before_mlp, final = self._streams
        if reader.kind == "logits":
            return final
        return (before_mlp if reader.kind == "mlp" else before_attention)[reader.layer]

    def _input(self, reader: int) -> Tensor:
        """What a reader takes in where that matters, [prompt, position, d_model]."""
        found = self._inputs.get(reader)
        found = self._stream(self.graph.readers[reader]) if found is None else found
        return self._at(found, self.reader_need[reader])

    def _at(self, values: Tensor, need: int) -> Tensor:
        """[prompt, position, ...] where it matters."""
        return take_columns(values, self.columns) if need == READ and self.columns is not None else values

    def _add(self, values: Tensor, change: Tensor, need: int) -> None:
        self._put(values, self._at(values, need) + change, need)

    def _put(self, values: Tensor, new: Tensor, need: int) -> None:
        if need == READ and self.columns is not None:
            values[self.prompts[:, None], self.columns] = new
        else:
            values.copy_(new)

    def _deltas(self, writers: Sequence[int], reader: int) -> Tensor:
        """[writer, prompt, position, d_model] where they matter to a reader."""
        chosen = torch.tensor(list(writers), device=self.device)
        if self.reader_need[reader] == READ and self.columns is not None:
            return self.deltas[self.prompts[:, None], chosen[:, None, None], self.columns]
        return self.deltas.transpose(0, 1)[chosen]

    def _without(self, reader: int, removed: Sequence[int]) -> Tensor:
        """What a reader takes in with some writers removed; the last answer is gone on from."""
        known: list[int] = []
        base: Tensor | None = None
        if self._partial is not None and self._partial[0] == reader:
            _, known, base = self._partial
        if base is None or known != list(removed[: len(known)]):
            known, base = [], self._input(reader)
        new = removed[len(known) :]
        base = base - self._deltas(new, reader).sum(0) if len(new) else base
        self._partial = (reader, list(removed), base)
        return base

    def _enter(self, number: int, inputs: Tensor, moved: _Moved) -> None:
        """Run what one reader feeds on new inputs [row, prompt, position, d_model]."""
        reader = self.graph.readers[number]
        if reader.kind == "mlp":
            self._run_mlp(reader.layer, inputs, moved)
            return
        self._project([reader], inputs[None], moved)
        self._run_heads(reader.layer, [w.head for w in owners(self.graph, reader)], moved)

    def _follow(self, number: int, moved: _Moved) -> None:
        """Everything after a reader that its rows can reach inside the circuit."""
        start, mlps = self.graph.readers[number], self.graph.mlps
        n_attention = self.graph.n_heads + 2 * self.graph.n_kv_heads
        for layer in range(start.layer, self.graph.n_layers):
            first = layer * (n_attention + mlps)
            if layer > start.layer:
                self._attention(self._reached(moved, first, first + n_attention), layer, moved)
            if mlps and (layer > start.layer or start.kind != "mlp"):
                for mlp in self._reached(moved, first + n_attention, first + n_attention + 1):
                    self._run_mlp(layer, self._moved_input(mlp, moved), moved)

    def _reached(self, moved: _Moved, first: int, end: int) -> list[int]:
        """Readers with an edge from a writer that moved, and a way on."""
        if not moved.writers:
            return []
        hit = self.present[list(moved.writers), first:end].any(0) & (self.reader_need[first:end] != NOWHERE)
        return [first + int(i) for i in np.flatnonzero(hit)]

    def _attention(self, numbers: list[int], layer: int, moved: _Moved) -> None:
        for need in (EVERYWHERE, READ):
            alike = [number for number in numbers if self.reader_need[number] == need]
            if alike:
                inputs = torch.stack([self._moved_input(number, moved) for number in alike])
                self._project([self.graph.readers[number] for number in alike], inputs, moved)
        heads = {w.head for n in numbers for w in owners(self.graph, self.graph.readers[n])}
        if heads:
            self._run_heads(layer, sorted(heads), moved)

    def _moved_input(self, reader: int, moved: _Moved) -> Tensor:
        """The input of a reader in every row, [row, prompt, position, d_model]."""
        x = self._input(reader)[None]
        for writer in moved.writers:
            if self.present[writer, reader]:
                x = x + self._heard(writer, self.reader_need[reader], moved)
        return x

    def _heard(self, writer: int, need: int, moved: _Moved) -> Tensor:
        change = moved.writers[writer]
        if self.columns is None or need == EVERYWHERE or self.writer_need[writer] == READ:
            return change
        if writer not in moved.at_columns:
            moved.at_columns[writer] = change[:, self.prompts[:, None], self.columns]
        return moved.at_columns[writer]

    def _project(self, readers: Sequence[Reader], inputs: Tensor, moved: _Moved) -> None:
        """q, k and v of readers of one layer from their inputs [reader, row, prompt, position, d_model]."""
        block, weights = self._block(readers[0].layer), self._weights[readers[0].layer]
        names = [reader.kind.upper() for reader in readers]
        chosen = [weights[f"W_{n}"][r.head].detach() for n, r in zip(names, readers, strict=True)]
        out = torch.bmm(block.norm1(inputs).flatten(1, -2), torch.stack(chosen))
        for i, (name, reader) in enumerate(zip(names, readers, strict=True)):
            bias = weights.get(f"b_{name}")
            projected = out[i].view(*inputs.shape[1:-1], -1)
            moved.projections[reader] = projected if bias is None else projected + bias[reader.head].detach()

    def _run_heads(self, layer: int, heads: Sequence[int], moved: _Moved) -> None:
        """Attention of some heads, their projections new where there are new ones."""
        index = self.graph.writer_index
        for need in (EVERYWHERE, READ):
            chosen = [h for h in heads if self.writer_need[index[Writer("head", layer, h)]] == need]
            if not chosen:
                continue
            z = self._attended(layer, chosen, need, moved)
            change = z - self._at(self.heads[layer][:, :, chosen], need)
            flat = change.flatten(0, 2).transpose(0, 1)  # [head, row x prompt x position, d_head]
            out = torch.bmm(flat, head_weights(self._block(layer))[chosen])
            for i, head in enumerate(chosen):
                moved.writers[index[Writer("head", layer, head)]] = out[i].view(*change.shape[:3], -1)
                moved.heads[layer, head] = z[:, :, :, i]

    def _attended(self, layer: int, chosen: list[int], need: int, moved: _Moved) -> Tensor:
        """z [row, prompt, position, head, d_head] of some heads, over the norm behind them if any."""
        readers = [
            [Reader("q", layer, head) for head in chosen],
            [self.graph.kv_reader("k", layer, head) for head in chosen],
            [self.graph.kv_reader("v", layer, head) for head in chosen],
        ]
        q, k, v = (self._projected(some, moved).flatten(0, 1) for some in readers)
        frame, scale = self._frame, self.engine.clean.scales[layer]
        if need == READ and self.columns is not None:
            frame = replace(frame, query_columns=self.columns.repeat(moved.rows, 1))
        z = attend(self._block(layer), layer, q, k, v, frame, self._tap)
        z = z.reshape(moved.rows, len(self.prompts), *z.shape[1:])
        return z if isinstance(scale, float) else z / self._at(scale, need)

    def _projected(self, readers: Sequence[Reader], moved: _Moved) -> Tensor:
        """[row, prompt, position, reader, d_head] of readers of one kind and layer."""
        own = self.projections[readers[0].kind, readers[0].layer][:, :, [r.head for r in readers]]
        out = own.expand(moved.rows, *own.shape)
        if any(reader in moved.projections for reader in readers):
            out = out.clone()
        for i, reader in enumerate(readers):
            new = moved.projections.get(reader)
            if new is None:
                continue
            if self.columns is not None and self.reader_need[self.graph.reader_index[reader]] == READ:
                out[:, self.prompts[:, None], self.columns, i] = new
            else:
                out[:, :, :, i] = new
        return out

    def _run_mlp(self, layer: int, inputs: Tensor, moved: _Moved) -> None:
        block, writer = self._block(layer), self.graph.writer_index[Writer("mlp", layer)]
        out = mlp_of(block, layer, block.norm2(inputs).flatten(0, 1), self._tap)
        out = out if block.post_mlp is None else block.post_mlp(out)
        before = self.engine.baseline.mlps[layer] + self.deltas[:, writer]
        moved.writers[writer] = out.view(inputs.shape) - self._at(before, self.writer_need[writer])

    def _read(self, final: Tensor, metric: Metric) -> Tensor:
        """The metric from the last stream [row, prompt, position, d_model], [row, prompt]."""
        layout, prompts = self.engine.model.layout, self.prompts.tolist() * len(final)
        chosen = final.flatten(0, 1)
        if self.columns is None:
            chosen = take_columns(chosen, columns_of(self.engine.tokens, metric, prompts))
        wanted = metric.token_ids(prompts)
        ids = None if wanted is None else wanted.to(self.device)[:, None]
        values = metric(logits_of(layout, layout.final_norm(chosen), ids), prompts)
        return values.view(len(final), len(self.prompts))

    def _block(self, layer: int) -> Block:
        return self.engine.model.layout.blocks[layer]


def _differences(engine: EdgeEngine) -> Tensor:
    """Clean less baseline value of every writer, [prompt, writer, position, d_model]."""
    changes = Changes.between(engine, engine.baseline, engine.clean)
    return changes.expand().transpose(0, 1).to(engine.clean.embed.dtype).contiguous()
