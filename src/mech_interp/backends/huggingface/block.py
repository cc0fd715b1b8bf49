"""One decoder block executed in named pieces, every site a value in hand.

The taps of ``resid_pre``, ``z``, ``resid_mid`` and ``resid_post`` are the caller's: between the pieces
a sweep lets further rows join, and they must be there before the tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mech_interp.backends.huggingface.layouts.base import Block, Rotary
from mech_interp.errors import InputError
from mech_interp.sites import Site


class Taps(Protocol):
    """Sees every site as it is computed; may record it or hand back an edited tensor."""

    def wants(self, kind: str, layer: int | None) -> bool:
        """Whether the site is captured or edited, so that it must be computed."""
        ...

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        """Record and edit; returns the value to go on with."""
        ...

    def narrow(self) -> None:
        """From here on only the columns still needed are computed."""
        ...


class KeyValues(Protocol):
    """Joins the keys and values just computed with those that came from elsewhere."""

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[row, new position, kv_head, d_head] to [row, key position, kv_head, d_head]."""
        ...


@dataclass(frozen=True)
class Frame:
    """Where the rows being computed lie.

    Attributes:
        rotary: cosines and sines at the computed positions (None without rotary).
        query_positions: [row or 1, position] true positions of the computed columns.
        kv: how earlier keys and values are joined in.
        explicit: compute scores and pattern step by step instead of fused attention.
        query_columns: in the last layer of a sweep, the columns [row, n] whose output is still
            needed; None for all.
        lengths: [row] real tokens of each row where queries see all of them; None for causal models.
    """

    rotary: Rotary | None
    query_positions: Tensor
    kv: KeyValues
    explicit: bool = False
    query_columns: Tensor | None = None
    lengths: Tensor | None = None


def attention_z(block: Block, layer: int, x: Tensor, frame: Frame, taps: Taps) -> tuple[Tensor, Tensor]:
    """From the residual stream entering the block to z [row, position, head, d_head] (before its tap).

    Also returns what the MLP of a parallel block reads, which for other blocks has no use.
    """
    normed = taps("ln1", layer, block.norm1(x))
    q, k, v = block.qkv(normed)
    q, k, v = taps("q", layer, q), taps("k", layer, k), taps("v", layer, v)
    side = normed if block.shared_norm else x
    z = attend(block, layer, q, k, v, frame, taps)
    return z, side if frame.query_columns is None else take_columns(side, frame.query_columns)


def attend(block: Block, layer: int, q: Tensor, k: Tensor, v: Tensor, frame: Frame, taps: Taps) -> Tensor:
    """From projected q, k and v to z [row, position, head, d_head] (before its tap)."""
    q, k = block.norm_qk(q, k)
    if frame.rotary is not None and block.rotary_kind is not None:
        q, k = block.rotate(q, k, frame.rotary)
        q, k = taps("rot_q", layer, q), taps("rot_k", layer, k)
    keys, values = frame.kv(layer, k, v)
    positions = frame.query_positions
    if frame.query_columns is not None:
        q = take_columns(q, frame.query_columns)
        positions = take_columns(positions.expand(len(q), -1), frame.query_columns)
        taps.narrow()
    allowed = attention_mask(positions, keys.shape[1], block.window, frame.lengths)
    bias = block.score_bias(positions, keys.shape[1])
    explicit = frame.explicit or taps.wants("attn_scores", layer) or taps.wants("pattern", layer)
    if explicit or block.score_cap is not None or block.wide_scores:
        return _explicit_attention(block, layer, q, keys, values, allowed, bias, taps)
    # Queries that were picked out, or that continue a cache, are not the keys' own positions in order.
    in_order = len(allowed) == 1 and frame.query_columns is None and q.shape[1] == keys.shape[1]
    plain = in_order and block.window is None and bias is None and frame.lengths is None
    mask = None if plain else allowed if bias is None else bias.masked_fill(~allowed, -torch.inf)
    return _fused_attention(block, q, keys, values, mask)


def mlp_source(block: Block, x: Tensor) -> Tensor:
    """What the MLP of a parallel block reads, from the stream entering the block."""
    return block.norm1(x) if block.shared_norm else x


def attention_to_mid(block: Block, layer: int, x: Tensor, z: Tensor, taps: Taps) -> Tensor:
    """From z and the stream entering the block to their sum: resid_mid (before its tap), where it exists."""
    out = block.attention_output(z)
    if taps.wants("result", layer):
        out = _through_results(block, layer, z, out, taps)
    out = taps("attn_out_own", layer, out)
    if block.post_attention is not None:
        out = block.post_attention(out)
    return x + taps("attn_out", layer, out)


def mid_to_post(block: Block, layer: int, mid: Tensor, side: Tensor, taps: Taps) -> Tensor:
    """From the stream after attention to the stream leaving the block (before its tap).

    `side` is what the MLP of a parallel block reads (see `mlp_source`).
    """
    if block.attention_only:
        return mid
    normed = side if block.shared_norm else taps("ln2", layer, block.norm2(side if block.parallel else mid))
    out = taps("mlp_out_own", layer, mlp_of(block, layer, normed, taps))
    if block.post_mlp is not None:
        out = block.post_mlp(out)
    return mid + taps("mlp_out", layer, out)


def mlp_of(block: Block, layer: int, normed: Tensor, taps: Taps) -> Tensor:
    """The MLP's (or mixture's) own output from its normed input."""
    mixture = block.mixture
    if mixture is not None:
        logits = taps("router_logits", layer, mixture.router_logits(normed))
        chosen, weights = mixture.choose(logits)
        edited = taps("expert_indices", layer, chosen)
        if edited is not chosen:
            _check_experts(edited, mixture.n_experts, layer)
        return mixture.mix(normed, edited, taps("expert_weights", layer, weights))
    pre, linear = block.mlp_in(normed)
    pre = taps("mlp_pre", layer, pre)
    if linear is not None:
        linear = taps("mlp_pre_linear", layer, linear)
    post = taps("mlp_post", layer, block.mlp_activation(pre, linear))
    return block.mlp_out(post)


def _check_experts(chosen: Tensor, n_experts: int, layer: int) -> None:
    wrong = (chosen < 0) | (chosen >= n_experts)
    if bool(wrong.any()):
        raise InputError(
            f"{Site('expert_indices', layer)} was set to expert {int(chosen[wrong][0])}, where there are "
            f"{n_experts}.",
            f"Use 0 to {n_experts - 1}.",
        )


def attention_mask(
    query_positions: Tensor, n_keys: int, window: int | None, lengths: Tensor | None = None
) -> Tensor:
    """[row or 1, 1, query, key] bool: the keys that a query sees.

    These are the keys at or before it, inside the window if there is one; or, given the rows' `lengths`,
    all real keys of its row.
    """
    keys = torch.arange(n_keys, device=query_positions.device)
    if lengths is not None:
        return (keys < lengths[:, None, None, None]).expand(-1, -1, query_positions.shape[1], -1)
    distance = query_positions[:, None, :, None] - keys
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Gather columns [row, n] of x [row, position, ...]."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, columns]


def _repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """[row, kv_head, position, d_head] to [row, head, position, d_head]."""
    repeats = n_heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _fused_attention(block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`mask` is boolean (true where seen) or added to the scores; None stands for plain causal."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    z = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=block.scale
    )
    return z.transpose(1, 2)


def _explicit_attention(
    block: Block,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    bias: Tensor | None,
    taps: Taps,
) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    wide = torch.promote_types(q.dtype, torch.float32)  # as the library: the softmax in at least float32
    if block.wide_scores:
        scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * block.scale
    else:
        scores = (q @ k.transpose(-1, -2)) * block.scale
    if block.score_cap is not None:
        scores = block.score_cap * torch.tanh(scores / block.score_cap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    scores = taps("attn_scores", layer, scores)
    pattern = taps("pattern", layer, scores.softmax(-1, dtype=wide).to(v.dtype))
    return (pattern @ v).transpose(1, 2)


def _through_results(block: Block, layer: int, z: Tensor, out: Tensor, taps: Taps) -> Tensor:
    """Show each head's own output; where an edit changes one, the sublayer's output is their sum."""
    weights = block.weights()
    results = torch.einsum("rphd,hdm->rphm", z, weights["W_O"])
    edited = taps("result", layer, results)
    if edited is results and not edited.requires_grad:
        return out
    summed = edited.sum(2) + weights["b_O"] if "b_O" in weights else edited.sum(2)
    if edited.requires_grad:
        return summed  # gradients must pass through the heads' outputs
    # Positions that no edit changed keep `out` to the last bit. Adding the difference to it instead would
    # leave rounding where heads cancel, which a post-norm blows up.
    return torch.where((edited != results).flatten(2).any(-1, keepdim=True), summed, out)
