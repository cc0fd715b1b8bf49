"""A circuit held in memory with the value of every writer, and what removing edges at one reader does.

ACDC looks at readers from the logits backwards, so everything before the reader under examination is as
in the full model, and only what can be reached from it inside the circuit has to be computed anew. One
call evaluates many removals at one reader as rows of a batch; heads and MLPs that no row can reach are
not run at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mech_interp.backends.huggingface import edits as ed
from mech_interp.backends.huggingface.block import attend, mlp_of
from mech_interp.backends.huggingface.stack import frame_for, logits_of
from mech_interp.backends.huggingface.writers import head_weights
from mech_interp.backends.metrics import Metric
from mech_interp.graph import Reader, Writer, owners
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine
    from mech_interp.backends.huggingface.layouts.base import Block


_PROJECTIONS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
_KEYS_VALUES: tuple[Literal["k", "v"], ...] = ("k", "v")


@dataclass
class _Moved:
    """What rows changed: writers' outputs and projections, as differences from the state's own.

    `prompts` [row] are the prompts; tensors are [row, position, ...].
    """

    prompts: Tensor
    writers: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    projections: dict[Reader, Tensor] = field(default_factory=dict)


class CircuitState:
    """The circuit of all edges on the engine's prompts; `commit` removes edges, reader by reader.

    Edges must be removed in reverse order of their readers, as ACDC does.
    """

    def __init__(self, engine: EdgeEngine) -> None:
        self.engine, self.graph = engine, engine.graph
        self.device = engine.clean.embed.device
        self.present = torch.tensor(self.graph.possible, device=self.device)
        self.deltas = _differences(engine)
        self.heads = [z.clone() for z in engine.clean.heads]
        places = [Site(kind, layer) for layer in range(self.graph.n_layers) for kind in ("q", "k", "v")]
        seen = engine.model.forward(engine.tokens, capture=places, logits="none").activations
        self.projections = {
            Reader(kind, layer, head): seen[Site(kind, layer)][:, :, head]
            for layer in range(self.graph.n_layers)
            for kind, n in zip(_PROJECTIONS, self._counts(), strict=True)
            for head in range(n)
        }
        self._frame = frame_for(engine.model.layout, engine.clean.embed, engine.positions)
        self._tap = ed.Tap(ed.Edits())

    def _counts(self) -> tuple[int, int, int]:
        return self.graph.n_heads, self.graph.n_kv_heads, self.graph.n_kv_heads

    def reaches(self, reader: int) -> bool:
        """Whether what the reader feeds still has an edge of the circuit leaving it."""
        if self.graph.readers[reader].kind == "logits":
            return True
        fed = [self.graph.writer_index[w] for w in owners(self.graph, self.graph.readers[reader])]
        return bool(self.present[fed].any())

    def value(self, metric: Metric) -> Tensor:
        """The metric of the circuit as it stands, [prompt]."""
        prompts = torch.arange(len(self.deltas), device=self.device)
        return self._read(_Moved(prompts), self.input(len(self.graph.readers) - 1), metric)

    @torch.no_grad()
    def removals(
        self, reader: int, removed: Sequence[int], candidates: Sequence[int], metric: Metric
    ) -> Tensor:
        """The metric after removing `removed`, then also the first, the first two … of `candidates`.

        All are writers with an edge into `reader`. Returns [len(candidates), prompt].
        """
        base = self.input(reader) - self.deltas[:, list(removed)].sum(1)
        steps = self.deltas[:, list(candidates)].cumsum(1).transpose(0, 1)
        n_prompts = len(base)
        inputs = (base[None] - steps).flatten(0, 1)
        prompts = torch.arange(n_prompts, device=self.device).repeat(len(candidates))
        return self._evaluate(reader, inputs, prompts, metric).reshape(len(candidates), n_prompts)

    @torch.no_grad()
    def commit(self, reader: int, removed: Sequence[int]) -> None:
        """Remove the edges from `removed` writers into a reader for good."""
        if not len(removed):
            return
        inputs = self.input(reader) - self.deltas[:, list(removed)].sum(1)
        self.present[list(removed), reader] = False
        moved = _Moved(torch.arange(len(inputs), device=self.device))
        if self.graph.readers[reader].kind == "logits" or not self.reaches(reader):
            return
        self._enter(reader, inputs, moved)
        self._follow(reader, moved)
        for writer, change in moved.writers.items():
            self.deltas[:, writer] += change
        for (layer, head), z in moved.heads.items():
            self.heads[layer][:, :, head] = z
        self.projections |= moved.projections

    def input(self, reader: int) -> Tensor:
        """What the reader takes in, [prompt, position, d_model]."""
        n = self.graph.before(self.graph.readers[reader])
        mask = self.present[:n, reader].to(self.deltas.dtype)
        return self._baseline(self.graph.readers[reader]) + torch.einsum(
            "n,pntd->ptd", mask, self.deltas[:, :n]
        )

    def _baseline(self, reader: Reader) -> Tensor:
        before_attention, before_mlp, final = self.engine.streams
        if reader.kind == "logits":
            return final
        return (before_mlp if reader.kind == "mlp" else before_attention)[reader.layer]

    def _evaluate(self, reader: int, inputs: Tensor, prompts: Tensor, metric: Metric) -> Tensor:
        if self.graph.readers[reader].kind == "logits":
            return self._read(_Moved(prompts), inputs, metric)
        moved = _Moved(prompts)
        self._enter(reader, inputs, moved)
        self._follow(reader, moved)
        last = len(self.graph.readers) - 1
        return self._read(moved, self._moved_input(last, moved), metric)

    def _enter(self, number: int, inputs: Tensor, moved: _Moved) -> None:
        """Run what one reader feeds on new inputs [row, position, d_model]."""
        reader = self.graph.readers[number]
        if reader.kind == "mlp":
            self._run_mlp(reader.layer, inputs, moved)
            return
        self._project([reader], inputs[:, :, None], moved)
        self._run_heads(reader.layer, {w.head for w in owners(self.graph, reader)}, moved)

    def _follow(self, number: int, moved: _Moved) -> None:
        """Everything after a reader that its rows can reach inside the circuit."""
        start = self.graph.readers[number]
        per_layer = sum(self._counts()) + self.graph.mlps
        for layer in range(start.layer, self.graph.n_layers):
            first = layer * per_layer
            if layer > start.layer:
                self._attention(range(first, first + sum(self._counts())), layer, moved)
            if self.graph.mlps and (layer > start.layer or start.kind != "mlp"):
                mlp = first + per_layer - 1
                if self._reached(mlp, moved):
                    self._run_mlp(layer, self._moved_input(mlp, moved), moved)

    def _attention(self, numbers: range, layer: int, moved: _Moved) -> None:
        reached = [number for number in numbers if self._reached(number, moved)]
        readers = [self.graph.readers[number] for number in reached]
        # A head nobody listens to needs no running.
        heads = {w.head for r in readers for w in owners(self.graph, r) if self._heard(w)}
        readers = [r for r in readers if any(w.head in heads for w in owners(self.graph, r))]
        if not readers:
            return
        inputs = torch.stack([self._moved_input(self.graph.reader_index[r], moved) for r in readers], 2)
        self._project(readers, inputs, moved)
        self._run_heads(layer, heads, moved)

    def _heard(self, writer: Writer) -> bool:
        return bool(self.present[self.graph.writer_index[writer]].any())

    def _reached(self, reader: int, moved: _Moved) -> bool:
        return any(bool(self.present[writer, reader]) for writer in moved.writers)

    def _moved_input(self, reader: int, moved: _Moved) -> Tensor:
        """The input of a reader in every row, [row, position, d_model]."""
        x = self.input(reader)[moved.prompts]
        for writer, change in moved.writers.items():
            if self.present[writer, reader]:
                x = x + change
        return x

    def _project(self, readers: Sequence[Reader], inputs: Tensor, moved: _Moved) -> None:
        """q, k and v of readers of one layer from their inputs [row, position, reader, d_model]."""
        block = self._block(readers[0].layer)
        weights, normed = block.weights(), block.norm1(inputs)
        for i, reader in enumerate(readers):
            name = reader.kind.upper()
            out = normed[:, :, i] @ weights[f"W_{name}"][reader.head].detach()
            bias = weights.get(f"b_{name}")
            moved.projections[reader] = out if bias is None else out + bias[reader.head].detach()

    def _run_heads(self, layer: int, heads: set[int], moved: _Moved) -> None:
        """Attention of some heads, their projections new where there are new ones."""
        chosen, block = sorted(heads), self._block(layer)
        readers = [
            [Reader("q", layer, head) for head in chosen],
            *([self.graph.kv_reader(kind, layer, head) for head in chosen] for kind in _KEYS_VALUES),
        ]
        q, k, v = (torch.stack([self._projected(r, moved) for r in some], 2) for some in readers)
        z = attend(block, layer, q, k, v, self._frame, self._tap)
        scale = self.engine.clean.scales[layer]
        z = z if isinstance(scale, float) else z / scale[moved.prompts]
        before = self.heads[layer][moved.prompts][:, :, chosen]
        change = torch.einsum("rthe,hed->rthd", z - before, head_weights(block)[chosen])
        for i, head in enumerate(chosen):
            moved.writers[self.graph.writer_index[Writer("head", layer, head)]] = change[:, :, i]
            moved.heads[layer, head] = z[:, :, i]

    def _projected(self, reader: Reader, moved: _Moved) -> Tensor:
        found = moved.projections.get(reader)
        return self.projections[reader][moved.prompts] if found is None else found

    def _run_mlp(self, layer: int, inputs: Tensor, moved: _Moved) -> None:
        block, writer = self._block(layer), self.graph.writer_index[Writer("mlp", layer)]
        if not bool(self.present[writer].any()):
            return
        out = mlp_of(block, layer, block.norm2(inputs), self._tap)
        out = out if block.post_mlp is None else block.post_mlp(out)
        before = self.engine.baseline.mlps[layer] + self.deltas[:, writer]
        moved.writers[writer] = out - before[moved.prompts]

    def _read(self, moved: _Moved, final: Tensor, metric: Metric) -> Tensor:
        layout, prompts = self.engine.model.layout, moved.prompts.tolist()
        tokens = self.engine.tokens
        columns = torch.tensor(
            [[tokens.position(p, at) for at in metric.positions] for p in prompts], device=self.device
        )
        chosen = final[torch.arange(len(final), device=self.device)[:, None], columns]
        wanted = metric.token_ids(prompts)
        ids = None if wanted is None else wanted.to(self.device)[:, None]
        return metric(logits_of(layout, layout.final_norm(chosen), ids), prompts)

    def _block(self, layer: int) -> Block:
        return self.engine.model.layout.blocks[layer]


def _differences(engine: EdgeEngine) -> Tensor:
    """Clean less baseline value of every writer, [prompt, writer, position, d_model]."""
    from mech_interp.backends.huggingface.edge_gradients import changes

    prompts = torch.arange(len(engine.tokens), device=engine.clean.embed.device)
    return changes(engine, prompts, "denoising").transpose(1, 2).contiguous()
