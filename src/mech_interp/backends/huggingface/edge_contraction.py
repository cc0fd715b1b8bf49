"""Gradients at readers times what writers change by: the sums that first-order edge scores are made of.

The gradient at a reader's input is never materialised for a whole batch. With y the gradient behind the
norm's gain, the norm's own derivative is the identity less two rank-one terms: the mean is taken out of the
projection's weights beforehand, and the other contracts to one number per position. Prompts are taken a few
at a time, so that what is in flight stays small and in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends.huggingface import edits as ed
from mech_interp.backends.huggingface.writers import Writers, head_weights

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine
    from mech_interp.backends.huggingface.layouts.base import Block, Layout

IN_FLIGHT = 24 << 20
"""Bytes of writers' changes expanded at once."""


@dataclass(frozen=True)
class Gradients:
    """Gradients behind the readers' norms and projections, and the streams that they were taken at.

    Attributes:
        behind: by place [prompt, position, ...]; of the last layer `ln2`, and the stream leaving it, hold
            the read columns alone.
        streams: what entered the norms, likewise.
        columns: [prompt, n], the columns that the metric reads.
    """

    behind: Mapping[ed.Place, Tensor]
    streams: Mapping[ed.Place, Tensor]
    columns: Tensor


@dataclass(frozen=True)
class Changes:
    """What each writer would change by, heads not yet multiplied by their output weights.

    With `columns` [prompt, n] the writers of the last layer are known at these columns alone.
    """

    engine: EdgeEngine
    writers: Writers
    columns: Tensor | None = None

    @classmethod
    def between(cls, engine: EdgeEngine, low: Writers, high: Writers, columns: Tensor | None = None) -> Changes:
        """From `low` to `high`."""
        return cls(
            engine,
            Writers(
                high.embed - low.embed,
                tuple(b - a for a, b in zip(low.heads, high.heads, strict=True)),
                tuple(b - a for a, b in zip(low.mlps, high.mlps, strict=True)),
                low.scales,
            ),
            columns,
        )

    def __len__(self) -> int:
        return len(self.writers.embed)

    def expand(self, prompts: slice = slice(None), members: slice = slice(None)) -> Tensor:
        """[prompt, writer, position, d_model] of some prompts, in at least float32.

        Writers outside `members` are left out; of the last layer only what is known is other than zero.
        """
        embed = self.writers.embed[prompts]
        wide = torch.promote_types(embed.dtype, torch.float32)
        first, end, _ = members.indices(len(self.engine.graph.writers))
        out = embed.new_empty(len(embed), end - first, *embed.shape[1:], dtype=wide)
        for at, value in self._groups(prompts, first, end):
            where = out[:, at.start - first : at.stop - first]
            if value.shape[2] == out.shape[2]:
                where.copy_(value)
            else:
                assert self.columns is not None
                where.zero_()
                rows = torch.arange(len(embed), device=embed.device)[:, None]
                where.transpose(1, 2)[rows, self.columns[prompts]] = value.transpose(1, 2).to(wide)
        return out

    def _groups(self, prompts: slice, first: int, end: int) -> Iterator[tuple[slice, Tensor]]:
        """Numbers of the writers of a group, and their changes [prompt, writer, position, d_model]."""
        if first == 0:
            yield slice(0, 1), self.writers.embed[prompts][:, None]
        at, mlps = 1, self.engine.graph.mlps
        for layer, block in enumerate(self.engine.model.layout.blocks):
            after = at + self.engine.graph.n_heads
            if first < after and at < end:
                z = self.writers.heads[layer][prompts]
                weight = head_weights(block)
                out = torch.bmm(z.flatten(0, 1).transpose(0, 1), weight)  # [head, prompt x position, d_model]
                yield slice(at, after), out.unflatten(1, z.shape[:2]).transpose(0, 1)
            if mlps and first <= after < end:
                yield slice(after, after + 1), self.writers.mlps[layer][prompts][:, None]
            at = after + mlps


def contract(changes: Changes, gradients: Gradients, members: slice = slice(None)) -> Tensor:
    """``sum_positions <change of u, gradient at the input of v>``, [prompt, writer, reader].

    In the accumulation type (at least float32). Writers outside `members` (whole groups: the embedding, a
    layer's heads, an MLP) score zero.
    """
    graph, embed = changes.engine.graph, changes.writers.embed
    wide = torch.promote_types(embed.dtype, torch.float32)
    first, end, _ = members.indices(len(graph.writers))
    out = embed.new_zeros(len(changes), len(graph.writers), len(graph.readers), dtype=wide)
    row = (end - first) * embed.shape[1] * embed.shape[2] * wide.itemsize
    size = max(1, IN_FLIGHT // row)
    projections = _Projections(changes.engine, gradients)
    for at in range(0, len(changes), size):
        prompts = slice(at, at + size)
        change = changes.expand(prompts, members)
        _single_readers(out[prompts], changes.engine, gradients, change, prompts, first)
        projections.contract(out[prompts], change, prompts, first)
    possible = torch.tensor(graph.possible, device=out.device)
    return out.masked_fill_(~possible, 0.0)


class _Projections:
    """The readers of attention: all of a layer at once."""

    def __init__(self, engine: EdgeEngine, gradients: Gradients) -> None:
        self.engine, self.gradients = engine, gradients
        self.layout, self.graph = engine.model.layout, engine.graph
        self.layers = [layer for kind, layer in gradients.behind if kind == "q" and layer is not None]
        self.weights: dict[int, list[Tensor]] = {}

    def contract(self, out: Tensor, change: Tensor, prompts: slice, first: int) -> None:
        """Add the readers' columns to `out` [prompt, writer, reader]."""
        if not self.layers:
            return
        per_layer = self.graph.n_heads + 2 * self.graph.n_kv_heads
        streams = [self.gradients.streams["resid_pre", layer][prompts] for layer in self.layers]
        normed = [_normed(self.layout, stream.to(change.dtype)) for stream in streams]
        along = _along(change, [x for x, _ in normed]) if self.layout.norm != "none" else None
        buffer = change.new_empty(per_layer, *change.shape[::2][:1], *change.shape[2:])
        for i, layer in enumerate(self.layers):
            column = layer * (per_layer + self.graph.mlps)
            n = self.graph.before(self.graph.readers[column]) - first
            if n <= 0:
                continue
            x, sigma = normed[i]
            y = self._inputs(layer, prompts, sigma, buffer)
            rank_one = None if along is None else (y * x).sum(-1)  # [reader, prompt, position]
            for p in range(len(change)):
                found = y[:, p].flatten(1) @ change[p, :n].flatten(1).T
                if along is not None and rank_one is not None:
                    found -= rank_one[:, p] @ along[p, :, :n, i]
                out[p, first : first + n, column : column + per_layer] = found.T

    def _inputs(self, layer: int, prompts: slice, sigma: Tensor, buffer: Tensor) -> Tensor:
        """[reader, prompt, position, d_model]: gradients before the gain, over the norm's scale."""
        at = 0
        for kind, weight in zip("qkv", self._weights(layer), strict=True):
            behind = self.gradients.behind[kind, layer][prompts]
            scaled = behind.to(buffer.dtype) / sigma[..., None]  # [prompt, position, head, d_head]
            part = buffer[at : at + len(weight)]
            torch.bmm(scaled.flatten(0, 1).transpose(0, 1), weight, out=part.view(len(weight), -1, part.shape[-1]))
            at += len(weight)
        return buffer

    def _weights(self, layer: int) -> list[Tensor]:
        """[head, d_head, d_model] of q, k and v, times the norm's gain, and centred under LayerNorm."""
        block, wide = self.layout.blocks[layer], torch.promote_types(self._dtype(layer), torch.float32)
        gain = _gain(self.layout, block, "ln1")
        found = []
        for kind in "QKV":
            weight = block.weights()[f"W_{kind}"].detach().to(wide).mT
            weight = weight if gain is None else weight * gain.to(wide)
            found.append(weight - weight.mean(-1, keepdim=True) if self.layout.norm == "layer" else weight)
        return found

    def _dtype(self, layer: int) -> torch.dtype:
        return self.gradients.behind["q", layer].dtype


def _single_readers(
    out: Tensor, engine: EdgeEngine, gradients: Gradients, change: Tensor, prompts: slice, first: int
) -> None:
    """Add the readers of whole streams, MLPs and logits, to `out` [prompt, writer, reader]."""
    graph, layout = engine.graph, engine.model.layout
    before_mlp = "resid_pre" if graph.parallel else "resid_mid"
    per_layer = graph.n_heads + 2 * graph.n_kv_heads + graph.mlps
    last = ("resid_post", engine.model.info.n_layers - 1)
    readers, found = [len(graph.readers) - 1], []
    columns, width = gradients.columns[prompts], change.shape[2]
    found.append(_spread(gradients.behind[last][prompts].to(change.dtype), columns, width))
    for kind, layer in gradients.behind:
        if kind != "ln2" or layer is None:
            continue
        y = gradients.behind[kind, layer][prompts].to(change.dtype)
        x, sigma = _normed(layout, gradients.streams[before_mlp, layer][prompts].to(change.dtype))
        gain = _gain(layout, layout.blocks[layer], "ln2")
        y = (y if gain is None else y * gain.to(y)) / sigma
        y = y - y.mean(-1, keepdim=True) if layout.norm == "layer" else y
        if layout.norm != "none":
            y = y - x * ((y * x).sum(-1, keepdim=True) / x.shape[-1])
        found.append(_spread(y, columns, width))
        readers.append((layer + 1) * per_layer - 1)
    gradient = torch.stack(found, 1).flatten(2)  # [prompt, reader, position x d_model]
    scores = torch.bmm(gradient, change.flatten(2).mT)
    for i, reader in enumerate(readers):
        out[:, first : first + change.shape[1], reader] = scores[:, i]


def _spread(values: Tensor, columns: Tensor, width: int) -> Tensor:
    """[prompt, n, d_model] at `columns` to [prompt, position, d_model], zero elsewhere."""
    if values.shape[1] == width and columns.shape[1] != width:
        return values
    out = values.new_zeros(len(values), width, values.shape[2])
    rows = torch.arange(len(values), device=values.device)[:, None].expand_as(columns)
    return out.index_put((rows, columns), values, accumulate=True)


def _along(change: Tensor, streams: list[Tensor]) -> Tensor:
    """<change, x> / d_model, [prompt, position, writer, stream]."""
    x = torch.stack(streams, -1) / change.shape[-1]
    return torch.stack([torch.bmm(one.transpose(0, 1), at) for one, at in zip(change, x, strict=True)])


def _normed(layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    """A stream divided by its scale, before the gain; and the scale."""
    if layout.norm == "none":
        return x, torch.ones_like(x[..., :1])
    centred = x - x.mean(-1, keepdim=True) if layout.norm == "layer" else x
    sigma = (centred.pow(2).mean(-1, keepdim=True) + layout.norm_eps).sqrt()
    return centred / sigma, sigma


def _gain(layout: Layout, block: Block, name: str) -> Tensor | None:
    if layout.norm == "none":
        return None
    gain = block.weights().get(f"{name}.w")
    return None if gain is None else gain.detach()
