"""Embedding, blocks and unembedding in sequence, with taps."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from mech_interp.backends.huggingface.block import (
    Frame,
    KeyValues,
    Taps,
    attention_to_mid,
    attention_z,
    mid_to_post,
)
from mech_interp.backends.huggingface.layouts.base import Layout


def embed(layout: Layout, ids: Tensor, positions: Tensor, taps: Taps, *, grad: bool = False) -> Tensor:
    """The residual stream entering block 0, [row, position, d_model]."""
    x = layout.embed(ids)
    if grad and not x.requires_grad:
        x.requires_grad_()  # weights are frozen, so the graph starts at the embedding
    x = taps("embed", None, x)
    added = layout.pos_embed(positions)
    if added is None:
        return x
    if taps.wants("pos_embed", None):
        added = added.expand(x.shape)  # edits index rows, so every row needs its own
        if grad:
            added = added.clone().requires_grad_()
    return x + taps("pos_embed", None, added)


def own_keys_values(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`KeyValues` of a pass that starts at position 0: there is nothing earlier to join."""
    return k, v


def frame_for(
    layout: Layout,
    x: Tensor,
    positions: Tensor,
    *,
    kv: KeyValues = own_keys_values,
    explicit: bool = False,
    lengths: Tensor | None = None,
) -> Frame:
    """The frame of a pass over `positions` [row or 1, position]; `lengths` as in `Frame`."""
    return Frame(layout.rotary(x, positions), positions, kv, explicit, lengths=lengths)


def run_blocks(layout: Layout, x: Tensor, layers: Iterable[int], frame: Frame, taps: Taps) -> Tensor:
    """The stream after the given blocks."""
    for layer in layers:
        block = layout.blocks[layer]
        x = taps("resid_pre", layer, x)
        z, side = attention_z(block, layer, x, frame, taps)
        mid = taps("resid_mid", layer, attention_to_mid(block, layer, x, taps("z", layer, z), taps))
        x = taps("resid_post", layer, mid_to_post(block, layer, mid, side, taps))
    return x


def finish(layout: Layout, x: Tensor, taps: Taps) -> Tensor:
    """Final norm, unembedding, softcap."""
    normed = taps("ln_final", None, layout.final_norm(x))
    return taps("logits", None, layout.softcap(layout.unembedding(normed)))


def logits_of(layout: Layout, normed: Tensor, token_ids: Tensor | None) -> Tensor:
    """Unembedding and softcap after the final norm; only the tokens in `token_ids` [..., k] if given."""
    if token_ids is None:
        return layout.softcap(layout.unembedding(normed))
    head = layout.unembedding
    ids = token_ids.to(normed.device)
    out = (head.weight[ids] @ normed[..., None])[..., 0]
    return layout.softcap(out if head.bias is None else out + head.bias[ids])
