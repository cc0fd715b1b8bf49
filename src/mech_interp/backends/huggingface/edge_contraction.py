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

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.block import take_columns
from mech_interp.backends.huggingface.writers import Writers, head_weights

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine
    from mech_interp.backends.huggingface.layouts.base import Block, Layout

IN_FLIGHT = 32 << 20
"""Bytes of writers' changes expanded at once."""


@dataclass(frozen=True)
class Gradients:
    """Gradients behind the readers' norms and projections, and the streams that they were taken at.

    Attributes:
        behind: by place [prompt, position, ...]; of the last layer `ln2`, and the stream leaving it, hold
            the read columns alone.
        streams: what entered the norms, likewise.
        columns: [prompt, n], the columns that the metric reads.
        held: the scales of the readers' norms are constants to the gradient.
    """

    behind: Mapping[ed.Place, Tensor]
    streams: Mapping[ed.Place, Tensor]
    columns: Tensor
    held: bool = False


@dataclass(frozen=True)
class Changes:
    """What each writer would change by, heads not yet multiplied by their output weights.

    With `columns` [prompt, n] the writers of the last layer are known at these columns alone.
    """

    engine: EdgeEngine
    writers: Writers
    columns: Tensor | None = None

    @classmethod
    def between(
        cls,
        engine: EdgeEngine,
        low: Writers,
        high: Writers,
        columns: Tensor | None = None,
        *,
        consume: bool = False,
    ) -> Changes:
        """From `low` to `high`; with `consume` in the memory of `high`."""

        def change(a: Tensor, b: Tensor) -> Tensor:
            return b.sub_(a) if consume else b - a

        heads = tuple(change(a, b) for a, b in zip(low.heads, high.heads, strict=True))
        mlps = tuple(change(a, b) for a, b in zip(low.mlps, high.mlps, strict=True))
        return cls(engine, Writers(change(low.embed, high.embed), heads, mlps, low.scales), columns)

    def __len__(self) -> int:
        return len(self.writers.embed)

    def expand(
        self, prompts: slice = slice(None), members: slice = slice(None), out: Tensor | None = None
    ) -> Tensor:
        """[writer, prompt, position, d_model] of some prompts, in at least float32; into `out` if given.

        Writers outside `members` are left out; of the last layer only what is known is other than zero.
        """
        embed = self.writers.embed[prompts]
        first, end, _ = members.indices(len(self.engine.graph.writers))
        wide = torch.promote_types(embed.dtype, torch.float32)
        out = embed.new_empty(end - first, *embed.shape, dtype=wide) if out is None else out
        columns = None if self.columns is None else self.columns[prompts]
        for at, value, weight, last in self._groups(prompts, first, end):
            where = out[at.start - first : at.stop - first]
            if not last or columns is None:
                _write(where, value, weight)
                continue
            rows = torch.arange(len(embed), device=embed.device)[:, None]
            narrow = where.new_empty(len(where), *columns.shape, embed.shape[2])
            where.zero_()[:, rows, columns] = _write(narrow, value, weight)
        return out

    def _groups(
        self, prompts: slice, first: int, end: int
    ) -> Iterator[tuple[slice, Tensor, Tensor | None, bool]]:
        """Groups of writers: their numbers, values, what those are yet to be multiplied by, whether they
        are of the last layer."""
        if first == 0:
            yield slice(0, 1), self.writers.embed[prompts], None, False
        at, mlps = 1, self.engine.graph.mlps
        for layer, block in enumerate(self.engine.model.layout.blocks):
            after, last = at + self.engine.graph.n_heads, layer == self.engine.graph.n_layers - 1
            if first < after and at < end:
                yield slice(at, after), self.writers.heads[layer][prompts], head_weights(block), last
            if mlps and first <= after < end:
                yield slice(after, after + 1), self.writers.mlps[layer][prompts], None, last
            at = after + mlps


def _write(out: Tensor, value: Tensor, weight: Tensor | None) -> Tensor:
    """A group's changes to `out` [writer, prompt, position, d_model].

    `value` is [prompt, position, d_model], or z [prompt, position, head, d_head] of heads with `weight`.
    """
    if weight is None:
        out[0] = value
        return out
    z = value.flatten(0, 1).transpose(0, 1).to(out.dtype)
    torch.bmm(z, weight.to(out.dtype), out=out.flatten(1, 2))
    return out


def contract(
    changes: Changes, gradients: Gradients, members: slice = slice(None), *, by_position: bool = False
) -> Tensor:
    """``sum_positions <change of u, gradient at the input of v>``, [prompt, writer, reader].

    In the accumulation type (at least float32). Writers outside `members` (whole groups: the embedding, a
    layer's heads, an MLP) score zero. With `by_position` the terms of the sum, [prompt, position, writer,
    reader].
    """
    graph, embed = changes.engine.graph, changes.writers.embed
    wide = torch.promote_types(embed.dtype, torch.float32)
    first, end, _ = members.indices(len(graph.writers))
    positions = embed.shape[1:2] if by_position else ()
    shape = (len(changes), *positions, len(graph.writers), len(graph.readers))
    out = embed.new_zeros(*shape, dtype=wide)
    row = (end - first) * embed[0].numel() * wide.itemsize
    chunks = -(-len(changes) * row // IN_FLIGHT)
    size = -(-len(changes) // chunks)  # of equal size, as far as they can be
    projections = _Projections(changes.engine, gradients)
    room = embed.new_empty(end - first, size, *embed.shape[1:], dtype=wide)
    for at in range(0, len(changes), size):
        prompts = slice(at, min(at + size, len(changes)))
        room = room if prompts.stop - at == size else room[:, : prompts.stop - at].contiguous()
        change = changes.expand(prompts, members, room)
        _single_readers(out[prompts], changes.engine, gradients, change, prompts, first)
        projections.contract(out[prompts], change, prompts, first)
    possible = torch.tensor(graph.possible, device=out.device)
    return out.masked_fill_(~possible, 0.0)


class _Projections:
    """The readers of attention: all of a layer at once."""

    def __init__(self, engine: EdgeEngine, gradients: Gradients) -> None:
        self.gradients, self.layout, self.graph = gradients, engine.model.layout, engine.graph
        self.layers = [layer for kind, layer in gradients.behind if kind == "q" and layer is not None]
        self.per_layer = self.graph.n_heads + 2 * self.graph.n_kv_heads

    def contract(self, out: Tensor, change: Tensor, prompts: slice, first: int) -> None:
        """Add the readers' columns to `out` [prompt, writer, reader]."""
        if not self.layers:
            return
        streams = [self.gradients.streams["resid_pre", layer][prompts] for layer in self.layers]
        normed = [_normed(self.layout, stream.to(change.dtype)) for stream in streams]
        along = _along(change, [x for x, _ in normed], self.layout)
        buffer = change.new_empty(self.per_layer, *change.shape[1:])
        product = change.new_empty(self.per_layer, *change.shape[2:])
        for i, layer in enumerate(self.layers):
            column = layer * (self.per_layer + self.graph.mlps)
            n = min(self.graph.before(self.graph.readers[column]) - first, len(change))
            if n <= 0:
                continue
            rows, kinds = slice(first, first + n), "qkv"
            if layer == self.graph.n_layers - 1:
                # Behind the last keys and values only the read columns go on, so queries matter there alone.
                queries = slice(column, column + self.graph.n_heads)
                self._queries(out[..., rows, queries], change[:n], layer, prompts)
                column, kinds = column + self.graph.n_heads, "kv"
            x, sigma = normed[i]
            y = self._inputs(layer, kinds, prompts, sigma, buffer)
            for p in range(change.shape[1]):
                terms = [(y[:, p], change[:n, p], 1)]
                if self.layout.norm != "none" and not self.gradients.held:
                    rank_one = torch.mul(y[:, p], x[p], out=product[: len(y)]).sum(-1)  # [reader, position]
                    terms.append((rank_one[..., None], along[p, :, i, :n].T[..., None], -1))
                if self.layout.norm == "layer":
                    terms.append((y[:, p].sum(-1)[..., None], along[p, :, -1, :n].T[..., None], -1))
                out[p, ..., rows, column : column + len(y)] = _inner(terms, out.dim() > 3)

    def _inputs(self, layer: int, kinds: str, prompts: slice, sigma: Tensor, buffer: Tensor) -> Tensor:
        """[reader, prompt, position, d_model]: gradients at the normed stream, over the norm's scale."""
        at, block = 0, self.layout.blocks[layer]
        weights = block.weights()
        for kind in kinds:
            weight = weights[f"W_{kind.upper()}"].detach().to(buffer.dtype).mT
            scaled = self.gradients.behind[kind, layer][prompts].to(buffer.dtype) / sigma[..., None]
            part = buffer[at : at + len(weight)].flatten(1, 2)
            torch.bmm(scaled.flatten(0, 1).transpose(0, 1), weight, out=part)
            at += len(weight)
        gain = _gain(self.layout, block, "ln1")
        return buffer[:at] if gain is None else buffer[:at].mul_(gain)

    def _queries(self, out: Tensor, change: Tensor, layer: int, prompts: slice) -> None:
        """Write the query readers' scores to `out` [prompt, writer, head], from the read columns."""
        columns, block = self.gradients.columns[prompts], self.layout.blocks[layer]
        again = (columns[:, :, None] == columns[:, None]).tril(-1).any(-1)  # a column read twice counts once
        behind = take_columns(self.gradients.behind["q", layer][prompts], columns).to(change.dtype)
        behind = behind.masked_fill(again[:, :, None, None], 0.0)
        stream = take_columns(self.gradients.streams["resid_pre", layer][prompts], columns)
        weight = block.weights()["W_Q"].detach().to(change.dtype)
        y = torch.einsum("pche,hde->hpcd", behind, weight)
        y = _through_norm(self.layout, block, "ln1", stream.to(change.dtype), y, self.gradients.held)
        for p in range(change.shape[1]):
            terms = [(y[:, p], change[:, p, columns[p]], 1)]
            if out.dim() > 3:
                out[p].index_add_(0, columns[p], _inner(terms, True))
            else:
                out[p] = _inner(terms, False)


def _single_readers(
    out: Tensor, engine: EdgeEngine, gradients: Gradients, change: Tensor, prompts: slice, first: int
) -> None:
    """Add the readers of whole streams, MLPs and logits, to `out` [prompt, writer, reader]."""
    graph, layout, columns = engine.graph, engine.model.layout, gradients.columns[prompts]
    before_mlp = "resid_pre" if graph.parallel else "resid_mid"
    per_layer = graph.n_heads + 2 * graph.n_kv_heads + graph.mlps
    last, width = engine.model.info.n_layers - 1, change.shape[2]
    final = gradients.behind["resid_post", last][prompts].to(change.dtype)
    readers, found = [len(graph.readers) - 1], [_spread(final, columns, width)]
    for kind, layer in gradients.behind:
        if kind != "ln2" or layer is None:
            continue
        y = gradients.behind[kind, layer][prompts].to(change.dtype)
        stream = gradients.streams[before_mlp, layer][prompts].to(change.dtype)
        if layer == last and graph.parallel:
            stream = take_columns(stream, columns)
        y = _through_norm(layout, layout.blocks[layer], "ln2", stream, y, gradients.held)
        found.append(_spread(y, columns, width) if layer == last else y)
        readers.append((layer + 1) * per_layer - 1)
    gradient = torch.stack(found, 1)  # [prompt, reader, position, d_model]
    for p in range(len(out)):
        own = _inner([(gradient[p], change[:, p], 1)], out.dim() > 3)
        out[p, ..., first : first + len(change), readers] = own


def _inner(terms: list[tuple[Tensor, Tensor, int]], by_position: bool) -> Tensor:
    """Sum of signed products of [reader, position, k] and [writer, position, k], over k and, unless they are
    kept apart, over positions: [writer, reader] or [position, writer, reader]."""
    if by_position:
        parts = [sign * torch.einsum("rtk,wtk->twr", y, x) for y, x, sign in terms]
        return torch.stack(parts).sum(0)
    (y, x, _), *others = terms
    found = y.flatten(1) @ x.flatten(1).T
    for y, x, sign in others:
        found.addmm_(y.flatten(1), x.flatten(1).T, alpha=sign)
    return found.T


def _through_norm(layout: Layout, block: Block, name: str, stream: Tensor, y: Tensor, held: bool) -> Tensor:
    """The gradient at a norm's stream [prompt, position, d_model] from that behind it [..., d_model].

    With `held` the norm's scale is a constant.
    """
    if layout.norm == "none":
        return y
    x, sigma = _normed(layout, stream)
    gain = _gain(layout, block, name)
    y = (y if gain is None else y * gain) / sigma
    y = y - y.mean(-1, keepdim=True) if layout.norm == "layer" else y
    return y if held else y - x * ((y * x).sum(-1, keepdim=True) / x.shape[-1])


def _spread(values: Tensor, columns: Tensor, width: int) -> Tensor:
    """[prompt, n, d_model] at `columns` to [prompt, position, d_model], zero elsewhere."""
    out = values.new_zeros(len(values), width, values.shape[2])
    rows = torch.arange(len(values), device=values.device)[:, None].expand_as(columns)
    return out.index_put((rows, columns), values, accumulate=True)


def _along(change: Tensor, streams: list[Tensor], layout: Layout) -> Tensor:
    """<change, x> / d_model and last the change's mean, [prompt, position, stream, writer]."""
    if layout.norm == "none":
        return change.new_empty(0)
    x = torch.stack([*streams, torch.ones_like(streams[0])], -2) / change.shape[-1]
    return torch.stack([torch.bmm(at, change[:, p].permute(1, 2, 0)) for p, at in enumerate(x)])


def _normed(layout: Layout, x: Tensor) -> tuple[Tensor, Tensor]:
    """A stream divided by its scale, before the gain; and the scale [prompt, position, 1]."""
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
