"""What reaches receivers along a path: their inputs with one sender at its value in the other run.

Everything here is position by position: attention is held at the base run, so a sender that changes at a
position changes later streams at that position alone. One call over all positions therefore serves a map
over positions too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.block import mid_to_post, mlp_of, mlp_source
from mech_interp.backends.tokens import Tokens
from mech_interp.graph import CircuitGraph, Reader, Writer
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.layouts.base import Block
    from mech_interp.backends.huggingface.model import HuggingFaceModel

Recorded = dict[tuple[Writer, Reader], Tensor]
"""By sender and receiver [prompt, position, features]: a head's q, k or v, what an MLP adds, or the stream
entering the final norm."""


@dataclass(frozen=True)
class Run:
    """Values of one run, [prompt, position, ...]; layers in order.

    Attributes:
        pre: the stream entering each block, and last the one leaving the last block.
        z: [prompt, position, head, d_head]. attn_out, mlp_out: what the sublayers add.
    """

    pre: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    attn_out: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: HuggingFaceModel, tokens: Tokens) -> Run:
        """A plain forward."""
        layers = range(model.info.n_layers)
        kinds = ["resid_pre", "z", "attn_out"]
        kinds += ["mlp_out"] if "mlp_out" in model.info.site_kinds else []
        last = Site("resid_post", model.info.n_layers - 1)
        capture = [*(Site(kind, layer) for kind in kinds for layer in layers), last]
        seen = model.forward(tokens, capture=capture, logits="none").activations

        def all_of(kind: str) -> tuple[Tensor, ...]:
            return tuple(seen[Site(kind, layer)] for layer in layers) if kind in kinds else ()

        return cls((*all_of("resid_pre"), seen[last]), all_of("z"), all_of("attn_out"), all_of("mlp_out"))

    def mid(self, block: Block, layer: int) -> Tensor:
        """What the MLP of a layer takes in."""
        pre = self.pre[layer]
        return pre if block.parallel else pre + self.attn_out[layer]


@dataclass(frozen=True)
class Paths:
    """A base run, the run that senders take their values from, and where to look."""

    model: HuggingFaceModel
    graph: CircuitGraph
    base: Run
    other: Run

    @torch.no_grad()
    def three_pass(self, senders: Sequence[Writer], receivers: Sequence[Reader]) -> Recorded:
        """Second pass of Wang et al. 2023: heads frozen except the sender, MLPs and norms recomputed.

        One call runs many senders, each in rows of its own that start where it writes.
        """
        found: Recorded = {}
        moving, x = self._entering(senders)
        for layer, block in enumerate(self.model.layout.blocks):
            self._record_heads(found, layer, moving, x, receivers)
            own = [w for w in senders if w.kind == "head" and w.layer == layer]
            entering = torch.cat([x, self.base.pre[layer].expand(len(own), -1, -1, -1)])
            mid = torch.cat([x + self.base.attn_out[layer], self._after_heads(layer, block, own)])
            moving = [*moving, *own]
            if len(moving):
                x, added = _finish(block, layer, mid, entering)
                self._record_mlp(found, layer, moving, added, receivers)
            if Writer("mlp", layer) in senders:
                whole = self.base.pre[layer] + self.base.attn_out[layer] + self.other.mlp_out[layer]
                moving, x = [*moving, Writer("mlp", layer)], torch.cat([x, whole[None]])
        for i, sender in enumerate(moving):
            self._keep(found, sender, Reader("logits"), x[i], receivers)
        return found

    @torch.no_grad()
    def direct_edge(self, senders: Sequence[Writer], receivers: Sequence[Reader]) -> Recorded:
        """Goldowsky-Dill et al. 2023: the receiver's input with the sender's own part exchanged."""
        found: Recorded = {}
        change = torch.stack([self.change(sender) for sender in senders])
        for layer, block in enumerate(self.model.layout.blocks):
            before = [i for i, w in enumerate(senders) if w.kind == "input" or w.layer < layer]
            chosen = [senders[i] for i in before]
            if any(_is_head(r, layer) for r in receivers) and before:
                self._record_heads(found, layer, chosen, self.base.pre[layer] + change[before], receivers)
            if Reader("mlp", layer) in receivers:
                inside = range(len(senders)) if not block.parallel else before
                near = [i for i in inside if self._before(senders[i], Reader("mlp", layer))]
                if near:
                    stream = self.base.mid(block, layer) + change[near]
                    added = _mlp(block, layer, stream.flatten(0, 1)).view_as(stream)
                    self._record_mlp(found, layer, [senders[i] for i in near], added, receivers)
        for i, sender in enumerate(senders):
            self._keep(found, sender, Reader("logits"), self.base.pre[-1] + change[i], receivers)
        return found

    def change(self, sender: Writer) -> Tensor:
        """What the sender writes in the other run less what it writes in the base run."""
        if sender.kind == "input":
            return self.other.pre[0] - self.base.pre[0]
        layer = sender.layer
        if sender.kind == "mlp":
            return self.other.mlp_out[layer] - self.base.mlp_out[layer]
        w_o = self.model.layout.blocks[layer].weights()["W_O"][sender.head].detach()
        difference = self.other.z[layer][:, :, sender.head] - self.base.z[layer][:, :, sender.head]
        return difference @ w_o

    def everything(self) -> Tensor:
        """The final stream with every head and the embedding at the other run, MLPs recomputed."""
        x = self.other.pre[0][None]
        for layer, block in enumerate(self.model.layout.blocks):
            out = _attention(block, self.other.z[layer])[None]
            x, _ = _finish(block, layer, x + out, x)
        return x[0]

    def all_edges(self) -> Tensor:
        """The final stream with every edge into it at the other run."""
        total = self.base.pre[-1]
        for sender in self.graph.writers:
            total = total + self.change(sender)
        return total

    def _entering(self, senders: Sequence[Writer]) -> tuple[list[Writer], Tensor]:
        start = self.other.pre[0]
        if Writer("input") in senders:
            return [Writer("input")], start[None]
        return [], start.new_empty(0, *start.shape)

    def _after_heads(self, layer: int, block: Block, own: Sequence[Writer]) -> Tensor:
        """The stream after attention, one head at its value in the other run: [sender, prompt, ...]."""
        pre = self.base.pre[layer]
        if not own:
            return pre.new_empty(0, *pre.shape)
        found = []
        for sender in own:
            z = self.base.z[layer].clone()
            z[:, :, sender.head] = self.other.z[layer][:, :, sender.head]
            found.append(pre + _attention(block, z))
        return torch.stack(found)

    def _record_heads(
        self, found: Recorded, layer: int, senders: Sequence[Writer], x: Tensor, receivers: Sequence[Reader]
    ) -> None:
        """q, k and v of receiving heads from the stream entering their block [sender, prompt, ...]."""
        own = [r for r in receivers if _is_head(r, layer)]
        if not own or not len(senders):
            return
        block = self.model.layout.blocks[layer]
        projected = dict(zip("qkv", block.qkv(block.norm1(x.flatten(0, 1))), strict=True))
        for reader in own:
            values = projected[reader.kind][:, :, reader.head]
            values = values.reshape(*x.shape[:3], values.shape[-1])
            for i, sender in enumerate(senders):
                found[sender, reader] = values[i]

    def _record_mlp(
        self, found: Recorded, layer: int, senders: Sequence[Writer], added: Tensor, some: Sequence[Reader]
    ) -> None:
        for i, sender in enumerate(senders):
            self._keep(found, sender, Reader("mlp", layer), added[i], some)

    def _keep(
        self, found: Recorded, sender: Writer, reader: Reader, value: Tensor, wanted: Sequence[Reader]
    ) -> None:
        if reader in wanted and self._before(sender, reader):
            found[sender, reader] = value

    def _before(self, sender: Writer, reader: Reader) -> bool:
        return self.graph.writer_index[sender] < self.graph.before(reader)


def site_of(reader: Reader) -> Site:
    """The site that is replaced to set what a reader's input gives."""
    if reader.kind == "mlp":
        return Site("mlp_out", reader.layer)
    if reader.kind == "logits":
        raise ValueError("the logits are read from the stream directly")
    return Site(reader.kind, reader.layer, reader.head)


def sender_batches(senders: Sequence[Writer], per_sender: int, budget: int) -> Iterator[Sequence[Writer]]:
    """Senders, in order of computation, in batches whose recorded values fit `budget` bytes."""
    ordered = sorted(senders, key=lambda w: (w.layer, w.kind == "mlp", w.head))
    size = max(1, budget // max(1, per_sender))
    for at in range(0, len(ordered), size):
        yield ordered[at : at + size]


def _is_head(reader: Reader, layer: int) -> bool:
    return reader.kind in ("q", "k", "v") and reader.layer == layer


def _attention(block: Block, z: Tensor) -> Tensor:
    """What attention adds to the stream, from z."""
    out = block.attention_output(z)
    return out if block.post_attention is None else block.post_attention(out)


def _finish(block: Block, layer: int, mid: Tensor, entering: Tensor) -> tuple[Tensor, Tensor]:
    """The stream leaving a block and what its MLP added, [sender, prompt, position, d_model]."""
    if block.attention_only:
        return mid, torch.zeros_like(mid)
    flat = mid.flatten(0, 1)
    side = mlp_source(block, entering.flatten(0, 1)) if block.parallel else flat
    tap = ed.Tap(ed.Edits(), {("mlp_out", layer)})
    post = mid_to_post(block, layer, flat, side, tap)
    return post.view_as(mid), tap.captured["mlp_out", layer].view_as(mid)


def _mlp(block: Block, layer: int, x: Tensor) -> Tensor:
    """What an MLP adds, from the stream it reads."""
    normed = block.norm1(x) if block.shared_norm else block.norm2(x)
    out = mlp_of(block, layer, normed, ed.Tap(ed.Edits()))
    return out if block.post_mlp is None else block.post_mlp(out)
