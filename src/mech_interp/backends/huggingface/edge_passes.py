"""Forward and backward passes of edge attribution, restricted to what its scores depend on.

In the last layer only the columns that the metric reads go on behind keys and values. Where prompts begin
alike, their common positions are run once for keys and values and left out of everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.block import (
    Frame,
    KeyValues,
    attention_to_mid,
    attention_z,
    mid_to_post,
    take_columns,
)
from mech_interp.backends.huggingface.edge_contraction import Gradients
from mech_interp.backends.huggingface.stack import embed, frame_for, logits_of, own_keys_values, run_blocks
from mech_interp.backends.huggingface.writers import Writers
from mech_interp.backends.metrics import Metric
from mech_interp.backends.tokens import Tokens

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.edges import EdgeEngine
    from mech_interp.backends.huggingface.layouts.base import Layout


def columns_of(tokens: Tokens, metric: Metric, prompts: Sequence[int]) -> Tensor:
    """The columns that a metric reads, [prompt, n]."""
    columns = [[tokens.position(p, at) for at in metric.positions] for p in prompts]
    return torch.tensor(columns, device=tokens.ids.device)


@dataclass(frozen=True)
class Start:
    """Where a forward takes over: before a block, or after its attention.

    `entering` is the stream that entered the block, which the MLP of a parallel block reads.
    """

    layer: int
    after_attention: bool = False
    entering: Tensor | None = None


BEGIN = Start(0)


@dataclass(frozen=True)
class Part:
    """Prompts of an engine and the positions that are run, the same for all.

    Attributes:
        ids: [prompt, position] of the clean run.
        positions: [1, position].
        columns: [prompt, n], read by the metric, counted from the first position that is run.
        kv: joins the keys and values of earlier positions.
    """

    engine: EdgeEngine
    prompts: Sequence[int]
    ids: Tensor
    positions: Tensor
    columns: Tensor
    kv: KeyValues = own_keys_values

    @classmethod
    def whole(cls, engine: EdgeEngine, metric: Metric, prompts: Sequence[int]) -> Part:
        """All positions of some prompts."""
        ids = engine.tokens.ids[list(prompts)]
        return cls(engine, prompts, ids, engine.positions, columns_of(engine.tokens, metric, prompts))

    @torch.no_grad()
    def after(self, first: int) -> Part:
        """The positions from `first` on; what comes before is run once, for its keys and values."""
        layout, kept = self.engine.model.layout, {}

        def keep(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            kept[layer] = k, v
            return k, v

        def join(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat((kept[layer][0], k), 1), torch.cat((kept[layer][1], v), 1)

        early = replace(self, ids=self.ids[:, :first], positions=self.positions[:, :first], kv=keep)
        x, tap = early.embed(early.ids), ed.Tap(ed.Edits())
        frame, last = early.frame(x), len(layout.blocks) - 1
        x = run_blocks(layout, x, range(last), frame, tap)
        nothing = replace(frame, query_columns=self.columns.new_zeros(len(x), 1))
        attention_z(layout.blocks[last], last, x, nothing, tap)
        ids, positions = self.ids[:, first:], self.positions[:, first:]
        return replace(self, ids=ids, positions=positions, columns=self.columns - first, kv=join)

    def embed(self, ids: Tensor) -> Tensor:
        """The stream entering the first block, from the tokens at the positions that are run."""
        return embed(self.engine.model.layout, ids, self.positions, ed.Tap(ed.Edits()))

    def frame(self, stream: Tensor) -> Frame:
        """The frame of these positions."""
        return frame_for(self.engine.model.layout, stream, self.positions, kv=self.kv)

    @torch.no_grad()
    def writers(self, ids: Tensor) -> Writers:
        """What writers add on other tokens; those of the last layer at the read columns alone."""
        engine, places = self.engine, written_places(self.engine)
        tap, x = ed.Tap(ed.Edits(), places), self.embed(ids)
        _to_columns(engine.model.layout, x, BEGIN, self.frame(x), tap, self.columns)
        return as_writers(engine, x, tap)


def gradients(
    part: Part,
    metric: Metric,
    stream: Tensor,
    start: Start = BEGIN,
    *,
    writers: bool = False,
    held: bool = False,
) -> tuple[Gradients, Writers | None]:
    """One forward from `start` and one backward to what stands behind the readers.

    With `writers` also what heads and MLPs wrote, those of the last layer at the read columns alone;
    with `held` the scales of the readers' norms are constants.
    """
    engine, layout = part.engine, part.engine.model.layout
    inside = _places(engine, start)
    mids = [(_before_mlp(engine), layer) for kind, layer in inside if kind == "ln2"]
    around = [("resid_pre", layer) for kind, layer in inside if kind == "q"] + mids
    tap = _Apart(ed.Edits(), {*inside, *around, *(written_places(engine) if writers else ())})
    with torch.enable_grad():
        x = stream.detach().requires_grad_()
        out = _to_columns(layout, x, start, part.frame(x), tap, part.columns)
        wanted = metric.token_ids(part.prompts)
        ids = None if wanted is None else wanted.to(x.device)[:, None]
        value = metric(logits_of(layout, layout.final_norm(out), ids), part.prompts).sum()
        streams = {place: tap.captured[place].detach() for place in around}
        known = as_writers(engine, stream.detach(), tap) if writers else None
        wanted_at = [get_gradient_edge(x) for x in (*(tap.captured[place] for place in inside), out)]
        tap.captured.clear()  # so that the backward pass frees each value once it is past it
        found = torch.autograd.grad(value, wanted_at)
    last: ed.Place = ("resid_post", engine.model.info.n_layers - 1)
    behind = dict(zip([*inside, last], found, strict=True))
    return Gradients(behind, streams, part.columns, held), known


class _Apart(ed.Tap):
    """A tap at which the MLP's input is a tensor of its own.

    Without a norm it would be the stream itself, whose gradient takes in what passes by the MLP.
    """

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        return super().__call__(kind, layer, value.view_as(value) if kind == "ln2" else value)


def _to_columns(
    layout: Layout, x: Tensor, start: Start, frame: Frame, tap: ed.Tap, columns: Tensor
) -> Tensor:
    """The stream leaving the last block at `columns`, from that at `start`."""
    begin, last = start.layer, len(layout.blocks) - 1
    if start.after_attention:
        side = start.entering
        if begin == last:
            x, side = take_columns(x, columns), None if side is None else take_columns(side, columns)
        mid = tap("resid_mid", begin, x)
        x = mid_to_post(layout.blocks[begin], begin, mid, mid if side is None else side, tap)
        if begin == last:
            return x
        begin += 1
    if begin > last:
        return take_columns(x, columns)
    x = tap("resid_pre", last, run_blocks(layout, x, range(begin, last), frame, tap))
    block, narrow = layout.blocks[last], replace(frame, query_columns=columns)
    z, side = attention_z(block, last, x, narrow, tap)
    mid = attention_to_mid(block, last, take_columns(x, columns), tap("z", last, z), tap)
    return mid_to_post(block, last, tap("resid_mid", last, mid), side, tap)


def written_places(engine: EdgeEngine) -> list[ed.Place]:
    """Where heads and MLPs are seen to write."""
    kinds = ("z", "mlp_out") if engine.graph.mlps else ("z",)
    return [(kind, layer) for kind in kinds for layer in range(engine.graph.n_layers)]


def as_writers(engine: EdgeEngine, stream: Tensor, tap: ed.Tap) -> Writers:
    """What a pass without a norm behind attention captured at `written_places`."""
    layers, seen = range(engine.graph.n_layers), tap.captured
    mlps = tuple(seen["mlp_out", layer].detach() for layer in layers) if engine.graph.mlps else ()
    heads = tuple(seen["z", layer].detach() for layer in layers)
    return Writers(stream, heads, mlps, tuple(1.0 for _ in layers))


def _places(engine: EdgeEngine, start: Start) -> list[ed.Place]:
    """What is differentiated: projections and normed MLP inputs of the readers after `start`."""
    found: list[ed.Place] = []
    for layer in range(start.layer, engine.model.info.n_layers):
        skipped = start.after_attention and layer == start.layer
        found += [] if skipped else [(kind, layer) for kind in ("q", "k", "v")]
        # The heads of a parallel block do not reach its own MLP.
        if engine.graph.mlps and not (skipped and engine.graph.parallel):
            found.append(("ln2", layer))
    return found


def _before_mlp(engine: EdgeEngine) -> str:
    return "resid_pre" if engine.graph.parallel else "resid_mid"


@contextmanager
def frozen_scales(engine: EdgeEngine, index: Tensor, columns: Tensor) -> Iterator[None]:
    """Hold the norms behind attention at the clean run's scale, as the edge engine does.

    Only the prompts in `index` may be run inside, in that order, and the last block at `columns`.
    """
    blocks = engine.model.layout.blocks
    kept = [block.post_attention for block in blocks]
    try:
        for block, scale in zip(blocks, engine.clean.scales, strict=True):
            if isinstance(scale, Tensor):
                held = scale[index][..., 0]
                held = take_columns(held, columns) if block is blocks[-1] else held
                block.post_attention = _Held(held, block.weights()["ln1_post.w"].detach())
        yield
    finally:
        for block, norm in zip(blocks, kept, strict=True):
            block.post_attention = norm


@dataclass(frozen=True)
class _Held:
    """A norm with its scale [prompt, position, 1] held fixed."""

    scale: Tensor
    gain: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.scale * self.gain
