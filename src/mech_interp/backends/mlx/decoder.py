"""The forward pass in MLX, written in named pieces so that every site is a value in hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mech_interp.backends.huggingface.block import Taps
from mech_interp.backends.mlx.convert import to_mlx, to_torch
from mech_interp.backends.mlx.facts import Facts
from mech_interp.backends.mlx.files import Parts
from mech_interp.backends.mlx.rotary import tables

# Joins keys and values just computed with earlier ones: (layer, k, v) to the same with all keys.
Join = Callable[[int, mx.array, mx.array], tuple[mx.array, mx.array]]


class MLXTaps:
    """Shows torch's taps the sites that they want; the rest never leaves MLX."""

    def __init__(self, taps: Taps) -> None:
        self.taps = taps

    def wants(self, kind: str, layer: int | None = None) -> bool:
        """Whether the site is captured or edited."""
        return self.taps.wants(kind, layer)

    def __call__(self, kind: str, layer: int | None, value: mx.array) -> mx.array:
        if not self.taps.wants(kind, layer):
            return value
        live = to_torch(value)
        seen = self.taps(kind, layer, live)
        return value if seen is live else to_mlx(seen)


@dataclass(frozen=True)
class Frame:
    """What the layers of one pass share.

    Attributes:
        positions: [row or 1, position] true positions of the computed columns.
        turn: cosines and sines [row or 1, position, 1, d_head / 2] (None without rotary).
        join: how earlier keys and values are joined in.
        taps: see every site.
    """

    positions: np.ndarray
    turn: tuple[mx.array, mx.array] | None
    join: Join
    taps: MLXTaps


def own_keys_values(layer: int, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    """`Join` of a pass that starts at position 0."""
    return k, v


class Decoder:
    """One model. `explicit` computes scores and pattern step by step in every layer."""

    def __init__(self, facts: Facts, parts: Parts, *, explicit: bool = False) -> None:
        self.facts, self.parts = facts, parts
        self.explicit = explicit or facts.score_cap is not None
        self.dtype = parts.outside["embed"].dtype
        # The library rounds the factor to the weights' own precision.
        self.embed_scale = float(mx.array(facts.embed_scale, mx.float32).astype(self.dtype).item())

    def stream(
        self, ids: np.ndarray, positions: np.ndarray, taps: MLXTaps, join: Join = own_keys_values
    ) -> mx.array:
        """The residual stream after all blocks, [row, position, d_model], of ids [row, position]."""
        x = self._embed(ids, positions, taps)
        frame = Frame(positions, self._turn(positions), join, taps)
        for layer in range(self.facts.sizes.n_layers):
            x = self._block(layer, x, frame)
        return x

    def finish(self, x: mx.array, taps: MLXTaps) -> mx.array:
        """Final norm, unembedding, softcap."""
        normed = taps("ln_final", None, self.final_norm(x))
        return taps("logits", None, self.softcap(normed @ self.parts.outside["unembed"].T))

    def final_norm(self, x: mx.array) -> mx.array:
        """The norm before the unembedding."""
        return self._norm(x, self.parts.outside, "ln_final")

    def softcap(self, logits: mx.array) -> mx.array:
        """The final logit softcap."""
        return _capped(logits, self.facts.logit_cap)

    def _embed(self, ids: np.ndarray, positions: np.ndarray, taps: MLXTaps) -> mx.array:
        outside = self.parts.outside
        x = outside["embed"][mx.array(ids)]
        if self.facts.embed_scale != 1.0:
            x = x * self.embed_scale
        x = taps("embed", None, x)
        if "positions" not in outside:
            return x
        added = outside["positions"][mx.array(positions)]
        if taps.wants("pos_embed"):
            added = taps("pos_embed", None, mx.broadcast_to(added, x.shape))
        return x + added

    def _turn(self, positions: np.ndarray) -> tuple[mx.array, mx.array] | None:
        if self.facts.frequencies is None:
            return None
        cos, sin = tables(self.facts.frequencies, positions)
        return tuple(mx.array(t).astype(self.dtype)[:, :, None] for t in (cos, sin))

    def _block(self, layer: int, x: mx.array, frame: Frame) -> mx.array:
        facts, block, taps = self.facts, self.parts.blocks[layer], frame.taps
        x = taps("resid_pre", layer, x)
        z = taps("z", layer, self._attention(layer, x, frame))
        out = _linear(z.reshape(*z.shape[:2], -1), block, "o")
        if taps.wants("result", layer):
            out = _through_results(layer, z, block, out, taps)
        out = taps("attn_out_own", layer, out)
        if facts.post_norms:
            out = self._norm(out, block, "ln1_post")
        mid = taps("resid_mid", layer, x + taps("attn_out", layer, out))
        normed = taps("ln2", layer, self._norm(mid, block, "ln2"))
        out = taps("mlp_out_own", layer, self._mlp(layer, normed, taps))
        if facts.post_norms:
            out = self._norm(out, block, "ln2_post")
        return taps("resid_post", layer, mid + taps("mlp_out", layer, out))

    def _attention(self, layer: int, x: mx.array, frame: Frame) -> mx.array:
        """From the stream entering the block to z [row, position, head, d_head] (before its tap)."""
        facts, block, taps = self.facts, self.parts.blocks[layer], frame.taps
        normed = taps("ln1", layer, self._norm(x, block, "ln1"))
        q, k, v = (
            taps(name, layer, _linear(normed, block, name).reshape(*x.shape[:2], n, facts.sizes.d_head))
            for name, n in (
                ("q", facts.sizes.n_heads),
                ("k", facts.sizes.n_kv_heads),
                ("v", facts.sizes.n_kv_heads),
            )
        )
        if facts.qk_norms:
            q, k = self._norm(q, block, "q_norm"), self._norm(k, block, "k_norm")
        if frame.turn is not None:
            q = taps("rot_q", layer, _rotated(q, *frame.turn))
            k = taps("rot_k", layer, _rotated(k, *frame.turn))
        k, v = frame.join(layer, k, v)
        seen = mx.array(_seen(frame.positions, k.shape[1], facts.windows[layer]))
        q, k, v = (part.swapaxes(1, 2) for part in (q, k, v))
        if self.explicit or taps.wants("attn_scores", layer) or taps.wants("pattern", layer):
            z = self._explicit(layer, q, k, v, seen, taps)
        else:
            z = mx.fast.scaled_dot_product_attention(q, k, v, scale=facts.scales[layer], mask=seen)
        return z.swapaxes(1, 2)

    def _explicit(
        self, layer: int, q: mx.array, k: mx.array, v: mx.array, seen: mx.array, taps: MLXTaps
    ) -> mx.array:
        """Attention step by step; all [row, head, position, ...]."""
        shared = q.shape[1] // k.shape[1]
        k, v = mx.repeat(k, shared, axis=1), mx.repeat(v, shared, axis=1)
        scores = _capped((q @ k.swapaxes(-1, -2)) * self.facts.scales[layer], self.facts.score_cap)
        scores = mx.where(seen, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
        scores = taps("attn_scores", layer, scores)
        pattern = mx.softmax(scores.astype(mx.float32), axis=-1).astype(v.dtype)
        return taps("pattern", layer, pattern) @ v

    def _mlp(self, layer: int, normed: mx.array, taps: MLXTaps) -> mx.array:
        block, gated = self.parts.blocks[layer], self.facts.gated
        pre = taps("mlp_pre", layer, _linear(normed, block, "gate" if gated else "in"))
        post = CURVES[self.facts.curve](pre)
        if gated:
            linear = taps("mlp_pre_linear", layer, _linear(normed, block, "in"))
            post = post * linear
        return _linear(taps("mlp_post", layer, post), block, "out")

    def _norm(self, x: mx.array, owner: dict[str, mx.array], key: str) -> mx.array:
        """In float32 inside, in the stream's dtype outside, whatever the gain's."""
        if self.facts.norm == "layer":
            return mx.fast.layer_norm(x, owner[key], owner[f"{key}_b"], self.facts.eps)
        gain = owner[key]
        if gain.dtype != x.dtype:
            return (mx.fast.rms_norm(x.astype(gain.dtype), None, self.facts.eps) * gain).astype(x.dtype)
        return mx.fast.rms_norm(x, None, self.facts.eps) * gain


def _linear(x: mx.array, block: dict[str, mx.array], key: str) -> mx.array:
    bias = block.get(f"b_{key}")
    return x @ block[key] if bias is None else mx.addmm(bias, x, block[key])


def _rotated(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Each pair (i, i + d/2) of x [row, position, head, d_head] turned by its angle.

    Source: Su et al. 2021 (RoFormer), in the split-half form that Llama checkpoints are stored for.
    """
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _seen(positions: np.ndarray, n_keys: int, window: int | None) -> np.ndarray:
    """[row or 1, 1, query, key]: whether a query sees a key; `window` counts its own."""
    distance = positions[:, None, :, None] - np.arange(n_keys)
    seen: np.ndarray = distance >= 0
    return seen if window is None else seen & (distance < window)


def _through_results(
    layer: int, z: mx.array, block: dict[str, mx.array], out: mx.array, taps: MLXTaps
) -> mx.array:
    """Show each head's own output; where an edit changes one, the sublayer's output is their sum.

    Positions that no edit changed keep `out` to the last bit. Adding the difference to it instead would
    leave rounding where heads cancel, which a post-norm blows up.
    """
    heads, d_head = z.shape[2:]
    results = (z.swapaxes(1, 2) @ block["o"].reshape(heads, d_head, -1)).swapaxes(1, 2)
    edited = taps("result", layer, results)
    if edited is results:
        return out
    summed = edited.sum(axis=2) + block.get("b_o", 0)
    return mx.where((edited != results).any(axis=(2, 3))[..., None], summed, out)


def _capped(x: mx.array, cap: float | None) -> mx.array:
    return x if cap is None else cap * mx.tanh(x / cap)


def _gelu(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.erf(x * 0.5**0.5))


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


def _silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


CURVES: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
}
